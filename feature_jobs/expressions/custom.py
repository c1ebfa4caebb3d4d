"""Functions of a user's own package in expressions: `custom.edit_distance(query, title)`.

A package registers a function of one row as an entry point, in its pyproject.toml:

    [project.entry-points."recloop.functions"]
    edit_distance = "shop_features.texts:edit_distance"

The annotations give the types, `def edit_distance(query: str, title: str) -> int`: int, float, str, bool, and lists of
int, float or str. A null argument gives null without a call, but for an argument that is annotated `str | None`. It
must compute the same from the same values: a day, a request and a day that is computed again call it in their own
order. The content of its source file is part of the steps' settings, so a changed function is a changed feature.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.parser import custom_functions_of

GROUP = "recloop.functions"
_KINDS: dict[Any, str] = {int: "int", float: "float", str: "string", bool: "bool"}
_KINDS |= {list[int]: "list[int]", list[float]: "list[float]", list[str]: "list[string]"}
_ARROW = {"int": pa.int64(), "float": pa.float64(), "string": pa.string(), "bool": pa.bool_()}
_ARROW |= {f"list[{kind}]": pa.list_(pa.field("l", _ARROW[kind])) for kind in ("int", "float", "string")}


@dataclass(frozen=True)
class CustomFunction:
    """A registered function with its types; `nulls` says which arguments may be null."""

    name: str
    function: Callable[..., Any]
    takes: tuple[str, ...]
    nulls: tuple[bool, ...]
    gives: str

    def __call__(self, *columns: pa.Array) -> pa.Array:
        """Its values for N rows. Raises BadInputError with the arguments of the first row for which it fails."""
        values = [self._of_row(row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]
        return pa.array(values, _ARROW[self.gives])

    def _of_row(self, row: tuple[Any, ...]) -> Any:
        if any(value is None and not nulls for value, nulls in zip(row, self.nulls, strict=True)):
            return None
        given = [[one for one in value if one is not None] if isinstance(value, list) else value for value in row]
        try:
            return pa.scalar(self.function(*given), _ARROW[self.gives]).as_py()
        except Exception as error:  # it is a user's code, which may raise anything
            shown = ", ".join(repr(value)[:60] for value in given)
            what = f"custom.{self.name}({shown}): {type(error).__name__}: {error}"
            raise BadInputError(f"{what}; correct the function, which gives {self.gives} or None") from None


def custom_function(name: str) -> CustomFunction:
    """The function of this name. Raises BadInputError where none is registered, or its annotations give no types."""
    return _loaded(_entry_point(name))


@functools.cache
def _loaded(entry_point: importlib.metadata.EntryPoint) -> CustomFunction:
    place = f"custom.{entry_point.name} ({entry_point.value})"
    try:
        function = entry_point.load()
        hints = typing.get_type_hints(function)
        names = list(inspect.signature(function).parameters)
    except Exception as error:  # its module is a user's code
        raise BadInputError(
            f"{place}: {type(error).__name__}: {error}; correct the package that registers it"
        ) from None
    arguments = [_plain(hints.get(name)) for name in names]
    kinds = [_KINDS.get(kind) for kind, _ in [*arguments, _plain(hints.get("return"))]]
    if None in kinds or not arguments:
        raise BadInputError(
            f"{place}: an argument or the result is not annotated as int, float, str, bool, list[int], list[float] or"
            " list[str]; add the annotation"
        )
    known = [kind for kind in kinds if kind is not None]
    return CustomFunction(entry_point.name, function, tuple(known[:-1]), tuple(n for _, n in arguments), known[-1])


def _plain(hint: Any) -> tuple[Any, bool]:
    """The type without `| None`, and if it had that."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    others = [one for one in typing.get_args(hint) if one is not types.NoneType]
    return (others[0], True) if len(others) == 1 else (None, False)


def _entry_point(name: str) -> importlib.metadata.EntryPoint:
    found = importlib.metadata.entry_points(group=GROUP)
    if name not in found.names:
        known = f"registered are {', '.join(sorted(found.names))}" if found.names else "none is registered"
        raise BadInputError(
            f"custom.{name}: no such function; {known}: install the package whose entry point {GROUP} names it"
        )
    return found[name]


def digests_of(expressions: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the source file of each registered function that the expressions call, by name."""
    names = sorted(set().union(*map(custom_functions_of, expressions)))
    return {name: hashlib.sha256(_source_of(_entry_point(name)).read_bytes()).hexdigest() for name in names}


def _source_of(entry_point: importlib.metadata.EntryPoint) -> Path:
    try:
        spec = importlib.util.find_spec(entry_point.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise BadInputError(
            f"custom.{entry_point.name}: no source file of {entry_point.module}; install the package that registers it"
        )
    return Path(spec.origin)
