"""Rows of a log in a file, of which some are read at a time, and with their negatives among them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.windows.keys import Bools, Ints
from feature_jobs.windows.stretches import stretches

ROW = "key.event_row"


class Rows(Protocol):
    """Rows of a log."""

    @property
    def num_rows(self) -> int:
        """Number of the rows."""

    def column(self, name: str, begin: int, end: int) -> pa.Array:
        """The values of a column in some of the rows."""


class RowsOfFile:
    """The rows of a Parquet file, of which the row groups that are asked for are read."""

    def __init__(self, file: Path) -> None:
        self._file = pq.ParquetFile(file)
        about = self._file.metadata
        self.num_rows: int = about.num_rows
        self.names: list[str] = self._file.schema_arrow.names
        nums = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
        self._begins = np.cumsum([0, *nums])

    def column(self, name: str, begin: int, end: int) -> pa.Array:
        """The values of a column in some of the rows."""
        first = max(int(np.searchsorted(self._begins, begin, "right")) - 1, 0)
        last = max(int(np.searchsorted(self._begins, end, "left")), first)
        found = self._file.read_row_groups(list(range(first, last)), columns=[name])[name]
        return found.slice(begin - self._begins[first], end - begin).combine_chunks()

    def tables(self, names: Collection[str]) -> Iterator[pa.Table]:
        """All rows in their order, some at a time, with the columns of these names that are there."""
        present = [name for name in self.names if name in names]
        for begin, end in stretches(self.num_rows):
            # By row groups: iter_batches of pyarrow keeps what it has read until the end.
            first, last = np.searchsorted(self._begins[:-1], [begin, end]).tolist()
            yield self._file.read_row_groups(list(range(first, last)), columns=present)


class RowsWithNegatives:
    """Rows of a log, each followed by its negatives, with new numbers.

    `negatives` are ordered by the row of the log that each is a copy of (ROW). A negative has its own item's columns,
    null in the `unknown` ones, and all else of that row.
    """

    def __init__(self, own: RowsOfFile, negatives: RowsOfFile, unknown: Collection[str]) -> None:
        self._own, self._negatives, self._unknown = own, negatives, unknown
        self.num_rows = own.num_rows + negatives.num_rows
        copied = np.asarray(negatives.column(ROW, 0, negatives.num_rows))
        self._places: Ints = copied + np.arange(1, len(copied) + 1)

    @cached_property
    def is_negative(self) -> Bools:
        """Says which of the rows are negatives."""
        found = np.zeros(self.num_rows, bool)
        found[self._places] = True
        return found

    def column(self, name: str, begin: int, end: int) -> pa.Array:
        """The values of a column in some of the rows."""
        if name == ROW:
            return pa.array(np.arange(begin, end))
        if begin == end:
            return self._own.column(name, 0, 0)
        first, last = np.searchsorted(self._places, [begin, end]).tolist()
        is_negative = self.is_negative[begin:end]
        num_before = np.cumsum(is_negative)
        # A negative that comes first here is a copy of a row before.
        rows = np.arange(begin, end) - first - num_before
        low = int(rows[0])
        own = self._own.column(name, low, int(rows[-1]) + 1)
        if name in self._negatives.names:
            places = np.where(is_negative, len(own) + num_before - 1, rows - low)
            return pa.concat_arrays([own, self._negatives.column(name, first, last)]).take(pa.array(places))
        # A null index takes a null.
        return own.take(pa.array(rows - low, mask=is_negative if name in self._unknown else None))
