"""Types of the words on a command line: each is checked once, before a command sees it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Literal

import click

from feature_jobs.errors import BadInputError
from feature_jobs.schema.base import NAME_PATTERN
from feature_jobs.schema.days import parse_ds
from feature_jobs.schema.user_file import path_problem, resolved, shortened

GIVEN = "tasks.commands.given_paths"
"""Key of click's meta data: the paths that the command line names, of which an error of the system can be its user's."""

_READ, _WRITE = "read", "write"


def remember(path: Path) -> None:
    """Adds a path to those that the user gave."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta.setdefault(GIVEN, []).append(path)


def is_given(path: object) -> bool:
    """Whether a path of an error is one that the user gave, or lies below one."""
    context = click.get_current_context(silent=True)
    if context is None or not isinstance(path, str | Path):
        return False
    found = Path(path).absolute()
    return any(found.is_relative_to(one) for one in context.meta.get(GIVEN, []))


class Word(click.ParamType):
    """Text that can be printed, stored and looked up: without zero characters, in UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        return value


class Day(click.ParamType):
    """A day as `2022-04-25`, and no other spelling of it."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        try:
            return str(parse_ds(str(value)))
        except BadInputError as error:
            self.fail(str(error), param, ctx)
