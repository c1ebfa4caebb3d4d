"""Join: every event of a day with the features known strictly before it, and with its labels.

Same-row features are expressions over the event and its entities. Trailing features look at earlier events, those of
the trailing days and the day's own (`feature_jobs.joins.trailing`). An event sees only events that are strictly
earlier, so events of the same time do not see each other. A feature that reads outcomes (the columns of labels and of
`outcomes`) sees only events that are also at least `join.label_delay_s` older.

Rows that were shown in one request (`data.request`) have the features of the request's time, which is the earliest of
their times, and may be compared with each other (`feature_jobs.joins.request`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.audit import audit_point_in_time
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.entities import FOLDER
from feature_jobs.joins.negatives import read_negatives, write_negatives
from feature_jobs.joins.outcomes import (
    days_maturing,
    days_of_outcomes,
    learned_with_outcomes,
    num_too_late,
    unknown_labels,
)
from feature_jobs.joins.request import RequestFeatures
from feature_jobs.joins.rules import (
    key_of,
    own_expressions,
    refuse_leaks,
    request_expressions,
    request_features,
    same_row_features,
    trailing_features,
)
from feature_jobs.joins.same_row import SameRowFeatures
from feature_jobs.joins.sample_negatives import sample_negatives
from feature_jobs.joins.summaries import INDEX_FILE, Summaries, parse_index
from feature_jobs.joins.summarize import summarize_events
from feature_jobs.joins.trailing import PastOfDay, TrailingFeatures
from feature_jobs.joins.values import condition, is_numeric
from feature_jobs.schema import Scenario, SequenceFeature
from feature_jobs.schema.days import check_day, history_days, trailing_days
from feature_jobs.schema.files import JOIN_FILE, NEGATIVE, SAMPLES_FILE
from feature_jobs.sources.tables import write_parquet
from feature_jobs.windows.query import Answers, answers


class LabelFacts(TypedDict):
    """Mean of a label where it is known (None: nowhere), and the share of rows on which it is not."""

    mean: float | None
    unknown_share: float
    too_late: NotRequired[int]  # outcomes in another log that came after the label was learned


class JoinFacts(TypedDict):
    """Content of join.json. `entities`: for each entity that a feature reads, the share of the day's events that see a
    row of it. `smallest_gap_us`: least time from the newest source of a value to its event, by entity and by feature;
    None where no value had a source."""

    rows: int
    labels: dict[str, LabelFacts]
    missing_share: dict[str, float]
    entities: dict[str, float]
    segments: dict[str, float]
    smallest_gap_us: dict[str, dict[str, int | None]]
    negatives: NotRequired[dict[str, int]]  # rows, and the number that was asked for


def join_day(
    scenario: Scenario,
    ds: str,
    events: Path,
    *,
    summaries: Path,
    past: Mapping[str, Path],
    output: Path,
    seen: Path | None = None,
    past_events: Mapping[str, Path] | None = None,
    matured: Mapping[str, Path] | None = None,
    answers: Answers = answers,
) -> JoinFacts:
    """Writes samples.parquet and join.json; returns the content of the latter.

    `events` is the day's folder as ingest wrote it, `summaries` the one that summarize wrote, `past` those of the
    earlier days that `days_of_windows` names, by ds. `seen` has the rows of entities, if `summaries` does not.
    `past_events` and `matured` are the events and samples of earlier days that labels of other logs need, see
    `learned_with_outcomes`; without them these labels stay unknown. `answers` computes what windows hold; any one gives
    the same bytes.
    Raises BadInputError where a feature would see an outcome of its own row or anything not strictly earlier, where an
    expression does not fit its columns, and where a label is unknown on every row.
    """
    check_day(scenario, ds)
    refuse_leaks(scenario)
    index = parse_index((summaries / INDEX_FILE).read_bytes(), str(summaries / INDEX_FILE))
    names = set().union(*map(columns_of, _expressions(scenario)))
    negatives = read_negatives(scenario, ds, summaries) if scenario.join.negative_sampler else None
    log = DayEvents(
        scenario, ds, events, names, entities=(seen or summaries) / FOLDER, negatives=negatives and negatives.rows
    )
    columns = SameRowFeatures(scenario).columns(log.evaluate)
    past_rows = PastOfDay(log, Summaries(index, {**past, ds: summaries}), answers)
    trailing, source_times, delays = TrailingFeatures(scenario).columns(log, past_rows)
    columns |= trailing
    columns |= RequestFeatures(scenario).columns(partial(log.evaluate, extra=columns), columns, log.requests)
    place = f"{scenario.file}: {ds}"
    gaps = {
        "entities": audit_point_in_time(log.known_at, log.entity_times(), place=f"{place}: entity"),
        "features": audit_point_in_time(log.known_at, source_times, place=f"{place}: feature", delays_us=delays),
    }
    samples = _samples(log, columns)
    if scenario.outcome_labels and matured is not None:
        samples = learned_with_outcomes(scenario, ds, samples, {**(past_events or {}), ds: events}, matured)
    output.mkdir(parents=True, exist_ok=True)
    write_parquet(samples.to_batches(), samples.schema, output / SAMPLES_FILE)
    facts = _facts(scenario, samples, log.hit_shares(), gaps)
    for task, num in num_too_late(scenario, ds, events).items():
        facts["labels"][task]["too_late"] = num
    if negatives:
        facts["negatives"] = {"rows": len(negatives.rows), "wanted": negatives.wanted}
    (output / JOIN_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return facts


def _samples(log: DayEvents, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The samples of a day's own rows; `columns` are those of features."""
    data = log.scenario.data
    keys = {
        "key.event_time": log.column("key.event_time"),
        "key.event_row": log.column("key.event_row"),
        "key.user": log.column(data.user),
        "key.item": log.column(data.item),
    }
    if data.request:
        keys["key.request"] = log.column(data.request)
    if log.scenario.join.negative_sampler:
        keys[NEGATIVE] = pa.array(log.is_negative)
    features = {name: columns[name] for name in log.scenario.features}
    return pa.table({**keys, **features, **_labels(log), **_segments(log, columns)})


def join_from_events(
    scenario: Scenario,
    ds: str,
    events: Path,
    past_events: Mapping[str, Path],
    output: Path,
    *,
    seen: Mapping[str, Path] | None = None,
) -> JoinFacts:
    """The same from ingested days alone: `past_events` are those that windows and labels reach, by ds.

    For samples with other features than the committed ones. `seen` are the summaries of these days, which have the rows
    of entities; without them each day's events have all that they see.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        days = {**past_events, ds: events}
        matured = {day: Path(folder, day) for day in days_maturing(scenario, ds) if day in days}
        for day, samples in matured.items():
            _join_alone(scenario, day, days, seen, samples)
        of_labels = {day: days[day] for day in days_of_outcomes(scenario, ds) if day in days}
        return _join_alone(scenario, ds, days, seen, output, past_events=of_labels, matured=matured)


def _join_alone(
    scenario: Scenario,
    ds: str,
    events: Mapping[str, Path],
    seen: Mapping[str, Path] | None,
    output: Path,
    *,
    past_events: Mapping[str, Path] | None = None,
    matured: Mapping[str, Path] | None = None,
) -> JoinFacts:
    """Joins a day from the ingested days that its windows reach."""
    reached = [*trailing_days(scenario, ds, history_days(scenario)), ds]
    days = {day: (events[day], seen[day] if seen else events[day]) for day in reached if day in events}
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        summaries = Path(folder)
        made = summarize_events(scenario, ds, days, index=None, folders={ds: summaries})
        (summaries / INDEX_FILE).write_text(json.dumps(made.index), encoding="utf-8")
        if sampler := scenario.join.negative_sampler:
            # `seen` has the rows of entities of the items that it sampled itself, and of no others.
            negatives = (
                read_negatives(scenario, ds, seen[ds])
                if seen
                else sample_negatives(scenario, sampler, ds, days[ds], Summaries(made.index, {ds: summaries}))
            )
            write_negatives(scenario, negatives, summaries)
        return join_day(
            scenario,
            ds,
            events[ds],
            summaries=summaries,
            past={},
            output=output,
            seen=days[ds][1],
            past_events=past_events,
            matured=matured,
        )


def _expressions(scenario: Scenario) -> Iterable[str]:
    """All that is computed on the row itself."""
    yield from scenario.own_labels.values()
    yield from scenario.evaluate.segments.values()
    for name, feature in same_row_features(scenario).items():
        yield from own_expressions(name, feature).values()
    for name, one in request_features(scenario).items():
        yield from request_expressions(name, one).values()
    for other in trailing_features(scenario).values():
        # Of the events the summaries have the keys, but not of their negatives.
        if other.source is not None or scenario.join.negative_sampler:
            yield from key_of(other)
        if isinstance(other, SequenceFeature) and other.history:
            yield other.history


def _labels(log: DayEvents) -> dict[str, pa.Array]:
    """`label.TASK`, int8: 1, 0, or null where unknown; 0 of a negative. Those that another log decides, and their
    `value.TASK`, are unknown until they have matured."""
    scenario = log.scenario
    values = log.evaluate(scenario.own_labels)
    labels = unknown_labels(scenario, len(log))
    for task, expression in scenario.own_labels.items():
        value = values[task].filter(pa.array(~log.is_negative))
        place = f"{scenario.file}: labels.{task}: {expression!r}"
        if not is_numeric(value):
            raise BadInputError(f"{place} is {value.type}, not true or false; compare it, as in rating >= 4")
        known = value.cast(pa.float64()).drop_null()
        # A day on which no label is known would train nothing, and pass silently.
        if not len(known):
            raise BadInputError(
                f"{place} is unknown on all {len(value):,} rows of {log.ds}; look at "
                f"{', '.join(sorted(columns_of(expression)))} in the source"
            )
        other = known.filter(pc.invert(pc.is_in(known, pa.array([0.0, 1.0]))))
        if len(other):
            raise BadInputError(f"{place} is {other[0].as_py():g}, not 0 or 1; compare it, as in rating >= 4")
        label = values[task].cast(pa.int8())  # a null stays null: training masks it
        labels[f"label.{task}"] = pc.if_else(pa.array(log.is_negative), pa.scalar(0, pa.int8()), label)
    return labels


def _segments(log: DayEvents, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """`segment.NAME`, bool; an unknown condition is false."""
    wanted = {f"evaluate.segments.{name}": e for name, e in log.scenario.evaluate.segments.items()}
    values = log.evaluate(wanted, columns)
    return {
        place.replace("evaluate.segments", "segment"): pa.array(condition(value, f"{log.scenario.file}: {place}"))
        for place, value in values.items()
    }


def _facts(
    scenario: Scenario, samples: pa.Table, entities: dict[str, float], gaps: dict[str, dict[str, int | None]]
) -> JoinFacts:
    """Describes the samples."""

    def missing(column: pa.ChunkedArray) -> float:
        num = column.null_count
        # A list is never null in the samples; an empty one means a missing value.
        if pa.types.is_list(column.type):
            num = pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0
        return float(round(num / samples.num_rows, 6))

    def mean(column: pa.ChunkedArray) -> float | None:
        found = pc.mean(column.cast(pa.int8())).as_py()
        return None if found is None else float(round(found, 6))

    return {
        "rows": samples.num_rows,
        "labels": {
            task: {"mean": mean(samples[f"label.{task}"]), "unknown_share": missing(samples[f"label.{task}"])}
            for task in scenario.labels
        },
        "missing_share": {name: missing(samples[name]) for name in scenario.features},
        "entities": entities,
        "segments": {name: mean(samples[f"segment.{name}"]) or 0.0 for name in scenario.evaluate.segments},
        "smallest_gap_us": gaps,
    }
