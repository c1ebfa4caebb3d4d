"""The frozen embedding table for serving, read from a memory-mapped file.

1e8 rows of dim 16 take 2.7 GB with 8 bits and 1.9 GB with 4, keys included.

    keys      int64   [R]         of all tables together, ascending
    starts    uint32  [2^b + 1]   the first row of each bucket; a bucket has the keys with equal first b bits
    rows      uint8   [R, W]      a row's scale in bfloat16, then its D weights, symmetric: one or two cache lines.
                                  With 4 bits a byte has two weights: from the first half of D in the low bits
    defaults  float32 [T, D]      the embedding of an unknown id, for each table

Keys are hashes, so their first bits almost give their position: a bucket has 4 to 8 keys, one or two cache lines, which
are searched one after another. No row number is stored. The number of bits is in the file's metadata.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from typing_extensions import TypedDict

from feature_jobs.control_records import MAX_BYTES, open_regular, read_record
from feature_jobs.errors import CorruptError
from models.runtime import frozen_kernels as kernels

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

KEYS_PER_BUCKET = 8
CHUNK_ROWS = 1 << 20
MOST_ROWS = (1 << 32) - 1  # of `starts`
DTYPES = {
    "keys": ("I64", np.int64),
    "starts": ("U32", np.uint32),
    "rows": ("U8", np.uint8),
    "defaults": ("F32", np.float32),
}


FETCH = "fetch the export again"


class Tensor(TypedDict):
    """A tensor in the header of a safetensors file. `data_offsets`: its first byte and the one after its last."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Header(TypedDict):
    """The header of a table's file."""

    keys: Tensor
    starts: Tensor
    rows: Tensor
    defaults: Tensor
    __metadata__: NotRequired[dict[str, str]]


@dataclass(frozen=True)
class FrozenTable:
    """Rows by key: of 4 or 8 `bits` (see the module), or of 32: float32 [R, D] in `rows_RW`."""

    keys_R: Ints
    starts: npt.NDArray[np.uint32]
    rows_RW: Bytes | Floats
    default_TD: Floats
    bits: int

    @classmethod
    def of(cls, keys_R: Ints, rows_RW: Bytes | Floats, default_TD: Floats, bits: int = 32) -> FrozenTable:
        """Indexes rows in ascending order of key, without copying them.

        Raises ValueError for keys that are not ascending or not unique, and for more than 2^32 - 1 rows.
        """
        if len(keys_R) > MOST_ROWS:
            raise ValueError(f"{len(keys_R):,} rows, but a table holds at most {MOST_ROWS:,}; split it by feature")
        _check_order(keys_R)
        prefix = max((len(keys_R) // KEYS_PER_BUCKET).bit_length(), 1)
        starts = np.empty((1 << prefix) + 1, np.uint32)
        for part in slices(1 << prefix):
            # The sign bit is flipped, because keys are ordered as signed numbers and prefixes as unsigned ones.
            first_C = (np.arange(part.start, part.stop, dtype=np.uint64) << np.uint64(64 - prefix)) ^ kernels.SIGN
            starts[part] = np.searchsorted(keys_R, first_C.view(np.int64))
        starts[-1] = len(keys_R)
        return cls(keys_R, starts, rows_RW, default_TD, bits)

    @classmethod
    def from_sorted(
        cls, chunks: Iterable[tuple[Ints, Bytes]], num_rows: int, default_TD: Floats, bits: int
    ) -> FrozenTable:
        """Builds a table from ascending chunks of keys [C] and rows [C, W] (see `quantize_rows`), `num_rows` in total.

        Needs only the memory of the table itself. Raises ValueError as `of` does, and for another number of rows.
        """
        keys_R = np.empty(num_rows, np.int64)
        rows_RW = np.empty((num_rows, kernels.row_bytes(default_TD.shape[1], bits)), np.uint8)
        end = 0
        for keys_C, rows_CW in chunks:
            begin, end = end, end + len(keys_C)
            if end <= num_rows:  # more rows than promised: counted to the end, for the message below
                keys_R[begin:end], rows_RW[begin:end] = keys_C, rows_CW
        if end != num_rows:
            raise ValueError(f"expected {num_rows:,} rows, got {end}")
        return cls.of(keys_R, rows_RW, default_TD, bits)

    @classmethod
    def load(cls, file: Path) -> FrozenTable:
        """Maps a saved table; only its header and its bucket starts are read. CorruptError if it is not a table."""
        try:
            arrays, bits = _mapped(file)
            table = cls(arrays["keys"], arrays["starts"], arrays["rows"], arrays["defaults"], bits)
            num_rows, prefix = len(table), len(table.starts).bit_length() - 1
            if bits not in (4, 8):
                raise ValueError(f"rows of {bits} bits; this code reads 4 or 8")
            if table.rows_RW.shape != (num_rows, kernels.row_bytes(table.dim, bits)):
                raise ValueError(f"rows {table.rows_RW.shape} for {num_rows} keys of dim {table.dim} at {bits} bits")
            if len(table.starts) != (1 << prefix) + 1 or (table.starts[0], table.starts[-1]) != (0, num_rows):
                raise ValueError(f"the bucket starts do not cover {num_rows:,} rows")
            if (table.starts[1:] < table.starts[:-1]).any():  # the kernel reads rows between them without bounds
                raise ValueError("the bucket starts do not ascend")
        except (OSError, ValueError, IndexError) as error:
            raise CorruptError(f"{file}: not a readable table ({error}); {FETCH}") from None
        return table

    def save(self, file: Path) -> None:
        """Writes rows of 4 or 8 bits as safetensors. Equal tables give equal bytes."""
        arrays = {"keys": self.keys_R, "starts": self.starts, "rows": self.rows_RW, "defaults": self.default_TD}
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(tensors, file, {"bits": str(self.bits)})
        file.chmod(0o644)  # safetensors makes the file readable by its owner only

    def __len__(self) -> int:
        return len(self.keys_R)

    @property
    def dim(self) -> int:
        """The embedding dimension D."""
        return int(self.default_TD.shape[1])

    @property
    def num_bytes(self) -> int:
        """The size of all arrays."""
        return self.keys_R.nbytes + self.starts.nbytes + self.rows_RW.nbytes + self.default_TD.nbytes

    def embed(
        self,
        slots: Sequence[Ints],
        bags: Sequence[tuple[Ints, Ints]],
        table_F: Sequence[int],
        num_samples: int,
        shares: Mapping[int, Floats] | None = None,
    ) -> Floats:
        """Embeddings [B, F, D]: of slots (keys [B] each), then the means of bags (keys [V], offsets [B + 1]; zeros for
        an empty bag). `table_F`: the table whose default row an unknown id of each feature reads. `shares`: by the
        number of a bag that is not a plain mean, the factor [V] of each key's embedding in the sum.

        Raises ValueError if the number of keys does not fit the offsets or the shares.
        """
        emb_BFD = np.zeros((num_samples, len(table_F), self.dim), np.float32)
        self.add(slots, bags, table_F, range(len(table_F)), emb_BFD=emb_BFD, shares=shares)
        return emb_BFD

    def add(
        self,
        slots: Sequence[Ints],
        bags: Sequence[tuple[Ints, Ints]],
        table_F: Sequence[int],
        places: Sequence[int],
        *,
        emb_BFD: Floats,
        shares: Mapping[int, Floats] | None = None,
    ) -> None:
        """Adds the embeddings of some features to `emb_BFD`; `places` are their numbers among all F. See `embed`.

        Raises ValueError if the number of keys does not fit the offsets or the shares.
        """
        num_samples = len(emb_BFD)
        if emb_BFD.shape[1:] != (len(table_F), self.dim) or not emb_BFD.flags.c_contiguous:
            raise ValueError(f"embeddings {emb_BFD.shape} for {len(table_F)} features of dim {self.dim}")
        if not len(places):
            return
        one_each = np.arange(num_samples + 1)  # a slot is a bag of one id in each sample
        features = [(keys_B, one_each) for keys_B in slots] + list(bags)
        features = [(np.ascontiguousarray(k, np.int64), np.ascontiguousarray(o, np.int64)) for k, o in features]
        if len(features) != len(places) or not all(0 <= place < len(table_F) for place in places):
            raise ValueError(f"{len(features)} features for the places {places} of {len(table_F)}")
        for f, (keys, offsets) in enumerate(features):  # checked here: the kernel reads them by address, without bounds
            if len(offsets) != num_samples + 1 or offsets[-1] != len(keys):
                raise ValueError(f"feature {f}: {len(keys)} keys and {len(offsets)} offsets for {num_samples} samples")
        shares_F, used = np.zeros(len(features), np.int64), dict[int, Floats]()
        for number, shares_V in (shares or {}).items():
            f = len(slots) + number
            used[f] = np.ascontiguousarray(shares_V, np.float32)
            shares_F[f] = used[f].ctypes.data if len(used[f]) else 0
            if len(used[f]) != len(features[f][0]):
                raise ValueError(f"feature {f}: {len(features[f][0])} keys and {len(used[f])} shares")
        kernels.embed(self.dim, self.bits)(
            np.array([keys.ctypes.data for keys, _ in features], np.int64),
            np.array([offsets.ctypes.data for _, offsets in features], np.int64),
            shares_F,
            np.array(table_F, np.int64),
            np.array(places, np.int64),
            self.keys_R,
            self.starts,
            65 - len(self.starts).bit_length(),  # 64 - b: there are 2^b + 1 starts
            self.rows_RW,
            self.default_TD,
            emb_BFD,
        )


def quantize_rows(weight_ND: Floats, bits: int) -> Bytes:
    """Quantizes weights to rows [N, W] of 4 or 8 bits: symmetric, with a scale for each row.

    The scale is rounded up to bfloat16, so that no weight is clipped. Raises ValueError for a weight that is not
    finite.
    """
    num_rows, dim = weight_ND.shape
    largest_N = np.abs(weight_ND).max(1, initial=0)
    if not np.isfinite(largest_N).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(largest_N)))} has a weight that is not finite; train again")
    most = np.float32((1 << (bits - 1)) - 1)
    # Adding 0xFFFF before the lower half is cut off rounds up.
    half_N = ((largest_N / most).view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)
    scale_N = (half_N << np.uint32(16)).view(np.float32)
    # A row of zeros has the scale 0.
    divisor_N = np.where(scale_N > 0, scale_N, np.float32(1))
    whole_ND = np.rint(weight_ND / divisor_N[:, None]).astype(np.int8).view(np.uint8)
    if bits == 4:
        whole_ND = _pairs(whole_ND)
    rows_NW = np.zeros((num_rows, kernels.row_bytes(dim, bits)), np.uint8)
    rows_NW[:, : kernels.SCALE_BYTES] = half_N.astype("<u2").view(np.uint8).reshape(-1, 2)
    rows_NW[:, kernels.SCALE_BYTES : kernels.SCALE_BYTES + whole_ND.shape[1]] = whole_ND
    return rows_NW


def _pairs(whole_ND: Bytes) -> Bytes:
    """Two int4 in a byte: from the first half of D in the low bits, from the second in the high ones."""
    dim = whole_ND.shape[1]
    half = (dim + 1) // 2
    pairs_NH: Bytes = whole_ND[:, :half] & np.uint8(15)
    pairs_NH[:, : dim // 2] |= whole_ND[:, half:] << np.uint8(4)
    return pairs_NH


def slices(num_rows: int) -> Iterator[slice]:
    """Ranges of at most CHUNK_ROWS rows."""
    for begin in range(0, num_rows, CHUNK_ROWS):
        yield slice(begin, min(begin + CHUNK_ROWS, num_rows))


def _check_order(keys_R: Ints) -> None:
    for part in slices(len(keys_R)):
        keys_C = keys_R[part.start : part.stop + 1]
        wrong = np.flatnonzero(keys_C[1:] <= keys_C[:-1])
        if len(wrong):
            place = part.start + int(wrong[0]) + 1
            raise ValueError(
                f"key {keys_R[place]} at position {place} follows {keys_R[place - 1]}; give each key once, ascending"
            )


def _mapped(file: Path) -> tuple[dict[str, npt.NDArray[Any]], int]:
    """The arrays of a safetensors file as views of its mapped pages, and the bits of its rows.

    The library's own reader would copy the arrays. Older files, in which all rows have 8 bits, do not state the number.
    """
    with open_regular(file, FETCH) as stream:
        memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(memory[:8], "little")
    if begin > min(len(memory), MAX_BYTES):
        raise ValueError(f"a header of {begin - 8} bytes in a file of {len(memory)}")
    header = read_record(memory[8:begin], Header, str(file), FETCH, extra="ignore")
    tensors = {
        "keys": header["keys"],
        "starts": header["starts"],
        "rows": header["rows"],
        "defaults": header["defaults"],
    }
    arrays = {}
    for name, (code, dtype) in DTYPES.items():
        facts = tensors[name]
        shape, (first, end) = facts["shape"], facts["data_offsets"]
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if facts["dtype"] != code:
            raise ValueError(f"{name} are {facts['dtype']}, not {code}")
        # Proven here, because kernels read these arrays without bounds.
        if min([0, first, *shape]) < 0 or end - first != num_bytes or begin + end > len(memory):
            raise ValueError(f"{name} of shape {shape} at {first} to {end} of {len(memory) - begin} bytes")
        arrays[name] = np.frombuffer(memory, dtype, math.prod(shape), begin + first).reshape(shape)
    return arrays, int(header.get("__metadata__", {}).get("bits", 8))
