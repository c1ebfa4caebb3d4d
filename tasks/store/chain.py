"""The chain: the checkpoints of a scenario, one a day, each learned from exactly one parent.

It is read off the commit records, so it can't disagree with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feature_jobs.errors import CorruptError, RecloopError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day
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
    """All checkpoints, oldest day first; of a day that was corrected, all generations."""
    links = []
    for commit in store.commits():
        if commit.step == "train":
            current = store.generation_of(commit.ds) == commit.generation
            links.append(Link(commit.ds, commit.generation, commit.digest, commit.manifest.get("parent"), current))
    return sorted(links, key=lambda link: (link.ds, link.generation))


def head(store: ScenarioStore) -> Link | None:
    """The newest checkpoint of the newest generation: what the next day learns from."""
    current = [link for link in log(store) if link.current]
    return current[-1] if current else None


def verify(scenario: Scenario, store: ScenarioStore) -> dict[str, Any]:
    """Proves every digest of every committed output, and that each output was made from what is committed.

    Returns {"commits": number, "bytes": number, "problems": [messages]}.
    """
    problems: list[str] = []
    commits = store.commits()
    for commit in commits:
        try:
            store.verify(commit)
        except RecloopError as error:
            problems.append(str(error))
    digests = {(commit.step, commit.digest) for commit in commits}
    for commit in commits:
        if commit.step == "train":
            problems += _parent_problems(scenario, store, commit, digests)
    num_bytes = sum(f["bytes"] for commit in commits for f in _files(commit).values())
    return {"commits": len(commits), "bytes": num_bytes, "problems": problems}


def _parent_problems(
    scenario: Scenario, store: ScenarioStore, commit: Commit, digests: set[tuple[str, str]]
) -> list[str]:
    try:
        parent = commit.manifest.get("parent")
    except (OSError, ValueError):
        return []  # an unreadable manifest is reported by its digest
    before = previous_day(scenario, commit.ds)
    if before is None:
        return [] if parent is None else [f"train of {commit.ds} is the first day, yet names parent {parent[:12]}"]
    expected = store.find("train", before, commit.generation)
    if parent is None or ("train", parent) not in digests:
        return [f"train of {commit.ds} (generation {commit.generation}): parent {str(parent)[:12]} is not committed"]
    if expected is None or expected.digest != parent:
        found = expected.digest[:12] if expected else "nothing"
        return [f"train of {commit.ds} learned from {parent[:12]}, but {before} holds {found}"]
    return []


def _files(commit: Commit) -> dict[str, Any]:
    try:
        files: dict[str, Any] = commit.manifest["files"]
    except (OSError, ValueError, KeyError):
        return {}
    return files


def require_sound(scenario: Scenario, store: ScenarioStore) -> dict[str, Any]:
    """As `verify`, but raises CorruptError where there are problems."""
    facts = verify(scenario, store)
    if facts["problems"]:
        raise CorruptError("\n".join(facts["problems"]))
    return facts
