"""The difference between two exports, small enough to send to every server each day. Imports no torch.

delta.json        digests of both exports' serving.json, row counts, digests of the other files of the delta
rows.safetensors  keys and rows that are new or changed, keys that were removed, the default rows
...               the target's other files, as they are
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from typing_extensions import TypedDict

from feature_jobs.control_records import checked_name, open_regular, read_record_file
from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.exact_columns import Ints
from feature_jobs.transforms import Floats
from models.runtime.files import SERVING_FILE, TABLE_FILE
from models.runtime.frozen_kernels import row_bytes
from models.runtime.frozen_tables import CHUNK_ROWS, Bytes, FrozenTable
from models.runtime.onnx_model import check_digest, read_serving, sha256_of
from models.runtime.output_folder import written_whole

FORMAT = 1
FETCH = "fetch the delta again"


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


class DeltaFormat(TypedDict):
    """The part of delta.json that every release can read."""

    format: int


@dataclass(frozen=True)
class Rows:
    """rows.safetensors: keys and rows that are new or changed, keys that are gone, the default rows."""

    keys_C: Ints
    rows_CW: Bytes
    gone_G: Ints
    default_TD: Floats


DELTA_FILE, ROWS_FILE = "delta.json", "rows.safetensors"


def write_delta(base: Path, target: Path, output: Path) -> DeltaSizes:
    """Writes the delta from export `base` to export `target` (folders) into `output`, which must be empty or absent.

    The output appears whole at the end. Raises CorruptError for an unreadable export, BadInputError if `output` is not
    empty, or if the exports quantize to different numbers of bits: then every row changes.
    """
    read_serving(base)
    read_serving(target)
    new, old = FrozenTable.load(target / TABLE_FILE), FrozenTable.load(base / TABLE_FILE)
    # Every packed row differs then: such a delta would be as large as the export.
    if new.bits != old.bits:
        raise BadInputError(
            f"{base}: its embeddings have {old.bits} bits and those of {target} {new.bits}, so that every row changes;"
            " send the whole export"
        )
    with written_whole(output) as folder:
        counts = _write_rows(_of_width(old, new.rows_RW.shape[1]), new, folder / ROWS_FILE)
        for file in sorted(target.iterdir()):
            if file.name != TABLE_FILE:
                _copy(file, folder / checked_name(file.name, str(target)))
        document: DeltaFacts = {
            "format": FORMAT,
            "base": sha256_of(base / SERVING_FILE),
            "target": sha256_of(target / SERVING_FILE),
            **counts,
            "files": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
        }
        (folder / DELTA_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return {**counts, "delta_bytes": _size(output), "full_bytes": _size(target)}


def _write_rows(old: FrozenTable, new: FrozenTable, file: Path) -> DeltaCounts:
    """Writes the differences between two tables whose rows have one width."""
    written, gone, num_new = [], [np.empty(0, np.int64)], 0
    # A range at a time, so that two tables of billions of bytes are never both in memory.
    for in_old, in_new in _ranges(old.keys_R, new.keys_R):
        found, place = _find(new.keys_R[in_new], old.keys_R[in_old])
        same = found.copy()
        same[found] = (new.rows_RW[in_new][found] == old.rows_RW[in_old][place[found]]).all(1)
        written.append(np.flatnonzero(~same) + in_new.start)
        num_new += int((~found).sum())
        # What no new key was found for: an evicted row must leave the servers too.
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
    save_file(tensors, file)
    file.chmod(0o644)  # safetensors makes it readable by its owner alone
    return {"rows": len(new), "changed": len(rows_C) - num_new, "new": num_new, "gone": len(tensors["gone"])}


def apply_delta(base: Path, delta: Path, output: Path) -> DeltaFacts:
    """Applies `delta` to export `base` and writes the target export, byte for byte, into `output`, which must be empty
    or absent. Returns delta.json.

    The output appears whole at the end; nothing is written elsewhere, and no symlink is followed. Raises BadInputError
    if `base` is not the export that the delta was made from, CorruptError for damaged files.
    """
    facts = _read(delta)
    read_serving(base)
    found = sha256_of(base / SERVING_FILE)
    if found != facts["base"]:
        raise BadInputError(
            f"{base}: export {found[:12]}, but {delta} applies to export {facts['base'][:12]}; apply deltas in order,"
            " or fetch the whole export"
        )
    old = FrozenTable.load(base / TABLE_FILE)
    changes = _read_rows(delta / ROWS_FILE, facts, old)
    with written_whole(output) as folder:
        merged = _merged(_of_width(old, changes.rows_CW.shape[1]), changes)
        try:
            table = FrozenTable.from_sorted(merged, facts["rows"], changes.default_TD, old.bits)
        except ValueError as error:
            raise CorruptError(f"{delta / DELTA_FILE}: does not fit {base} ({error}); {FETCH}") from None
        table.save(folder / TABLE_FILE)
        for name, digest in facts["files"].items():
            if name != ROWS_FILE:
                _copy(delta / name, folder / name, digest)
        # Proven before it takes its place: the result must be the target, byte for byte.
        read_serving(folder, facts["target"])
    return facts


def _merged(old: FrozenTable, changes: Rows) -> Iterator[tuple[Ints, Bytes]]:
    """Unchanged old rows and the delta's rows, in ascending order of key, a range of keys at a time."""
    for in_old, in_delta, in_gone in _ranges(old.keys_R, changes.keys_C, changes.gone_G):
        keys, rows = old.keys_R[in_old], old.rows_RW[in_old]
        changed_keys = changes.keys_C[in_delta]
        # A changed row is dropped here, and comes with the delta's rows.
        kept = ~(_find(keys, changed_keys)[0] | _find(keys, changes.gone_G[in_gone])[0])
        keys = np.concatenate([keys[kept], changed_keys])
        order = np.argsort(keys, kind="stable")  # two ascending runs: merged
        yield keys[order], np.concatenate([rows[kept], changes.rows_CW[in_delta]])[order]


def _ranges(*keys: Ints) -> Iterator[tuple[slice, ...]]:
    """Cuts the key space into equal ranges; yields the slice of each ascending array in each range.

    Keys are hashed, so all slices of an array have about the same size.
    """
    num_ranges = max(map(len, keys)) // CHUNK_ROWS + 1
    before = [0] * len(keys)
    for number in range(1, num_ranges + 1):
        # Keys are signed 64-bit numbers; the product is wider, which only Python's own integers hold.
        bound = (number << 64) // num_ranges - (1 << 63)
        ends = [int(np.searchsorted(k, bound)) for k in keys] if number < num_ranges else list(map(len, keys))
        yield tuple(slice(begin, end) for begin, end in zip(before, ends, strict=True))
        before = ends


def _find(keys_N: Ints, among: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Returns a mask [N] of the keys that are in the ascending array `among`, and each key's index there."""
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
    """delta.json, with every file that it names proven."""
    try:
        version = read_record_file(delta / DELTA_FILE, DeltaFormat, FETCH, extra="ignore")["format"]
        if version != FORMAT:
            raise CorruptError(f"{delta / DELTA_FILE}: format {version}; this code reads {FORMAT}; {FETCH}")
        facts = read_record_file(delta / DELTA_FILE, DeltaFacts, FETCH)
        for name, expected in facts["files"].items():
            if checked_name(name, str(delta / DELTA_FILE), FETCH) in (DELTA_FILE, TABLE_FILE) or "/" in name:
                raise CorruptError(f"{delta / DELTA_FILE}: {name} is not a file of a delta; {FETCH}")
            check_digest(delta / name, expected)
    except FileNotFoundError as error:
        raise CorruptError(f"{error.filename}: missing; {FETCH}") from None
    return facts


def _read_rows(file: Path, facts: DeltaFacts, old: FrozenTable) -> Rows:
    """The rows of a delta, of the types and shapes that the merge relies on."""
    if ROWS_FILE not in facts["files"]:
        raise CorruptError(f"{file}: is not named in {DELTA_FILE}; {FETCH}")
    try:
        tensors = load_file(file)
        rows = Rows(*(tensors[name] for name in ("keys", "rows", "gone", "defaults")))
    except (KeyError, SafetensorError) as error:
        raise CorruptError(f"{file}: not readable ({error}); {FETCH}") from None
    arrays: dict[str, npt.NDArray[Any]] = {
        "keys": rows.keys_C,
        "rows": rows.rows_CW,
        "gone": rows.gone_G,
        "defaults": rows.default_TD,
    }
    wanted = {"keys": ("int64", 1), "rows": ("uint8", 2), "gone": ("int64", 1), "defaults": ("float32", 2)}
    for name, array in arrays.items():
        if (str(array.dtype), array.ndim) != wanted[name]:
            raise CorruptError(f"{file}: {name} are {array.dtype} of {array.ndim} dimensions; {FETCH}")
    shape = (len(rows.keys_C), row_bytes(rows.default_TD.shape[1], old.bits))
    if rows.rows_CW.shape != shape:
        raise CorruptError(f"{file}: rows {rows.rows_CW.shape} where {shape} belong; {FETCH}")
    # Before memory is taken for so many rows: the number comes from a file that may be damaged.
    if not 0 <= facts["rows"] <= len(old) + len(rows.keys_C):
        raise CorruptError(f"{file.with_name(DELTA_FILE)}: says {facts['rows']:,} rows, which is impossible; {FETCH}")
    counts = (facts["changed"] + facts["new"], facts["gone"])
    if counts != (len(rows.keys_C), len(rows.gone_G)) or min(facts["changed"], facts["new"]) < 0:
        raise CorruptError(
            f"{file.with_name(DELTA_FILE)}: says {counts[0]:,} rows and {counts[1]:,} gone, but {ROWS_FILE} has"
            f" {len(rows.keys_C):,} and {len(rows.gone_G):,}; {FETCH}"
        )
    # The merge and its binary searches rely on it; unsorted keys would give a wrong table, not an error.
    if any((keys[1:] <= keys[:-1]).any() for keys in (rows.keys_C, rows.gone_G)):
        raise CorruptError(f"{file}: keys are not ascending; {FETCH}")
    return rows


def _copy(source: Path, target: Path, digest: str | None = None) -> None:
    """Copies a regular file; with `digest` only a file that has it."""
    # x: never through a file or symlink that is there already.
    with open_regular(source) as stream, target.open("xb") as out:
        shutil.copyfileobj(stream, out)
    # Of the copy: the source may change after a look at it.
    if digest is not None:
        check_digest(target, digest)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
