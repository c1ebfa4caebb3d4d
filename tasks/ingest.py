"""Step `ingest`: one day of the source lands as typed, checked Parquet."""

from __future__ import annotations

from pathlib import Path

from tasks.contract import DayConfig, Metrics, Resources, step


@step(
    reads={},
    writes="events",
    config=("data", "ingest"),
    source=True,
    imports=("feature_jobs.sources.ingest",),
    resources=Resources(cpus=2, memory_gib=4),
)
def ingest(config: DayConfig, *, events: Path) -> Metrics:
    """Lands one day of the source as typed Parquet: exact duplicates dropped, malformed rows quarantined, all counted.

    Refuses a day without events, an unreadable source, and more malformed rows than `ingest.max_quarantined_share`.
    """
    from feature_jobs.sources.ingest import ingest_day

    return ingest_day(config.scenario, config.ds, events)
