"""An Iceberg table of a catalog, in one snapshot.

The catalog's address and credentials are in the settings of PyIceberg: PYICEBERG_CATALOG__NAME__URI and others, or
~/.pyiceberg.yaml. Position deletes are applied; tables with equality deletes or deletion vectors are refused.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.sources.bounds import Bounds
from feature_jobs.sources.readers.remote_table import RemoteTable

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import DataScan, Table

_COMPACT = "compact it (rewrite_data_files, rewrite_position_delete_files), and write by merge-on-read without them"


@dataclass(frozen=True)
class IcebergTable(RemoteTable):
    """A table by its name, `namespace.table`, in a catalog."""

    name: str
    catalog: str

    def __str__(self) -> str:
        return f"Iceberg table {self.name} (catalog {self.catalog})"

    @property
    def version(self) -> str | None:
        """See RemoteTable: the snapshot's id."""
        snapshot = self._table.current_snapshot()
        return str(snapshot.snapshot_id) if snapshot else None

    def schema(self) -> pa.Schema:
        """See RemoteTable."""
        schema: pa.Schema = self._table.schema().as_arrow()
        return schema

    def batches(self, columns: Sequence[str], bounds: Sequence[Bounds] | None) -> Iterator[pa.RecordBatch]:
        """See RemoteTable. Files and row groups without such rows are not read."""
        from pyiceberg.expressions import AlwaysTrue, Or

        conditions = [_condition(one) for one in bounds or ()]
        condition = functools.reduce(Or, conditions) if conditions else AlwaysTrue()
        with self._errors():
            scan = self._table.scan(row_filter=condition, selected_fields=tuple(columns))
            self._refuse_deletion_vectors(scan)
            yield from scan.to_arrow_batch_reader()

    def num_rows(self) -> int:
        """See RemoteTable."""
        with self._errors():
            return int(self._table.scan().count())

    @functools.cached_property
    def _table(self) -> Table:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.utils.config import Config

        # Read now: the library reads the environment when it is imported.
        settings = Config().get_catalog_config(self.catalog)
        if not settings:
            raise BadInputError(
                f"{self}: PyIceberg has no settings of this catalog; set"
                f" PYICEBERG_CATALOG__{self.catalog.upper()}__URI, or correct the table's catalog"
            )
        with self._errors():
            return load_catalog(self.catalog, **settings).load_table(self.name)

    def _refuse_deletion_vectors(self, scan: DataScan) -> None:
        from pyiceberg.manifest import FileFormat

        for task in scan.plan_files():
            if any(file.file_format == FileFormat.PUFFIN for file in task.delete_files):
                raise BadInputError(f"{self}: has deletion vectors, which cannot be read right yet; {_COMPACT}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the library become ours, without their text: it can repeat addresses and keys."""
        import requests
        from pyiceberg import exceptions as iceberg
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (iceberg.NoSuchTableError, iceberg.NoSuchNamespaceError):
            raise BadInputError(f"{self}: the catalog has no such table; correct the path (namespace.table)") from None
        except (requests.ConnectionError, requests.Timeout, iceberg.ServiceUnavailableError, iceberg.ServerError):
            raise RetryLaterError(
                f"{self}: the catalog cannot be reached or is busy; try again later, and check its URI and the network"
                f" if this repeats"
            ) from None
        except (iceberg.UnauthorizedError, iceberg.ForbiddenError, iceberg.AuthorizationExpiredError):
            raise BadInputError(f"{self}: the catalog refuses access; correct its credentials") from None
        except (ValueError, NotImplementedError) as error:
            raise self._explained(error) from None
        except (requests.RequestException, SQLAlchemyError, pa.ArrowException, OSError) as error:
            raise BadInputError(
                f"{self}: not readable ({type(error).__name__}); check the catalog's settings (its URI, the warehouse"
                f" and its credentials), and the table's files"
            ) from None

    def _explained(self, error: Exception) -> RecloopError:
        if "equality deletes" in str(error):
            return BadInputError(f"{self}: has equality deletes, which cannot be read yet; {_COMPACT}")
        return BadInputError(f"{self}: not readable ({type(error).__name__}); check the catalog's settings")


def _condition(bounds: Bounds) -> BooleanExpression:
    from pyiceberg.expressions import And, GreaterThan, GreaterThanOrEqual, IsNull, LessThan, LessThanOrEqual, Or

    low, high, least, most = (
        _literal(value, bounds.raw_type) for value in (bounds.low, bounds.high, bounds.least, bounds.most)
    )
    name = bounds.name
    inside = And(GreaterThanOrEqual(name, low), LessThanOrEqual(name, high))
    return Or(IsNull(name), inside, LessThan(name, least), GreaterThan(name, most))


def _literal(value: int | datetime.datetime, raw_type: str) -> int | str:
    if isinstance(value, int):
        return value
    return f"{value:%Y-%m-%d}" if raw_type == "DATE" else value.isoformat()
