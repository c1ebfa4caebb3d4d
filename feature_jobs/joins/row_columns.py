"""Columns of a day's rows that are found part by part in another order than that of the rows, such as by key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
        self._parts: list[pa.RecordBatch] | None = None

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
        if self._parts is None:
            self._parts = self._written()
        slices = []
        for part in self._parts:
            low, high = np.searchsorted(np.asarray(part[_ROW]), [begin, end]).tolist()
            slices.append(part.slice(low, high - low))
        rows = np.concatenate([np.asarray(part[_ROW]) for part in slices])
        places = np.empty(end - begin, np.int64)
        places[rows - begin] = np.arange(len(rows))
        order = pa.array(places)
        return {
            name: pa.concat_arrays([part[name] for part in slices]).take(order)
            for name in slices[0].schema.names
            if name != _ROW and (names is None or name in names)
        }

    def _written(self) -> list[pa.RecordBatch]:
        assert self._writer is not None  # noqa: S101 (rows were added)
        self._writer.close()
        # Mapped: a slice reads its own pages only.
        with pa.memory_map(str(self._file)) as source:
            return list(pa.ipc.open_stream(source).read_all().to_batches())
