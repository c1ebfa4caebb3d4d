"""Reading and writing the folders that a step is handed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_jobs.control_records import read_record_file, read_regular
from feature_jobs.errors import CorruptError
from tasks.store.digests import MANIFEST, canonical_json, finite, sha256_of
from tasks.store.objects import files_of
from tasks.store.records import Facts, Manifest


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a step's output; a dict, because each step writes its own names, and metrics may be NaN.

    Raises CorruptError where the file is missing or not readable.
    """
    try:
        data = read_regular(folder / name)
    except OSError as error:
        raise _unreadable(str(folder / name), error) from None
    return dict(parsed_json(data, str(folder / name)))


def parsed_json(data: bytes, place: str) -> Mapping[str, Any]:
    """The same, from the bytes of such a file."""
    try:
        loaded = json.loads(data)
        if isinstance(loaded, dict):
            return loaded
        raise ValueError
    except (ValueError, RecursionError) as error:
        raise _unreadable(place, error) from None


def _unreadable(place: str, error: Exception) -> CorruptError:
    return CorruptError(
        f"{place}: not readable ({type(error).__name__}); restore it from a backup, or compute its day again in a new"
        " generation (recloop chain replay)"
    )


def write_json(folder: Path, name: str, value: Any) -> None:
    """Equal values give equal bytes; a number that is not finite becomes null."""
    (folder / name).write_bytes(canonical_json(finite(value)))


def facts_of(folder: Path) -> Facts:
    """Returns the facts about a committed output's run, from its manifest; {} for a folder outside a store."""
    manifest = _manifest(folder)
    return manifest if manifest else {}


def digest_of(folder: Path) -> str:
    """The digest of the folder's content."""
    manifest = _manifest(folder)
    return manifest["digest"] if manifest else sha256_of(canonical_json(files_of(folder)))


def _manifest(folder: Path) -> Manifest | None:
    file = folder / MANIFEST
    return read_record_file(file, Manifest) if file.is_file() else None
