"""A table of a database or a lake: its columns, and the rows within bounds as Arrow batches."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import pyarrow as pa

from feature_jobs.sources.bounds import Bounds


class RemoteTable(abc.ABC):
    """A table by its name; str() is how messages name it, without a secret. Reads it in the state in which it was when
    it was first asked.

    Each method raises BadInputError where a person must change something, RetryLaterError where the server or the
    store does not answer.
    """

    @property
    @abc.abstractmethod
    def version(self) -> str | None:
        """The version that is read, where the table has versions."""

    @abc.abstractmethod
    def schema(self) -> pa.Schema:
        """All columns, with the types in which `batches` gives them."""

    @abc.abstractmethod
    def batches(self, columns: Sequence[str], bounds: Sequence[Bounds] | None) -> Iterable[pa.RecordBatch]:
        """Some columns of the rows that lie within one of `bounds` at least, in any order; None: of all rows."""

    @abc.abstractmethod
    def num_rows(self) -> int:
        """The number of all rows."""
