"""Writes and reads safetensors files in parts, so that a table is never in memory twice.

Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, the tensors' bytes).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from feature_jobs.control_records import open_regular

CHUNK_ROWS = 1 << 18
ALIGNMENT = 8
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint64": "U64", "int32": "I32",
    "uint32": "U32", "int16": "I16", "uint8": "U8", "int8": "I8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """A tensor that is produced in ranges of rows: `part(begin, end)` returns one."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    part: Callable[[int, int], npt.NDArray[Any]]


def write_tensors(file: Path, tensors: Mapping[str, npt.NDArray[Any] | Tensor | Rows]) -> None:
    """Writes tensors by name. Equal tensors give equal bytes."""
    named = {name: t.detach().cpu().numpy() if isinstance(t, Tensor) else t for name, t in sorted(tensors.items())}
    # The widest types first, so that each tensor is aligned to its type.
    order = sorted(named, key=lambda name: -np.dtype(named[name].dtype).itemsize)
    header, position = {}, 0
    for name in order:
        dtype = np.dtype(named[name].dtype)
        end = position + int(np.prod(named[name].shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype.name], "shape": list(named[name].shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces, as safetensors itself pads, so that the tensors begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for part in _parts(named[name]):
                stream.write(np.ascontiguousarray(part).data)


def _parts(tensor: npt.NDArray[Any] | Rows) -> Iterator[npt.NDArray[Any]]:
    if isinstance(tensor, np.ndarray):
        yield tensor
        return
    for begin in range(0, tensor.shape[0], CHUNK_ROWS):
        yield tensor.part(begin, min(begin + CHUNK_ROWS, tensor.shape[0]))


def read_rows(file: Path, name: str) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yields a tensor in ranges of rows, each with the number of its first row.

    Raises ValueError if the file is not readable or lacks the tensor.
    """
    with _opened(file) as tensors:
        if name not in set(tensors.keys()):
            raise ValueError(f"{file.name} has no {name}")
        rows = tensors.get_slice(name)
        for begin in range(0, rows.get_shape()[0], CHUNK_ROWS):
            yield begin, rows[begin : begin + CHUNK_ROWS].numpy()


def read_tensors(file: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """All tensors of a file, or those of `names` that it has. Raises ValueError if it is not readable."""
    with _opened(file) as tensors:
        held = tensors.keys()
        return {name: tensors.get_tensor(name) for name in held if names is None or name in names}


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, from the header alone. Raises ValueError if the file is not readable."""
    with _opened(file) as tensors:
        held = tensors.keys()
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in held}


def read_types(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Types (as safetensors names them) and shapes of all tensors. Raises ValueError if the file is not readable."""
    with _opened(file) as tensors:
        held = tensors.keys()
        slices = {name: tensors.get_slice(name) for name in held}
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        open_regular(file).close()  # the library would wait for the writer of a FIFO
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file.name}: {error}") from None
