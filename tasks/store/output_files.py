"""Reading and writing the folders that a step is handed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from feature_jobs.errors import CorruptError
from tasks.store.records import Manifest
from tasks.store.scenario_store import MANIFEST, canonical_json, files_of, sha256_of


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a step's output; a dict, because each step writes its own names.

    Raises CorruptError where the file is missing or not readable.
    """
    try:
        loaded: dict[str, Any] = json.loads((folder / name).read_text())
        return loaded
    except (OSError, ValueError) as error:
        raise CorruptError(
            f"{folder / name}: not readable ({type(error).__name__}); restore it from a backup, or compute its day"
            " again in a new generation (recloop chain replay)"
        ) from None


def write_json(folder: Path, name: str, value: Any) -> None:
    """Equal values give equal bytes; a number that is not finite becomes null."""
    (folder / name).write_bytes(canonical_json(finite(value)))


def finite(value: Any) -> Any:
    """The same, with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def manifest_of(folder: Path) -> Manifest:
    """What the store wrote about the folder; outside a store there is no manifest, so it gets only a digest."""
    if (folder / MANIFEST).is_file():
        written: Any = read_json(folder, MANIFEST)
        manifest: Manifest = written
        return manifest
    return {"digest": sha256_of(canonical_json(files_of(folder))), "inputs": {}}


def digest_of(folder: Path) -> str:
    """The digest of the folder's content."""
    return manifest_of(folder)["digest"]
