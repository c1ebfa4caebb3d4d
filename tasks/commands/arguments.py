"""Types of the words on a command line: each is checked once, before a command sees it.

They are functions, which click calls with the word. A wrong word is a wrong command line (exit 2); a path at which
there is the wrong thing is bad input (exit 4).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import click

from feature_jobs.errors import BadInputError
from feature_jobs.schema.base import NAME_PATTERN
from feature_jobs.schema.days import parse_ds
from feature_jobs.schema.user_file import resolved

_GIVEN = "tasks.commands.arguments.given"


def check_words(words: Sequence[str]) -> None:
    """Refuses words that can't be printed or stored, in any place. Raises click.UsageError."""
    for word in words:
        try:
            valid = b"\0" not in word.encode()
        except UnicodeEncodeError:
            valid = False
        if not valid:
            raise click.UsageError(f"{word[:80]!r} is not UTF-8 text without zero characters; rename it")


def is_given(context: click.Context, path: object) -> bool:
    """Says if a path is one that the user gave, or lies below or above one: then the user can choose another."""
    if not isinstance(path, str | Path):
        return False
    place = Path(path).absolute()
    given: list[Path] = context.meta.get(_GIVEN, [])
    return any(place.is_relative_to(one) or one.is_relative_to(place) for one in given)


def remember(path: Path) -> None:
    """Adds a path to those that the user gave."""
    context = click.get_current_context()
    # Both forms, because the system's error names the path as it was opened.
    context.meta.setdefault(_GIVEN, []).extend([path.absolute(), resolved(path)])


def day(word: str) -> str:
    """A day as `2022-04-25`, and no other spelling of it."""
    try:
        return str(parse_ds(word))
    except BadInputError as error:
        raise click.BadParameter(str(error)) from None


def name(word: str) -> str:
    """The name of a scenario."""
    if not re.fullmatch(NAME_PATTERN.strip("^$"), word):
        raise click.BadParameter(f"{word[:80]!r}: write at most 100 small letters, digits and _, a letter first")
    return word


def pair(word: str) -> tuple[str, str]:
    """The parts of `NAME=VALUE`."""
    key, equals, text = word.partition("=")
    if not key.strip() or not equals:
        raise click.BadParameter(f"{word[:80]!r}: write it as NAME=VALUE")
    return key.strip(), text


Wanted = Literal["file", "folder", "file or folder"]


def path_to(wanted: Wanted, *, exists: bool = False) -> Callable[[str | Path], Path]:
    """The type of a path to something of the wanted kind, or to nothing.

    FIFOs, devices and sockets are refused, because one can wait for them for ever. A later error of the system about
    the path counts as bad input too, see `is_given`. Raises BadInputError.
    """

    def path(word: str | Path) -> Path:
        if problem := _problem(str(word), resolved(word), wanted, exists):
            raise BadInputError(problem)
        remember(Path(word))
        return Path(word)

    return path


def store(word: str) -> str:
    """A folder, or the URL of an object store, which is checked where it is opened."""
    folder = word.removeprefix("file://")
    if "://" not in folder:
        path_to("folder")(folder)
    return word


def _problem(text: str, place: Path, wanted: Wanted, exists: bool) -> str | None:
    # As a path it would be a folder that does not exist yet, and so be accepted.
    if "://" in text:
        return f"{text}: is a URL, not a {wanted}; give a path"
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return f"{text}: no such {wanted}; name one that exists" if exists else None
    except OSError as error:
        return f"{text}: {error.strerror}; choose another path"
    kinds = {"folder": stat.S_ISDIR(mode), "file": stat.S_ISREG(mode)}
    if any(kinds[kind] for kind in wanted.split(" or ")):
        return None
    found = next((kind for kind, is_it in kinds.items() if is_it), "FIFO, a device or a socket")
    return f"{text}: is a {found}, not a {wanted}; choose another path"
