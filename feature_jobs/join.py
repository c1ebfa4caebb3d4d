"""Join: every event of a day with what was known strictly before it, and with its labels.

Same-row features are expressions over the event and its entities. Trailing features look at earlier events of the log
(the trailing days and the day's own) by `feature_jobs.trailing`. An event sees nothing of its own time or later: ties see
nothing of each other. What looks at outcomes (labels, `outcomes`) waits for `join.label_delay_s` besides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.cells import ARROW_TYPES, quote
from feature_jobs.days import check_day, day_window
from feature_jobs.errors import BadInputError
from feature_jobs.expressions import EVENT_TIME, columns_of, to_sql
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
)
from feature_jobs.sources import write_parquet
from feature_jobs.trailing import (
    NO_SOURCE,
    Bools,
    Bounds,
    Index,
    Ints,
    Ranges,
    Timeline,
    audit_point_in_time,
    encode_keys,
    newest_lists,
)

_DAY_US = 86_400_000_000
_SEPARATOR = chr(31)
SameRow = IdFeature | IdsFeature | CrossFeature | NumberFeature
Trailing = CountFeature | RateFeature | RecencyFeature | SequenceFeature


def join_day(scenario: Scenario, ds: str, events: Path, history: Mapping[str, Path], output: Path) -> dict[str, Any]:
    """Writes samples.parquet and join.json; returns the content of the latter.

    `events` is the day's folder as ingest wrote it, `history` those of the trailing days by ds.
    Raises BadInputError where a feature would see an outcome of its own row or anything not strictly earlier, where an
    expression does not fit its columns, and where a label is unknown on every row.
    """
    check_day(scenario, ds)
    refuse_outcomes(scenario)
    log = Log(scenario, ds, events, history)
    columns: dict[str, pa.Array] = {}
    same_row = {name: f for name, f in scenario.features.items() if isinstance(f, SameRow)}
    trailing = {name: f for name, f in scenario.features.items() if isinstance(f, Trailing)}
    columns |= _same_row(log, same_row)
    source_times = {f"entity {name}": times for name, times in log.entity_times().items()}
    for name, feature in trailing.items():
        columns[name], source_times[f"feature {name}"] = _trailing(log, name, feature)
    gaps = audit_point_in_time(log.times[log.today], source_times, place=f"{scenario.file}: {ds}")
    labels = _labels(log)
    segments = _segments(log, columns)
    samples = pa.table(
        {
            "key.event_time": log.column("key.event_time", log.today),
            "key.event_row": log.column("key.event_row", log.today),
            "key.user": log.column(scenario.data.user, log.today),
            "key.item": log.column(scenario.data.item, log.today),
            **{name: columns[name] for name in scenario.features},
            **labels,
            **segments,
        }
    )
    output.mkdir(parents=True, exist_ok=True)
    write_parquet(samples.to_batches(), samples.schema, output / "samples.parquet")
    facts = _facts(scenario, samples, log, gaps)
    (output / "join.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return facts


def outcome_columns(scenario: Scenario) -> set[str]:
    """Columns that are known only after the event: those of `outcomes`, and those that labels are made of."""
    found = set(scenario.outcomes)
    for expression in scenario.labels.values():
        found |= columns_of(expression)
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


def _same_row_expressions(name: str, feature: Any) -> list[tuple[str, str]]:
    if isinstance(feature, CrossFeature):
        return [("of", part) for part in feature.of]
    if isinstance(feature, SameRow):
        return [("of", feature.of or name)]
    return [("by", part) for part in _by(feature)]


def _by(feature: Any) -> tuple[str, ...]:
    return (feature.by,) if isinstance(feature.by, str) else feature.by


class Log:
    """Events of the trailing days, then of the day (`today`), in time order, with the entity rows they may see."""

    def __init__(self, scenario: Scenario, ds: str, events: Path, history: Mapping[str, Path]) -> None:
        self.scenario = scenario
        self.ds = ds
        needed = self._needed_columns()
        past = self._load_past(history, needed)
        day = self._load(events, [*needed, "key.event_row"])
        self._events = pa.concat_tables([*past, day], promote_options="default").combine_chunks()
        times = np.asarray(self._events["key.event_time"])
        if (np.diff(times) < 0).any():
            # Days never overlap, so only rows within a part may be out of order: whoever wrote them is not ingest.
            raise BadInputError(f"{events}: events are not in time order; run ingest again for {ds} and its past days")
        self.times = times
        self.today = slice(len(times) - day.num_rows, len(times))
        self.timeline = Timeline(times)
        self._entities = {name: self._load_entity(events, name) for name in scenario.data.entities}
        self._entity_rows: dict[str, Ints] = {}
        self._indexes: dict[tuple[str, ...], Index] = {}

    def _needed_columns(self) -> list[str]:
        scenario = self.scenario
        names = {scenario.data.user, scenario.data.item, *(e.key for e in scenario.data.entities.values())}
        for expression in _all_expressions(scenario):
            names |= columns_of(expression)
        return [name for name in scenario.data.events.columns if name in names]

    def _load(self, folder: Path, names: list[str]) -> pa.Table:
        return pq.read_table(folder / "events.parquet", columns=[*names, "key.event_time"])

    def _load_past(self, history: Mapping[str, Path], names: list[str]) -> list[pa.Table]:
        """Past days, oldest first, within the lookback. Raises BadInputError for an event that is not past."""
        begin = day_window(self.scenario, self.ds)[0]
        oldest = begin - self.scenario.join.lookback_days * _DAY_US
        tables = []
        for ds in sorted(history):
            table = self._load(history[ds], names)
            newest = pc.max(table["key.event_time"]).as_py()
            if newest is not None and newest >= begin:
                raise BadInputError(
                    f"{history[ds]}: history of {ds} holds an event at {newest} µs, which is not before {self.ds} "
                    f"({begin} µs); run ingest again for {ds}"
                )
            tables.append(table.filter(pc.field("key.event_time") >= oldest))
        return tables

    def _load_entity(self, folder: Path, name: str) -> pa.Table:
        return pq.read_table(folder / "entities" / f"{name}.parquet").combine_chunks()

    def column(self, name: str, rows: slice) -> pa.Array:
        """A column by its name in expressions, for some rows of the log."""
        if name == EVENT_TIME:
            name = "key.event_time"
        if name in self._events.column_names:
            return self._events[name].combine_chunks()[rows]
        entity, _, column = name.partition(".")
        if entity not in self._entities or column not in self._entities[entity].column_names:
            raise BadInputError(f"{self.scenario.file}: {name}: no such column in events or entities; mend the name")
        found = self.entity_rows(entity)[rows]
        values = self._entities[entity][column].combine_chunks()
        return values.take(pa.array(found, mask=found < 0))

    def entity_list(self, name: str) -> tuple[pa.Array, Ints]:
        """A list column of an entity, whole, and the entity row of each of today's events (-1: none)."""
        entity, _, column = name.partition(".")
        if entity not in self._entities or column not in self._entities[entity].column_names:
            raise BadInputError(f"{self.scenario.file}: history {name}: no such entity column; mend the name")
        return self._entities[entity][column].combine_chunks(), self.entity_rows(entity)[self.today]

    def entity_rows(self, name: str) -> Ints:
        """The entity's row for each row of the log, -1 for none: the newest strictly before the event, if it has time."""
        if name not in self._entity_rows:
            entity, table = self.scenario.data.entities[name], self._entities[name]
            keys = table[entity.key].combine_chunks()
            unique = keys.unique()
            wanted = self._events[entity.key].combine_chunks()
            if wanted.type != keys.type:
                raise BadInputError(
                    f"{self.scenario.file}: data.entities.{name}.key: {entity.key} is {keys.type} there and "
                    f"{wanted.type} in the events; give both the same type"
                )
            codes_N = _codes(wanted, unique)
            codes_E = _codes(keys, unique)
            self._entity_rows[name] = (
                self._newest_before(codes_N, codes_E, np.asarray(table["key.valid_from"]))
                if entity.time
                else codes_N  # one row for each key, in the order of `unique`
            )
        return self._entity_rows[name]

    def _newest_before(self, codes_N: Ints, codes_E: Ints, valid_from_E: Ints) -> Ints:
        order = np.lexsort((valid_from_E, codes_E))
        timeline = Timeline(np.sort(valid_from_E))
        place = codes_E[order] * timeline.size + np.searchsorted(timeline.unique, valid_from_E[order])
        start = codes_N * timeline.size
        end = np.searchsorted(place, start + timeline.rank_of(self.times, "left"))
        has = (codes_N >= 0) & (end > np.searchsorted(place, start))
        return np.where(has, order[np.maximum(end - 1, 0)] if len(order) else -1, -1)

    def entity_times(self) -> dict[str, Ints]:
        """For each entity with time the `valid_from` of the row that each of today's events sees."""
        found = {}
        for name, entity in self.scenario.data.entities.items():
            if entity.time:
                rows = self.entity_rows(name)[self.today]
                times = np.asarray(self._entities[name]["key.valid_from"])
                found[name] = np.where(rows >= 0, times[rows] if len(times) else NO_SOURCE, NO_SOURCE)
        return found

    def evaluate(
        self, expressions: Mapping[str, str], rows: slice, extra: Mapping[str, pa.Array] | None = None
    ) -> dict[str, pa.Array]:
        """Values of expressions, by place in the scenario (`features.age.of`), for some rows of the log.

        `extra` are further columns that they may name. Raises BadInputError naming the place.
        """
        extra = extra or {}
        names = sorted(set().union(*(columns_of(e) for e in expressions.values()))) if expressions else []
        if not names:
            names = [EVENT_TIME]  # constants need rows too
        columns = [extra[n] if n in extra and not self._knows(n) else self.column(n, rows) for n in names]
        table = pa.table(dict(zip((f"v{i}" for i in range(len(names))), columns, strict=True)))
        sql_names = {name: f"v{i}" for i, name in enumerate(names)}
        zone = self.scenario.data.events.time.zone
        with duckdb.connect(config={"threads": 2}) as connection:
            connection.register("log", table)
            results = {}
            for place, expression in expressions.items():
                sql = to_sql(expression, lambda name: quote(sql_names[name]), zone=zone)
                try:
                    result = connection.sql(f"SELECT {sql} AS value FROM log").to_arrow_table()
                except duckdb.Error as error:
                    what = str(error).splitlines()[0]
                    raise BadInputError(
                        f"{self.scenario.file}: {place}: {expression!r} cannot be computed ({what}); mend it"
                    ) from None
                results[place] = _whole(result["value"])
        return results

    def _knows(self, name: str) -> bool:
        return name == EVENT_TIME or name in self._events.column_names or "." in name

    def index(self, place: str, by: tuple[str, ...]) -> Index:
        """The log by the values of `by`."""
        if by not in self._indexes:
            parts = self.evaluate({f"{place}.by[{i}]": part for i, part in enumerate(by)}, slice(None))
            self._indexes[by] = Index(self.timeline, encode_keys(list(parts.values())))
        return self._indexes[by]


def _all_expressions(scenario: Scenario) -> Iterable[str]:
    """Every expression that join computes, segments and labels included."""
    yield from scenario.labels.values()
    yield from scenario.evaluate.segments.values()
    for name, feature in scenario.features.items():
        yield from (expression for _, expression in _same_row_expressions(name, feature))
        if isinstance(feature, Trailing):
            yield from (e for e in (feature.where, getattr(feature, "of", None)) if e)


def _codes(values: pa.Array, unique: pa.Array) -> Ints:
    """Position of each value in `unique`, -1 where it is null or not there."""
    found = pc.index_in(values, value_set=unique, skip_nulls=True)
    return np.asarray(found.fill_null(-1)).astype(np.int64)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """One array of one of the types that ingest writes."""
    whole = column.combine_chunks()
    kind = whole.type
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or kind in ARROW_TYPES.values():
        return whole
    if pa.types.is_integer(kind):
        return whole.cast(pa.int64())
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        return whole.cast(pa.float64())
    if pa.types.is_null(kind):
        return whole.cast(pa.float64())
    return whole


def _same_row(log: Log, features: Mapping[str, SameRow]) -> dict[str, pa.Array]:
    """Columns of id, ids, cross and number features."""
    expressions = {
        f"features.{name}.{field}[{i}]" if isinstance(feature, CrossFeature) else f"features.{name}.{field}": expression
        for name, feature in features.items()
        for i, (field, expression) in enumerate(_same_row_expressions(name, feature))
    }
    values = log.evaluate(expressions, log.today)
    columns = {}
    for name, feature in features.items():
        place = f"{log.scenario.file}: features.{name}"
        match feature:
            case CrossFeature():
                columns[name] = _cross([values[f"features.{name}.of[{i}]"] for i in range(len(feature.of))])
            case NumberFeature():
                columns[name] = _numbers(values[f"features.{name}.of"], place)
            case IdsFeature():
                columns[name] = _id_lists(values[f"features.{name}.of"], place)
            case _:
                columns[name] = _ids(values[f"features.{name}.of"], place)
    return columns


def _ids(values: pa.Array, place: str) -> pa.Array:
    """Ids are int64 or text."""
    if pa.types.is_string(values.type) or pa.types.is_int64(values.type):
        return values
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int64())
    if pa.types.is_floating(values.type):
        finite = values.drop_null()
        fractions = finite.filter(pc.not_equal(pc.floor(finite), finite))
        if not len(fractions):
            return values.cast(pa.int64(), safe=False)
        raise BadInputError(f"{place}: {fractions[0].as_py()} is no id; use bucket(x, width), or kind: number")
    raise BadInputError(f"{place}: values of type {values.type} are no ids; use kind: ids for lists")


def _id_lists(values: pa.Array, place: str) -> pa.Array:
    if not pa.types.is_list(values.type):
        raise BadInputError(f"{place}: ids needs a list column, not {values.type}; use kind: id, or a list[..] type")
    empty = pa.scalar([], values.type)
    return values.fill_null(empty)


def _cross(parts: list[pa.Array]) -> pa.Array:
    """Parts as text, joined by chr(31); a null part is empty, and all of them null make null."""
    texts = [part.cast(pa.int64()) if pa.types.is_boolean(part.type) else part for part in parts]
    texts = [_short_text(part).fill_null("") for part in texts]
    joined = pc.binary_join_element_wise(*texts, _SEPARATOR)
    known = np.logical_or.reduce([np.asarray(part.is_valid()) for part in parts])
    return pc.if_else(pa.array(known), joined, pa.scalar(None, pa.string()))


def _short_text(part: pa.Array) -> pa.Array:
    """Text of values; whole numbers have no decimal point, whatever their type."""
    if pa.types.is_floating(part.type):
        whole = pc.equal(pc.floor(part), part)
        return pc.if_else(whole, part.cast(pa.int64(), safe=False).cast(pa.string()), part.cast(pa.string()))
    return part.cast(pa.string())


def _numbers(values: pa.Array, place: str) -> pa.Array:
    """float64; null where missing, NaN or infinite."""
    kind = values.type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise BadInputError(f"{place}: values of type {kind} are no numbers; use kind: id or ids")
    numbers = (values.cast(pa.int64()) if pa.types.is_boolean(kind) else values).cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _trailing(log: Log, name: str, feature: Trailing) -> tuple[pa.Array, Ints]:
    """A trailing feature's column, and the newest source time behind each of its values."""
    place = f"features.{name}"
    by = _by(feature)
    index = log.index(place, by)
    wanted = {f"{place}.{f}": e for f in ("where", "of") if (e := getattr(feature, f, None))}
    values = log.evaluate(wanted, slice(None)) if wanted else {}
    mask = _condition(values[f"{place}.where"], log, place, "where") if feature.where else None
    of = values.get(f"{place}.of")
    if of is not None:  # a row that knows nothing of it counts for nothing
        known = np.asarray(of.is_valid())
        mask = known if mask is None else mask & known
    ranges = index.ranges(mask, log.today, log.times[log.today], _bounds(log.scenario, feature, wanted.values()))
    newest = ranges.newest()
    sources = np.where(newest >= 0, log.times[newest], NO_SOURCE)
    known_key = index.keys[log.today] >= 0
    match feature:
        case CountFeature():
            return _doubles(ranges.num.astype(float), known_key), sources
        case RecencyFeature():
            age_s = (log.times[log.today] - np.where(newest >= 0, sources, 0)) / 1e6
            return _doubles(age_s, newest >= 0), sources
        case RateFeature():
            positive = _condition(of, log, place, "of").astype(float)
            num_positive = ranges.sums(positive)
            rate = (num_positive + feature.prior * feature.prior_weight) / (ranges.num + feature.prior_weight)
            return _doubles(rate, known_key), sources
    return _sequence(log, feature, _ids(of, f"{log.scenario.file}: {place}.of"), ranges), sources


def _sequence(log: Log, feature: SequenceFeature, values: pa.Array, ranges: Ranges) -> pa.Array:
    if not feature.history:
        return newest_lists(ranges, values, feature.length, None, None)
    lists, rows = log.entity_list(feature.history)
    if not pa.types.is_list(lists.type) or lists.type.value_type != values.type:
        raise BadInputError(
            f"{log.scenario.file}: history {feature.history} is {lists.type}, but the sequence holds {values.type}; "
            f"declare it as list[{'int' if pa.types.is_int64(values.type) else 'string'}]"
        )
    return newest_lists(ranges, values, feature.length, lists, rows)


def _bounds(scenario: Scenario, feature: Trailing, expressions: Iterable[str]) -> Bounds:
    """How far back the feature looks, and how fresh what it looks at may be."""
    looks_at = set().union(*(columns_of(e) for e in expressions))
    days = min(getattr(feature, "window_days", None) or scenario.join.lookback_days, scenario.join.lookback_days)
    delay_s = scenario.join.label_delay_s if looks_at & outcome_columns(scenario) else 0
    return Bounds(days * _DAY_US, delay_s * 1_000_000)


def _condition(values: pa.Array, log: Log, place: str, field: str) -> Bools:
    """True where the value holds; null does not."""
    kind = values.type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise BadInputError(f"{log.scenario.file}: {place}.{field}: {kind} is no condition; compare it, as in x == 'a'")
    held: Bools = np.asarray(values.cast(pa.bool_()).fill_null(False))
    return held


def _doubles(values: Any, known: Bools) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~known)


def _labels(log: Log) -> dict[str, pa.Array]:
    """`label.TASK`, int8: 1, 0, or null where unknown."""
    scenario = log.scenario
    values = log.evaluate({f"labels.{task}": e for task, e in scenario.labels.items()}, log.today)
    labels = {}
    for task, expression in scenario.labels.items():
        value = values[f"labels.{task}"]
        place = f"{scenario.file}: labels.{task}: {expression!r}"
        if value.null_count == len(value):
            raise BadInputError(
                f"{place} is unknown on all {len(value)} rows of {log.ds}; look at its columns "
                f"({', '.join(sorted(columns_of(expression)))}) in the source"
            )
        if not (
            pa.types.is_boolean(value.type)
            or pc.all(
                pc.is_in(
                    value,
                    pa.array([0, 1], value.type) if not pa.types.is_string(value.type) else pa.array(["0", "1"]),
                    skip_nulls=True,
                )
            ).as_py()
        ):
            raise BadInputError(f"{place} is not only true and false; compare it, as in rating >= 4")
        labels[f"label.{task}"] = value.cast(pa.int8())
    return labels


def _segments(log: Log, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """`segment.NAME`, bool; an unknown condition is false."""
    wanted = {f"evaluate.segments.{name}": e for name, e in log.scenario.evaluate.segments.items()}
    values = log.evaluate(wanted, log.today, columns)
    return {
        f"segment.{name}": pa.array(_condition(values[f"evaluate.segments.{name}"], log, "evaluate.segments", name))
        for name in log.scenario.evaluate.segments
    }


def _facts(scenario: Scenario, samples: pa.Table, log: Log, gaps: Mapping[str, int | None]) -> dict[str, Any]:
    """What join.json says of the samples."""

    def share(column: pa.ChunkedArray) -> float:
        missing = pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() if pa.types.is_list(column.type) else None
        return round((column.null_count if missing is None else missing) / samples.num_rows, 6)

    return {
        "rows": samples.num_rows,
        "history_rows": log.today.start,
        "labels": {
            task: {
                "mean": round(pc.mean(samples[f"label.{task}"]).as_py(), 6),
                "unknown_share": share(samples[f"label.{task}"]),
            }
            for task in scenario.labels
        },
        "features": {name: {"missing_share": share(samples[name])} for name in scenario.features},
        "segments": {
            name: {"share": round(pc.mean(samples[f"segment.{name}"].cast(pa.int8())).as_py(), 6)}
            for name in scenario.evaluate.segments
        },
        "smallest_gap_us": dict(gaps),
    }
