"""The champion log: which checkpoint serves, and which served before.

    STORE/SCENARIO/champion/000001.json    one record per promotion or rollback, put-if-absent, never changed

Whoever writes record N+1 has seen record N: that is the compare-and-swap that MLflow's aliases lack. The alias
`champion` mirrors the newest record; where a crash fell between the two, the next deploy, rollback or status mends it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.schema import Scenario
from tasks.store import ScenarioStore, canonical_json

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


def rollback(scenario: Scenario, store: ScenarioStore, to_version: str | None = None) -> dict[str, Any]:
    """Makes an earlier version the champion again: one of the last `deploy.keep_versions`, default the one before.

    The log is written first, then the alias moves. Returns {"rolled_back", "from", "to", "message", "champion"}; a
    rollback that was cut short between the two is finished, not repeated. Raises BadInputError where there is nothing
    to go back to, RetryLaterError where MLflow does not answer (the next call finishes the work).
    """
    log = ChampionLog(store)
    current = log.current()
    if current is None:
        raise BadInputError(f"{scenario.name}: no version was ever promoted, so there is nothing to go back to")
    if mirror_alias(log) and current.kind == "rollback" and to_version in (None, current.version):
        return _told(False, current, current, f"finished the rollback to version {current.version} that was cut short")
    if to_version == current.version:
        return _told(False, current, current, f"version {current.version} is the champion already")
    target = _target(scenario, log, to_version)
    entry = log.promote(current.sequence, Entry(**{**asdict(target), "kind": "rollback", "chain_head": _head(store)}))
    mirror_alias(log)
    return _told(True, current, entry, _advice(scenario, current, entry))


def _target(scenario: Scenario, log: ChampionLog, to_version: str | None) -> Entry:
    targets = log.rollback_targets(scenario.deploy.keep_versions)
    before = [e for e in served_in_turn(log.history())[:-1] if e in targets]
    if to_version is None and before:
        return before[-1]
    if to_version is None:
        hint = f"; with --to it can go to {', '.join(e.version for e in targets)}" if targets else ""
        raise BadInputError(
            f"{scenario.name}: no version served before this one, so there is nothing to go back to{hint}"
        )
    for entry in targets:
        if entry.version == to_version:
            return entry
    known = ", ".join(e.version for e in targets)
    raise BadInputError(
        f"{scenario.name}: version {to_version} is none of the last deploy.keep_versions ="
        f" {scenario.deploy.keep_versions} champions; one of: {known or 'none'}"
    )


def _head(store: ScenarioStore) -> dict[str, Any] | None:
    from tasks.chain import head

    link = head(store)
    return {"ds": link.ds, "generation": link.generation, "checkpoint": link.checkpoint} if link else None


def _advice(scenario: Scenario, old: Entry, new: Entry) -> str:
    from feature_jobs.days import day_range

    head = (new.chain_head or {}).get("ds", new.ds)
    text = f"version {new.version} (learned up to {new.ds}) serves instead of version {old.version} ({old.ds})"
    if head <= new.ds:
        return text
    after = day_range(scenario, new.ds, head)[1]
    return (
        f"{text}; training goes on from {head}. To learn anew from version {new.version} on:"
        f" recloop chain replay --scenario {scenario.file.name} --from {after}"
    )


def _told(done: bool, old: Entry, new: Entry, message: str) -> dict[str, Any]:
    return {"rolled_back": done, "from": old.version, "to": new.version, "message": message, "champion": asdict(new)}


def mirror_alias(log: ChampionLog) -> bool:
    """Moves MLflow's alias `champion` to what the log says; returns whether it had to move."""
    from tasks import tracking

    current = log.current()
    if current is None or tracking.aliases(current.model).get(CHAMPION) == current.version:
        return False
    tracking.set_alias(current.model, CHAMPION, current.version)
    return True


def status_facts(scenario: Scenario, store: ScenarioStore) -> dict[str, Any]:
    """For `recloop status`: {"champion", "former", "rollback_targets", "versions", "log", "mlflow"}.

    `versions` are MLflow's, newest first: version, ds, generation, checkpoint, verdict, aliases. An alias that lags
    behind the log is mended. Where MLflow does not answer, `mlflow` says why and `versions` is empty.
    """
    from tasks import tracking

    log = ChampionLog(store)
    served = served_in_turn(log.history())
    facts: dict[str, Any] = {
        "champion": asdict(served[-1]) if served else None,
        "former": asdict(served[-2]) if len(served) > 1 else None,
        "rollback_targets": [e.version for e in log.rollback_targets(scenario.deploy.keep_versions)],
        "log": [asdict(e) for e in log.history()],
        "versions": [],
        "mlflow": "ok",
    }
    try:
        mended = mirror_alias(log)
        facts["versions"] = tracking.versions(scenario.model_name)
        facts["mlflow"] = "ok: alias champion moved to what the log says" if mended else "ok"
    except RecloopError as error:
        facts["mlflow"] = str(error)
    return facts
