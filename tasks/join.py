"""Step `join`: a day's events with their features, point-in-time, and their labels."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import history_days, maturing_days
from tasks.contract import Choice, DayConfig, Input, Metrics, ReadFile, Resources, step

if TYPE_CHECKING:
    from feature_jobs.windows.query import Answers


def _of_windows(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.joins.summaries import days_of_windows

    return days_of_windows(scenario, ds, read)


def _maturing(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.joins.outcomes import days_maturing

    return days_maturing(scenario, ds)


def _of_outcomes(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.joins.outcomes import days_of_outcomes

    return days_of_outcomes(scenario, ds)


@step(
    reads={
        "events": Input(),
        "summaries": Input(),
        "past": Input("summaries", "trailing", history_days, Choice(Input("summaries"), _of_windows, by_digest=True)),
        "past_events": Input("events", "trailing", maturing_days, Choice(Input("events"), _of_outcomes)),
        "matured": Input("samples", "trailing", maturing_days, Choice(Input("events"), _maturing)),
    },
    writes="samples",
    asset="samples",
    # evaluate.segments: segments are columns of the samples, computed here as features are.
    config=("data", "join", "features", "labels", "outcomes", "evaluate.segments"),
    touched_until="feature_jobs.joins.touched:samples_until",
    imports=("feature_jobs.joins.join",),
    resources=Resources(cpus=2, memory_gib=8),
)
def join(
    config: DayConfig,
    *,
    events: Path,
    summaries: Path,
    past: Mapping[str, Path],
    past_events: Mapping[str, Path],
    matured: Mapping[str, Path],
    samples: Path,
) -> Metrics:
    """Joins each event with the facts known before it. They are user, item and context features, trailing counts, rates
    and sequences; then it adds the labels.

    A label that another log decides matures some days later: the rows of earlier days whose label does so on this day
    come once more, with the features they had and this label alone.

    An audit of the source time of every joined value refuses a value that is not older than its event.
    """
    from feature_jobs.joins.join import join_day

    with _answers(config.scenario) as answers:
        facts = join_day(
            config.scenario,
            config.ds,
            events,
            summaries=summaries,
            past=dict(past),
            output=samples,
            past_events=dict(past_events),
            matured=dict(matured),
            answers=answers,
        )
    return {**facts}


@contextlib.contextmanager
def _answers(scenario: Scenario) -> Iterator[Answers]:
    """The engine that the scenario names. Both give the same bytes, so the config digest does not know it."""
    if scenario.engine == "duckdb":
        from feature_jobs.windows.query import answers

        yield answers
        return
    from feature_jobs.spark.windows import SparkWindows
    from feature_jobs.spark_session import spark_session

    with spark_session(scenario) as session:
        yield SparkWindows(session)
