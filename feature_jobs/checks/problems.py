"""Problems of a scenario, a line for each: FILE:LINE: field: value: problem; remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from copy import copy
from typing import Any

from feature_jobs.errors import BadInputError, mistake
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of
from feature_jobs.expressions.types import type_of
from feature_jobs.schema import Scenario, Table


def closest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?`, or the names to choose from."""
    names = list(known)
    # The usual mistake: a column of an entity without the entity, `age` for `user.age`.
    part = [n for n in names if name in n.split(".")]
    close = part or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else "there are none"


class Problems:
    """Messages about one scenario, and the types of the columns that its expressions may name.

    `messages` refuse the scenario; `warnings` are shown to its author and refuse nothing.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.types = self._types(scenario.data.events)
        self.event_columns = tuple(scenario.data.events.columns)

    def _types(self, log: Table) -> dict[str, str]:
        types: dict[str, str] = {name: column.type for name, column in log.columns.items()}
        for entity_name, entity in self.scenario.data.entities.items():
            types |= {f"{entity_name}.{name}": column.type for name, column in entity.columns.items()}
        return types

    def over(self, source: str | None) -> Problems:
        """The same problems, for expressions over the rows of a further log."""
        if source not in self.scenario.data.logs:
            return self
        # Shallow, so that both add to one list of messages.
        view = copy(self)
        view.types = self._types(self.scenario.data.log(source))
        return view

    def say(self, location: tuple[str, ...], value: Any, what: str, remedy: str) -> None:
        """Adds a message about the field at `location`."""
        self.messages.append(self._line(location, value, what, remedy))

    def warn(self, location: tuple[str, ...], value: Any, what: str, remedy: str) -> None:
        """Adds a warning about the field at `location`."""
        self.warnings.append(self._line(location, value, what, remedy))

    def _line(self, location: tuple[str, ...], value: Any, what: str, remedy: str) -> str:
        return f"{self.scenario.place_of(*location)}: {mistake(location, value, what, remedy)}"

    def column(self, location: tuple[str, ...], name: str) -> bool:
        """Says if `name` is a column; adds a message where it is not."""
        if name in self.types or name == EVENT_TIME:
            return True
        self.say(location, name, "no such column", closest(name, self.types))
        return False

    def expression(
        self, location: tuple[str, ...], expression: str, more: dict[str, str] | None = None
    ) -> tuple[str | None, frozenset[str]]:
        """Type of an expression (None, with a message, where it is wrong) and the columns it reads.

        `more` holds the types of names that are allowed besides columns.
        """
        # Columns last: a column wins over a feature of its name, as it does in the join.
        types = {**(more or {}), **self.types}
        try:
            columns = columns_of(expression)
        except BadInputError as error:
            self.say(location, None, *_split(error))
            return None, frozenset()
        unknown = sorted(columns - types.keys() - {EVENT_TIME})
        for name in unknown:
            # A column alone would stand in the message twice.
            value = None if name == expression.strip() else expression
            self.say(location, value, f"no column {name}", closest(name, types))
        if unknown:
            return None, columns
        try:
            return type_of(expression, types.__getitem__), columns
        except BadInputError as error:
            self.say(location, None, *_split(error))
            return None, columns

    def condition(
        self, location: tuple[str, ...], expression: str, more: dict[str, str] | None = None
    ) -> frozenset[str]:
        """Checks an expression that must be true or false; returns the columns it reads."""
        kind, columns = self.expression(location, expression, more)
        if kind is not None and kind not in ("bool", "int", "float"):
            self.say(location, expression, f"gives {kind}, not true or false", "compare it: == '...', is not None")
        return columns


def _split(error: BadInputError) -> tuple[str, str]:
    # The last one, as a text in the quoted expression may hold others.
    what, _, remedy = str(error).rpartition("; ")
    return what, remedy


NARROW = "narrow data.days, name them in data.days.skip, or bring the data"
"""The remedy where days have no data."""


def some_days(days: list[str]) -> str:
    """The first days, and the number of all."""
    return ", ".join(days[:5]) + (f", ... ({len(days):,} days)" if len(days) > 5 else "")
