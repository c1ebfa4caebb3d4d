"""A scenario file as YAML: its document, and the line at which each part of it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema.user_file import read_user_text

NAME = re.compile(r"""^name:[ \t]*["']?([\w-]+)""", re.MULTILINE)


def place_of(file: Path, *location: str) -> str:
    """`FILE:LINE` of the deepest part of `location` that a scenario file holds, for messages of later checks."""
    try:
        line = line_of(read_yaml(file), list(location))
    except BadInputError:  # gone or changed since it was loaded
        line = None
    return f"{file}:{line}" if line else str(file)


def setting(path: str, value: Any) -> tuple[str, str]:
    """A value that was given on the command line, as the command line has it."""
    return "--set", f"{path}={json.dumps(_with_text_keys(value), default=str)}"


def _with_text_keys(value: Any) -> Any:
    """YAML has keys that JSON has not: dates, lists."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value


def setting_at(given: Sequence[str], location: Sequence[Any]) -> str | None:
    """`--set PATH=VALUE` if the value at `location`, or part of it, was given so; else None. `given`: see `setting`."""
    for option, text in zip(given[-2::-2], given[-1::-2], strict=True):  # the last one counts
        path, _, value = text.partition("=")
        if option == "--set" and location and all(a == str(b) for a, b in zip(path.split("."), location, strict=False)):
            return f"{option} {path}={_bare(json.loads(value))}"
    return None


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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


def same_name(file: Path, name: str) -> list[Path]:
    """Other scenario files beside `file` that have the same name. They are searched, not parsed: one may be broken."""
    found = []
    for other in sorted(file.parent.glob("*.yaml")):
        if other != file and other.is_file():
            match = NAME.search(other.read_text(encoding="utf-8", errors="replace"))
            found += [other] if match and match[1] == name else []
    return found


def name_taken(name: str, *files: Path) -> str:
    """The message about several scenario files with one name."""
    return (
        f"{' and '.join(map(str, files))}: name: {name!r} is the name of each of these files, so they would share one"
        " store and one DAG; give each file a name of its own, or move one out of the folder"
    )


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
