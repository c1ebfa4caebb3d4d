"""The champion log: which checkpoint serves, and which served before.

    STORE/SCENARIO/champion/000001.json    one record per promotion, rollback or resumption; put-if-absent, immutable

A process writes record N+1 only after it has read record N: this is the compare-and-swap that MLflow's aliases lack.
The alias `champion` mirrors the newest record. After a crash between the two, the next deploy, rollback or status
repairs the alias.

A rollback holds promotions: as long as it is the newest record, later days do not promote. A person ends the hold with
a resumption, a record that repeats the version that serves (or the scenario allows promotions, see
`deploy.after_rollback`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from typing_extensions import TypedDict  # pydantic needs it in Python 3.11

from feature_jobs.errors import CorruptError, RetryLaterError
from feature_jobs.schema import Scenario
from tasks.store.digests import canonical_json
from tasks.store.forgotten import is_forgotten
from tasks.store.keys import log_key
from tasks.store.record_store import follows
from tasks.store.records import holder_of
from tasks.store.scenario_store import ScenarioStore

PREFIX = "champion"
CHAMPION, CHALLENGER = "champion", "challenger"


class ChampionMovedError(RetryLaterError):
    """Another process wrote the next record first."""


class ChainHead(TypedDict):
    """The newest checkpoint of the chain, as a record names it."""

    ds: str
    generation: int
    checkpoint: str


@dataclass(frozen=True)
class Entry:
    """One record: from here on `version` of the registered model `model` serves; it has learned up to `ds`.

    `ds`, `generation` and `checkpoint` are its place in the chain, so that the model, the features of its layout and
    the checkpoint to continue from go together. `replaces` is the sequence number of the record before. `chain_head` of
    a rollback is the checkpoint that the next day learns from: a rollback does not move it, because that would fork the
    chain silently. `previous` is the digest of the record before, so that a changed record is found.
    """

    kind: Literal["promotion", "rollback", "resumption"]
    model: str
    version: str
    ds: str
    generation: int
    checkpoint: str
    sequence: int = 0
    replaces: int | None = None
    chain_head: ChainHead | None = None
    previous: str | None = None


class ChampionLog:
    """The records of one scenario."""

    def __init__(self, store: ScenarioStore) -> None:
        self.store = store

    def history(self) -> list[Entry]:
        """All records, oldest first. Raises CorruptError where one does not follow the one before."""
        return [entry for entry, _ in self.records()]

    def records(self) -> list[tuple[Entry, str]]:
        """As `history`, each with the digest of its record."""
        remedy, found = self._remedy(), list[tuple[Entry, str]]()
        read_one = functools.partial(self.store.record, kind=Entry, remedy=remedy)
        for read in self.store.objects.each(read_one, map(_key, itertools.count(1))):
            # The first missing number ends the log: records are written one after the other, so no later one exists.
            if read is None:
                break
            entry, _ = read
            before = found[-1][1] if found else None
            # Each record names the digest of the one before: a record that was changed or swapped is found here.
            if entry.sequence != len(found) + 1 or not follows(entry.previous, before):
                raise CorruptError(
                    f"{self.store.url}/{_key(len(found) + 1)}: does not follow the record before; {remedy}"
                )
            found.append(read)
        return found

    def _remedy(self) -> str:
        return (
            f"restore {PREFIX}/ from a backup, or move it out of the store: the next deploy then starts a new log, and"
            f" recloop chain replay {self.store.options} makes the days' own records agree with it"
        )

    def current(self) -> Entry | None:
        """The newest record, whose version serves."""
        history = self.history()
        return history[-1] if history else None

    def held_by(self) -> Entry | None:
        """The rollback that holds promotions, or None."""
        current = self.current()
        return current if current is not None and current.kind == "rollback" else None

    def as_of(self, ds: str, generation: int | None = None) -> tuple[Entry | None, Entry | None]:
        """(champion, former champion) as a fair comparator for day `ds`, seen from a generation (default: newest).

        Only versions that learned from earlier days and whose checkpoint is still committed count. Versions of a
        generation that was replaced count where the replay made the same checkpoint again; else only where there are no
        others, and not if they are damaged: a replay may be the remedy for just that. A former champion whose files
        were deleted as no longer needed is None: gc keeps the one before the champion, but a rollback makes an older
        one that.
        """
        # A version that learned the day itself would be judged on rows that it knows.
        earlier = [e for e in self.history() if e.ds < ds]
        generations = self.store.generations()
        valid = [e for one in earlier if (e := self._seen_from(one, holder_of(one.ds, generations, generation)))]
        served = served_in_turn(valid or [e for e in earlier if self._is_sound(e)])
        former = served[-2] if len(served) > 1 and self._is_kept(served[-2]) else None
        return (served[-1] if served else None, former)

    def _seen_from(self, entry: Entry, generation: int) -> Entry | None:
        """The entry, as of the generation that holds its day; None where that one has another checkpoint."""
        seen = replace(entry, generation=generation)
        if not self.is_committed(seen):
            return None
        # gc keeps the files that the record names, not those of an equal checkpoint in a newer generation.
        return entry if not self._is_kept(seen) and self.is_committed(entry) else seen

    def is_committed(self, entry: Entry) -> bool:
        """Says if the entry's checkpoint is in the store (dvc removes the outputs of days that it runs again) and
        nothing was left out of its day since."""
        if is_forgotten(self.store, entry.ds, entry.generation):
            return False
        return self.store.is_committed(entry.checkpoint, entry.ds, entry.generation)

    def _is_sound(self, entry: Entry) -> bool:
        """Says if the entry's checkpoint is committed and no output of its day is damaged."""
        try:
            for commit in self.store.commits_on(entry.ds, entry.generation):
                if not self.store.is_collected(commit):
                    self.store.verify(commit)
            return self.is_committed(entry)
        except CorruptError:
            return False

    def _is_kept(self, entry: Entry) -> bool:
        """Says if the entry's checkpoint is in the store with its files, and nothing was left out of its day since."""
        if is_forgotten(self.store, entry.ds, entry.generation):
            return False
        commits = self.store.commits_on(entry.ds, entry.generation)
        return any(c.digest == entry.checkpoint and not self.store.is_collected(c) for c in commits)

    def promote(self, expected_sequence: int, entry: Entry) -> Entry:
        """Appends the record after `expected_sequence` (0: the log is empty).

        Raises ChampionMovedError where that place is taken.
        """
        # Only those that the caller has seen: the new record must name the one that it was compared with.
        records = self.records()[:expected_sequence]
        entry = replace(
            entry,
            sequence=expected_sequence + 1,
            replaces=expected_sequence or None,
            previous=records[-1][1] if records else None,
        )
        if not self.store.put_if_absent(_key(entry.sequence), canonical_json(asdict(entry))):
            raise ChampionMovedError(
                f"{self.store.url}/{_key(entry.sequence)}: another process wrote this record first;"
                f" see recloop status {self.store.options} and run this again"
            )
        return entry

    def rollback_targets(self, keep_versions: int) -> list[Entry]:
        """The versions that a rollback may choose, newest first in each group.

        First the `keep_versions` that served before the current one, then as many of those that a rollback replaced.
        """
        history = self.history()
        served = served_in_turn(history)
        if not served:
            return []
        # From the second newest back, since the newest is the one that serves.
        before = self._distinct(served[-2::-1], without={served[-1].version})
        passed = {entry.version for entry in served}
        rolled_back = self._distinct(history[::-1], without=passed)
        return [*itertools.islice(before, keep_versions), *itertools.islice(rolled_back, keep_versions)]

    def _distinct(self, entries: list[Entry], without: set[str]) -> Iterator[Entry]:
        """The first entry of each version whose checkpoint has its files."""
        passed = set(without)
        for entry in entries:
            with contextlib.suppress(CorruptError):  # nobody can go back to a damaged version
                if entry.version not in passed and self._is_kept(entry):
                    passed.add(entry.version)
                    yield entry


def resume_command(options: str) -> str:
    """The command that ends the hold of a rollback; `options` name the scenario and the store."""
    return f"recloop resume-promotions {options}"


def promotions_held(scenario: Scenario, log: ChampionLog, options: str | None = None) -> str | None:
    """Returns the reason why later days may not promote; None where they may.

    `options` are a command's for a person at a terminal, who can then copy the one that ends it. Without them the text
    holds no path, as a file needs it.
    """
    back = log.held_by()
    if back is None or scenario.deploy.after_rollback == "promote":
        return None
    remedy = f"to allow promotions again: {resume_command(options)}" if options else "a person can end it"
    return (
        f"held since the rollback to version {back.version} (learned up to {back.ds}, record {back.sequence} of the"
        f" champion log); {remedy}"
    )


def served_in_turn(entries: list[Entry]) -> list[Entry]:
    """The champions in the order in which rollbacks go back through them.

    A promotion adds one, a rollback removes those after the version that it restores. A resumption changes nothing.
    A promotion of the version that serves, which a replay makes, takes its place.
    """
    served: list[Entry] = []
    for entry in entries:
        if entry.kind == "resumption":
            continue
        if entry.kind == "promotion" and served and served[-1].version == entry.version:
            served.pop()
        if entry.kind == "rollback" and (place := _place(served, entry)) is not None:
            served = served[:place]
        served.append(entry)
    return served


def _place(served: list[Entry], entry: Entry) -> int | None:
    return next((i for i, e in enumerate(served) if e.version == entry.version), None)


def _key(sequence: int) -> str:
    return log_key(PREFIX, sequence)
