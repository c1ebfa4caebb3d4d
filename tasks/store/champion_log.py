"""The champion log: which checkpoint serves, and which served before.

    STORE/SCENARIO/champion/000001.json    one record per promotion or rollback, put-if-absent, never changed

Whoever writes record N+1 has seen record N: that is the compare-and-swap that MLflow's aliases lack. The alias
`champion` mirrors the newest record; where a crash fell between the two, the next deploy, rollback or status mends it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from feature_jobs.errors import RetryLaterError
from tasks.store.scenario_store import ScenarioStore, canonical_json

PREFIX = "champion"
CHAMPION, CHALLENGER = "champion", "challenger"


class ChampionMovedError(RetryLaterError):
    """Another promotion or rollback was recorded first."""


@dataclass(frozen=True)
class Entry:
    """One record: from here on `version` of the registered model `model` serves, learned up to `ds`.

    `ds`, `generation` and `checkpoint` name its place in the chain: the model, the features of its layout and the
    checkpoint to learn on from are one thing. `replaces` is the sequence number of the record before. A rollback keeps
    in `chain_head` what the next day will learn from: that stays, because moving it would fork the chain silently.
    """

    kind: Literal["promotion", "rollback"]
    model: str
    version: str
    ds: str
    generation: int
    checkpoint: str
    sequence: int = 0
    replaces: int | None = None
    chain_head: dict[str, Any] | None = None


class ChampionLog:
    """The records of one scenario."""

    def __init__(self, store: ScenarioStore) -> None:
        self.store = store

    def history(self) -> list[Entry]:
        """All records, oldest first."""
        found: list[Entry] = []
        while (data := self.store.read(_key(len(found) + 1))) is not None:
            found.append(Entry(**json.loads(data)))
        return found

    def current(self) -> Entry | None:
        """The newest record: what serves."""
        history = self.history()
        return history[-1] if history else None

    def as_of(self, ds: str, generation: int | None = None) -> tuple[Entry | None, Entry | None]:
        """(champion, former champion) as a fair comparator for day `ds`, seen from a generation (default: newest).

        Only what learned from earlier days counts, and what is committed still. Champions of a history that was
        replaced since count where there are no others.
        """
        known = [e for e in self.history() if e.ds < ds and self.is_committed(e)]
        valid = [e for e in known if self.store.generation_of(e.ds, generation) == e.generation]
        served = served_in_turn(valid or known)
        return (served[-1] if served else None, served[-2] if len(served) > 1 else None)

    def is_committed(self, entry: Entry) -> bool:
        """Whether the entry's checkpoint is in the store (dvc removes the outputs of days that it makes anew)."""
        data = self.store.read(f"g{entry.generation:04}/{entry.ds}/train/commit.json")
        return data is not None and json.loads(data)["digest"] == entry.checkpoint

    def promote(self, expected_sequence: int, entry: Entry) -> Entry:
        """Appends the record after `expected_sequence` (0: the log is empty).

        Raises ChampionMovedError where another record stands there already.
        """
        entry = Entry(**{**asdict(entry), "sequence": expected_sequence + 1, "replaces": expected_sequence or None})
        if not self.store.put_if_absent(_key(entry.sequence), canonical_json(asdict(entry))):
            raise ChampionMovedError(
                f"{self.store.root / _key(entry.sequence)}: another promotion or rollback came first;"
                " look at `recloop status` and run this again"
            )
        return entry

    def rollback_targets(self, keep_versions: int) -> list[Entry]:
        """What a rollback may go to: the last distinct versions that served, those before the current one first."""
        served = served_in_turn(self.history())
        if not served:
            return []
        earlier = [*served[-2::-1], *reversed(self.history())]
        distinct: dict[str, Entry] = {}
        for entry in earlier:
            if entry.version != served[-1].version and self.is_committed(entry):
                distinct.setdefault(entry.version, entry)
        return list(distinct.values())[:keep_versions]


def served_in_turn(entries: list[Entry]) -> list[Entry]:
    """The champions that a chain of rollbacks walks back through: a promotion adds one, a rollback takes some away."""
    served: list[Entry] = []
    for entry in entries:
        if entry.kind == "rollback" and (place := _place(served, entry)) is not None:
            served = served[:place]
        served.append(entry)
    return served


def _place(served: list[Entry], entry: Entry) -> int | None:
    return next((i for i, e in enumerate(served) if e.version == entry.version), None)


def _key(sequence: int) -> str:
    return f"{PREFIX}/{sequence:06}.json"
