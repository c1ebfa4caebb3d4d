"""Features declared together: an entry of `features` that stands for many.

    rates:
      kind: rate
      name: "{by}_{of}_rate_{windows}"
      by: {user: [user_id], user_tab: {by: [user_id, tab], prior_weight: 5}}
      of: {click: {of: is_click == 1, prior: 0.44}, long: long_view == 1}
      windows: [1d, 7d]

    clicks_of:
      kind: count
      by: [user_id]
      of: item.category
      values: [film, music]                 # a count of each: where (item.category) == 'film'

    shown:
      kind: sequence
      of: item_id
      by: user_id
      sides: {place: tab, ago: seconds_ago} # shown_place and shown_ago list values of the same events

A field whose value is a mapping has an alternative for each of its names: a value of the field, or settings that
replace those of the entry. `by` may also be a list of keys, and `windows` lists windows. There is a feature for each
combination, and of each value of `values`. `sides` of a sequence are further sequences.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema.yaml_file import line_of

FIELDS = ("by", "of", "where")
WINDOWS = "windows"
VALUES = "values"
SIDES = "sides"
_OF_SIDES = ("kind", "by", "where", "length", "enabled")  # what a side takes over from its sequence
MOST = 10_000
_WINDOW = re.compile(r"([1-9][0-9]{0,4})([hd])")  # as many digits as window_hours may have
_UNITS = {"h": "window_hours", "d": "window_days"}

Alternatives = dict[str, dict[str, Any]]
"""Settings by the name of the alternative."""


def fan_out(document: Any, file: Path) -> Any:
    """The document with every such entry replaced by its features, in the same place.

    Raises BadInputError naming the line of an entry that cannot be read, or whose features share a name.
    """
    entries = document.get("features")
    if not isinstance(entries, dict) or not any(_axes_of(entry) or _has_sides(entry) for entry in entries.values()):
        return document
    lines: Any = getattr(entries, "lc", None)
    features: Any = type(entries)()
    for name, entry in entries.items():
        axes = _axes_of(entry)
        place = f"{file}:{line_of(document, ['features', name])}: features.{name}"
        made = _expand(str(name), entry, axes, place) if axes else {name: entry}
        made = {key: one for main, given in made.items() for key, one in _with_sides(main, given, place).items()}
        if taken := next((one for one in made if one in features), None):
            raise BadInputError(f"{place}: a feature {taken} exists already; choose another name")
        features.update(made)
        if lines is not None and lines.data and name in lines.data:
            # So that a message about a feature names the line of the entry that it comes from.
            for one in made:
                features.lc.add_kv_line_col(one, lines.data[name])
    document["features"] = features
    return document


def _axes_of(entry: Any) -> list[str]:
    """Fields of an entry that have alternatives, in the order of the file."""
    if not isinstance(entry, dict):
        return []
    return [
        field
        for field, value in entry.items()
        if field == WINDOWS
        or (field == VALUES and _is_count_of(entry))
        or (field in FIELDS and _has_names(field, value))
    ]


def _is_count_of(entry: Mapping[str, Any]) -> bool:
    return entry.get("kind") == "count" and "of" in entry


def _has_sides(entry: Any) -> bool:
    return isinstance(entry, dict) and SIDES in entry


def _with_sides(name: Any, entry: Any, place: str) -> dict[Any, Any]:
    """A sequence, and one of each of its sides: values of the same events, which are those that have its own `of`."""
    if not _has_sides(entry):
        return {name: entry}
    main = {field: value for field, value in entry.items() if field != SIDES}
    sides = entry[SIDES]
    if not isinstance(sides, dict) or not sides or entry.get("kind") != "sequence":
        raise BadInputError(
            f"{place}.{SIDES}: {str(sides)[:40]!r}: must be names with an expression each, of a sequence; write them "
            f"as {SIDES}: {{place: tab, ago: seconds_ago}}"
        )
    common = {field: main[field] for field in _OF_SIDES if field in main}
    common["known"] = main.get("known", main.get("of"))
    found = {name: main}
    for side, value in sides.items():
        found[f"{name}_{side}"] = common | (dict(value) if isinstance(value, dict) else {"of": value})
    return found


def _has_names(field: str, value: Any) -> bool:
    is_keys = field == "by" and isinstance(value, list) and bool(value) and all(isinstance(key, list) for key in value)
    return is_keys or (field in FIELDS and isinstance(value, dict))


def _expand(name: str, entry: Mapping[str, Any], axes: list[str], place: str) -> dict[str, Any]:
    """The features of an entry, by name."""
    alternatives = {axis: _alternatives(axis, entry[axis], place) for axis in axes}
    if math.prod(map(len, alternatives.values())) > MOST:
        raise BadInputError(f"{place}: stands for more than {MOST:,} features; declare fewer together")
    # 7d and a value may begin with a digit, which a name must not.
    ends = [axis for axis in axes if axis in (WINDOWS, VALUES)]
    parts = [*(f"{{{axis}}}" for axis in axes if axis not in ends), name, *(f"{{{axis}}}" for axis in ends)]
    pattern = entry.get("name", "_".join(parts))
    common = {field: value for field, value in entry.items() if field not in {*axes, "name"}}
    found: dict[str, Any] = {}
    for chosen in itertools.product(*alternatives.values()):
        try:
            one = str(pattern).format(**dict(zip(axes, chosen, strict=True)))
        except (KeyError, IndexError, ValueError, AttributeError):
            known = ", ".join(f"{{{axis}}}" for axis in axes)
            raise BadInputError(f"{place}.name: {pattern!r}: must be a text with {known}; correct it") from None
        if one in found:
            raise BadInputError(f"{place}: two of its features are named {one}; use all of {', '.join(axes)} in name")
        settings = [alternatives[axis][part] for axis, part in zip(axes, chosen, strict=True)]
        found[one] = {**common, **{field: value for part in settings for field, value in part.items()}}
        if VALUES in found[one]:
            _turn_into_condition(found[one])
    return found


def _turn_into_condition(entry: dict[str, Any]) -> None:
    """Makes the count of a value from `of` and the value."""
    condition = f"({entry.pop('of')}) == {entry.pop(VALUES)!r}"
    entry["where"] = f"({entry['where']}) and {condition}" if entry.get("where") else condition


def _alternatives(axis: str, value: Any, place: str) -> Alternatives:
    if axis == WINDOWS:
        found = [_window(window, place) for window in _list(value)]
    elif axis == VALUES:
        found = [(re.sub(r"\W+", "_", str(one)).lower(), {axis: _plain(one, place)}) for one in _list(value)]
    elif isinstance(value, list):
        found = [(re.sub(r"\W+", "_", "_".join(map(str, key))), {axis: key}) for key in value]
    else:
        found = [(str(name), dict(part) if isinstance(part, dict) else {axis: part}) for name, part in value.items()]
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInputError(f"{place}.{axis}: two alternatives are named {twice}; write a mapping with a name for each")
    if not found:
        raise BadInputError(f"{place}.{axis}: empty; name an alternative, or write the value itself")
    return dict(found)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(value: Any, place: str) -> int | str:
    """A value as an expression writes it."""
    if isinstance(value, int):
        return int(value)  # of true and false 1 and 0
    if isinstance(value, str):
        return str(value)
    raise BadInputError(f"{place}.{VALUES}: {str(value)[:40]!r}: must be whole numbers or texts; correct it")


def _window(window: Any, place: str) -> tuple[str, dict[str, int | str]]:
    if not (found := _WINDOW.fullmatch(str(window))):
        raise BadInputError(f"{place}.{WINDOWS}: {str(window)[:40]!r}: must be hours or days, such as 12h or 7d")
    return str(window), {_UNITS[found[2]]: int(found[1])}
