"""Going back to an earlier champion, and what serves at present."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from feature_jobs.errors import BadInputError, RecloopError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range
from tasks.store.chain import head
from tasks.store.champion_log import ChampionLog, Entry, served_in_turn
from tasks.store.scenario_store import ScenarioStore


def rollback(scenario: Scenario, store: ScenarioStore, to_version: str | None = None) -> dict[str, Any]:
    """Makes an earlier version the champion again: one of the last `deploy.keep_versions`, default the one before.

    The log is written first, then the alias moves. Returns {"rolled_back", "from", "to", "message", "champion"}; a
    rollback that was cut short between the two is finished, not repeated. Raises BadInputError where there is nothing
    to go back to, RetryLaterError where MLflow does not answer (the next call finishes the work).
    """
    from tasks import tracking

    log = ChampionLog(store)
    current = log.current()
    if current is None:
        raise BadInputError(f"{scenario.name}: no version was ever promoted, so there is nothing to go back to")
    if tracking.mirror_alias(log) and current.kind == "rollback" and to_version in (None, current.version):
        return _told(False, current, current, f"finished the rollback to version {current.version} that was cut short")
    if to_version == current.version:
        return _told(False, current, current, f"version {current.version} is the champion already")
    target = _target(scenario, log, to_version)
    entry = log.promote(current.sequence, Entry(**{**asdict(target), "kind": "rollback", "chain_head": _head(store)}))
    tracking.mirror_alias(log)
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
    link = head(store)
    return {"ds": link.ds, "generation": link.generation, "checkpoint": link.checkpoint} if link else None


def _advice(scenario: Scenario, old: Entry, new: Entry) -> str:
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
        mended = tracking.mirror_alias(log)
        facts["versions"] = tracking.versions(scenario.model_name)
        facts["mlflow"] = "ok: alias champion moved to what the log says" if mended else "ok"
    except RecloopError as error:
        facts["mlflow"] = str(error)
    return facts
