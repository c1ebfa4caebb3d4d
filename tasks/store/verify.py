"""Proves the whole store of a scenario: every byte from the heads of its logs down to the files.

A commit record names its manifest by digest, a manifest its files, the commits of its inputs, the record of its
generation, and the newest record of the log that the step appends to. Generations and champion records name the record
before them. So whatever is changed, something that names it disagrees. Nothing names the newest records: they could be
replaced together with all that they name. `Proof.head` is a digest over them, to be kept elsewhere and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from feature_jobs.errors import CorruptError, RecloopError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day
from tasks.store.champion_log import ChampionLog
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.keys import collected_key
from tasks.store.records import Generation, Manifest, Source, holder_of
from tasks.store.scenario_store import Commit, ScenarioStore


@dataclass(frozen=True)
class Proof:
    """What `verify` read: commits, bytes of their files, and a message for each problem."""

    commits: int
    bytes: int
    problems: list[str]
    head: str = field(default="", compare=False)


def verify(scenario: Scenario, store: ScenarioStore) -> Proof:
    """Reads everything that is committed, and what names it."""
    verifier = _Verifier(scenario, store)
    problems = list(verifier.problems())
    num_bytes = sum(file["bytes"] for _, manifest in verifier.sound for file in manifest["files"].values())
    return Proof(len(verifier.keys), num_bytes, problems, sha256_of(canonical_json(sorted(verifier.named.items()))))


def require_sound(scenario: Scenario, store: ScenarioStore) -> Proof:
    """As `verify`, but raises CorruptError where there are problems."""
    proof = verify(scenario, store)
    if proof.problems:
        raise CorruptError("\n".join(proof.problems))
    return proof


class _Verifier:
    def __init__(self, scenario: Scenario, store: ScenarioStore) -> None:
        self.scenario, self.store = scenario, store
        self.keys = store.commit_keys()
        self.sound: list[tuple[Commit, Manifest]] = []
        self.generations: list[Generation] = []  # empty where their records can't be read
        self.named: dict[str, str] = {}  # key of a record → digest by which others name it

    def problems(self) -> Iterator[str]:
        yield from self._logs()
        for key in self.keys:
            try:
                commit = self.store.commit_at(key)
                assert commit is not None  # noqa: S101 (its key was listed just now)
                manifest = commit.manifest
                self.sound.append((commit, manifest))
                self.named[commit.source["record"]] = commit.manifest_digest
                problems = list(self.store.objects.problems_of(commit.key, manifest["files"]))
                collected = self.store.is_collected(commit)  # asked after the files: gc may run at the same time
                if collected:  # it excuses missing files, so the head covers it
                    self.named[collected_key(commit.generation, commit.ds, commit.step)] = commit.manifest_digest
                if problems and not collected:
                    yield from (f"{problem}; {self.store.remedy(commit.ds)}" for problem in problems)
            except RecloopError as error:
                yield str(error)
        for commit, manifest in self.sound:
            yield from self._sources(commit, manifest)
            if "parent" in manifest and self.generations:
                yield from self._parent(commit, manifest["parent"])

    def _logs(self) -> Iterator[str]:
        try:
            self.generations = self.store.generations()
            for generation in self.generations:
                if source := generation.source:
                    self.named[source["record"]] = source["manifest"]
            started = {f"g{generation.number:04}" for generation in self.generations}
            for name in sorted({key.split("/")[0] for key in self.keys} - started):
                yield f"{self.store.url}/{name}: a generation that was never started; move it out of the store"
        except RecloopError as error:
            yield str(error)
        try:
            # A log by itself: damage in one must not hide that of the other.
            for source in ChampionLog(self.store).sources():
                self.named[source["record"]] = source["manifest"]
        except RecloopError as error:
            yield str(error)

    def _sources(self, commit: Commit, manifest: Manifest) -> Iterator[str]:
        """Whether all that the manifest names is what lies there now."""
        own = manifest.get("generation")
        if "generation" in manifest and (own["record"].split("/")[0] if own else "g0000") != f"g{commit.generation:04}":
            yield f"{commit.uri}: was committed in another generation; {self.store.remedy(commit.ds)}"
        appended = manifest.get("appended")
        for source in [*manifest.get("sources", []), *([own] if own else []), *([appended] if appended else [])]:
            yield from self._source(commit, source)

    def _source(self, commit: Commit, source: Source) -> Iterator[str]:
        found = self.named.get(source["record"])
        if found == source["manifest"]:
            return
        now = found[:12] if found else "missing or damaged"
        yield (
            f"{self.store.url}/{source['record']}: {now}, but {commit.step} of {commit.ds} (generation"
            f" {commit.generation}) was made with {source['manifest'][:12]}; {self.store.remedy(commit.ds)}"
        )

    def _parent(self, commit: Commit, parent: str | None) -> Iterator[str]:
        step, ds = commit.step, commit.ds
        before = previous_day(self.scenario, ds)
        if before is None:
            if parent is not None:
                yield f"{step} of {ds} is the first day, yet names parent {parent[:12]}; {self.store.remedy(ds)}"
            return
        place = holder_of(before, self.generations, commit.generation)
        expected = next(
            (c.digest for c, _ in self.sound if (c.step, c.ds, c.generation) == (step, before, place)), None
        )
        if parent is None or expected != parent:
            yield (
                f"{step} of {ds} (generation {commit.generation}) learned from {str(parent)[:12]}, but {before} holds"
                f" {expected[:12] if expected else 'nothing'}; {self.store.remedy(ds)}"
            )
