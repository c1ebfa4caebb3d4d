"""The rows behind a cache. A record has a row's weights and optimizer state, W floats, so that a miss is one read.

    record_MW = records.read(rows_M)        ascending rows, so that reads are sequential
    records.write(rows_M, record_MW)

A memory-mapped file was measured first (docs/decisions/0006). A page fault also maps the pages around it, so that the
whole table soon counts as the process's memory. Faults wait one after another, where `pread` after `posix_fadvise`
takes a fifth of the time on a cold disk, and a full disk kills the process.
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
from models.sparse.memory import reserve

if TYPE_CHECKING:
    from models.sparse.id_map import Rows

Floats = npt.NDArray[np.float32]


class Records(Protocol):
    """Records, addressed by row number."""

    num_rows: int
    width: int

    def read(self, rows_M: Rows) -> Floats:
        """Records [M, W]."""

    def write(self, rows_M: Rows, record_MW: Floats) -> None:
        """Overwrites the records of these rows."""


class MemoryRecords:
    """Records in memory. Only pages that were written take memory."""

    def __init__(self, num_rows: int, width: int) -> None:
        self.num_rows, self.width = num_rows, width
        self.record_RW: Floats = reserve((num_rows, width), np.float32)

    def read(self, rows_M: Rows) -> Floats:
        """Records [M, W]."""
        record_MW = np.empty((len(rows_M), self.width), np.float32)
        kernels.copy_out(self.record_RW, rows_M, record_MW)
        return record_MW

    def write(self, rows_M: Rows, record_MW: Floats) -> None:
        """Overwrites the records of these rows."""
        kernels.copy_in(self.record_RW, rows_M, record_MW)


class FileRecords:
    """Records in an unnamed file in `folder`, which the kernel deletes when the process ends in any way.

    Raises RetryLaterError, which names the folder, if the disk is full or fails.
    """

    def __init__(self, num_rows: int, width: int, folder: Path) -> None:
        self.num_rows, self.width, self.folder = num_rows, width, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (open as long as this object)
        self._file.truncate(num_rows * width * 4)  # a sparse file: takes no space until written
        # Without read-ahead, which would fill the page cache with rows that were not asked for.
        os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def fileno(self) -> int:
        """The file descriptor."""
        return self._file.fileno()

    def read(self, rows_M: Rows) -> Floats:
        """Records [M, W]."""
        record_MW = np.empty((len(rows_M), self.width), np.float32)
        if (m := kernels.read_file(self.fileno(), rows_M, record_MW)) < len(rows_M):
            raise self._failure("read", int(rows_M[m]))
        return record_MW

    def write(self, rows_M: Rows, record_MW: Floats) -> None:
        """Overwrites the records of these rows."""
        if (m := kernels.write_file(self.fileno(), rows_M, record_MW)) < len(rows_M):
            raise self._failure("write", int(rows_M[m]))

    def _failure(self, verb: str, row: int) -> RetryLaterError:
        position, reason = row * self.width * 4, "cut short"
        try:  # again, to get the reason from Python
            if verb == "read":
                os.pread(self.fileno(), self.width * 4, position)
            else:
                os.pwrite(self.fileno(), bytes(self.width * 4), position)
        except OSError as error:
            reason = error.strerror or reason
        return RetryLaterError(
            f"{self.folder}: could not {verb} row {row} of the embeddings ({reason}); check space and permissions, or"
            " name a folder on a larger disk in train.rows_folder"
        )
