"""The users to forget, and the columns of the scenario that hold their ids.

The column `data.user` names users, and so does each column that shares an embedding table with it, because a table
holds the ids of one kind of thing. Other columns may hold an equal number by chance (item 7 is not user 7), so a person
has to name them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.parser import column_name, parse
from feature_jobs.schema import (
    SECONDS_AGO,
    Column,
    IdFeature,
    IdsFeature,
    Scenario,
    SequenceFeature,
    Table,
    TopFeature,
    ValueFeature,
)
from feature_jobs.sources.mentions import IdFinder
from feature_jobs.sources.source import did_you_mean

User = int | str
ID_TYPES = ("int", "string", "list[int]", "list[string]")
_PASSES_ON = ("coalesce", "min", "max", "bool_mask")  # functions that give one of their arguments as it is


@dataclass(frozen=True)
class Users:
    """Users by their `ids`, in the type of the user column.

    `columns`: all columns that name users, as expressions write them; `texts`: those of them whose texts are searched
    for ids. `tables`: embedding tables whose ids are users; `others`: the other tables of ids, with the columns that
    their ids come from.
    """

    ids: tuple[User, ...]
    columns: frozenset[str]
    tables: frozenset[str] = frozenset()
    others: Mapping[str, frozenset[str]] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()

    @cached_property
    def finder(self) -> IdFinder:
        """Finds the ids in longer texts."""
        return IdFinder(self.ids)


@dataclass(frozen=True)
class Found:
    """Traces of users in a committed folder: the number of rows that name them, and the `ids` found there.

    `elsewhere`: number of other values that equal or hold one of the ids, by column.
    """

    rows: int
    ids: frozenset[User]
    elsewhere: Mapping[str, int]


def users_of(scenario: Scenario, texts: Iterable[str], columns: Iterable[str] = ()) -> Users:
    """The users with these ids, each once; `columns` name users too, also inside their texts. Raises BadInputError for
    an unknown column or an id that does not read as the user column's type."""
    columns = tuple(columns)
    known = id_columns(scenario)
    for name in columns:
        if name not in known:
            raise BadInputError(
                f"--column {name!r} is not a column of ids (int, string, or a list of them) in {scenario.file};"
                f" {did_you_mean(name, known)}"
            )
    tables, computed = _tables(scenario)
    naming = _with_shared(scenario, {scenario.data.user, *columns}, tables.values()) & known.keys()
    # An id that an expression computes equals a user's by chance, so such a table says nothing of users.
    plain = {table: read for table, read in tables.items() if table not in computed}
    return Users(
        tuple(_ids(scenario, texts)),
        frozenset(naming),
        frozenset(table for table, read in plain.items() if read & naming),
        {table: read for table, read in plain.items() if not read & naming},
        frozenset(columns),
    )


def id_columns(scenario: Scenario) -> dict[str, Column]:
    """Columns that can hold ids, by the name that expressions give them: `shared_by`, `viewer.friends`."""
    others = {**scenario.data.logs, **scenario.data.entities}
    tables: dict[str, Table] = {"": scenario.data.events, **{f"{name}.": table for name, table in others.items()}}
    every = {f"{prefix}{name}": c for prefix, table in tables.items() for name, c in table.columns.items()}
    return {name: column for name, column in every.items() if column.type in ID_TYPES}


def _ids(scenario: Scenario, texts: Iterable[str]) -> list[User]:
    column = scenario.data.events.columns[scenario.data.user]
    place = f"{scenario.file}: data.events.columns.{scenario.data.user} is {column.type}"
    found: dict[User, None] = {}
    for text in texts:
        if column.type == "string":
            found[text] = None  # exactly as it is: " s3 " and "s3" are two users
        elif column.type == "int" and re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", text) and -(2**63) <= int(text) < 2**63:
            found[int(text)] = None
        else:
            raise BadInputError(
                f"--user {text[:80]!r} is not the id of a user: {place}; give ids as the events hold them"
            )
    return list(found)


def _tables(scenario: Scenario) -> tuple[dict[str, frozenset[str]], set[str]]:
    """The columns that each embedding table's ids are taken from, and the tables that hold computed ids, too."""
    tables: dict[str, frozenset[str]] = {}
    computed = set()
    for name, feature in scenario.features.items():
        if not isinstance(feature, IdFeature | IdsFeature | SequenceFeature | ValueFeature | TopFeature):
            continue  # crosses get their rows from the same events, under keys of their own
        table = feature.table or name
        passed: set[str | None] = {None} if feature.of == SECONDS_AGO else _passed_on(parse(feature.of or name))
        if (source := getattr(feature, "source", None)) is not None:  # its own columns are written without it there
            own = scenario.data.logs[source].columns
            passed = {f"{source}.{column}" if column in own else column for column in passed}
        if None in passed:
            computed.add(table)
        if isinstance(feature, SequenceFeature) and feature.history is not None:
            passed.add(feature.history)
        tables[table] = tables.get(table, frozenset()).union(column for column in passed if column is not None)
    return tables, computed


def _passed_on(node: ast.expr) -> set[str | None]:
    """Columns whose values an expression gives as they are; None among them: it gives other values, too."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _PASSES_ON:
        if node.func.id == "bool_mask":
            return _passed_on(node.args[0])
        return set[str | None]().union(*map(_passed_on, node.args))
    if isinstance(node, ast.IfExp):
        return _passed_on(node.body) | _passed_on(node.orelse)
    return {column_name(node)}


def _with_shared(scenario: Scenario, columns: set[str], tables: Iterable[frozenset[str]]) -> set[str]:
    """Adds the columns that share an embedding table or an entity's key with one of them, or are called alike in a
    further log, and those that do so with the added ones."""
    entities = scenario.data.entities.items()
    keys = [frozenset((key, f"{name}.{key}")) for name, entity in entities for key in entity.keys]
    keys += [
        frozenset((column, f"{name}.{column}"))
        for name, log in scenario.data.logs.items()
        for column in log.columns.keys() & scenario.data.events.columns.keys()
    ]
    groups = [*tables, *keys]
    while more := set[str]().union(*(group for group in groups if group & columns)) - columns:
        columns = columns | more
    return columns
