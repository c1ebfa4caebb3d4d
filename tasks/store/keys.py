"""Keys of the store's records."""

from __future__ import annotations

RECORD = "commit.json"
JOURNAL = "journal.jsonl"
ALL_RECORDS = "runs/g*/*/*.json"
ALL_TRACKED = "tracked/g*/*/*"


def commit_key(generation: int, ds: str, step: str) -> str:
    """Where the outputs of a step on a day lie."""
    return f"g{generation:04}/{ds}/{step}"


def collected_key(generation: int, ds: str, step: str) -> str:
    """Key of the record that says that the files of a commit were deleted."""
    return f"{commit_key(generation, ds, step)}/collected.json"


def generation_key(number: int) -> str:
    """Key of the record that starts a generation."""
    return f"g{number:04}/generation.json"


def record_key(generation: int, ds: str, step: str) -> str:
    """Key of the record of a step's run: metrics, series, system metrics, seconds."""
    return f"runs/g{generation:04}/{ds}/{step}.json"


def parts_of_record_key(key: str) -> tuple[int, str, str]:
    """Generation, day and step of such a key."""
    _, generation, ds, file = key.split("/")
    return int(generation.removeprefix("g")), ds, file.removesuffix(".json")


def tracked_key(generation: int, ds: str, step: str) -> str:
    """Key of the mark that says that MLflow shows a commit."""
    return f"tracked/g{generation:04}/{ds}/{step}"
