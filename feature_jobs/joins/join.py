"""Join: every event of a day with the features known strictly before it, and with its labels.

Same-row features are expressions over the event and its entities. Trailing features look at earlier events, those of
the trailing days and the day's own (`feature_jobs.joins.trailing`). An event sees only events that are strictly
earlier, so events of the same time do not see each other. A feature that reads outcomes (the columns of labels and of
`outcomes`) sees only events that are also at least `join.label_delay_s` older.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of, is_time
from feature_jobs.joins.event_log import WHOLE, EventLog
from feature_jobs.joins.trailing import (
    NO_SOURCE,
    Bools,
    Bounds,
    Ints,
    Ranges,
    audit_point_in_time,
    newest_lists,
)
from feature_jobs.schema import (
    CountFeature,
    CrossFeature,
    IdFeature,
    IdsFeature,
    NumberFeature,
    RateFeature,
    RecencyFeature,
    Scenario,
    SequenceFeature,
    TrailingFeature,
)
from feature_jobs.schema.days import check_day
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.sources.source import time_columns
from feature_jobs.sources.tables import write_parquet

_SEPARATOR = chr(31)  # hardly ever in a text, so that a_b with c and a with b_c stay two crosses
SameRow = IdFeature | IdsFeature | CrossFeature | NumberFeature
Trailing = CountFeature | RateFeature | RecencyFeature | SequenceFeature


class LabelFacts(TypedDict):
    """Mean of a label where it is known, and the share of rows on which it is not."""

    mean: float
    unknown_share: float


class JoinFacts(TypedDict):
    """Content of join.json. `smallest_gap_us`: least time from the newest source of a value to its event, by
    entity and by feature; None where no value had a source."""

    rows: int
    history_rows: int
    labels: dict[str, LabelFacts]
    missing_share: dict[str, float]
    segments: dict[str, float]
    smallest_gap_us: dict[str, dict[str, int | None]]


def join_day(scenario: Scenario, ds: str, events: Path, history: Mapping[str, Path], output: Path) -> JoinFacts:
    """Writes samples.parquet and join.json; returns the content of the latter.

    `events` is the day's folder as ingest wrote it, `history` those of the trailing days by ds.
    Raises BadInputError where a feature would see an outcome of its own row or anything not strictly earlier, where an
    expression does not fit its columns, and where a label is unknown on every row.
    """
    check_day(scenario, ds)
    # Before any row is read, because it follows from the scenario alone.
    refuse_outcomes(scenario)
    _refuse_bare_times(scenario)
    log = EventLog(scenario, ds, events, history, set().union(*map(columns_of, _all_expressions(scenario))))
    columns = _same_row(log, {name: f for name, f in scenario.features.items() if isinstance(f, SameRow)})
    trailing, source_times, delays = _all_trailing(log)
    columns |= trailing
    place = f"{scenario.file}: {ds}"
    gaps = {
        "entities": audit_point_in_time(log.times, log.entity_times(), place=f"{place}: entity"),
        "features": audit_point_in_time(
            log.times[log.today], source_times, place=f"{place}: feature", delays_us=delays
        ),
    }
    samples = pa.table(
        {
            "key.event_time": log.column("key.event_time", log.today),
            "key.event_row": log.column("key.event_row", log.today),
            "key.user": log.column(scenario.data.user, log.today),
            "key.item": log.column(scenario.data.item, log.today),
            **{name: columns[name] for name in scenario.features},
            **_labels(log),
            **_segments(log, columns),
        }
    )
    output.mkdir(parents=True, exist_ok=True)
    write_parquet(samples.to_batches(), samples.schema, output / SAMPLES_FILE)
    facts = _facts(scenario, samples, log, gaps)
    (output / "join.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return facts


def outcome_columns(scenario: Scenario) -> set[str]:
    """Columns that are known only after the event: those of `outcomes`, and those that labels are made of."""
    found = set(scenario.outcomes).union(*map(columns_of, scenario.labels.values()))
    return found - {EVENT_TIME, scenario.data.user, scenario.data.item}


def refuse_outcomes(scenario: Scenario) -> None:
    """Raises BadInputError for a feature that reads an outcome of the very row it describes."""
    outcomes = outcome_columns(scenario)
    for name, feature in scenario.features.items():
        for field, expression in _same_row_expressions(name, feature):
            bad = sorted(columns_of(expression) & outcomes)
            if bad:
                raise BadInputError(
                    f"{scenario.file}: features.{name}.{field}: {bad[0]} is an outcome, known only after the event; "
                    f"use it in a trailing feature (count, rate, recency, sequence), or drop {name}"
                )


def _refuse_bare_times(scenario: Scenario) -> None:
    """A time alone would be a number of microseconds that grows from day to day; only its distance to another says
    something of a row."""
    times = time_columns(scenario)
    for name, feature in scenario.features.items():
        for field, expression in _same_row_expressions(name, feature):
            if is_time(expression, times):
                raise BadInputError(
                    f"{scenario.file}: features.{name}.{field}: {expression!r} is a time, neither a number nor an id; "
                    f"write the seconds between two times, as in event_time - t, or hour(t)"
                )


def _same_row_expressions(name: str, feature: SameRow | Trailing) -> list[tuple[str, str]]:
    """Fields and expressions that are computed on the row itself: all but those over past events."""
    match feature:
        case CrossFeature():
            return [(f"of[{i}]", part) for i, part in enumerate(feature.of)]
        case IdFeature() | IdsFeature() | NumberFeature():
            return [("of", feature.of or name)]
    return [("by", part) for part in _by(feature)]


def _by(feature: Trailing) -> tuple[str, ...]:
    return (feature.by,) if isinstance(feature, SequenceFeature) else feature.by


def _looks_at(name: str, feature: Trailing) -> dict[str, str]:
    """Expressions of a trailing feature over earlier events, by place."""
    fields = {"where": feature.where, "of": getattr(feature, "of", None)}
    return {f"features.{name}.{field}": expression for field, expression in fields.items() if expression}


def _all_expressions(scenario: Scenario) -> Iterable[str]:
    yield from scenario.labels.values()
    yield from scenario.evaluate.segments.values()
    for name, feature in scenario.features.items():
        yield from (expression for _, expression in _same_row_expressions(name, feature))
        if isinstance(feature, Trailing):
            yield from _looks_at(name, feature).values()


def _same_row(log: EventLog, features: Mapping[str, SameRow]) -> dict[str, pa.Array]:
    """Columns of id, ids, cross and number features."""
    expressions = {
        f"features.{name}.{field}": expression
        for name, feature in features.items()
        for field, expression in _same_row_expressions(name, feature)
    }
    values = log.evaluate(expressions, log.today)
    columns = {}
    for name, feature in features.items():
        place = f"{log.scenario.file}: features.{name}"
        parts = [values[f"features.{name}.{field}"] for field, _ in _same_row_expressions(name, feature)]
        match feature:
            case CrossFeature():
                columns[name] = _cross(parts, place)
            case NumberFeature():
                columns[name] = _numbers(parts[0], place)
            case IdsFeature():
                columns[name] = _id_lists(parts[0], place)
            case IdFeature():
                columns[name] = _ids(parts[0], place)
    return columns


def _ids(values: pa.Array, place: str) -> pa.Array:
    """Ids are int64 or text."""
    if pa.types.is_string(values.type) or pa.types.is_int64(values.type):
        return values
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int64())
    if pa.types.is_floating(values.type):
        finite = values.filter(pc.is_finite(values))
        fractions = finite.filter(pc.not_equal(pc.floor(finite), finite))
        if len(fractions):
            raise BadInputError(f"{place}: {fractions[0].as_py()} is not an id; use bucket(x, width), or kind: number")
        # From 2^53 on neighbouring whole numbers share one float.
        merged = finite.filter(pc.greater_equal(pc.abs(finite), float(2**53)))
        if len(merged):
            raise BadInputError(
                f"{place}: {merged[0].as_py():.0f} is a float too large to be exact: other ids may have been "
                f"rounded to it; compute it from integers only"
            )
        return pc.if_else(pc.is_finite(values), values, None).cast(pa.int64(), safe=False)
    raise BadInputError(f"{place}: values of type {values.type} are not ids; use kind: ids for lists")


def _id_lists(values: pa.Array, place: str) -> pa.Array:
    """Lists of ids, none of them null."""
    if not pa.types.is_list(values.type):
        raise BadInputError(f"{place}: ids needs a list column, not {values.type}; use kind: id, or a list[..] type")
    return values.fill_null(pa.scalar([], values.type))


def _cross(parts: list[pa.Array], place: str) -> pa.Array:
    """Parts as text, joined by chr(31); a null part is empty, and all of them null make null."""
    # Through _ids, so that a part that is not an id, such as a fraction, is refused here too.
    texts = [_ids(part, place).cast(pa.string()).fill_null("") for part in parts]
    joined = pc.binary_join_element_wise(*texts, _SEPARATOR)
    # One known part is worth learning: only a row that knows none of them has no cross.
    known = np.logical_or.reduce([np.asarray(part.is_valid()) for part in parts])
    return pc.if_else(pa.array(known), joined, pa.scalar(None, pa.string()))


def _numbers(values: pa.Array, place: str) -> pa.Array:
    """float64; null where missing, NaN or infinite."""
    if not _is_numeric(values):
        raise BadInputError(f"{place}: values of type {values.type} are not numbers; use kind: id or ids")
    whole = values.cast(pa.int64()) if pa.types.is_boolean(values.type) else values
    numbers = whole.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _is_numeric(values: pa.Array) -> bool:
    kind = values.type
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _condition(values: pa.Array, place: str) -> Bools:
    """True where the value holds; null does not."""
    if not _is_numeric(values):
        raise BadInputError(f"{place}: {values.type} is not a condition; compare it, as in x == 'a'")
    held: Bools = np.asarray(values.cast(pa.bool_()).fill_null(False))
    return held


def _all_trailing(log: EventLog) -> tuple[dict[str, pa.Array], dict[str, Ints], dict[str, int]]:
    """Columns of trailing features, the newest source time behind each value, and the least age of each source (µs)."""
    features = {name: f for name, f in log.scenario.features.items() if isinstance(f, Trailing)}
    places = {place: e for name, f in features.items() for place, e in _looks_at(name, f).items()}
    # Reversed, so that the first place of an expression wins: a message then names that one.
    first = {expression: place for place, expression in reversed(places.items())}
    looked_at = log.evaluate({place: e for e, place in first.items()}, WHOLE)  # each expression once
    columns, sources, delays = {}, {}, {}
    for name, feature in features.items():
        expressions = _looks_at(name, feature)
        bounds = _bounds(log.scenario, feature, expressions.values())
        values = {place.rpartition(".")[2]: looked_at[first[e]] for place, e in expressions.items()}
        columns[name], sources[name] = _trailing(log, name, feature, bounds, values)
        delays[name] = bounds.delay_us
    return columns, sources, delays


def _bounds(scenario: Scenario, feature: Trailing, expressions: Iterable[str]) -> Bounds:
    """Returns the window of the feature, and the least age of the events that it may see."""
    lookback_s = scenario.join.lookback_days * 86_400
    window_s = feature.window_s if isinstance(feature, TrailingFeature) else None
    is_outcome = not outcome_columns(scenario).isdisjoint(set().union(*map(columns_of, expressions)))
    return Bounds(
        min(window_s or lookback_s, lookback_s) * 1_000_000,
        # An event's own columns are known at once; its outcomes only after the delay.
        scenario.join.label_delay_s * 1_000_000 if is_outcome else 0,
    )


def _trailing(
    log: EventLog, name: str, feature: Trailing, bounds: Bounds, values: Mapping[str, pa.Array]
) -> tuple[pa.Array, Ints]:
    """A trailing feature's column, and the newest source time behind each of its values."""
    place = f"{log.scenario.file}: features.{name}"
    index = log.index(f"features.{name}", _by(feature))
    mask = _condition(values["where"], f"{place}.where") if "where" in values else None
    of = values.get("of")
    if of is not None:  # an earlier event of which it is unknown does not count
        known = np.asarray(of.is_valid())
        mask = known if mask is None else mask & known
    times = log.times[log.today]
    ranges = index.ranges(mask, bounds)
    newest = ranges.newest()
    # Where nothing was seen, -1 reads the log's last time, which `where` then drops.
    sources = np.where(newest >= 0, log.times[newest], NO_SOURCE)
    match feature:
        case CountFeature():
            # Without a key the count is unknown, which is not the 0 of a key that never came before.
            return _doubles(ranges.num.astype(float), index.has_key), sources
        case RecencyFeature():
            # From microseconds to seconds.
            return _doubles((times - np.where(newest >= 0, sources, 0)) / 1e6, newest >= 0), sources
        case RateFeature():
            num_held = ranges.sums(_condition(of, f"{place}.of").astype(float))
            rate = (num_held + feature.prior * feature.prior_weight) / (ranges.num + feature.prior_weight)
            return _doubles(rate, index.has_key), sources
    return _sequence(log, place, feature, _ids(of, f"{place}.of"), ranges), sources


def _sequence(log: EventLog, place: str, feature: SequenceFeature, values: pa.Array, ranges: Ranges) -> pa.Array:
    if not feature.history:
        return newest_lists(ranges, values, feature.length)
    lists, rows = log.entity_lists(feature.history)
    if lists.type != pa.list_(values.type):
        wanted = "int" if pa.types.is_int64(values.type) else "string"
        raise BadInputError(
            f"{place}.history: {feature.history} is {lists.type}, but the sequence holds {values.type}; "
            f"declare it as list[{wanted}]"
        )
    return newest_lists(ranges, values, feature.length, lists, rows)


def _doubles(values: Any, known: Bools) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~known)


def _labels(log: EventLog) -> dict[str, pa.Array]:
    """`label.TASK`, int8: 1, 0, or null where unknown."""
    scenario = log.scenario
    values = log.evaluate(scenario.labels, log.today)
    labels = {}
    for task, expression in scenario.labels.items():
        value = values[task]
        place = f"{scenario.file}: labels.{task}: {expression!r}"
        if not _is_numeric(value):
            raise BadInputError(f"{place} is {value.type}, not true or false; compare it, as in rating >= 4")
        known = value.cast(pa.float64()).drop_null()
        # A day on which no label is known would train nothing, and pass silently.
        if not len(known):
            raise BadInputError(
                f"{place} is unknown on all {len(value)} rows of {log.ds}; look at "
                f"{', '.join(sorted(columns_of(expression)))} in the source"
            )
        other = known.filter(pc.invert(pc.is_in(known, pa.array([0.0, 1.0]))))
        if len(other):
            raise BadInputError(f"{place} is {other[0].as_py():g}, not 0 or 1; compare it, as in rating >= 4")
        labels[f"label.{task}"] = value.cast(pa.int8())  # a null stays null: training masks it
    return labels


def _segments(log: EventLog, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """`segment.NAME`, bool; an unknown condition is false."""
    wanted = {f"evaluate.segments.{name}": e for name, e in log.scenario.evaluate.segments.items()}
    values = log.evaluate(wanted, log.today, columns)
    return {
        place.replace("evaluate.segments", "segment"): pa.array(_condition(value, f"{log.scenario.file}: {place}"))
        for place, value in values.items()
    }


def _facts(scenario: Scenario, samples: pa.Table, log: EventLog, gaps: dict[str, dict[str, int | None]]) -> JoinFacts:
    """Describes the samples."""

    def missing(column: pa.ChunkedArray) -> float:
        num = column.null_count
        # A list is never null in the samples; an empty one means a missing value.
        if pa.types.is_list(column.type):
            num = pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0
        return float(round(num / samples.num_rows, 6))

    def mean(column: pa.ChunkedArray) -> float:
        return float(round(pc.mean(column.cast(pa.int8())).as_py(), 6))

    return {
        "rows": samples.num_rows,
        "history_rows": log.today.start,
        "labels": {
            task: {"mean": mean(samples[f"label.{task}"]), "unknown_share": missing(samples[f"label.{task}"])}
            for task in scenario.labels
        },
        "missing_share": {name: missing(samples[name]) for name in scenario.features},
        "segments": {name: mean(samples[f"segment.{name}"]) for name in scenario.evaluate.segments},
        "smallest_gap_us": gaps,
    }
