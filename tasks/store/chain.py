"""The chain: the checkpoints of a scenario, one a day, each learned from exactly one parent.

It is read from the commit records, so it can't disagree with them. A commit belongs to the chain where its manifest
names a parent, also where that is null, as on the first day.
"""

from __future__ import annotations

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


def log(store: ScenarioStore) -> list[Link]:
    """All checkpoints, oldest day first; of a day that was corrected, all generations.

    A damaged record or manifest is left out: `verify` reports it.
    """
    links, generations = [], store.generations()
    for commit, manifest in readable_commits(store):
        if "parent" in manifest:
            current = holder_of(commit.ds, generations) == commit.generation
            links.append(Link(commit.ds, commit.generation, commit.digest, manifest["parent"], current))
    return sorted(links, key=lambda link: (link.ds, link.generation))


def head(store: ScenarioStore) -> Link | None:
    """The newest checkpoint of the newest generation: the next day learns from it."""
    current = [link for link in log(store) if link.current]
    return current[-1] if current else None


def readable_commits(store: ScenarioStore) -> list[tuple[Commit, Manifest]]:
    """Every commit whose record and manifest are sound, with its manifest."""
    found = []
    for key in store.commit_keys():
        try:
            commit = store.commit_at(key)
            if commit is not None:
                found.append((commit, commit.manifest))
        except CorruptError:
            continue
    return found
