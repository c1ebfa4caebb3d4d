"""Step `join`: a day's events with their features, point-in-time, and their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tasks.contract import DayConfig, Input, Metrics, Resources, step


@step(
    reads={
        "events": Input(),
        "history": Input(of="events", days="trailing", window="join.lookback_days"),
    },
    writes="samples",
    asset="samples",
    # evaluate.segments: segments are columns of the samples, computed here as features are.
    config=("data", "join", "features", "labels", "outcomes", "evaluate.segments"),
    imports=("feature_jobs.joins.join",),
    resources=Resources(cpus=2, memory_gib=8),
)
def join(config: DayConfig, *, events: Path, history: Mapping[str, Path], samples: Path) -> Metrics:
    """Joins each event with the facts known before it: user, item and context features, trailing counts, rates and
    sequences, and with its labels.

    An audit of the source time of every joined value refuses a value that is not older than its event.
    """
    from feature_jobs.joins.join import join_day

    return {**join_day(config.scenario, config.ds, events, dict(history), samples)}
