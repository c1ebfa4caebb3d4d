"""Erases outside the store what days still say there of users that were forgotten: MLflow, the online store."""

from __future__ import annotations

from dataclasses import dataclass

from feature_jobs.schema import Scenario
from tasks.run.collect import LINK_STEPS
from tasks.steps import STEPS
from tasks.store.champion_log import ChampionLog
from tasks.store.forgotten import is_forgotten
from tasks.store.keys import record_key
from tasks.store.scenario_store import ScenarioStore


@dataclass(frozen=True)
class Erased:
    """Versions and runs that were deleted in MLflow; `serves`: the version that still knows the users, if it serves."""

    versions: list[str]
    runs: int
    serves: str | None


def keep_newest_alone(scenario: Scenario, store: ScenarioStore) -> None:
    """Removes what steps have made elsewhere of their outputs, except of the newest one."""
    if not any(generation.forgets for generation in store.generations()):
        return
    shown = [c for c in store.commits() if store.generation_of(c.ds) == c.generation and not store.is_collected(c)]
    for name, declared in STEPS.items():
        if declared.keep_only is not None and declared.has_work(scenario):
            newest = max((commit for commit in shown if commit.step == name), key=lambda c: c.ds, default=None)
            if newest is not None:
                store.verify(newest)
            declared.keep_only(scenario, newest.folder if newest else None)


def erase_from_registry(scenario: Scenario, store: ScenarioStore) -> Erased:
    """Deletes MLflow's entries of days that rows were left out of, but for the version that serves, and the records of
    their runs, from which MLflow is filled.

    A version whose checkpoint the new generation has too stays: it never knew the users.
    """
    from tasks import tracking

    def is_over(ds: str | None, generation: int) -> bool:
        return ds is not None and is_forgotten(store, ds, generation)

    current = ChampionLog(store).current()
    view = {(c.ds, c.step): c.digest for c in store.commits() if store.generation_of(c.ds) == c.generation}
    known = {digest for (_, step), digest in view.items() if step in LINK_STEPS}
    gone = [
        version
        for version in tracking.versions(scenario.model_name)
        if is_over(version["ds"], version["generation"]) and version["checkpoint"] not in known
    ]
    serves = {v["version"] for v in gone} & {current.version} if current else set()
    erased = [version["version"] for version in gone if version["version"] not in serves]
    forgotten = [commit for commit in store.commits() if is_forgotten(store, commit.ds, commit.generation)]
    # First the records: from them MLflow would be filled again with the entries that are deleted below.
    for commit in forgotten:
        store.objects.delete(record_key(commit.generation, commit.ds, commit.step))
    tracking.erase_versions(scenario, erased, is_over)
    runs = tracking.erase_runs(scenario, sorted({(commit.generation, commit.ds) for commit in forgotten}))
    return Erased(erased, runs, next(iter(serves), None))
