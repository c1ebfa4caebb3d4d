"""Step `materialize`: the state of features at a day's end, for the online store."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import history_days
from tasks.contract import Choice, DayConfig, Input, Metrics, ReadFile, Resources, step


def _of_windows(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.online.materialize import days_to_materialize

    return days_to_materialize(scenario, ds, read)


def _of_entities(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.joins.summaries import days_of_entities

    # The day's own output is an input already.
    return set(days_of_entities(scenario, ds, read)) - {ds}


def _load(scenario: Scenario, folder: Path) -> None:
    """Loads a committed state into the online store, unless a later day is there."""
    from feature_jobs.online.materialize import load, read_state
    from feature_jobs.online.opening import store_of

    if scenario.online is None or scenario.online.store is None:
        return
    with closing(store_of(scenario)) as store:
        current, ds = store.replaceable(), read_state(folder)["ds"]
        if current is not None and current.ds > ds:
            note = f"materialize: the online store has the state of {current.ds}, which is later; {ds} is not loaded"
            print(note, file=sys.stderr)
            return
        load(folder, store)


def _keep_only(scenario: Scenario, folder: Path | None) -> None:
    """Leaves this state alone in the online store, also where it had a later one."""
    from feature_jobs.online.materialize import load, state_in
    from feature_jobs.online.opening import store_of

    if scenario.online is None or scenario.online.store is None:
        return
    with closing(store_of(scenario)) as store:
        state = None if folder is None else state_in(folder)
        if folder is not None and store.replaceable() != state:
            load(folder, store)
        store.keep_only(state)


@step(
    reads={
        "summaries": Input(),
        "past": Input("summaries", "trailing", history_days, Choice(Input("summaries"), _of_windows, by_digest=True)),
        "carried": Input("summaries", "trailing", choice=Choice(Input("summaries"), _of_entities, by_digest=True)),
    },
    writes="online",
    config=("data", "join", "features", "labels", "outcomes"),
    imports=("feature_jobs.online.materialize",),
    resources=Resources(cpus=2, memory_gib=8),
    needs="online",
    after=_load,
    keep_only=_keep_only,
)
def materialize(
    config: DayConfig, *, summaries: Path, past: Mapping[str, Path], carried: Mapping[str, Path], online: Path
) -> Metrics:
    """Writes the state of features for requests.

    It is that of the day's end. Of each key of trailing features it has what the windows of later requests need, and of
    each entity the newest row of each key. The command then loads it into the scenario's online store.
    """
    from feature_jobs.online.materialize import materialize_day

    folders = {**carried, **past}
    return {**materialize_day(config.scenario, config.ds, summaries=summaries, past=folders, output=online)}
