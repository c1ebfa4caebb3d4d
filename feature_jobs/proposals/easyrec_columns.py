"""The columns that a ported config reads: as it declares them, or as they were found in the log's files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from feature_jobs.proposals.profiles import Profile, Table
from feature_jobs.proposals.roles import FoundEntity, Log
from feature_jobs.proposals.vocabulary import clean, unique

Shape = Literal["id", "number", "list", "text", "vector"]
_FITTING = {
    "id": ("int", "string", "bool", "list[int]", "list[string]"),
    "number": ("int", "float", "bool"),
    "list": ("list[int]", "list[string]"),
    "text": ("string",),
    "vector": ("list[float]",),
}


class MissingError(Exception):
    """No column can be read like this; the message is `problem; remedy`."""


class Columns(Protocol):
    """Finds columns by their names in the files."""

    @property
    def types(self) -> Mapping[str, str]:
        """The type of each column that was asked for, by the name in expressions."""

    def find(self, source: str, shape: Shape, hint: str = "", separator: str = "") -> str:
        """The name in expressions of a column that reads as the shape; `hint` is its type, where nothing declares it.

        A column of ids may be a list. Raises MissingError.
        """


@dataclass(frozen=True)
class Declared:
    """A column as the scenario declares it, and its name in the files."""

    name: str
    source: str
    type: str
    separator: str = ""

    def fields(self, *, required: bool) -> dict[str, object]:
        """Its settings in the scenario."""
        known = {"from": self.source if self.source != self.name else "", "type": self.type}
        known |= {"separator": self.separator}
        return {key: value for key, value in known.items() if value} | ({"required": True} if required else {})


class ConfigColumns:
    """The columns that the config names; each is declared when a feature asks for it."""

    def __init__(self, declared: Mapping[str, str], outcomes: Collection[str]) -> None:
        self.declared = declared
        self.outcomes = outcomes
        self.columns: dict[tuple[str, str], Declared] = {}

    @property
    def types(self) -> dict[str, str]:
        return {column.name: column.type for column in self.columns.values()}

    def find(self, source: str, shape: Shape, hint: str = "", separator: str = "") -> str:
        _check_known_before(source, self.outcomes)
        return self.declare(source, self._type(source, shape, hint), separator).name

    def declare(self, source: str, kind: str, separator: str = "", name: str = "") -> Declared:
        """The column of this type; two types of one column in the files are two columns."""
        if (source, kind) not in self.columns:
            free = unique(name or clean(source), self.types)
            by = separator if kind.startswith("list") else ""
            self.columns[source, kind] = Declared(free, source, kind, by)
        return self.columns[source, kind]

    def _type(self, source: str, shape: Shape, hint: str) -> str:
        known = self.declared.get(source, "")
        if known.startswith("map") and shape == "list":
            return "list[string]"
        if known.startswith(("array", "map")):
            remedy = "write its parts as columns of their own"
            raise MissingError(f"column {source} is of type {known.upper()}, which no column has; {remedy}")
        if known in _FITTING[shape]:
            return known
        if known == "list[float]":
            raise MissingError(f"column {source} is a list of numbers; use it as a vector, or declare another type")
        element = "int" if hint == "int" and not known else "string"
        others = {"number": "float", "list": f"list[{element}]", "text": "string", "vector": "list[float]"}
        return others.get(shape, element)


class FoundColumns:
    """Columns of the log, and of the entities that are joined to it."""

    def __init__(self, log: Log, entities: list[FoundEntity], outcomes: Collection[str]) -> None:
        self.fixed = {key.name: key.type for key in log.keys}
        self.tables: list[tuple[str, Table, tuple[Profile | None, ...]]] = [("", log.table, ())]
        self.tables += [(f"{one.name}.", one.table, (one.key, one.time)) for one in entities]
        self.outcomes = outcomes
        self.types: dict[str, str] = {}

    def find(self, source: str, shape: Shape, hint: str = "", separator: str = "") -> str:
        for prefix, table, keys in self.tables:
            for name, column in table.columns.items():
                if column not in keys and source in (column.source, name):
                    if not prefix:
                        _check_known_before(name, self.outcomes)
                    read = _as_shape(
                        column, shape, separator, known=self.types.get(prefix + name) or self.fixed.get(name)
                    )
                    # In its table too: the scenario declares the column with the type that this feature reads.
                    table.columns[name] = read
                    self.types[prefix + name] = read.type
                    return prefix + name
        raise MissingError(f"no file has a column {source}; add it to the log, or to a table with one row per key")


def _check_known_before(source: str, outcomes: Collection[str]) -> None:
    if source in outcomes:
        raise MissingError(f"column {source} is known only after the event; a count or rate may use earlier ones")


def _as_shape(column: Profile, shape: Shape, separator: str, *, known: str | None) -> Profile:
    """The column read as the shape; where another feature reads it already, its type `known` must fit."""
    if column.type in _FITTING[shape]:
        return column
    if known is None and shape == "list" and column.type == "string" and separator:
        return column.declared("list[string]", separator=separator)
    if known is None and shape == "vector" and column.type in ("list[string]", "list[int]", "string"):
        return column.declared("list[float]", separator=separator)
    if known is None and shape == "id" and column.type == "float":
        return column.declared("string")
    wanted = {"id": "an id", "number": "a number", "list": "a list", "text": "a text"}.get(shape, "a vector")
    raise MissingError(f"column {column.source} is of type {column.type} in the files, not {wanted}; correct the type")
