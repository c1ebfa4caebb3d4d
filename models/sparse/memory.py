"""Arrays that grow without a copy: address space is reserved once, and pages take memory when they are first used."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_jobs.errors import BadInputError

HUGE_PAGE_BYTES = 2 << 20
MAP_NORESERVE = 0x4000  # Linux; `mmap` has the constant since Python 3.13


def reserve(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros of `shape`. Only pages that are used take memory.

    Requests huge pages, so that random access over gigabytes misses the TLB less often. Raises BadInputError where the
    process cannot address so many bytes.
    """
    dtype = np.dtype(dtype)
    num_bytes = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
    num_bytes += -num_bytes % HUGE_PAGE_BYTES
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except (OSError, OverflowError):
        size = " x ".join(f"{n:,}" for n in shape)
        raise BadInputError(
            f"an embedding table of {size} values ({num_bytes / 2**40:,.2f} TiB) exceeds a process's address space; "
            "lower model.embedding_dim or the capacity of the table"
        ) from None
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)
