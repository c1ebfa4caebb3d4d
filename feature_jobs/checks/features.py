"""Checks labels, features and segments of a scenario against its columns, without data."""

from __future__ import annotations

import math
from typing import Any

from feature_jobs.checks.problems import Problems, closest
from feature_jobs.expressions.compiler import EVENT_TIME
from feature_jobs.schema import EmbeddedFeature, Embedding, IdFeature, IdsFeature, SequenceFeature, TrailingFeature

ID_TYPES = ("int", "string", "bool")


def check_labels(problems: Problems) -> set[str]:
    """Checks labels and outcomes; returns the outcome columns, which are known only after the event was shown."""
    outcomes: set[str] = set()
    for name, expression in problems.scenario.labels.items():
        columns = problems.condition(("labels", name), expression)
        if not columns:
            problems.say(("labels", name), expression, "reads no column", "write a condition such as rating >= 4")
        # A label may read the event's time, which is known before the event's outcome.
        outcomes |= columns - {EVENT_TIME}
    for name in problems.scenario.outcomes:
        if problems.column(("outcomes",), name):
            outcomes.add(name)
    data = problems.scenario.data
    for name in sorted(outcomes & {data.user, data.item}):
        problems.say(("labels",), name, "data.user or data.item is an outcome", "take it out of labels and outcomes")
    # Reported above; kept among them, every feature of the user or item would be reported as a leak, too.
    return outcomes - {data.user, data.item}


def check_features(problems: Problems, outcomes: set[str]) -> dict[str, str]:
    """Checks every feature; returns the types of the sound ones, for segments."""
    features = _Features(problems, outcomes)
    for name, feature in problems.scenario.features.items():
        features.check(name, feature)
    features.check_tables()
    if not problems.scenario.enabled_features:
        problems.say(("features",), None, "none is enabled", "enable at least one")
    return features.types


def check_segments(problems: Problems, feature_types: dict[str, str]) -> None:
    """Segments are conditions over columns and features."""
    for name, expression in problems.scenario.evaluate.segments.items():
        problems.condition(("evaluate", "segments", name), expression, feature_types)


class _Features:
    def __init__(self, problems: Problems, outcomes: set[str]) -> None:
        self.problems = problems
        self.outcomes = outcomes
        self.types: dict[str, str] = {}

    def check(self, name: str, feature: Any) -> None:
        location = ("features", name)
        if isinstance(feature, SequenceFeature):
            self._sequence(location, feature)
        elif isinstance(feature, TrailingFeature):
            self._trailing(location, feature)
        elif feature.kind == "cross":
            self.types[name] = "string"
            for part in feature.of:
                self._same_row((*location, "of"), part, "an id", ID_TYPES)
        else:
            self._single(location, feature)

    def _single(self, location: tuple[str, ...], feature: Any) -> None:
        """An id, ids or number feature: its value is of the same row."""
        of = feature.of if feature.of is not None else location[-1]
        wanted, allowed = {
            "id": ("an id", ID_TYPES),
            "ids": ("a list", ("list[int]", "list[string]")),
            "number": ("a number", ("int", "float", "bool")),
        }[feature.kind]
        if feature.of is None and of not in self.problems.types:
            names = self.problems.types
            what = f"no column {of}, and no `of` that names another"
            self.problems.say(location, None, what, closest(of, names).replace("did you mean", "add of:"))
            return
        where = location if feature.of is None else (*location, "of")
        kind = self._same_row(where, of, wanted, allowed)
        if kind:
            self.types[location[-1]] = kind

    def _same_row(self, location: tuple[str, ...], of: str, wanted: str, allowed: tuple[str, ...]) -> str | None:
        """Type of the value that a feature takes from its own row, or None where it may not."""
        kind, columns = self.problems.expression(location, of)
        # Before the type: a leak is the mistake to report, even where the type is wrong too.
        leaks = sorted(columns & self.outcomes)
        if leaks:
            what = f"{', '.join(leaks)} is an outcome, known only after the event"
            self.problems.say(location, of, what, "use it in a trailing feature (rate, count, sequence), or not at all")
            return None
        if kind is None:
            return None
        if kind not in allowed:
            self.problems.say(location, of, f"is of type {kind}, not {wanted}", _remedy(wanted, kind, of))
            return None
        return kind

    def _trailing(self, location: tuple[str, ...], feature: Any) -> None:
        # Even where its parts are wrong: a segment that names it is then not reported, too.
        self.types[location[-1]] = "float"
        for name in feature.by:
            self._by((*location, "by"), name)
        if feature.where is not None:
            self.problems.condition((*location, "where"), feature.where)
        if feature.kind == "rate":
            self.problems.condition((*location, "of"), feature.of)
        # `join` reads only the trailing days, so a longer window would silently be cut to them.
        lookback = self.problems.scenario.join.lookback_days
        if feature.window_s and feature.window_s > lookback * 86_400:
            field = "window_days" if feature.window_days else "window_hours"
            what = f"reaches further back than join.lookback_days ({lookback})"
            remedy = f"lower it, or set join.lookback_days: {math.ceil(feature.window_s / 86_400)}"
            self.problems.say((*location, field), getattr(feature, field), what, remedy)

    def _by(self, location: tuple[str, ...], name: str) -> None:
        """A column to group earlier events by: known before the event, one value."""
        if not self.problems.column(location, name):
            return
        if name in self.outcomes:
            remedy = "group by a column that is known before it"
            self.problems.say(location, name, "is an outcome of this very event", remedy)
        # The default is for event_time, which is not a declared column.
        elif self.problems.types.get(name, "int").startswith("list"):
            self.problems.say(location, name, "is a list", "group by a column with one value")

    def _sequence(self, location: tuple[str, ...], feature: SequenceFeature) -> None:
        self._by((*location, "by"), feature.by)
        if feature.where is not None:
            self.problems.condition((*location, "where"), feature.where)
        kind, _ = self.problems.expression((*location, "of"), feature.of)
        if kind is None:
            return
        if kind not in ID_TYPES:
            what = f"is of type {kind}, not an id"
            self.problems.say((*location, "of"), feature.of, what, "name a column of ids")
            return
        wanted = self.types[location[-1]] = f"list[{_element(kind)}]"
        if feature.history is None or not self.problems.column((*location, "history"), feature.history):
            return
        if "." not in feature.history:
            what, remedy = "is a column of the log, not of an entity", "name an entity.column list"
            self.problems.say((*location, "history"), feature.history, what, remedy)
        elif self.problems.types[feature.history] != wanted:
            what = f"is of type {self.problems.types[feature.history]}, not {wanted} as `of`"
            self.problems.say((*location, "history"), feature.history, what, "name a list of the same ids")

    def check_tables(self) -> None:
        """`table` names another feature of ids, of the same type, that has a table of its own."""
        features = self.problems.scenario.features
        # The holder of a shared table must not share itself.
        holders = {n: f for n, f in features.items() if isinstance(f, IdFeature | IdsFeature) and f.table is None}
        for name, feature in features.items():
            table = getattr(feature, "table", None)
            if table is None or table == name:
                continue
            location = ("features", name, "table")
            if isinstance(feature, EmbeddedFeature) and feature.embedding != Embedding():
                what = f"has embedding settings of its own, but shares the table of {table}"
                self.problems.say(("features", name, "embedding"), None, what, f"move them to features.{table}")
            if table not in holders:
                others = closest(table, (n for n in holders if n != name))
                self.problems.say(location, table, "is not an id feature with embeddings of its own", others)
                continue
            mine, theirs = self.types.get(name), self.types.get(table)
            if mine and theirs and _element(mine) != _element(theirs):
                what = f"holds {_element(theirs)} ids, {name} has {_element(mine)} ids"
                self.problems.say(location, table, what, "share embeddings of the same ids only")


def _remedy(wanted: str, kind: str, of: str) -> str:
    if kind == "time":
        return f"write the seconds between two times, as in event_time - {of}, or hour({of})"
    if wanted == "a number":
        return f"use kind: ids, or length({of})" if kind.startswith("list") else "use kind: id, or declare it as float"
    if kind.startswith("list"):
        return "use kind: ids"
    if wanted == "a list":
        return "use kind: id, or declare the column as list[int] or list[string] with a separator"
    return f"use kind: number, or make steps of it: bucket({of}, 1)"


def _element(kind: str) -> str:
    """Type of the ids that join makes of a value: those of true and false are 1 and 0."""
    element = kind[5:-1] if kind.startswith("list") else kind
    return "int" if element == "bool" else element
