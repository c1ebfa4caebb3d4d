"""Types of the words on a command line: each is checked once, before a command sees it."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from feature_jobs.errors import BadInputError
from feature_jobs.schema.base import NAME_PATTERN
from feature_jobs.schema.days import parse_ds
from feature_jobs.schema.user_file import resolved

_GIVEN = "tasks.commands.arguments.given"


def check_words(words: Sequence[str]) -> None:
    """Refuses words that can't be printed or stored, wherever they stand. Raises click.UsageError."""
    for word in words:
        try:
            valid = b"\0" not in word.encode()
        except UnicodeEncodeError:
            valid = False
        if not valid:
            raise click.UsageError(f"{word[:80]!r} is not UTF-8 text without zero characters; rename it")


def is_given(context: click.Context, path: object) -> bool:
    """Whether a path is one that the user gave, or lies below or above one: then it is theirs to choose another."""
    if not isinstance(path, str | Path):
        return False
    place = Path(path).absolute()
    given: list[Path] = context.meta.get(_GIVEN, [])
    return any(place.is_relative_to(one) or one.is_relative_to(place) for one in given)


def remember(context: click.Context | None, path: Path) -> None:
    """Adds a path, absolute, to those that the user gave."""
    if context is not None:
        context.meta.setdefault(_GIVEN, []).extend([path.absolute(), resolved(path)])


class Day(click.ParamType):
    """A day as `2022-04-25`, and no other spelling of it."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        try:
            return str(parse_ds(str(value)))
        except BadInputError as error:
            self.fail(str(error), param, ctx)


class Name(click.ParamType):
    """The name of a scenario."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        if not re.fullmatch(NAME_PATTERN.strip("^$"), str(value)):
            self.fail(f"{str(value)[:80]!r}: write at most 100 small letters, digits and _, a letter first", param, ctx)
        return str(value)


class Pair(click.ParamType):
    """`NAME=VALUE`, as a tuple."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """See click."""
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name.strip() or not equals:
            self.fail(f"{str(value)[:80]!r}: write it as NAME=VALUE", param, ctx)
        return name.strip(), text


class PathTo(click.ParamType):
    """A path at which there is what is wanted, or nothing. FIFOs, devices and sockets are refused: they can wait for
    ever. What the system says of the path later counts as bad input too, see `is_given`."""

    name = "path"

    def __init__(self, wanted: Literal["file", "folder", "file or folder"], *, exists: bool = False) -> None:
        self.wanted, self.exists = wanted, exists

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """See click. Raises BadInputError."""
        text = str(value)
        try:
            problem = self._problem(text, resolved(text))
        except BadInputError as error:
            problem = str(error)
        if problem is not None:
            option = f"{param.opts[0]} " if isinstance(param, click.Option) else ""
            raise BadInputError(option + problem)
        remember(ctx, Path(text))
        return Path(text)

    def _problem(self, text: str, place: Path) -> str | None:
        if "://" in text:
            return f"{text}: is a URL, not a {self.wanted}; give a path"
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            return f"{text}: no such {self.wanted}; name one that exists" if self.exists else None
        except OSError as error:
            return f"{text}: {error.strerror}; choose another path"
        kinds = {"folder": stat.S_ISDIR(mode), "file": stat.S_ISREG(mode)}
        if any(kinds[kind] for kind in self.wanted.split(" or ")):
            return None
        found = next((kind for kind, is_it in kinds.items() if is_it), "FIFO, a device or a socket")
        return f"{text}: is a {found}, not a {self.wanted}; choose another path"


class StoreUrl(PathTo):
    """A folder, or the URL of an object store, which is checked where it is opened."""

    def __init__(self) -> None:
        super().__init__("folder")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click. Raises BadInputError."""
        text = str(value)
        if "://" not in text.removeprefix("file://"):
            super().convert(text.removeprefix("file://"), param, ctx)
        return text
