"""A Delta table in a folder or an object store, in one version.

Tables with deletion vectors or column mapping are refused, whatever the library says of them: where it read their data
files as they are, deleted rows would come back, and renamed columns would be null.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_jobs.errors import BadInputError, RecloopError
from feature_jobs.object_client import explained, is_url, storage_options
from feature_jobs.sources.bounds import Bounds
from feature_jobs.sources.readers.remote_table import RemoteTable

if TYPE_CHECKING:
    import pyarrow.dataset as pads
    from deltalake import DeltaTable as Table

_MAPPING = "delta.columnMapping.mode"
_PURGE = "REORG TABLE ... APPLY (PURGE), then DROP FEATURE deletionVectors"


@dataclass(frozen=True)
class DeltaTable(RemoteTable):
    """A table by its folder or URL."""

    place: str

    def __str__(self) -> str:
        return f"Delta table {self.place}"

    @property
    def version(self) -> str:
        """See RemoteTable."""
        return str(self._table.version())

    def schema(self) -> pa.Schema:
        """See RemoteTable."""
        schema: pa.Schema = self._dataset.schema
        return schema

    def batches(self, columns: Sequence[str], bounds: Sequence[Bounds] | None) -> Iterator[pa.RecordBatch]:
        """See RemoteTable. Files and row groups without such rows are not read."""
        condition = None
        for one in bounds or ():
            held = _condition(one, self.schema().field(one.name).type)
            condition = held if condition is None else condition | held
        with self._errors():
            yield from self._dataset.scanner(columns=list(columns), filter=condition).to_batches()

    def num_rows(self) -> int:
        """See RemoteTable."""
        with self._errors():
            return int(self._dataset.count_rows())

    @functools.cached_property
    def _table(self) -> Table:
        from deltalake import DeltaTable as Table
        from deltalake.exceptions import TableNotFoundError

        options = storage_options(self.place) if is_url(self.place) else {}
        with self._errors():
            try:
                table = Table(self.place, storage_options=options)
            except TableNotFoundError:
                raise BadInputError(f"{self}: no Delta table there (_delta_log); correct the path") from None
            features = {*(table.protocol().reader_features or ())}
            mapping = table.metadata().configuration.get(_MAPPING, "none")
        if "deletionVectors" in features:
            raise BadInputError(
                f"{self}: has deletion vectors, which cannot be read right yet; write it without: {_PURGE}"
            )
        if mapping != "none" or "columnMapping" in features:
            raise BadInputError(
                f"{self}: has column mapping ({_MAPPING}: {mapping}), which cannot be read right yet; write its rows to"
                f" a table without"
            )
        return table

    @functools.cached_property
    def _dataset(self) -> pads.Dataset:
        with self._errors():
            return self._table.to_pyarrow_dataset()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the library become ours; those of an object store without their text, which can hold keys."""
        from deltalake.exceptions import DeltaError, DeltaProtocolError

        try:
            yield
        except DeltaProtocolError as error:  # names the features that it does not know
            raise BadInputError(f"{self}: {error}; write the table without them") from None
        except (DeltaError, pa.ArrowException, OSError, ValueError) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> RecloopError:
        if is_url(self.place):
            return explained(error, self.place, rights="read and list")
        what = str(error).splitlines()[0].replace(self.place, "").strip()[:200]
        return BadInputError(f"{self}: not readable ({what}); repair it, or correct the path")


def _condition(bounds: Bounds, kind: pa.DataType) -> pads.Expression:
    import pyarrow.dataset as pads

    def scalar(value: object) -> pa.Scalar:
        return pa.scalar(value, pa.int64() if pa.types.is_integer(kind) else kind)

    low, high, least, most = map(scalar, (bounds.low, bounds.high, bounds.least, bounds.most))
    raw = pads.field(bounds.name)
    return raw.is_null() | ((raw >= low) & (raw <= high)) | (raw < least) | (raw > most)
