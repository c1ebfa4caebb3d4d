"""Keys of the store's records, and their parts. A file with another name is not part of the store."""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

RECORD = "commit.json"
JOURNAL = "journal.jsonl"
ALL_RECORDS = "runs/g*/*/*.json"
ALL_TRACKED = "tracked/g*/*/*"

GENERATION = r"g\d{4,}"
DAY = r"\d{4}-\d\d-\d\d"
STEP = r"[a-z][a-z0-9_-]*"
FOLDER_NAME = 16  # hex digits of the manifest's digest
_PLACE = re.compile(rf"g(\d{{4,}})/({DAY})/({STEP})", re.ASCII)


class Place(NamedTuple):
    """Place of a step's output on a day."""

    generation: int
    ds: str
    step: str


def place_of(key: str) -> Place | None:
    """The place that a commit's key names; None where it is not such a key: `gold/2024-01-01/train`."""
    found = _PLACE.fullmatch(key)
    if found is None:
        return None
    place = Place(int(found[1]), found[2], found[3])
    return place if is_date(place.ds) and commit_key(*place) == key else None


def generation_of_folder(name: str) -> int | None:
    """The generation whose outputs lie in a folder of that name; None where it is another folder."""
    found = re.fullmatch(r"g(\d{4,})", name, re.ASCII)
    return int(found[1]) if found and f"g{int(found[1]):04}" == name else None


def is_date(text: str) -> bool:
    """Says if a text is a day of the calendar, as YYYY-MM-DD."""
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def commit_key(generation: int, ds: str, step: str) -> str:
    """Returns the key below which a step's outputs on a day lie."""
    return f"g{generation:04}/{ds}/{step}"


def collected_key(generation: int, ds: str, step: str) -> str:
    """Key of the record that says that the files of a commit were deleted."""
    return f"{commit_key(generation, ds, step)}/collected.json"


def generation_key(number: int) -> str:
    """Key of the record that starts a generation."""
    return f"g{number:04}/generation.json"


def log_key(log: str, number: int) -> str:
    """Key of a record of a log, a folder of records that are numbered from 1 on."""
    return f"{log}/{number:06}.json"


def record_key(generation: int, ds: str, step: str) -> str:
    """Key of the record of a step's run: metrics, series, system metrics, seconds."""
    return f"runs/{commit_key(generation, ds, step)}.json"


def place_of_record(key: str) -> Place | None:
    """Generation, day and step of such a key."""
    return place_of(key.removeprefix("runs/").removesuffix(".json"))


def tracked_key(generation: int, ds: str, step: str) -> str:
    """Key of the mark that says that MLflow shows a commit."""
    return f"tracked/{commit_key(generation, ds, step)}"
