"""Rules of the schema for each place of a scenario, in words: `a whole number above 0`, `one of: csv, parquet`."""

from __future__ import annotations

import datetime
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from feature_jobs.schema.base import NAME_PATTERN, Section
from feature_jobs.schema.features import AnyFeature, Feature
from feature_jobs.schema.sections import Scenario

# AnyFeature is Annotated[A | B | ..., Field(...)]; its first argument is the union of all kinds.
FEATURES: dict[str, type[Feature]] = {
    kind: feature
    for feature in get_args(get_args(AnyFeature)[0])
    for kind in get_args(feature.model_fields["kind"].annotation)
}
NAME = "a name of small letters, digits and _, beginning with a letter, at most 100 in all"
_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    datetime.date: "a day",
    Any: "any value",
}
LARGEST = 2**63
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Rule:
    """The values allowed at one place: a type, its limits (pydantic's Gt, Ge, MinLen, ...), and the default or None."""

    type: Any
    limits: tuple[Any, ...] = ()
    default: Any = None

    @classmethod
    def of(cls, annotation: Any, limits: Sequence[Any] = (), default: Any = None) -> Rule:
        """The rule of an annotation such as `Annotated[int, Field(gt=0)]`."""
        limits = list(limits)
        while get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            for one in more:
                # pydantic flattens the bounds of a field itself, but not those of an alias inside a list or a mapping.
                limits += one.metadata if isinstance(one, FieldInfo) else [one]
        return cls(annotation, tuple(limits), None if default is PydanticUndefined else default)

    @property
    def options(self) -> list[Rule]:
        """The members of a union but for None; itself where it is not a union."""
        if get_origin(self.type) not in (Union, types.UnionType):
            return [self]
        return [Rule.of(one, self.limits) for one in get_args(self.type) if one is not type(None)]

    @property
    def section(self) -> type[Section] | None:
        """The class of a section, else None; of a feature the class that all kinds share."""
        found = [one.type for one in self.options if isinstance(one.type, type) and issubclass(one.type, Section)]
        return (Feature if issubclass(found[0], Feature) else found[0]) if found else None

    def limit(self, name: str) -> Any:
        """A limit by pydantic's name (gt, ge, lt, le, min_length, pattern), or None."""
        return next((value for one in self.limits if (value := getattr(one, name, None)) is not None), None)


def rule_at(document: Any, location: Sequence[Any]) -> tuple[Rule, int]:
    """The rule at a place of a document, and the number of the location's parts that lead to it.

    Parts that the schema does not know are left: an unknown key, or the branch of a union, which pydantic adds.
    """
    rule, node = Rule(Scenario), document
    for depth, part in enumerate(location):
        inner = _inside(rule, part, node)
        if inner is None:
            return rule, depth
        rule = inner
        node = node.get(part) if isinstance(node, dict) else None
    return rule, len(location)


def _inside(rule: Rule, part: Any, node: Any) -> Rule | None:
    for option in rule.options:
        arguments = get_args(option.type)
        if get_origin(option.type) is dict:
            return Rule.of(arguments[1])
        if get_origin(option.type) is tuple and isinstance(part, int):
            return Rule.of(arguments[0])
    for name, field in _fields(rule, node).items():
        if part in (name, field.alias):
            return Rule.of(field.annotation, field.metadata, field.get_default(call_default_factory=True))
    return None


def _fields(rule: Rule, node: Any) -> dict[str, FieldInfo]:
    """The fields of a section; those of a feature are of its kind."""
    section = rule.section
    if section is Feature and isinstance(node, dict):
        # As text: a file may have a list there, which can't be looked up.
        section = FEATURES.get(str(node.get("kind")), Feature)
    return section.model_fields if section else {}


def keys_at(document: Any, location: Sequence[Any]) -> list[str]:
    """The keys that the schema knows in the section at a place of a document; empty where names are free."""
    node = document
    for part in location:
        node = node.get(part) if isinstance(node, dict) else None
    rule, _ = rule_at(document, location)
    return [field.alias or name for name, field in _fields(rule, node).items()]


def allowed(rule: Rule) -> str:
    """Describes the values that the rule allows."""
    if rule.section is Feature:
        return f"a section with a kind, one of: {', '.join(FEATURES)}"
    if rule.section is not None:
        keys = f"a section with the keys {', '.join(f.alias or n for n, f in rule.section.model_fields.items())}"
        return f"text, or {keys}" if rule.options[0].type is str else keys
    return " or ".join(_one(option) for option in rule.options)


def in_words(bound: float) -> str | None:
    """A limit as a person writes it, 3,650 or 0.5; None for one that is only the range of a type."""
    # "below 9,223,372,036,854,775,808" is true of a rate too, but helps nobody to correct one.
    if abs(bound) >= LARGEST:
        return None
    return f"{int(bound):,}" if abs(bound) >= 1 and bound == int(bound) else f"{bound:g}"


def _one(rule: Rule) -> str:
    arguments = get_args(rule.type)
    if get_origin(rule.type) is Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    if get_origin(rule.type) is tuple:
        ends = {"at least": rule.limit("min_length"), "at most": rule.limit("max_length")}
        size = " and ".join(f"{word} {end}" for word, end in ends.items() if end)
        return f"a list{f' of {size}' if size else ''}, each {allowed(Rule.of(arguments[0]))}"
    if get_origin(rule.type) is dict:
        return f"names with a value each: {allowed(Rule.of(arguments[1]))}"
    if rule.limit("pattern") == NAME_PATTERN:
        return NAME
    bounds = {word: rule.limit(name) for name, word in _BOUNDS.items() if rule.limit(name) is not None}
    words = [f"{word} {shown}" for word, bound in bounds.items() if (shown := in_words(bound))]
    size = "of 64 bits" if rule.type is int and LARGEST in bounds.values() else ""
    return " ".join(part for part in (_TYPES[rule.type], size, " and ".join(words)) if part)
