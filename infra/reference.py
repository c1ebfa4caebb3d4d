"""`make reference`: docs/reference.md, every key of a scenario, kind of feature and function of expressions.

A test compares. All text comes from feature_jobs/schema and feature_jobs/expressions.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from feature_jobs.expressions import parser
from feature_jobs.expressions.functions import FUNCTIONS
from feature_jobs.schema import Scenario
from feature_jobs.schema.allowed import in_words
from feature_jobs.schema.base import Section
from feature_jobs.schema.features import AnyFeature, Embedding, Feature

FILE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """\
# Reference of a scenario

Written by `make reference` from `feature_jobs/schema` and `feature_jobs/expressions`; edit those, not this page.

A scenario is one file, `scenarios/NAME.yaml`. Its keys are listed in the order of the file. A key without a default is
required. `recloop check -s NAME` reports every mistake with file, line, value and remedy.
"""
BOUNDS = {
    "gt": "above {}",
    "ge": "{} or more",
    "lt": "below {}",
    "le": "at most {}",
    "min_length": "{} or more entries",
    "max_length": "at most {} entries",
}
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any value"}


def main() -> None:
    """Writes the page."""
    FILE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, *_sections(Scenario, ""), _features(), _functions()]
    return "\n".join(parts).rstrip() + "\n"


def _sections(section: type[Section], path: str) -> Iterator[str]:
    """A part for a section and for every section below it."""
    title = f"`{path}`" if path else "The scenario"
    yield f"## {title}\n\n{_text(section)}\n\n{_table(section)}\n"
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        # Features follow later, a part for each kind.
        if inner is None or issubclass(inner, Feature):
            continue
        key = field.alias or name
        in_mapping = get_origin(field.annotation) is dict
        below = f"{path}.{key}" if path else key
        yield from _sections(inner, f"{below}.NAME" if in_mapping else below)


def _features() -> str:
    """One part for each kind of feature, and one for their embeddings."""
    about = f"A feature has a name and a `kind`, which decides its other keys.\n\n{_text(Feature)}"
    parts = [f"## `features.NAME`, by kind\n\n{about}\n"]
    for feature in get_args(get_args(AnyFeature)[0]):
        kinds = " or ".join(f"`kind: {kind}`" for kind in get_args(feature.model_fields["kind"].annotation))
        # Common keys of several kinds are described at the class that they inherit from.
        classes = [c for c in feature.__mro__ if issubclass(c, Feature) and c is not Feature]
        text = "\n\n".join(map(_text, classes))
        parts.append(f"### {kinds}\n\n{text}\n\n{_table(feature, skip=('kind',))}\n")
    parts.append(f"### `features.NAME.embedding`\n\n{_text(Embedding)}\n\n{_table(Embedding)}\n")
    return "\n".join(parts)


def _functions() -> str:
    """The language of expressions: the parser's own description, and its functions."""
    about = inspect.cleandoc(parser.__doc__ or "")
    rows = [f"| `{name}` | {_cell(function.help)}. |" for name, function in FUNCTIONS.items()]
    table = "\n".join(["| function | meaning |", "|---|---|", *rows])
    return f"## Expressions\n\n{_with_code_blocks(about)}\n\n{table}\n"


def _table(section: type[Section], skip: tuple[str, ...] = ()) -> str:
    rows = ["| key | meaning | value | default |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if name not in skip:
            cells = (meaning(section, name), _value(field), _default(field))
            rows.append(f"| `{field.alias or name}` | {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def meaning(section: type[Section], key: str) -> str:
    """The text below a key in the class that declares it; empty where there is none."""
    texts = (_texts_of(declared).get(key) for declared in section.__mro__)
    return next((text for text in texts if text), "")


@functools.cache
def _texts_of(declared: type) -> dict[str, str]:
    """Key → the text below it. Python drops such texts, so they are read from the source; pydantic could do so too, but
    while a DAG is parsed."""
    if not issubclass(declared, Section):
        return {}
    [tree] = ast.parse(inspect.getsource(declared)).body
    assert isinstance(tree, ast.ClassDef)  # noqa: S101 (the source of a class is one)
    return {
        key.target.id: inspect.cleandoc(text.value.value).replace("\n", " ")
        for key, text in itertools.pairwise(tree.body)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _value(field: FieldInfo) -> str:
    """The allowed values in words: type, range, choices."""
    words = _type(field.annotation)
    limits = _limits(field.metadata)
    return f"{words}, {limits}" if limits else words


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        limits = _limits(arguments[1:])
        plain = _type(arguments[0])
        return f"{plain}, {limits}" if limits else plain
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(a) for a in arguments if a is not type(None)))
    if origin in (dict, tuple):
        return f"a mapping of names to {_type(arguments[1])}" if origin is dict else f"a list of {_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "a section"
    return PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(metadata: Any) -> str:
    """Bounds that the schema states."""
    shown = [(text, getattr(m, name)) for m in _flat(metadata) for name, text in BOUNDS.items() if hasattr(m, name)]
    return ", ".join(text.format(words) for text, bound in shown if (words := in_words(bound)) is not None)


def _flat(metadata: Any) -> Iterator[Any]:
    for entry in metadata:
        # pydantic flattens the bounds of a field, but not those of an alias inside a list or a mapping.
        if isinstance(entry, FieldInfo):
            yield from entry.metadata
        else:
            yield entry


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Section):
        return "the defaults below"
    if default is None or default in ((), {}, ""):
        return "none"
    # As YAML writes it, because readers copy it.
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{list(default)}`" if isinstance(default, tuple) else f"`{default}`"


def _section_in(annotation: Any) -> type[Section] | None:
    """The section class inside an annotation, `dict[Name, Entity]` or `Time | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _text(section: type[Section]) -> str:
    return inspect.cleandoc(section.__doc__ or "")


def _with_code_blocks(text: str) -> str:
    """Indented examples of a docstring as fenced blocks."""
    return re.sub(r"\n\n((?:    .*\n?)+)", lambda m: f"\n\n```\n{inspect.cleandoc(m[1])}\n```\n", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
