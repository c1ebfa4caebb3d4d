"""Expressions of features, over the row itself and over earlier events, and what neither may see."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of, is_time
from feature_jobs.schema import (
    SECONDS_AGO,
    CrossFeature,
    IdFeature,
    IdsFeature,
    MatchFeature,
    NumberFeature,
    RequestFeature,
    Scenario,
    SequenceFeature,
    VectorFeature,
    Windowed,
)
from feature_jobs.schema.labels import OutcomeLabel
from feature_jobs.sources.source import time_columns

SameRow = IdFeature | IdsFeature | CrossFeature | NumberFeature | VectorFeature
Trailing = Windowed | SequenceFeature
RequestOrMatch = RequestFeature | MatchFeature


def same_row_features(scenario: Scenario) -> dict[str, SameRow]:
    """Features that are expressions over the event and its entities."""
    return {name: f for name, f in scenario.features.items() if isinstance(f, SameRow)}


def trailing_features(scenario: Scenario) -> dict[str, Trailing]:
    """Features over earlier events."""
    return {name: f for name, f in scenario.features.items() if isinstance(f, Trailing)}


def request_features(scenario: Scenario) -> dict[str, RequestOrMatch]:
    """Features over the rows of a request, and over other features of the row."""
    return {name: f for name, f in scenario.features.items() if isinstance(f, RequestOrMatch)}


def own_expressions(name: str, feature: SameRow) -> dict[str, str]:
    """Expressions of a same-row feature, by place."""
    if isinstance(feature, CrossFeature):
        return {f"features.{name}.of[{i}]": part for i, part in enumerate(feature.of)}
    return {f"features.{name}.of": feature.of or name}


def request_expressions(name: str, feature: RequestOrMatch) -> dict[str, str]:
    """Expressions of such a feature over columns and other features, by place."""
    return {f"features.{name}.of": feature.of} if feature.of else {}


def key_of(feature: Trailing) -> tuple[str, ...]:
    """Expressions whose values an earlier event shares with the row."""
    return (feature.by,) if isinstance(feature, SequenceFeature) else feature.by


def key_expressions(name: str, feature: Trailing) -> dict[str, str]:
    """The same by place."""
    if isinstance(feature, SequenceFeature):
        return {f"features.{name}.by": feature.by}
    return {f"features.{name}.by[{i}]": part for i, part in enumerate(feature.by)}


def past_expressions(name: str, feature: Trailing) -> dict[str, str]:
    """Expressions of a trailing feature over earlier events, by place."""
    fields = {name: getattr(feature, name, None) for name in ("where", "of", "known")}
    if fields["of"] == SECONDS_AGO and isinstance(feature, SequenceFeature):
        del fields["of"]  # not a value of the earlier event alone
    return {f"features.{name}.{field}": expression for field, expression in fields.items() if expression}


def logs_read(scenario: Scenario) -> list[str | None]:
    """The logs whose rows trailing features look at, None for the events."""
    # Not a set, whose order is another one in each process.
    return list(dict.fromkeys([None, *(feature.source for feature in trailing_features(scenario).values())]))


def summarized_expressions(scenario: Scenario, source: str | None) -> dict[str, str]:
    """Expressions that summaries of a log are made of, each with its first place: a message then names that one."""
    found: dict[str, str] = {}
    for name, feature in trailing_features(scenario).items():
        if feature.source != source:
            continue
        for place, expression in {**key_expressions(name, feature), **past_expressions(name, feature)}.items():
            found.setdefault(expression, place)
    return found


def sampler_expressions(scenario: Scenario, source: str | None) -> dict[str, str]:
    """The same of what negative sampling reads."""
    sampler, data = scenario.join.negative_sampler, scenario.data
    if sampler is None or source is not None:
        return {}
    places = {name: f"join.negative_sampler.item_columns[{i}]" for i, name in enumerate(sampler.item_columns)}
    return {data.user: "data.user", data.item: "data.item", **places}


def touched_by(scenario: Scenario, tables: Collection[str]) -> tuple[list[str], list[str]]:
    """The features and the labels of whose values rows of these tables decide.

    Tables by the files of a day: events, logs/NAME, entities/NAME. The events are the rows themselves: all is theirs.
    """
    touched: set[str] = set()
    for name, feature in scenario.features.items():
        if isinstance(feature, RequestOrMatch):
            found = request_expressions(name, feature)
        elif isinstance(feature, Trailing):
            found = {**key_expressions(name, feature), **past_expressions(name, feature)}
        else:
            found = own_expressions(name, feature)
        columns = set().union(*map(columns_of, found.values()))
        read = {f"entities/{column.partition('.')[0]}" for column in columns if "." in column}
        if isinstance(feature, Trailing) and feature.source:
            read.add(f"logs/{feature.source}")
        others = columns | ({feature.sequence} if isinstance(feature, MatchFeature) else set())
        # A feature is declared after those that it reads.
        if "events" in tables or read & {*tables} or (isinstance(feature, RequestOrMatch) and others & touched):
            touched.add(name)
    labels = [
        name
        for name, label in scenario.labels.items()
        if "events" in tables or (isinstance(label, OutcomeLabel) and f"logs/{label.source}" in tables)
    ]
    return [name for name in scenario.features if name in touched], labels


def outcome_columns(scenario: Scenario) -> set[str]:
    """Columns that are known only after the event: those of `outcomes`, and those that labels are made of."""
    found = set(scenario.outcomes).union(*map(columns_of, scenario.own_labels.values()))
    # A label may read these too, but they are known before the event.
    return found - {EVENT_TIME, scenario.data.user, scenario.data.item}


Problem = tuple[tuple[str, ...], str, str, str]
"""Place in the scenario, value, what is wrong, remedy."""


def outcome_delays(scenario: Scenario) -> dict[str, int]:
    """Seconds after an event at which each outcome column is known."""
    said, labels, found = scenario.join.outcome_delay_s, scenario.own_labels, {}
    for column in outcome_columns(scenario):
        of_labels = [said[name] for name in labels.keys() & said.keys() if column in columns_of(labels[name])]
        found[column] = said.get(column, max(of_labels, default=scenario.join.label_delay_s))
    return found


def delay_problems(scenario: Scenario) -> Iterator[Problem]:
    """Delays of what is neither a label of the log's own columns nor an outcome."""
    known = scenario.own_labels.keys() | outcome_columns(scenario)
    for name in sorted(scenario.join.outcome_delay_s.keys() - known):
        remedy = f"name some of: {', '.join(sorted(known)) or 'there are none'}"
        if name in scenario.outcome_labels:
            remedy = "its log says when its rows came: data.logs has `arrival` and `delay_s`"
        yield ("join", "outcome_delay_s"), name, "is not a label of the log's own columns or one of outcomes", remedy


OUTCOME_AS_KEY = (
    "is an outcome, known only after the event: the row that an event finds by it would say what came of it",
    "find rows by a column that is known before the event",
)
"""The problem of such a key, and the remedy."""


def sampler_problems(scenario: Scenario) -> Iterator[Problem]:
    """Features and columns that do not fit negative sampling."""
    sampler, data = scenario.join.negative_sampler, scenario.data
    if sampler is None:
        return
    for name, feature in request_features(scenario).items():
        if isinstance(feature, RequestFeature):
            what = "compares the rows of a request, but a negative row was shown in none"
            yield ("features", name), feature.kind, what, "leave out the feature, or join.negative_sampler"
    place, taken = ("join", "negative_sampler", "item_columns"), {data.user, data.item, data.request}
    for name in sampler.item_columns:
        column = data.events.columns.get(name)
        if column is None:
            known = ", ".join(sorted(data.events.columns))
            yield place, name, "no such column of events", f"name some of: {known}"
        elif name in taken | outcome_columns(scenario):
            yield (
                place,
                name,
                "does not describe the item: it is data.user, data.item, data.request or an outcome",
                ("leave it out"),
            )
        elif column.type not in ("int", "string"):
            what = f"is of type {column.type}, neither int nor string"
            yield place, name, what, "declare an entity of the items with this column, and let features read that"


def refuse_leaks(scenario: Scenario) -> None:
    """Raises BadInputError for a feature that reads an outcome of the very row it describes, or a time alone, and for
    what does not fit negative sampling."""
    for location, value, what, remedy in (*sampler_problems(scenario), *delay_problems(scenario)):
        raise BadInputError(f"{scenario.file}: {'.'.join(location)}: {value}: {what}; {remedy}")
    # Before any row is read, because both follow from the scenario.
    outcomes, times = outcome_columns(scenario), time_columns(scenario)
    for name, entity in scenario.data.entities.items():
        for key in sorted({*entity.keys} & outcomes):
            what, remedy = OUTCOME_AS_KEY
            raise BadInputError(f"{scenario.file}: data.entities.{name}.key: {key} {what}; {remedy}")
    for place, expression in on_the_row(scenario).items():
        if bad := sorted(columns_of(expression) & outcomes):
            raise BadInputError(
                f"{scenario.file}: {place}: {bad[0]} is an outcome, known only after the event; use it in a trailing"
                f" feature (such as count, rate, sequence), or drop {place.split('.')[1]}"
            )
        # A time alone would be a number of microseconds that grows from day to day; only its distance to another says
        # something of a row.
        if is_time(expression, times):
            raise BadInputError(
                f"{scenario.file}: {place}: {expression!r} is a time, neither a number nor an id; "
                f"write the seconds between two times, as in event_time - t, or hour(t)"
            )


def on_the_row(scenario: Scenario) -> dict[str, str]:
    """Expressions over the row that a feature describes, by place."""
    found: dict[str, str] = {}
    for name, same_row in same_row_features(scenario).items():
        found |= own_expressions(name, same_row)
    for name, trailing in trailing_features(scenario).items():
        found |= key_expressions(name, trailing)
    for name, request in request_features(scenario).items():
        found |= request_expressions(name, request)
    return found
