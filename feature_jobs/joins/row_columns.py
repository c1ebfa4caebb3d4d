"""Columns of a day's rows that are found part by part in another order than that of the rows, such as by key."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_jobs.windows.keys import Ints

_ROW = "row"


class RowColumns:
    """Columns in a file, so that memory does not grow with the rows.

    A part is sorted by row when it is added. So a stretch of rows is one slice of each part, and the file is read once.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None

    def add(self, rows: Ints, columns: Mapping[str, pa.Array]) -> None:
        """Adds the values of some rows, in the order of `rows`. Each row is added once, with the same columns."""
        order = np.argsort(rows)
        taken = pa.array(order)
        part = pa.record_batch({_ROW: rows[order], **{name: column.take(taken) for name, column in columns.items()}})
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._file), part.schema)
        self._writer.write_batch(part)

    def columns(self, begin: int, end: int, names: Collection[str] | None = None) -> dict[str, pa.Array]:
        """The columns of the rows `[begin, end)`, with `names` these of them. All rows have been added before."""
        wanted = [name for name in self._parts[0].schema.names if name != _ROW and (names is None or name in names)]
        if not wanted:
            return {}
        slices = []
        for part in self._parts:
            low, high = np.searchsorted(np.asarray(part[_ROW]), [begin, end]).tolist()
            slices.append(part.slice(low, high - low))
        rows = np.concatenate([np.asarray(part[_ROW]) for part in slices])
        places = np.empty(end - begin, np.int64)
        places[rows - begin] = np.arange(len(rows))
        order = pa.array(places)
        found = {name: pa.concat_arrays([part[name] for part in slices]).take(order) for name in wanted}
        # The next stretch reads other pages; those read so far would count as memory of this process.
        self._map.madvise(mmap.MADV_DONTNEED)
        return found

    def column(self, name: str) -> pa.Array:
        """A column of all rows, which were added in their order."""
        found = pa.concat_arrays([part[name] for part in self._parts])
        self._map.madvise(mmap.MADV_DONTNEED)
        return found

    @cached_property
    def _map(self) -> mmap.mmap:
        if self._writer is not None:
            self._writer.close()
        with self._file.open("rb") as file:
            # Python's own map: Arrow's has no madvise.
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    @cached_property
    def _parts(self) -> list[pa.RecordBatch]:
        return list(pa.ipc.open_stream(pa.py_buffer(self._map)).read_all().to_batches())
