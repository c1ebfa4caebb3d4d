"""The chain: the checkpoints of a scenario, one a day, each learned from exactly one parent.

It is read from the commit records, so it can't disagree with them. A commit belongs to the chain where its manifest
names a parent, also where that is null, as on the first day.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from feature_jobs.errors import CorruptError
from tasks.store.records import Manifest, holder_of
from tasks.store.scenario_store import Commit, ScenarioStore


@dataclass(frozen=True)
class Link:
    """One checkpoint of the chain. `current` is False where a newer generation replaces its day."""

    ds: str
    generation: int
    checkpoint: str
    parent: str | None
    current: bool


def log(store: ScenarioStore, commits: Sequence[Commit] | None = None) -> list[Link]:
    """All checkpoints, oldest day first; of a day that was corrected, all generations. `commits` are all of the store,
    where they were read already.

    A damaged record or manifest is left out: `verify` reports it.
    """
    links, generations = [], store.generations()
    for commit, manifest in _readable(store, commits):
        if "parent" in manifest:
            current = holder_of(commit.ds, generations) == commit.generation
            links.append(Link(commit.ds, commit.generation, commit.digest, manifest["parent"], current))
    return sorted(links, key=lambda link: (link.ds, link.generation))


def head(store: ScenarioStore, commits: Sequence[Commit] | None = None) -> Link | None:
    """The newest checkpoint of the newest generation: the next day learns from it. `commits`: see `log`."""
    current = [link for link in log(store, commits) if link.current]
    return current[-1] if current else None


def _readable(store: ScenarioStore, commits: Sequence[Commit] | None) -> list[tuple[Commit, Manifest]]:
    """Every commit whose record and manifest are sound, with its manifest."""

    def read(known: str | Commit) -> list[tuple[Commit, Manifest]]:
        try:
            commit = store.commit_at(known) if isinstance(known, str) else known
            return [(commit, commit.manifest)] if commit is not None else []
        except CorruptError:
            return []

    every: Sequence[str | Commit] = store.commit_keys() if commits is None else commits
    return list(itertools.chain.from_iterable(store.objects.each(read, every)))
