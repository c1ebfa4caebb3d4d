"""Proves the whole store of a scenario: every byte from the heads of its logs down to the files.

A commit record names its manifest by digest, a manifest its files, the commits of its inputs, the record of its
generation, and the newest record of the log that the step appends to. Generations and champion records name the record
before them. So a change of any of them contradicts a digest elsewhere. Nothing names the newest records: they could be
replaced together with all that they name. `Proof.head` is a digest over them, to be kept elsewhere and compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from feature_jobs.errors import CorruptError, RecloopError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day
from tasks.store.champion_log import PREFIX, ChampionLog, Entry
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.keys import (
    DAY,
    FOLDER_NAME,
    GENERATION,
    STEP,
    Place,
    collected_key,
    commit_key,
    is_date,
    log_key,
)
from tasks.store.records import Generation, Manifest, Source, holder_of
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.store.scratch import SCRATCH

_OF_STEP = rf"{GENERATION}/{DAY}/{STEP}"
_OUTPUT = rf"[0-9a-f]{{{FOLDER_NAME}}}"
_UNFINISHED = rf"{PREFIX}/{re.escape(SCRATCH)}(/.*)?"  # of a step in a container, which can write beside its log only
_KNOWN = {
    "file": re.compile(rf"{_OF_STEP}/(commit\.json|collected\.json|{_OUTPUT}/.+)|{_UNFINISHED}", re.DOTALL),
    "folder": re.compile(
        rf"{PREFIX}|{GENERATION}|{GENERATION}/{DAY}|{_OF_STEP}(/{_OUTPUT}(/.+)?)?|{_UNFINISHED}", re.DOTALL
    ),
    "other": re.compile("(?!)"),
}


@dataclass(frozen=True)
class Proof:
    """Result of `verify`: commits read, bytes of their files, and a message for each problem. `replaced` are problems
    of outputs that a newer generation has computed again, so that the chain does not stand on them."""

    commits: int
    bytes: int
    problems: list[str]
    head: str = field(default="", compare=False)
    replaced: list[str] = field(default_factory=list)


def verify(scenario: Scenario, store: ScenarioStore) -> Proof:
    """Reads everything that is committed, and the records that name it."""
    verifier = _Verifier(scenario, store)
    problems = list(verifier.problems())
    num_bytes = sum(file["bytes"] for _, manifest in verifier.sound for file in manifest["files"].values())
    head = sha256_of(canonical_json(sorted(verifier.named.items())))
    return Proof(len(verifier.places), num_bytes, problems, head, verifier.replaced)


def require_sound(scenario: Scenario, store: ScenarioStore) -> Proof:
    """As `verify`, but raises CorruptError where there are problems."""
    proof = verify(scenario, store)
    if proof.problems:
        raise CorruptError("\n".join(proof.problems))
    return proof


class _Verifier:
    def __init__(self, scenario: Scenario, store: ScenarioStore) -> None:
        self.scenario, self.store = scenario, store
        # Listed first: a record that another process writes meanwhile is then in the logs, or not looked at.
        self.entries = [entry for top in ("g*", PREFIX) for entry in store.objects.entries(top)]
        self.places = set(store.places())
        self.sound: list[tuple[Commit, Manifest]] = []
        self.generations: list[Generation] = []  # empty where their records can't be read
        self.champions: list[Entry] = []
        self.named: dict[str, str] = {}  # key of a record → digest by which others name it
        self.replaced: list[str] = []
        self.are_logs_read = True

    def problems(self) -> Iterator[str]:
        yield from self._logs()
        for place in sorted(self.places):
            yield from self._unless_replaced(place, self._output(place))
        for commit, manifest in self.sound:
            place = Place(commit.generation, commit.ds, commit.step)
            yield from self._unless_replaced(place, self._sources(commit, manifest))
            if "parent" in manifest and self.generations:
                yield from self._unless_replaced(place, self._parent(commit, manifest["parent"]))
        if self.are_logs_read:
            yield from self._champion()
            yield from self._strangers()

    def _unless_replaced(self, place: Place, problems: Iterator[str]) -> Iterator[str]:
        """Leaves out problems of an output that the newest generation has computed again: that was the remedy."""
        holder = holder_of(place.ds, self.generations) if self.generations else place.generation
        if holder > place.generation and place._replace(generation=holder) in self.places:
            self.replaced += [f"{problem} (generation {holder} holds it now)" for problem in problems]
        else:
            yield from problems

    def _output(self, place: Place) -> Iterator[str]:
        """Yields the problems of a record, a manifest or files that are not as they were committed."""
        try:
            found = self.store.read_commit(commit_key(*place))
            assert found is not None  # noqa: S101 (its key was listed just now)
            commit, is_as_written = found
            if not is_as_written:
                key = commit.source["record"]
                yield f"{self.store.url}/{key}: is not as it was written; {self.store.remedy(place.ds)}"
            manifest = self.store.manifest_of(commit)
            self.sound.append((commit, manifest))
            self.named[commit.source["record"]] = commit.manifest_digest
            problems = list(self.store.objects.problems_of(commit.key, manifest["files"]))
            collected = self.store.is_collected(commit)  # asked after the files: gc may run at the same time
            if collected:  # it excuses missing files, so the head covers it
                self.named[collected_key(*place)] = commit.manifest_digest
                problems = list(self.store.objects.problems_of(commit.key, manifest["files"], partly=True))
            yield from (f"{problem}; {self.store.remedy(commit.ds)}" for problem in problems)
        except RecloopError as error:
            yield str(error)

    def _logs(self) -> Iterator[str]:
        try:
            self.generations = self.store.generations()
            for generation in self.generations:
                if source := generation.source:
                    self.named[source["record"]] = source["manifest"]
        except RecloopError as error:
            self.are_logs_read = False
            yield str(error)
        try:
            # A log by itself: damage in one must not hide that of the other.
            records = ChampionLog(self.store).records()
            self.champions = [entry for entry, _ in records]
            self.named |= {log_key(PREFIX, entry.sequence): digest for entry, digest in records}
        except RecloopError as error:
            self.are_logs_read = False
            yield str(error)

    def _champion(self) -> Iterator[str]:
        """Yields a problem if the champion's checkpoint is not in the store; `dvc` may have removed older ones."""
        if not self.champions:
            return
        entry = self.champions[-1]
        sound = {(c.generation, c.ds, c.step): c.digest for c, _ in self.sound}
        there = [place for place in self.places if place[:2] == (entry.generation, entry.ds)]
        is_damaged = any(place not in sound for place in there)  # that is reported already
        if not is_damaged and entry.checkpoint not in [sound[place] for place in there]:
            yield (
                f"{self.store.url}/{log_key(PREFIX, entry.sequence)}: names the checkpoint {entry.checkpoint[:12]} of"
                f" {entry.ds} (generation {entry.generation}), which is not committed there; go back to another version"
                f" (recloop rollback {self.store.options}), or {self.store.remedy(entry.ds)}"
            )

    def _strangers(self) -> Iterator[str]:
        """Yields a problem for each entry that is neither a record nor an output, so that no digest covers it."""
        looked_at = {commit.key for commit, _ in self.sound}
        sound = {commit.key.rpartition("/")[0] for commit, _ in self.sound}
        looked_at |= {commit_key(*place) for place in self.places} - sound
        ours = {PREFIX, *(f"g{generation.number:04}" for generation in self.generations)}
        for key, kind in self.entries:
            parts = key.split("/")
            above = {"/".join(parts[:depth]) for depth in (3, 4)}
            if parts[0] not in ours or key in self.named or above & looked_at:
                continue
            is_day = len(parts) == 1 or parts[0] == PREFIX or is_date(parts[1])
            if not (is_day and _KNOWN[kind].fullmatch(key)):
                yield f"{self.store.url}/{key}: is not a record or an output of the store; move it out of the store"

    def _sources(self, commit: Commit, manifest: Manifest) -> Iterator[str]:
        """Yields a problem for each record that the manifest names and that has another digest now."""
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
        if before is None and parent is None:
            return
        earlier = [
            c
            for c, _ in self.sound
            if c.step == step and c.ds < ds and holder_of(c.ds, self.generations, commit.generation) == c.generation
        ]
        nearest = max(earlier, key=lambda c: c.ds, default=None)
        # A day that is there counts, also where the scenario begins later by now, or passes over it.
        day = max(before or "", nearest.ds if nearest else "")
        expected = nearest.digest if nearest and nearest.ds == day else None
        if not day:
            yield f"{step} of {ds} is the first day, yet names parent {str(parent)[:12]}; {self.store.remedy(ds)}"
        elif parent is None or expected != parent:
            yield (
                f"{step} of {ds} (generation {commit.generation}) learned from {str(parent)[:12]}, but {day} holds"
                f" {expected[:12] if expected else 'nothing'}; {self.store.remedy(ds)}"
            )
