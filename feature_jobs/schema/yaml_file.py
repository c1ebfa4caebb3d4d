"""A scenario file as YAML: its document, and the line at which each part of it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema.user_file import read_user_text


def place_of(file: Path, *location: str) -> str:
    """`FILE:LINE` of the deepest part of `location` that a scenario file holds, for what later checks say of it."""
    try:
        line = line_of(read_yaml(file), list(location))
    except BadInputError:  # gone or changed since it was loaded
        line = None
    return f"{file}:{line}" if line else str(file)


def read_yaml(file: Path) -> Any:
    """The document of a scenario file. Raises BadInputError where it cannot be read as a mapping."""
    from feature_jobs.schema.bounded_yaml import MAX_BYTES, parse_yaml

    try:
        text = read_user_text(file, MAX_BYTES)
    except FileNotFoundError:
        others = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        hint = f"there: {', '.join(others)}" if others else "no scenario there; `recloop init` proposes one"
        raise BadInputError(f"{file}: no such scenario file ({hint})") from None
    document = parse_yaml(text, str(file), round_trip=True)
    if not isinstance(document, dict):
        raise BadInputError(f"{file}: holds {type(document).__name__}, not a scenario; start from `recloop init`")
    return document


def line_of(document: Any, location: list[Any]) -> int | None:
    """The line of the deepest part of `location` that the document holds, counted from 1."""
    node, line = document, None
    for part in location:
        marks = getattr(node, "lc", None)
        if marks is None or not isinstance(node, dict) or part not in node:
            break
        line = int(marks.key(part)[0]) + 1 if marks.data and part in marks.data else line
        node = node[part]
    return line
