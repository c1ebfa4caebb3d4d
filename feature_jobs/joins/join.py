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
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.day_samples import DaySamples
from feature_jobs.joins.entities import FOLDER
from feature_jobs.joins.learned import learned_with_outcomes, peeked
from feature_jobs.joins.negatives import NEGATIVES_FILE, read_negatives
from feature_jobs.joins.outcomes import days_maturing, days_of_outcomes, num_too_late
from feature_jobs.joins.rules import (
    key_of,
    own_expressions,
    refuse_leaks,
    request_expressions,
    request_features,
    same_row_features,
    trailing_features,
)
from feature_jobs.joins.sample_negatives import sample_negatives
from feature_jobs.joins.summaries import INDEX_FILE, Summaries, parse_index
from feature_jobs.joins.summarize import summarize_events
from feature_jobs.joins.trailing import PastOfDay
from feature_jobs.schema import Scenario, SequenceFeature
from feature_jobs.schema.days import check_day, history_days, trailing_days
from feature_jobs.schema.files import JOIN_FILE, SAMPLES_FILE
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
    past_rows = PastOfDay(log, Summaries(index, {**past, ds: summaries}), answers)
    output.mkdir(parents=True, exist_ok=True)
    # Not in /tmp, which is memory in a container.
    with tempfile.TemporaryDirectory(dir=output, prefix=".scratch-") as scratch:
        day = DaySamples(log, past_rows, Path(scratch))
        samples = day.tables()
        if scenario.outcome_labels and matured is not None:
            of_labels = {**(past_events or {}), ds: events}
            samples = learned_with_outcomes(scenario, ds, samples, log.times, events=of_labels, matured=matured)
        counts, (schema, samples) = _Counts(), peeked(samples)
        batches = chain.from_iterable(counts.counted(table).to_batches() for table in samples)
        write_parquet(batches, schema, output / SAMPLES_FILE)
    # Only now: tables are counted, and entities audited, as they are written.
    facts = counts.facts(scenario, day)
    for task, num in num_too_late(scenario, ds, events).items():
        facts["labels"][task]["too_late"] = num
    if negatives:
        facts["negatives"] = {"rows": negatives.rows.num_rows, "wanted": negatives.wanted}
    (output / JOIN_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return facts


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
        # The committed samples of these days have other features.
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
            if seen:
                shutil.copyfile(seen[ds] / NEGATIVES_FILE, summaries / NEGATIVES_FILE)
            else:
                sample_negatives(
                    scenario, sampler, ds, days[ds], Summaries(made.index, {ds: summaries}), output=summaries
                )
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


class _Counts:
    """Counts of samples, table by table, for join.json."""

    def __init__(self) -> None:
        self._rows = 0
        self._missing: Counter[str] = Counter()
        self._total: Counter[str] = Counter()

    def counted(self, samples: pa.Table) -> pa.Table:
        """Counts the rows of a table, and returns it."""
        self._rows += samples.num_rows
        for name in samples.column_names:
            column = samples[name]
            # A list is never null in the samples; an empty one means a missing value.
            is_list = pa.types.is_list(column.type)
            lengths = pc.list_value_length(column) if is_list else None
            self._missing[name] += (pc.sum(pc.equal(lengths, 0)).as_py() or 0) if is_list else column.null_count
            if name.startswith(("label.", "segment.")):
                self._total[name] += pc.sum(column.cast(pa.int8())).as_py() or 0
        return samples

    def facts(self, scenario: Scenario, day: DaySamples) -> JoinFacts:
        """The facts of all tables."""
        return {
            "rows": self._rows,
            "labels": {
                task: {"mean": self._mean(f"label.{task}"), "unknown_share": self._share(f"label.{task}")}
                for task in scenario.labels
            },
            "missing_share": {name: self._share(name) for name in scenario.features},
            "entities": day.hit_shares(),
            "segments": {name: self._mean(f"segment.{name}") or 0.0 for name in scenario.evaluate.segments},
            "smallest_gap_us": day.smallest_gaps(),
        }

    def _share(self, name: str) -> float:
        return round(self._missing[name] / self._rows, 6)

    def _mean(self, name: str) -> float | None:
        known = self._rows - self._missing[name]
        return round(self._total[name] / known, 6) if known else None
