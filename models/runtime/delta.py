"""The difference between two exports, small enough to send to every server each day. Imports no torch.

delta.json        digests of both exports' serving.json, row counts, digests of the other files of the delta
rows.safetensors  keys and rows that are new or changed, keys that were removed, the default rows
...               the target's other files, as they are
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.transforms import Ints
from models.runtime.files import SERVING_FILE, TABLE_FILE
from models.runtime.frozen_tables import CHUNK_ROWS, Bytes, FrozenTable
from models.runtime.onnx_model import check_digest, read_serving, sha256_of

FORMAT = 1


class DeltaCounts(TypedDict):
    """Rows of the target export: all, those with other bytes, those that the base lacks; and rows that were removed."""

    rows: int
    changed: int
    new: int
    gone: int


class DeltaFacts(DeltaCounts):
    """delta.json. `base` and `target`: digests of serving.json; `files`: digests of the other files, by name."""

    format: int
    base: str
    target: str
    files: dict[str, str]


class DeltaSizes(DeltaCounts):
    """The counts, and the bytes of the delta and of the whole target export."""

    delta_bytes: int
    full_bytes: int


DELTA_FILE, ROWS_FILE = "delta.json", "rows.safetensors"


def write_delta(base: Path, target: Path, output: Path) -> DeltaSizes:
    """Writes the delta from export `base` to export `target` (folders) into `output`, which must be empty or absent.

    Raises CorruptError for an unreadable export, BadInputError if `output` is not empty, or if the exports quantize to
    different numbers of bits: then every row changes.
    """
    read_serving(base)
    read_serving(target)
    new, old = FrozenTable.load(target / TABLE_FILE), FrozenTable.load(base / TABLE_FILE)
    if new.bits != old.bits:
        raise BadInputError(
            f"{base}: its embeddings have {old.bits} bits and those of {target} {new.bits}, so that every row changes;"
            " send the whole export"
        )
    _make_empty(output)
    old = _of_width(old, new.rows_RW.shape[1])
    written, gone, num_new = [], [np.empty(0, np.int64)], 0
    for in_old, in_new in _ranges(old.keys_R, new.keys_R):
        found, place = _find(new.keys_R[in_new], old.keys_R[in_old])
        same = found.copy()
        same[found] = (new.rows_RW[in_new][found] == old.rows_RW[in_old][place[found]]).all(1)
        written.append(np.flatnonzero(~same) + in_new.start)
        num_new += int((~found).sum())
        left = np.ones(in_old.stop - in_old.start, np.bool_)
        left[place[found]] = False
        gone.append(old.keys_R[in_old][left])
    rows_C = np.concatenate(written)
    tensors = {
        "keys": new.keys_R[rows_C],
        "rows": new.rows_RW[rows_C],
        "gone": np.concatenate(gone),
        "defaults": new.default_TD,
    }
    save_file(tensors, output / ROWS_FILE)
    (output / ROWS_FILE).chmod(0o644)  # safetensors makes it readable by its owner alone
    for file in target.iterdir():
        if file.name != TABLE_FILE:
            shutil.copyfile(file, output / file.name)
    counts: DeltaCounts = {
        "rows": len(new),
        "changed": len(rows_C) - num_new,
        "new": num_new,
        "gone": len(tensors["gone"]),
    }
    document: DeltaFacts = {
        "format": FORMAT,
        "base": sha256_of(base / SERVING_FILE),
        "target": sha256_of(target / SERVING_FILE),
        **counts,
        "files": {file.name: sha256_of(file) for file in sorted(output.iterdir())},
    }
    (output / DELTA_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return {**counts, "delta_bytes": _size(output), "full_bytes": _size(target)}


def apply_delta(base: Path, delta: Path, output: Path) -> DeltaFacts:
    """Applies `delta` to export `base` and writes the target export, byte for byte, into `output`, which must be empty
    or absent. Returns delta.json.

    Raises BadInputError if `base` is not the export that the delta was made from, CorruptError for damaged files.
    """
    facts = _read(delta)
    read_serving(base)
    found = sha256_of(base / SERVING_FILE)
    if found != facts["base"]:
        raise BadInputError(
            f"{base}: export {found[:12]}, but {delta} applies to export {facts['base'][:12]}; apply deltas in order,"
            " or fetch the whole export"
        )
    _make_empty(output)
    try:
        tensors = load_file(delta / ROWS_FILE)
        keys_C, rows_CW, gone_G, default_TD = (tensors[name] for name in ("keys", "rows", "gone", "defaults"))
    except (KeyError, SafetensorError) as error:
        raise CorruptError(f"{delta / ROWS_FILE}: not readable ({error}); fetch the delta again") from None
    old = _of_width(FrozenTable.load(base / TABLE_FILE), rows_CW.shape[1])
    merged = _merged(old, keys_C, rows_CW, gone_G)
    FrozenTable.from_sorted(merged, facts["rows"], default_TD, old.bits).save(output / TABLE_FILE)
    for name in facts["files"]:
        if name != ROWS_FILE:
            shutil.copyfile(delta / name, output / name)
    read_serving(output, facts["target"])
    return facts


def _merged(old: FrozenTable, keys_C: Ints, rows_CW: Bytes, gone_G: Ints) -> Iterator[tuple[Ints, Bytes]]:
    """Unchanged old rows and the delta's rows, in ascending order of key, a range of keys at a time."""
    for in_old, in_delta, in_gone in _ranges(old.keys_R, keys_C, gone_G):
        keys, rows = old.keys_R[in_old], old.rows_RW[in_old]
        kept = ~(_find(keys, keys_C[in_delta])[0] | _find(keys, gone_G[in_gone])[0])
        keys = np.concatenate([keys[kept], keys_C[in_delta]])
        order = np.argsort(keys, kind="stable")  # two ascending runs: merged
        yield keys[order], np.concatenate([rows[kept], rows_CW[in_delta]])[order]


def _ranges(*keys: Ints) -> Iterator[tuple[slice, ...]]:
    """Cuts the key space into equal ranges; yields the slice of each ascending array in each range.

    Keys are hashed, so all slices of an array have about the same size.
    """
    num_ranges = max(map(len, keys)) // CHUNK_ROWS + 1
    before = [0] * len(keys)
    for number in range(1, num_ranges + 1):
        bound = (number << 64) // num_ranges - (1 << 63)
        ends = [int(np.searchsorted(k, bound)) for k in keys] if number < num_ranges else list(map(len, keys))
        yield tuple(slice(begin, end) for begin, end in zip(before, ends, strict=True))
        before = ends


def _find(keys_N: Ints, among: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Whether each key is in the ascending array `among`, and its index there."""
    place_N = np.searchsorted(among, keys_N)
    if not len(among):
        return np.zeros(len(keys_N), np.bool_), place_N
    return among[np.minimum(place_N, len(among) - 1)] == keys_N, place_N


def _of_width(table: FrozenTable, width: int) -> FrozenTable:
    """The table, or an empty one if its rows have another width: then no row of it can be reused."""
    if table.rows_RW.shape[1] == width:
        return table
    return FrozenTable.of(table.keys_R[:0], np.empty((0, width), np.uint8), table.default_TD, table.bits)


def _read(delta: Path) -> DeltaFacts:
    try:
        facts: DeltaFacts = json.loads((delta / DELTA_FILE).read_text())
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}; this code reads {FORMAT}")
        for name, expected in facts["files"].items():
            check_digest(delta / name, expected)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{delta}: not a readable delta ({error}); fetch it again") from None
    return facts


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BadInputError(f"{folder}: the folder is not empty; name a new one")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
