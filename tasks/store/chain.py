"""The chain: the checkpoints of a scenario, one a day, each learned from exactly one parent.

It is read from the commit records, so it can't disagree with them. A commit belongs to the chain where its manifest
names a parent, also where that is null, as on the first day.
"""

from __future__ import annotations

from dataclasses import dataclass

from feature_jobs.errors import CorruptError, RecloopError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day
from tasks.store.records import Manifest
from tasks.store.scenario_store import Commit, ScenarioStore


@dataclass(frozen=True)
class Link:
    """One checkpoint of the chain. `current` is False where a newer generation replaces its day."""

    ds: str
    generation: int
    checkpoint: str
    parent: str | None
    current: bool


@dataclass(frozen=True)
class Proof:
    """What `verify` read: commits, bytes of their files, and a message for each problem."""

    commits: int
    bytes: int
    problems: list[str]


def log(store: ScenarioStore) -> list[Link]:
    """All checkpoints, oldest day first; of a day that was corrected, all generations.

    A damaged manifest is left out: `verify` reports it.
    """
    links = []
    for commit in store.commits():
        manifest = _manifest(commit)
        if "parent" in manifest:
            current = store.generation_of(commit.ds) == commit.generation
            links.append(Link(commit.ds, commit.generation, commit.digest, manifest["parent"], current))
    return sorted(links, key=lambda link: (link.ds, link.generation))


def head(store: ScenarioStore) -> Link | None:
    """The newest checkpoint of the newest generation: what the next day learns from."""
    current = [link for link in log(store) if link.current]
    return current[-1] if current else None


def verify(scenario: Scenario, store: ScenarioStore) -> Proof:
    """Checks the digest of every committed file, and that each link of the chain has its parent."""
    problems: list[str] = []
    commits = store.commits()
    for commit in commits:
        try:
            store.verify(commit)
        except RecloopError as error:
            problems.append(str(error))
    manifests = [(commit, _manifest(commit)) for commit in commits]
    digests = {(commit.step, commit.digest) for commit in commits}
    for commit, manifest in manifests:
        if "parent" in manifest:
            problems += _parent_problems(scenario, store, commit, manifest["parent"], digests)
    num_bytes = sum(file["bytes"] for _, manifest in manifests for file in manifest.get("files", {}).values())
    return Proof(len(commits), num_bytes, problems)


def require_sound(scenario: Scenario, store: ScenarioStore) -> Proof:
    """As `verify`, but raises CorruptError where there are problems."""
    proof = verify(scenario, store)
    if proof.problems:
        raise CorruptError("\n".join(proof.problems))
    return proof


def _parent_problems(
    scenario: Scenario, store: ScenarioStore, commit: Commit, parent: str | None, digests: set[tuple[str, str]]
) -> list[str]:
    step, ds = commit.step, commit.ds
    before = previous_day(scenario, ds)
    if before is None:
        return [] if parent is None else [f"{step} of {ds} is the first day, yet names parent {parent[:12]}"]
    expected = store.find(step, before, commit.generation)
    if parent is None or (step, parent) not in digests:
        return [f"{step} of {ds} (generation {commit.generation}): parent {str(parent)[:12]} is not committed"]
    if expected is None or expected.digest != parent:
        found = expected.digest[:12] if expected else "nothing"
        return [f"{step} of {ds} learned from {parent[:12]}, but {before} holds {found}"]
    return []


def _manifest(commit: Commit) -> Manifest:
    """Empty where the manifest is not readable: that is reported by its digest."""
    try:
        return commit.manifest
    except (OSError, ValueError):
        return {}
