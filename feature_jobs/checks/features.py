"""Checks labels, features and segments of a scenario against its columns, without data."""

from __future__ import annotations

import math
from typing import Any

from feature_jobs.checks.problems import Problems, closest
from feature_jobs.expressions.compiler import EVENT_TIME
from feature_jobs.joins.rules import request_features
from feature_jobs.schema import (
    SECONDS_AGO,
    EmbeddedFeature,
    Embedding,
    IdFeature,
    IdsFeature,
    MatchFeature,
    NumbersFeature,
    RequestFeature,
    SequenceFeature,
    Windowed,
)
from feature_jobs.schema.labels import OutcomeLabel

ID_TYPES = ("int", "string", "bool")
NUMBER_TYPES = ("int", "float", "bool")
WEIGHTED = "a list of texts id:weight"
_REMEDIES = {
    WEIGHTED: "declare the column as list[string], or leave out `weighted`",
    "a vector": "declare the column as list[float]",
}


def check_labels(problems: Problems) -> set[str]:
    """Checks labels and outcomes; returns the outcome columns, which are known only after the event was shown."""
    outcomes: set[str] = set()
    for name, label in problems.scenario.outcome_labels.items():
        _check_outcome(problems, ("labels", name), label)
    for name, expression in problems.scenario.own_labels.items():
        columns = problems.condition(("labels", name), expression)
        # Each row of a log of purchases is one; negative sampling adds the others.
        if not columns and problems.scenario.join.negative_sampler is None:
            problems.say(("labels", name), expression, "reads no column", "write a condition such as rating >= 4")
        # A label may read the event's time, which is known before the event's outcome.
        outcomes |= columns - {EVENT_TIME}
    for name in problems.scenario.outcomes:
        if problems.column(("outcomes",), name):
            outcomes.add(name)
    data = problems.scenario.data
    keys = {data.user, data.item, data.request}
    for name in sorted(outcomes & keys):
        what = "data.user, data.item or data.request is an outcome"
        problems.say(("labels",), name, what, "take it out of labels and outcomes")
    # Reported above; kept among them, every feature of the user or item would be reported as a leak, too.
    return outcomes - keys


def _check_outcome(problems: Problems, location: tuple[str, ...], label: OutcomeLabel) -> None:
    """A label that another log decides: both have the columns of `on`, and `where` reads the log alone."""
    data = problems.scenario.data
    if label.source not in data.logs:
        what, remedy = "is not a log of data.logs", closest(label.source, data.logs)
        # The only message: without its log there is nothing to compare with.
        problems.say((*location, "source"), label.source, what, remedy)
        return
    shown, columns = data.events.columns, data.logs[label.source].columns
    for name in label.on:
        for table, found in (("events", shown), (label.source, columns)):
            if name not in found:
                problems.say((*location, "on"), name, f"no such column of {table}", closest(name, found))
        if name in shown and name in columns and shown[name].type != columns[name].type:
            what = f"is {shown[name].type} in events and {columns[name].type} in {label.source}"
            problems.say((*location, "on"), name, what, "declare both alike")
    if label.where is not None:
        read = problems.over(label.source).condition((*location, "where"), label.where)
        for name in sorted(name for name in read if "." in name):
            what, remedy = f"reads {name} of an entity", f"compare columns of {label.source}"
            problems.say((*location, "where"), label.where, what, remedy)
    if label.value is not None:
        place = (*location, "value")
        kind, read = problems.over(label.source).expression(place, label.value)
        for name in sorted(name for name in read if "." in name):
            problems.say(place, label.value, f"reads {name} of an entity", f"compute it from columns of {label.source}")
        if kind is not None and kind not in NUMBER_TYPES:
            problems.say(place, label.value, f"is {kind}, not a number", "name a column of numbers, such as a price")


def check_features(problems: Problems, outcomes: set[str]) -> dict[str, str]:
    """Checks every feature; returns the types of the sound ones, for segments."""
    features = _Features(problems, outcomes)
    declared, comparing = problems.scenario.features, request_features(problems.scenario)
    for name, feature in declared.items():
        if name not in comparing:
            features.check(name, feature)
    # After all others, which they may read.
    features.readable = dict(features.types)
    for name in comparing:
        features.check(name, declared[name])
    # After the features: a table is compared by their types.
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
        self.readable: dict[str, str] = {}

    def check(self, name: str, feature: Any) -> None:
        location = ("features", name)
        if isinstance(feature, SequenceFeature):
            self._sequence(location, feature)
        elif isinstance(feature, Windowed):
            self._trailing(location, feature)
        elif isinstance(feature, RequestFeature):
            self._request(location, feature)
        elif isinstance(feature, MatchFeature):
            self._match(location, feature)
        elif feature.kind == "cross":
            # Even where a part is wrong: what reads the feature is then not reported, too.
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
            "number": ("a number", NUMBER_TYPES),
            "vector": ("a vector", ("list[float]",)),
        }[feature.kind]
        if feature.of is None and of not in self.problems.types:
            names = self.problems.types
            what = f"no column {of}, and no `of` that names another"
            self.problems.say(location, None, what, closest(of, names).replace("did you mean", "add of:"))
            return
        where = location if feature.of is None else (*location, "of")
        if feature.kind == "ids" and feature.weighted:
            wanted, allowed = WEIGHTED, ("list[string]",)
        kind = self._same_row(where, of, wanted, allowed)
        if feature.kind == "id" and of == self.problems.scenario.data.request:
            what = "names a request, which no later event has: its embedding learns nothing of use"
            self.problems.warn(where, of, what, f"remove the feature {location[-1]}")
        if kind and feature.kind == "vector":
            self._width(location, of, feature.width)
        if kind:
            self.types[location[-1]] = kind

    def _width(self, location: tuple[str, ...], of: str, width: int) -> None:
        """The column's width is the feature's."""
        table, _, column = of.rpartition(".")
        data = self.problems.scenario.data
        columns = data.entities[table].columns if table in data.entities else data.events.columns
        declared = columns[column].width if column in columns else None
        if declared is not None and declared != width:
            self.problems.say((*location, "width"), width, f"is not that of {of}, {declared}", "write the same width")

    def _request(self, location: tuple[str, ...], feature: RequestFeature) -> None:
        if self.problems.scenario.data.request is None:
            remedy = "name the column of the log that says which rows were shown together"
            self.problems.say(location, feature.operation, "needs data.request", remedy)
        if feature.of is not None:
            self._same_row((*location, "of"), feature.of, "a number", NUMBER_TYPES, self.readable)
        self.types[location[-1]] = "float"

    def _match(self, location: tuple[str, ...], feature: MatchFeature) -> None:
        self.types[location[-1]] = "float"
        kind = self._same_row((*location, "of"), feature.of, "an id", ID_TYPES, self.readable)
        sequences = [n for n, f in self.problems.scenario.features.items() if isinstance(f, SequenceFeature)]
        if feature.sequence not in sequences:
            what, remedy = "is not a sequence feature", closest(feature.sequence, sequences)
            self.problems.say((*location, "sequence"), feature.sequence, what, remedy)
        # A sequence that is wrong itself has no type, and was reported.
        elif kind and (held := self.types.get(feature.sequence, "")) != f"list[{_element(kind)}]" and held:
            what = f"is of type {kind}, but {feature.sequence} is {held}"
            self.problems.say((*location, "of"), feature.of, what, "look for ids of the same type")

    def _same_row(
        self,
        location: tuple[str, ...],
        of: str,
        wanted: str,
        allowed: tuple[str, ...],
        more: dict[str, str] | None = None,
    ) -> str | None:
        """Type of the value that a feature takes from its own row, or None where it may not. `more` are the types of
        names that it may read besides columns."""
        kind, columns = self.problems.expression(location, of, more)
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
        if feature.form == "number":
            self.types[location[-1]] = "float"
        past = self._log_of(location, feature)
        for name in feature.by:
            self._by((*location, "by"), name, past)
        if feature.where is not None:
            past.condition((*location, "where"), feature.where)
        if feature.kind == "rate":
            past.condition((*location, "of"), feature.of)
        elif isinstance(feature, NumbersFeature):
            self._past(past, location, feature.of, "a number", NUMBER_TYPES)
        elif of := getattr(feature, "of", None):
            kind = self._past(past, location, of, "an id", ID_TYPES)
            if kind and feature.form != "number":
                self.types[location[-1]] = f"list[{_element(kind)}]" if feature.form == "ids" else _element(kind)
        # `join` reads only the trailing days, so a longer window would silently be cut to them.
        lookback = self.problems.scenario.join.lookback_days
        if feature.window_s and feature.window_s > lookback * 86_400:
            field = "window_days" if feature.window_days else "window_hours"
            what = f"reaches further back than join.lookback_days ({lookback})"
            remedy = f"lower it, or set join.lookback_days: {math.ceil(feature.window_s / 86_400)}"
            self.problems.say((*location, field), getattr(feature, field), what, remedy)

    def _log_of(self, location: tuple[str, ...], feature: Any) -> Problems:
        """The problems of expressions over the log that a feature looks at."""
        logs = self.problems.scenario.data.logs
        if feature.source is not None and feature.source not in logs:
            what, remedy = "is not a log of data.logs", closest(feature.source, logs)
            self.problems.say((*location, "source"), feature.source, what, remedy)
        return self.problems.over(feature.source)

    def _past(
        self, past: Problems, location: tuple[str, ...], of: str, wanted: str, allowed: tuple[str, ...]
    ) -> str | None:
        """Type of the value that a feature takes from an earlier event, or None where it is not one."""
        kind, _ = past.expression((*location, "of"), of)
        if kind is None or kind in allowed:
            return kind
        remedy = "name a column of numbers" if wanted == "a number" else "name a column of ids"
        self.problems.say((*location, "of"), of, f"is of type {kind}, not {wanted}", remedy)
        return None

    def _by(self, location: tuple[str, ...], name: str, past: Problems) -> None:
        """A column to group earlier events by: known before the event, one value, and in their log too."""
        if not self.problems.column(location, name) or not past.column(location, name):
            return
        mine, theirs = self.problems.types.get(name), past.types.get(name)
        if mine != theirs:
            what = f"is {mine} in the events and {theirs} in the feature's source"
            self.problems.say(location, name, what, "declare both alike")
        if name in self.outcomes:
            remedy = "group by a column that is known before it"
            self.problems.say(location, name, "is an outcome of this very event", remedy)
        # The default is for event_time, which is not a declared column.
        elif self.problems.types.get(name, "int").startswith("list"):
            self.problems.say(location, name, "is a list", "group by a column with one value")

    def _sequence(self, location: tuple[str, ...], feature: SequenceFeature) -> None:
        past = self._log_of(location, feature)
        self._by((*location, "by"), feature.by, past)
        if feature.where is not None:
            past.condition((*location, "where"), feature.where)
        if feature.known is not None:
            past.expression((*location, "known"), feature.known)
        kind = "int" if feature.of == SECONDS_AGO else self._past(past, location, feature.of, "an id", ID_TYPES)
        if kind is None:
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
            # An id is a number or a text: in one table of both, 7 and "7" would be two rows.
            mine, theirs = self.types.get(name), self.types.get(table)
            if mine and theirs and _element(mine) != _element(theirs):
                what = f"holds {_element(theirs)} ids, {name} has {_element(mine)} ids"
                self.problems.say(location, table, what, "share embeddings of the same ids only")


def _remedy(wanted: str, kind: str, of: str) -> str:
    if kind == "time":
        return f"write the seconds between two times, as in event_time - {of}, or hour({of})"
    if wanted in _REMEDIES:
        return _REMEDIES[wanted]
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
