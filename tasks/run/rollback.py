"""Rollback to an earlier champion, the end of the hold that it puts on promotions, and facts about serving."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from feature_jobs.errors import BadInputError, CorruptError, RecloopError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range
from models.runtime.files import REFERENCE_FILE
from tasks.steps import WRITERS
from tasks.store.chain import head
from tasks.store.champion_log import ChainHead, ChampionLog, Entry, promotions_held, resume_command, served_in_turn
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.tracking.files import VERSION_FILE, read_registration

if TYPE_CHECKING:
    from tasks.tracking import Version


@dataclass(frozen=True)
class ChampionChange:
    """Result of a rollback or a resumption: `changed` is False where there was nothing left to do."""

    changed: bool
    from_version: str
    to_version: str
    message: str
    champion: Entry

    def as_json(self) -> dict[str, Any]:
        """For `--json`; a dict, because `from` can't be the name of a field."""
        facts = asdict(self)
        return {"from": facts.pop("from_version"), "to": facts.pop("to_version"), **facts}


def rollback(scenario: Scenario, store: ScenarioStore, to_version: str | None = None) -> ChampionChange:
    """Makes an earlier version the champion again: see ChampionLog.rollback_targets; default the one before.

    The version must exist in MLflow, have the files that were registered, and reproduce its scores in a fresh process,
    as when it was deployed. The log is written first, then the alias moves. A rollback that was interrupted between the
    two is finished, not repeated. Raises BadInputError where no such version exists or it does not load, CorruptError
    where its files were changed, RetryLaterError where MLflow does not answer.
    """
    from tasks import tracking

    log = ChampionLog(store)
    current = _current(scenario, log)
    # The alias lagged behind a rollback in the log: that call was killed in between, and this one is its repetition.
    if tracking.mirror_alias(log) and current.kind == "rollback" and to_version in (None, current.version):
        text = f"finished the interrupted rollback to version {current.version}"
        return ChampionChange(False, current.version, current.version, text, current)
    # Not an error: the state that was asked for is there, and a repeated command must end well.
    if to_version == current.version:
        text = f"version {current.version} is the champion already"
        return ChampionChange(False, current.version, current.version, text, current)
    target = _target(scenario, log, to_version)
    # Before the log is written, because a record of it can't be taken back.
    _require_loads(scenario, store, target)
    # Compare-and-swap: a deploy that promoted since then makes it fail instead of being undone unseen.
    entry = log.promote(current.sequence, replace(target, kind="rollback", chain_head=_head(store)))
    tracking.mirror_alias(log)
    return ChampionChange(True, current.version, entry.version, _advice(scenario, store.options, current, entry), entry)


def resume_promotions(scenario: Scenario, store: ScenarioStore) -> ChampionChange:
    """Ends the hold of a rollback: the next day's deploy may promote again. The same version goes on serving."""
    log = ChampionLog(store)
    current = _current(scenario, log)
    version = current.version
    if log.held_by() is None:
        text = f"no rollback holds promotions; version {version} serves"
        return ChampionChange(False, version, version, text, current)
    # A record of its own and no deletion of the rollback's: the log is the history that audits read.
    entry = log.promote(current.sequence, replace(current, kind="resumption"))
    text = f"promotions are allowed again; version {version} serves until a later day is promoted"
    return ChampionChange(True, version, version, text, entry)


def _current(scenario: Scenario, log: ChampionLog) -> Entry:
    current = log.current()
    if current is None:
        raise BadInputError(f"{scenario.name}: no version was ever promoted, so there is nothing to go back to")
    return current


@dataclass(frozen=True)
class Targets:
    """The versions that a rollback may choose, see ChampionLog.rollback_targets: those that MLflow has, and the others,
    which were deleted there."""

    present: list[Entry]
    deleted: list[Entry]


def _split(targets: list[Entry], existing: set[str]) -> Targets:
    present = [entry for entry in targets if entry.version in existing]
    return Targets(present, [entry for entry in targets if entry.version not in existing])


def _target(scenario: Scenario, log: ChampionLog, to_version: str | None) -> Entry:
    from tasks import tracking

    existing = {version["version"] for version in tracking.versions(scenario.model_name)}
    targets = _split(log.rollback_targets(scenario.deploy.keep_versions), existing)
    known = ", ".join(entry.version for entry in targets.present)
    gone = ", ".join(entry.version for entry in targets.deleted)
    deleted = f" (deleted in MLflow: {gone})" if gone else ""
    before = [e for e in served_in_turn(log.history())[:-1] if e in targets.present]  # [:-1]: the one that serves now
    if to_version is None and before:
        return before[-1]
    if to_version is None:
        hint = f"; with --to it can go to {known}" if known else ""
        raise BadInputError(
            f"{scenario.name}: no version served before this one, so there is nothing to go back to{hint}{deleted}"
        )
    for entry in targets.present:
        if entry.version == to_version:
            return entry
    # An answer of its own: "not one of the last champions" would send the reader to the wrong setting.
    if any(entry.version == to_version for entry in targets.deleted):
        raise BadInputError(
            f"{scenario.name}: version {to_version} was deleted in MLflow, so it can't serve; one of: {known or 'none'}"
        )
    raise BadInputError(
        f"{scenario.name}: version {to_version} is not one of the last deploy.keep_versions ="
        f" {scenario.deploy.keep_versions} champions, nor one of the last that were rolled back; one of:"
        f" {known or 'none'}{deleted}"
    )


def _require_loads(scenario: Scenario, store: ScenarioStore, entry: Entry) -> None:
    """Raises BadInputError where the entry's version does not load, CorruptError where its files were changed."""
    from tasks import tracking

    other = f"choose another version with --to, see recloop status {store.options}"
    registration = _proven(store, entry, "registration", other)
    written = read_registration(registration.folder, other)
    # A registration that was copied over another one would otherwise serve under a wrong number.
    if (written["name"], written["version"]) != (entry.model, entry.version):
        raise CorruptError(
            f"{registration.folder / VERSION_FILE}: names version {written['version']} of {written['name']}, but the"
            f" champion log names version {entry.version} of {entry.model}; {other}"
        )
    # The stored scores, not MLflow's copy of them: the files to prove can't be their own witness.
    reference = _proven(store, entry, "export", other).folder / REFERENCE_FILE
    facts = tracking.check_loads(entry.model, entry.version, written["files"], reference)
    if refusal := facts.refusal(scenario.deploy.tolerance):
        raise BadInputError(f"{scenario.name}: version {entry.version} can't serve: {refusal}; {other}")


def _proven(store: ScenarioStore, entry: Entry, output: str, remedy: str) -> Commit:
    """The committed output of that name on the entry's day."""
    commit = store.find(WRITERS[output], entry.ds, entry.generation)
    if commit is None:
        raise BadInputError(
            f"{store.url}: the {output} of {entry.ds} (generation {entry.generation}) is not committed, so version"
            f" {entry.version} can't be proven; {remedy}"
        )
    store.verify(commit)
    return commit


def _head(store: ScenarioStore) -> ChainHead | None:
    link = head(store)
    return {"ds": link.ds, "generation": link.generation, "checkpoint": link.checkpoint} if link else None


def _advice(scenario: Scenario, options: str, old: Entry, new: Entry) -> str:
    """Names the version that serves now, the day that training continues from, and the command to promote again."""
    head_ds = new.chain_head["ds"] if new.chain_head else new.ds
    lines = [f"version {new.version} (learned up to {new.ds}) serves instead of version {old.version} ({old.ds})"]
    # The chain goes on from its newest checkpoint: a rollback changes what serves, not what is learned from.
    if head_ds > new.ds:
        after = day_range(scenario, new.ds, head_ds)[1]
        lines.append(
            f"training continues from {head_ds}; to learn again from version {new.version} on:"
            f" recloop chain replay {options} --from {after}"
        )
    if scenario.deploy.after_rollback == "hold":
        lines.append(f"later days do not promote until you allow it: {resume_command(options)}")
    return "\n".join(lines)


def _is_readable(store: ScenarioStore, entry: Entry) -> bool:
    """Says if the records and manifests of the entry's day are as they were committed; the files are not read."""
    try:
        commits = store.commits_on(entry.ds, entry.generation)
        return all(store.objects.each(lambda commit: bool(commit.manifest), commits))
    except CorruptError:
        return False


class ServingStatus(TypedDict):
    """Serving facts, as `recloop status --json` shows them. `champion`, `former`, `log` are champion_log.Entry as JSON.

    `versions` are MLflow's, newest first. `deleted` are those of the champion and of the rollback targets that MLflow
    does not have any more. `damaged` are targets that are not offered because a manifest of their day can't be read;
    only the rollback itself proves every byte, which would take too long here. Where MLflow does not answer, `mlflow`
    says why, `versions` and `deleted` are empty, and the targets are not compared with it.
    """

    champion: dict[str, Any] | None
    former: dict[str, Any] | None
    rollback_targets: list[str]
    deleted: list[str]
    damaged: list[str]
    log: list[dict[str, Any]]
    promotions: str
    versions: list[Version]
    mlflow: str


def status_facts(scenario: Scenario, store: ScenarioStore) -> ServingStatus:
    """For `recloop status`. An alias that lags behind the champion log is corrected."""
    from tasks import tracking

    log = ChampionLog(store)
    history = log.history()
    served = served_in_turn(history)
    offered = log.rollback_targets(scenario.deploy.keep_versions)
    targets = [entry for entry in offered if _is_readable(store, entry)]
    facts: ServingStatus = {
        "champion": asdict(served[-1]) if served else None,
        # From the served ones, not from the log: records of a rollback repeat a version.
        "former": asdict(served[-2]) if len(served) > 1 else None,
        "rollback_targets": [e.version for e in targets],
        "deleted": [],
        "damaged": [e.version for e in offered if e not in targets],
        "log": [asdict(e) for e in history],
        "promotions": promotions_held(scenario, log, store.options) or "allowed",
        "versions": [],
        "mlflow": "ok",
    }
    try:
        corrected = tracking.mirror_alias(log)
        facts["versions"] = tracking.versions(scenario.model_name)
    # The store's own facts are shown also where MLflow is down.
    except RecloopError as error:
        facts["mlflow"] = str(error)
        return facts
    existing = {version["version"] for version in facts["versions"]}
    facts["mlflow"] = "ok: alias champion moved to the log's version" if corrected else "ok"
    facts["rollback_targets"] = [e.version for e in _split(targets, existing).present]
    facts["deleted"] = [e.version for e in _split([*served[-1:], *targets], existing).deleted]
    return facts
