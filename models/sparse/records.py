"""Rows behind a cache: weights and optimizer state side by side in one record of W floats, so that a miss is one read.

    record_MW = records.read(rows_M)        rows ascending: reads are sequential
    records.write(rows_M, record_MW)

A mapping of the file was measured first. Its faults map the pages around too: the whole table soon counts as the
process's memory, or, given back after each batch, a miss costs twice a `pread`. It waits for one page after the other
(asking for all first: a fifth of the time on a cold disk), and a full disk kills the process.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from feature_jobs.errors import RetryLaterError
from models.sparse import cache_kernels as kernels
from models.sparse.storage import reserve

if TYPE_CHECKING:
    from models.sparse.id_map import Rows

Floats = npt.NDArray[np.float32]


class Records(Protocol):
    """Records by row."""

    num_rows: int
    width: int

    def read(self, rows_M: Rows) -> Floats:
        """Records [M, W]."""

    def write(self, rows_M: Rows, record_MW: Floats) -> None:
        """Sets records."""


class MemoryRecords:
    """Records in memory, of which only touched pages are taken."""

    def __init__(self, num_rows: int, width: int) -> None:
        self.num_rows, self.width = num_rows, width
        self.record_RW: Floats = reserve((num_rows, width), np.float32)

    def read(self, rows_M: Rows) -> Floats:
        """Records [M, W]."""
        record_MW = np.empty((len(rows_M), self.width), np.float32)
        kernels.copy_out(self.record_RW, rows_M, record_MW)
        return record_MW

    def write(self, rows_M: Rows, record_MW: Floats) -> None:
        """Sets records."""
        kernels.copy_in(self.record_RW, rows_M, record_MW)


class FileRecords:
    """Records in a file of `folder` that has no name: it is gone when its process is, however that ends.

    Raises RetryLaterError, with the place, where the disk is full or fails.
    """

    def __init__(self, num_rows: int, width: int, folder: Path) -> None:
        self.num_rows, self.width, self.folder = num_rows, width, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (lives as long as this)
        self._file.truncate(num_rows * width * 4)  # a hole: takes no space until written
        os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def fileno(self) -> int:
        """The open file's number."""
        return self._file.fileno()

    def read(self, rows_M: Rows) -> Floats:
        """Records [M, W]."""
        record_MW = np.empty((len(rows_M), self.width), np.float32)
        if (m := kernels.read_file(self.fileno(), rows_M, record_MW)) < len(rows_M):
            raise self._failure("read", int(rows_M[m]))
        return record_MW

    def write(self, rows_M: Rows, record_MW: Floats) -> None:
        """Sets records."""
        if (m := kernels.write_file(self.fileno(), rows_M, record_MW)) < len(rows_M):
            raise self._failure("write", int(rows_M[m]))

    def _failure(self, verb: str, row: int) -> RetryLaterError:
        position, reason = row * self.width * 4, "cut short"
        try:  # once more, for the reason
            if verb == "read":
                os.pread(self.fileno(), self.width * 4, position)
            else:
                os.pwrite(self.fileno(), bytes(self.width * 4), position)
        except OSError as error:
            reason = error.strerror or reason
        return RetryLaterError(
            f"{self.folder}: could not {verb} row {row} of the embeddings ({reason}); make room there, or name a folder"
            " on a larger disk in train.rows_folder"
        )
