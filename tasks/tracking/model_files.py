"""The files of a registered model that MLflow would execute or read when it loads the model, proven by digests.

`register` computes the digests before anything reaches MLflow, and commits them. Before a version is loaded, its files
are compared with them and copied to a private folder, from which it is loaded. So a change of the registry's files is
refused, and one that comes after the comparison has no effect.

MLflow's recipe (`MLmodel`) is rewritten as JSON, which is YAML too, so that the reader of control records can read it.
Its digest leaves out parts that differ between equal models: ids, times, paths, and versions of this machine's Python.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from feature_jobs.control_records import checked_name, open_regular, read_record_file
from feature_jobs.errors import CorruptError
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.records import FileFacts

RECIPE = "MLmodel"
FLAVOR = "python_function"
RANDOM = ("artifact_path", "model_id", "model_size_bytes", "model_uuid", "run_id", "utc_time_created")
HERE = ("cloudpickle_version", "python_version")
UNUSED = ("conda.yaml", "python_env.yaml", "registered_model_meta")
"""Written by MLflow, different on each machine, and not read by a load."""
CACHE = "__pycache__"
COPY_BYTES = 1 << 20
MAX_DEPTH = 16  # of folders

Files = dict[str, FileFacts]


def read_recipe(folder: Path, remedy: str) -> dict[str, Any]:
    """Reads the part of MLflow's recipe that is equal on all machines; a dict, because its keys are MLflow's."""
    place = folder / RECIPE
    recipe = read_record_file(place, dict[str, Any], remedy)
    flavors: Any = recipe.get("flavors")
    flavor: Any = flavors.get(FLAVOR) if isinstance(flavors, dict) else None
    if not isinstance(flavor, dict):
        raise CorruptError(f"{place}: has no flavor {FLAVOR}; {remedy}")
    kept = {name: value for name, value in flavor.items() if name not in HERE}
    return {**{name: recipe[name] for name in recipe if name not in RANDOM}, "flavors": {**flavors, FLAVOR: kept}}


def write_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Writes the recipe. Equal recipes give equal bytes."""
    (folder / RECIPE).write_bytes(canonical_json(recipe))


def digests_of(folder: Path) -> Files:
    """Digest and size of each file that a load may read, by name; of the recipe, the part equal on all machines."""
    remedy = "register the export again"
    found: Files = {}
    for name in sorted(_names(folder, remedy)):
        if name == RECIPE:
            found[name] = _facts_of(canonical_json(read_recipe(folder, remedy)))
        else:
            with open_regular(folder / name, remedy) as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name] = {"sha256": digest, "bytes": (folder / name).stat().st_size}
    return found


def digest_of_all(files: Mapping[str, FileFacts]) -> str:
    """One digest of all of them."""
    return sha256_of(canonical_json(files))


def copy_proven(folder: Path, files: Mapping[str, FileFacts], target: Path, remedy: str) -> None:
    """Copies a fetched model to `target`, which is new, if its files are those of `files`.

    Raises CorruptError for a file that is missing, added, changed or not a regular file.
    """
    found = _names(folder, remedy)
    # Names first: a file that was added could be imported, whatever the others hold.
    for name in sorted(found | files.keys()):
        if name not in files:
            raise CorruptError(f"{folder / name}: was added after the model was registered; {remedy}")
        if name not in found:
            raise CorruptError(f"{folder / name}: was registered, and is missing; {remedy}")
    for name, expected in files.items():
        copy = target / checked_name(name, str(folder), remedy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if name == RECIPE:
            recipe = read_recipe(folder, remedy)
            write_recipe(target, recipe)
            actual = _facts_of(canonical_json(recipe))
        else:
            # Digest and copy are of the same bytes: a file that changes in between is never loaded.
            actual = _copied(folder / name, copy, expected["bytes"], remedy)
        if actual != expected:
            raise CorruptError(
                f"{folder / name}: digest {actual['sha256'][:12]} is not the registered {expected['sha256'][:12]};"
                f" {remedy}"
            )


def _facts_of(data: bytes) -> FileFacts:
    return {"sha256": sha256_of(data), "bytes": len(data)}


def _copied(source: Path, target: Path, limit: int, remedy: str) -> FileFacts:
    """Copies at most one byte more than `limit`; the facts are of the bytes that were written."""
    digest, size = hashlib.sha256(), 0
    # x: never through something that is there already.
    with open_regular(source, remedy) as stream, target.open("xb") as out:
        while size <= limit and (part := stream.read(min(COPY_BYTES, limit + 1 - size))):
            digest.update(part)
            out.write(part)
            size += len(part)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _names(folder: Path, remedy: str) -> set[str]:
    """The files that a load may read. Raises CorruptError for anything that is not a regular file or a folder."""
    return {name for name in _walk(folder, "", remedy) if name not in UNUSED}


def _walk(top: Path, below: str, remedy: str) -> Iterator[str]:
    with os.scandir(top / below) as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and entry.name == CACHE:
                continue  # compiled by Python when somebody loaded the model here; it is never copied
            if stat.S_ISDIR(mode) and name.count("/") < MAX_DEPTH:
                yield from _walk(top, f"{name}/", remedy)
            elif stat.S_ISREG(mode):
                yield name
            else:
                raise CorruptError(f"{top / name}: not a regular file of a registered model; {remedy}")
