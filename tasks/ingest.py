"""Step `ingest`: one day of the source becomes typed, checked Parquet."""

from __future__ import annotations

from pathlib import Path

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day
from feature_jobs.sources.user_ids import Found, Users
from tasks.contract import DayConfig, Forgetting, Metrics, Resources, step


def refuse_retyped(config: DayConfig) -> None:
    """Raises BadInputError where a column's type has changed since the day before was ingested."""
    day_before = previous_day(config.scenario, config.ds)
    past = config.store.find("ingest", day_before) if config.store and day_before else None
    if past is not None and day_before is not None and config.store and not config.store.is_collected(past):
        from feature_jobs.sources.retyped import refuse_retyped_events

        refuse_retyped_events(config.scenario, config.ds, day_before, past.folder)


def _find(scenario: Scenario, events: Path, users: Users) -> Found:
    from feature_jobs.sources.leave_out import find

    return find(scenario, events, users)


def _leave_out(scenario: Scenario, events: Path, users: Users, output: Path) -> Metrics:
    from feature_jobs.sources.leave_out import leave_out

    return {**leave_out(scenario, events, users, output)}


@step(
    reads={},
    writes="events",
    config=("data", "ingest"),
    source=True,
    forgetting=Forgetting(_find, _leave_out),
    imports=("feature_jobs.sources.ingest",),
    before=refuse_retyped,
    resources=Resources(cpus=2, memory_gib=4),
)
def ingest(config: DayConfig, *, events: Path) -> Metrics:
    """Writes one day of the source as typed Parquet: exact duplicates dropped, malformed rows quarantined, all counted.

    Refuses a day without events, an unreadable source, more malformed rows than `ingest.max_quarantined_share`,
    integers that floats have rounded, and columns of another type than on the day before.
    """
    from feature_jobs.sources.ingest import ingest_day

    return {**ingest_day(config.scenario, config.ds, events)}
