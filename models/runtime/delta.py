"""What changed from one export to a later one: small enough to send to every server each day. Imports no torch.

delta.json        digests of the base's and the target's serving.json, numbers of rows, digests of the files beside
rows.safetensors  keys and rows that are new or have other bytes, keys that are gone, the default rows
...               the target's other files, as they are
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.transforms import Ints
from models.runtime.frozen_tables import CHUNK_ROWS, Bytes, FrozenTable
from models.runtime.onnx_model import SERVING_FILE, TABLE_FILE, check_digest, read_serving, sha256_of

FORMAT = 1
DELTA_FILE, ROWS_FILE = "delta.json", "rows.safetensors"


def write_delta(base: Path, target: Path, output: Path) -> dict[str, Any]:
    """Writes what changed from export `base` to export `target` (folders) into `output`, which must be empty or absent.

    Returns {"rows", "changed", "new", "gone", "delta_bytes", "full_bytes"}. Raises CorruptError for an unreadable
    export, BadInputError for a used `output` and for rows of other bits, of which none could stay.
    """
    read_serving(base)
    read_serving(target)
    new, old = FrozenTable.load(target / TABLE_FILE), FrozenTable.load(base / TABLE_FILE)
    if new.bits != old.bits:
        raise BadInputError(
            f"{base}: embeddings of {old.bits} bits, where {target} has {new.bits}: no row could stay; send the whole"
            " export"
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
    counts = {"rows": len(new), "changed": len(rows_C) - num_new, "new": num_new, "gone": len(tensors["gone"])}
    document = {
        "format": FORMAT,
        "base": sha256_of(base / SERVING_FILE),
        "target": sha256_of(target / SERVING_FILE),
        **counts,
        "files": {file.name: sha256_of(file) for file in sorted(output.iterdir())},
    }
    (output / DELTA_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return {**counts, "delta_bytes": _size(output), "full_bytes": _size(target)}


def apply_delta(base: Path, delta: Path, output: Path) -> dict[str, Any]:
    """Writes into `output`, which must be empty or absent, the export that `delta` leads to from export `base`: all its
    files, byte for byte. Returns delta.json.

    Raises BadInputError where `base` is not the export that the delta was made from, CorruptError for damage.
    """
    facts = _read(delta)
    read_serving(base)
    found = sha256_of(base / SERVING_FILE)
    if found != facts["base"]:
        raise BadInputError(
            f"{base}: export {found[:12]}, but {delta} changes export {facts['base'][:12]}; apply the deltas in order,"
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
    """Old rows but those changed or gone, and the delta's, ascending, a range of keys at a time."""
    for in_old, in_delta, in_gone in _ranges(old.keys_R, keys_C, gone_G):
        keys, rows = old.keys_R[in_old], old.rows_RW[in_old]
        kept = ~(_find(keys, keys_C[in_delta])[0] | _find(keys, gone_G[in_gone])[0])
        keys = np.concatenate([keys[kept], keys_C[in_delta]])
        order = np.argsort(keys, kind="stable")  # two ascending runs: merged
        yield keys[order], np.concatenate([rows[kept], rows_CW[in_delta]])[order]


def _ranges(*keys: Ints) -> Iterator[tuple[slice, ...]]:
    """Places of equal ranges of the key space in each ascending array; keys are well mixed, so all are of one size."""
    num_ranges = max(map(len, keys)) // CHUNK_ROWS + 1
    before = [0] * len(keys)
    for number in range(1, num_ranges + 1):
        bound = (number << 64) // num_ranges - (1 << 63)
        ends = [int(np.searchsorted(k, bound)) for k in keys] if number < num_ranges else list(map(len, keys))
        yield tuple(slice(begin, end) for begin, end in zip(before, ends, strict=True))
        before = ends


def _find(keys_N: Ints, among: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Whether each key is among ascending others, and its place there."""
    place_N = np.searchsorted(among, keys_N)
    if not len(among):
        return np.zeros(len(keys_N), np.bool_), place_N
    return among[np.minimum(place_N, len(among) - 1)] == keys_N, place_N


def _of_width(table: FrozenTable, width: int) -> FrozenTable:
    """The table, or one without rows where its dimension is another: then no row of it can stay."""
    if table.rows_RW.shape[1] == width:
        return table
    return FrozenTable.of(table.keys_R[:0], np.empty((0, width), np.uint8), table.default_TD, table.bits)


def _read(delta: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((delta / DELTA_FILE).read_text())
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']} where this code reads {FORMAT}")
        for name, expected in facts["files"].items():
            check_digest(delta / name, expected)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{delta}: not a readable delta ({error}); fetch it again") from None
    return facts


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BadInputError(f"{folder}: is not empty; name a new folder")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
