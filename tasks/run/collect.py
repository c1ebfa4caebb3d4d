"""Garbage collection of a store: each day adds its data, and models add hardly anything.

Files go, records and manifests stay: the graph of digests is whole, and a day whose files are gone counts as done.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from feature_jobs.errors import BadInputError, ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range, is_day, parse_ds
from tasks.run.inputs import flat, resolve_inputs
from tasks.steps import DAILY, STEPS, upstream
from tasks.store.chain import log as chain_log
from tasks.store.champion_log import ChampionLog
from tasks.store.forgotten import is_forgotten
from tasks.store.keys import is_date, place_of
from tasks.store.records import holder_of
from tasks.store.scenario_store import Commit, ScenarioStore

IDLE_S = 24 * 3600.0
LINK_STEPS = tuple(name for name in DAILY if any(read.is_parent for read in STEPS[name].reads.values()))


@dataclass(frozen=True)
class Garbage:
    """Commits that are no longer needed, with the bytes of their files."""

    commits: tuple[Commit, ...]
    bytes: int

    def by_step(self) -> dict[str, tuple[int, int]]:
        """Step → (commits, bytes)."""
        found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for commit in self.commits:
            count, size = found[commit.step]
            found[commit.step] = (count + 1, size + size_of(commit))
        return dict(found)


def size_of(commit: Commit) -> int:
    """Bytes of the files of a commit."""
    return sum(file["bytes"] for file in commit.manifest["files"].values())


def garbage(scenario: Scenario, store: ScenarioStore, keep_days: int | None) -> Garbage:
    """The commits whose files nothing needs: neither the last `keep_days` days, nor the next day with its windows, nor
    the champion and the rollback targets, nor the newest checkpoint of a generation. None keeps all of these.

    Outputs that a newer generation has written again without the rows of some users are garbage at once.
    """
    commits = store.unless_replaced(_with_manifest, store.commits())
    # Erased even if the champion or a window needs it: people asked for these rows to go.
    forgotten = {commit.source["record"] for commit in commits if _is_forgotten(scenario, store, commit)}
    generations = store.generations()
    current = [commit for commit in commits if holder_of(commit.ds, generations) == commit.generation]
    links = sorted(commit.ds for commit in current if commit.step in LINK_STEPS)
    if keep_days is None or not links:  # a replay from the first day has just begun
        free = tuple(c for c in _with_files(store, commits) if c.source["record"] in forgotten)
        return Garbage(free, sum(map(size_of, free)))
    # The days to keep end with the newest link: later days have begun out of order, and need all that they have.
    counted = day_range(scenario, min(commit.ds for commit in current), links[-1])
    recent = [*counted[-keep_days:], *sorted({commit.ds for commit in current if commit.ds > links[-1]})]
    kept = {commit.source["record"] for commit in _needed(scenario, store, recent)} - forgotten
    # A commit that a killed gc began to delete is not whole any more, so it goes, needed or not.
    free = tuple(c for c in _with_files(store, commits) if c.source["record"] not in kept or store.is_collected(c))
    return Garbage(free, sum(map(size_of, free)))


def _with_manifest(commit: Commit) -> Commit:
    """Raises CorruptError where the manifest is damaged: the content of the commit is then not known."""
    _ = commit.manifest
    return commit


def _with_files(store: ScenarioStore, commits: list[Commit]) -> Iterator[Commit]:
    """The commits of which at least one file is still there."""
    keys = {commit: [f"{commit.key}/{name}" for name in commit.manifest["files"]] for commit in commits}
    # A listing for each depth, not a question for each file: in an object store that would be a request each.
    depths = {key.count("/") + 1 for of_commit in keys.values() for key in of_commit}
    there = {key for depth in depths for key in store.keys("/".join(["g*", *["*"] * (depth - 1)]))}
    return (commit for commit in commits if not there.isdisjoint(keys[commit]))


def _is_forgotten(scenario: Scenario, store: ScenarioStore, commit: Commit) -> bool:
    """Says if rows were left out of the commit's day since, and the day has been written again without them."""
    if not is_forgotten(store, commit.ds, commit.generation):
        return False
    return not is_day(scenario, commit.ds) or bool(store.commits_of(commit.ds))


def _needed(scenario: Scenario, store: ScenarioStore, recent: list[str]) -> Iterator[Commit]:
    for ds in recent:
        yield from store.commits_of(ds)
    for ds in [*recent, _next(recent[-1])]:
        yield from _inputs(scenario, store, ds)
    links = chain_log(store)
    generations = store.generations()
    # Of each generation, since any of them may be the one that a rollback or a replay goes on from.
    for generation in generations:
        seen = [link for link in links if holder_of(link.ds, generations, generation.number) == link.generation]
        for name in LINK_STEPS if seen else ():
            yield from _found(store, name, seen[-1].ds, seen[-1].generation)
    champions = ChampionLog(store)
    current = champions.current()
    for entry in [*([current] if current else []), *champions.rollback_targets(scenario.deploy.keep_versions)]:
        # The checkpoint and the outputs made of it: a rollback proves its export and its registration.
        for name in DAILY:
            if name in LINK_STEPS or _comes_after(name, LINK_STEPS):
                yield from _found(store, name, entry.ds, entry.generation)


def _found(store: ScenarioStore, step: str, ds: str, generation: int | None = None) -> Iterator[Commit]:
    commit = store.find(step, ds, generation)
    if commit is not None:
        yield commit


def _inputs(scenario: Scenario, store: ScenarioStore, ds: str) -> Iterator[Commit]:
    """Yields the commits that the steps of a day read, as far as they are there.

    Beside the days that a choice names, also those of its window: a feature that is declared later is built from older
    events.
    """
    for declared in STEPS.values():
        for argument, read in declared.reads.items():
            # Optional: a day that has not run yet has no inputs of its own day, and its earlier ones still count.
            kinds = [read, replace(read, choice=None)] if read.choice and read.window else [read]
            for kind in kinds:
                optional = replace(declared, reads={argument: replace(kind, optional=True)})
                # BadInputError: the features were changed after the day, so it is not joined as it is.
                with contextlib.suppress(ParentMissingError, BadInputError):
                    yield from flat(resolve_inputs(optional, scenario, ds, store).values())


def _comes_after(name: str, steps: tuple[str, ...]) -> bool:
    """Says if a step depends on one of the steps on the same day, directly or through others."""
    before = upstream(name)
    return any(step in steps or _comes_after(step, steps) for step in before)


def _next(ds: str) -> str:
    return (parse_ds(ds) + datetime.timedelta(days=1)).isoformat()


def leftovers(store: ScenarioStore, idle_s: float = IDLE_S) -> list[str]:
    """Keys of files that killed runs published and never committed, where no run can still commit them.

    That is where the commit of another run stands; or where a newer generation holds the day, so that a run that comes
    to its commit is refused: one that stands still just there may need its files, but not after `idle_s`. Elsewhere the
    next run of the step removes them.
    """
    kept = {commit.key for commit in store.commits()}
    places = {key.rsplit("/", 1)[0] for key in kept}
    generations = store.generations()
    published: dict[str, list[str]] = defaultdict(list)
    for key in store.keys("g*/*/*/*/*"):
        published[key.rsplit("/", 1)[0]].append(key)

    def is_left(folder: str) -> bool:
        key = folder.rsplit("/", 1)[0]
        place = place_of(key)
        if place is None or folder in kept:
            return False
        if key in places or is_forgotten(store, place.ds, place.generation):
            return True
        is_replaced = holder_of(place.ds, generations) != place.generation
        return is_replaced and all(time.time() - store.objects.time_of(key) >= idle_s for key in published[folder])

    return sorted(filter(is_left, published))


def collect(store: ScenarioStore, found: Garbage, left: list[str], reason: str) -> None:
    """Deletes the files of these commits, these leftovers, and killed runs' resume folders of steps done since."""
    for commit in found.commits:
        store.collect(commit, reason)
    for key in left:
        store.objects.delete(key)
    store.objects.scratch.remove_abandoned()
    for name in store.objects.scratch.resumable():
        ds, _, step = name.partition(".")
        if is_date(ds) and store.find(step, ds) is not None:
            store.objects.scratch.remove_resumable(name)
