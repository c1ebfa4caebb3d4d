"""Messages about a scenario that pydantic refused, one line a problem: file, line, field, value, fix."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from feature_jobs.schema.allowed import FEATURES, NAME, Rule, allowed, keys_at, rule_at
from feature_jobs.schema.yaml_file import line_of, setting_at


def explain(file: Path, document: Any, error: Any, given: Sequence[str] = ()) -> str:
    """One line for one pydantic error: place: field: value: must be ALLOWED; fix.

    The place is file:line, or the option of the command line (`given`) that the value comes from.
    """
    # The third part of a feature's location is its kind, and of a label's its form, which the file doesn't nest by.
    by_kind = error["loc"][0] in ("features", "labels") and error["loc"][-1] != "[key]"
    location = [part for i, part in enumerate(error["loc"]) if not (i == 2 and by_kind)]
    line = line_of(document, location)
    place = setting_at(given, location) or (f"{file}:{line}" if line else str(file))
    kind, value = error["type"], error.get("input")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        location, kind = [*location, "kind"], "missing" if kind == "union_tag_not_found" else kind
        value = value.get("kind") if isinstance(value, dict) else value
    rule, depth = rule_at(document, location)
    if len(rule.options) > 1 and isinstance(location[-1], int) and depth < len(location):
        value = _value_at(document, location[:depth])  # a whole list, as the rule says, and not one of its entries
    known = location if kind in ("extra_forbidden", "union_tag_invalid", "missing") else location[:depth]
    parts = [str(part) for part in known if part != "[key]"]
    field = ".".join(part if len(part) <= 60 else part[:57] + "..." for part in parts) or "scenario"
    kinds = f"one of: {', '.join(FEATURES)}"
    if kind == "extra_forbidden":
        return f"{place}: {field}: unknown key; {_known_key(document, location)}"
    if kind == "missing":
        return f"{place}: {field}: missing, must be {kinds if location[-1] == 'kind' else allowed(rule)}; add it"
    if kind == "union_tag_invalid":
        return f"{place}: {field}: {shown(value)}: must be {kinds}; {_closest(value, FEATURES) or 'choose one'}"
    if kind == "string_pattern_mismatch":
        return f"{place}: {field}: {shown(value)}: must be {NAME}; rename it"
    if kind == "value_error":  # a validator of ours, whose message names the problem and a fix
        # A section's text says little, and may hold a secret that stands in the wrong place.
        value_shown = "" if isinstance(value, dict) else f"{shown(value)}: "
        return f"{place}: {field}: {value_shown}{error['ctx']['error']}"
    return f"{place}: {field}: {shown(value)}: must be {allowed(rule)}; {_fix(rule, value)}"


def _value_at(document: Any, location: Sequence[Any]) -> Any:
    for part in location:
        document = document[part]
    return document


def _known_key(document: Any, location: Sequence[Any]) -> str:
    name = str(location[-1])
    if name.endswith(")"):
        return "a comma ends an expression within {} or []: put the expression in quotes"
    known = keys_at(document, location[:-1])
    return _closest(name, known) or f"known here: {', '.join(known)}"


def _closest(value: Any, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(str(value), list(known), n=1)
    return f"did you mean {close[0]}?" if close else None


def _fix(rule: Rule, value: Any) -> str:
    """Returns the remedy: a value to write instead of `value`."""
    choice = rule.options[0]
    origin = get_origin(choice.type)
    if value is None:
        return "give it a value, or remove the line"
    if (rule.section is not None and choice.type is not str) or origin is dict:
        return "write its keys below it, one a line: KEY: VALUE"
    if origin is Literal:
        known = [str(one) for one in get_args(choice.type)]
        return _closest(value, known) or f"write {known[0] if rule.default is None else rule.default}"
    if origin is tuple:
        return _fix_list(value)
    if choice.type in (int, float):
        return _fix_number(choice, rule.default, value)
    return _FIXES[choice.type].format(value) if not isinstance(value, list | dict) else "write one value"


_FIXES = {
    bool: "write true or false",
    datetime.date: 'write it as "2022-04-25"',
    str: 'write text, in quotes where it looks like something else: "{}"',
}


def _fix_list(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "add an entry"
    return "write it as a list: [A, B]" if isinstance(value, dict) else f"write it as a list: [{value}]"


def _fix_number(rule: Rule, default: Any, value: Any) -> str:
    if rule.type is int and isinstance(value, float) and abs(value) < 2**53 and _fits(rule, round(value)):
        return f"write {round(value)}"
    if isinstance(default, int | float):
        return f"write {default}, the default"
    least, most, above = (rule.limit(name) for name in ("ge", "le", "gt"))
    examples = [least, most, None if above is None else above + 1]
    return f"write a number such as {next((one for one in examples if one is not None), 1):g}"


def _fits(rule: Rule, number: float) -> bool:
    least, most = rule.limit("ge"), rule.limit("le")
    above, below = rule.limit("gt"), rule.limit("lt")
    return (
        (least is None or number >= least)
        and (most is None or number <= most)
        and (above is None or number > above)
        and (below is None or number < below)
    )


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML writes it, at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value) if isinstance(value, datetime.date) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
