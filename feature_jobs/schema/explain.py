"""Says what is wrong with a scenario that pydantic refused, in one line a mistake: file, line, field, value, remedy."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from feature_jobs.schema.base import Section
from feature_jobs.schema.features import (
    CountFeature,
    CrossFeature,
    Feature,
    IdFeature,
    IdsFeature,
    NumberFeature,
    RateFeature,
    RecencyFeature,
    SequenceFeature,
)
from feature_jobs.schema.sections import Scenario
from feature_jobs.schema.yaml_file import line_of


def explain(file: Path, document: Any, error: Any) -> str:
    """One line for one pydantic error: file:line: field: value: what is wrong; remedy."""
    # The third part of a feature's location is its kind, which the file doesn't nest by.
    location = [part for i, part in enumerate(error["loc"]) if not (i == 2 and error["loc"][0] == "features")]
    field = ".".join(str(part) for part in location) or "scenario"
    line = line_of(document, location)
    place = f"{file}:{line}" if line else str(file)
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(document, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        if str(location[-1]).endswith(")"):
            remedy = "a comma ends an expression within {} or []: put the expression in quotes"
        return f"{place}: {field}: unknown key; {remedy}"
    if kind == "missing":
        return f"{place}: {field}: missing; add it"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = value.get("kind") if isinstance(value, dict) else value
        close = difflib.get_close_matches(str(given), _KINDS, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"one of: {', '.join(_KINDS)}"
        return f"{place}: {field}.kind: {given!r} is no kind of feature; {remedy}"
    if kind == "literal_error":
        expected = re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", "")))
        close = difflib.get_close_matches(str(value), expected, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"one of: {', '.join(expected)}"
        return f"{place}: {field}: {value!r} is not allowed; {remedy}"
    if kind == "string_pattern_mismatch":
        return f"{place}: {field}: {value!r} is no name; use small letters, digits and _, a letter first"
    return f"{place}: {field}: {_short(value)}: {error['msg'][0].lower()}{error['msg'][1:]}"


_KINDS = ("id", "ids", "cross", "number", "count", "rate", "recency", "sequence")
_FEATURES: dict[str, type[Feature]] = dict(
    zip(
        _KINDS,
        (
            IdFeature,
            IdsFeature,
            CrossFeature,
            NumberFeature,
            CountFeature,
            RateFeature,
            RecencyFeature,
            SequenceFeature,
        ),
        strict=True,
    )
)


def _fields_at(document: Any, location: list[Any]) -> list[str]:
    """The field names that the schema knows at a place of the document."""
    section: Any = Scenario
    keyed = False  # inside a mapping of names to sections, such as `features`
    node = document
    for part in location:
        node = node.get(part) if isinstance(node, dict) else None
        if keyed:
            keyed = False
        else:
            field = next((f for n, f in section.model_fields.items() if part in (n, f.alias)), None)
            section = _element(field.annotation) if field else None
            keyed = field is not None and getattr(field.annotation, "__origin__", None) is dict
        if section is None:
            return []
        if section is Feature and not keyed:
            section = _FEATURES.get(node.get("kind", "") if isinstance(node, dict) else "", Feature)
    return [] if keyed else [field.alias or name for name, field in section.model_fields.items()]


def _element(annotation: Any) -> Any:
    """The section class inside an annotation such as `dict[Name, Entity]` or `Time | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return Feature if issubclass(annotation, Feature) else annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _element(inner)
        if found is not None:
            return found
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
