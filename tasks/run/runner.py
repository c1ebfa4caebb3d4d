"""Runs a declared step inside the store: find its inputs, prove them, run, commit, record.

The same whether a person, Airflow, DVC or a container asked for it.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from feature_jobs.errors import (
    BadInputError,
    CorruptError,
    GateError,
    RecloopError,
    RetryLaterError,
)
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day
from models.distributed.nodes import Nodes
from tasks.contract import DayConfig, Metrics, Step, value_at
from tasks.run.inputs import Found, flat, resolve_inputs
from tasks.run.launchers import Call, Folder, InProcess, Launcher, Ran
from tasks.run.registry import require_one_registry
from tasks.run.reuse import is_read_again, refuse_rows_left_out, take_over_same
from tasks.run.shown import is_time_to_show, show_after, show_before
from tasks.steps import STEPS
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.keys import record_key
from tasks.store.objects import files_of
from tasks.store.places import is_remote
from tasks.store.records import Digests, Facts
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.store.source_digest import code_digest

_CUSTOM = re.compile(r"\bcustom\.\w+\(")  # a call in an expression


@dataclass(frozen=True)
class Outcome:
    """Outcome of a step. `outcome`: done, already_done, reused (an older output), helped (another machine's commit) or
    gate_no; `exit_code` says the same. `gate` is the reason of a no; without a digest the output is not committed."""

    step: str
    ds: str
    outcome: str
    digest: str | None
    uri: str | None
    metrics: Metrics = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gate: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 where a gate said no."""
        return GateError.exit_code if self.gate else 0

    def as_json(self) -> dict[str, Any]:
        """The one JSON line that a step ends with; a dict, because values that are None are left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def run_step(
    name: str,
    scenario: Scenario,
    ds: str,
    store: ScenarioStore,
    *,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
    track: bool = True,
    started: float | None = None,
    launcher: Launcher | None = None,
) -> Outcome:
    """Runs one step of one day, or finds it done; with `track` it is then shown in MLflow.

    `started`: the time at which the process began, to count its imports. `launcher` calls the step's function;
    all else happens here. A gate's no is an Outcome, see there. Raises RecloopError's subclasses; the store is
    then as it was, but for a journal line.
    """
    declared = STEPS[name]
    check_day(scenario, ds)
    begun = time.time()
    store.objects.release()  # folders that an earlier step of this process has fetched
    config = DayConfig(scenario, ds, store, store.generation_of(ds), progress, options or {})
    # Only one machine may commit; two would race with equal outputs, and one of them would report a loss.
    if declared.shared and not Nodes.from_environment().is_leader:
        return _help(declared, config, store, launcher or InProcess())
    try:
        outcome, commit = _run(declared, config, store, launcher or InProcess(), track=track)
    except RecloopError as error:
        seconds = {"total": round(time.time() - (started or begun), 3)}
        entry = {"step": name, "ds": ds, "outcome": type(error).__name__, "exit_code": error.exit_code}
        _note(store, {**entry, "message": str(error), "seconds": seconds})
        raise
    if track and (commit is not None or outcome.gate):
        show_after(
            scenario,
            store,
            ds,
            at_once=is_time_to_show(declared, sum(outcome.seconds.values()), refused=outcome.gate is not None),
        )
    starting_s = begun - (started or begun)
    seconds = {**outcome.seconds, "imports": round(starting_s + outcome.seconds.get("imports", 0.0), 3)}
    seconds["total"] = round(time.time() - (started or begun), 3)
    outcome = Outcome(**{**vars(outcome), "seconds": seconds})
    _note(store, {**outcome.as_json(), "exit_code": outcome.exit_code})
    return outcome


def _note(store: ScenarioStore, entry: Mapping[str, Any]) -> None:
    """Adds to the journal. A store that cannot be reached just now does not change the step's outcome."""
    with contextlib.suppress(RecloopError):
        store.note({**entry, "generation": store.generation_of(entry["ds"])})


def _run(
    declared: Step, config: DayConfig, store: ScenarioStore, launcher: Launcher, *, track: bool
) -> tuple[Outcome, Commit | None]:
    scenario, ds, options = config.scenario, config.ds, config.options
    output_name = output_name_of(declared, scenario)
    standing = store.find(output_name, ds, config.generation)
    # A step that reads nothing of the store reads the source, which may have changed: it runs again and is compared.
    if standing is not None and not is_read_again(declared, config, standing):
        # A run that was killed right after its commit leaves its scratch, and no later one would write.
        store.objects.scratch.remove_abandoned()
        return _already_done(standing), standing
    if declared.registry:
        require_one_registry(store)
        if track:
            show_before(scenario, store)
    if declared.source:
        refuse_rows_left_out(config)
    inputs = _proven_inputs(declared, config, store)
    facts = facts_of_run(declared, scenario, inputs, None)
    if reused := take_over_same(declared, config, output_name, facts):
        return Outcome(declared.name, ds, "reused", reused.digest, reused.uri), reused
    with store.scratch() as scratch, _resume_folder(declared, config, inputs, store) as resume:
        config = replace(config, resume=resume)
        output = scratch / declared.writes
        output.mkdir()
        ran = _launch(launcher, declared, Call(config, _folders(inputs), output), inputs, store)
        metrics, seconds, gate = ran.metrics, ran.seconds, ran.gate
        # Not committed: the next run of the day must try again, with corrected data or another suite.
        if gate and declared.on_no == "fail":
            return _refused(declared, ds, store, output, ran), None
        if declared.is_partial(options):
            return Outcome(declared.name, ds, "done", None, None, metrics, seconds), None
        series, metrics = metrics.get("series", {}), {name: metrics[name] for name in metrics if name != "series"}
        facts["gate"] = gate
        if declared.appends and (appended := store.newest(declared.appends)):
            facts["appended"] = appended
        if standing is not None:
            # With other settings the same rows give other bytes; `recloop run` and `plan` name such days.
            is_comparable = standing.manifest["config"] == facts["config"]
            done = _compare(declared, config, standing, output, metrics) if is_comparable else _already_done(standing)
            return done, standing
        # Before the commit: a process that is killed between the two must not leave a commit without its metrics.
        record = {"metrics": metrics, "series": series, "system": ran.system, "seconds": seconds}
        store.write_record(record_key(config.generation, ds, output_name), record)
        commit, ours = store.commit(output_name, ds, output, facts, config.generation)
    outcome = ("gate_no" if gate else "done") if ours else "already_done"
    return Outcome(declared.name, ds, outcome, commit.digest, commit.uri, metrics, seconds, gate), commit


def _launch(launcher: Launcher, declared: Step, call: Call, inputs: Mapping[str, Found], store: ScenarioStore) -> Ran:
    """Calls the step's function. Where it can't read a file, the inputs are proven again: gc may have deleted one."""
    try:
        return launcher.launch(declared, call)
    except (OSError, CorruptError):
        for commit in flat(inputs.values()):
            store.verify(commit)
        raise


def _refused(declared: Step, ds: str, store: ScenarioStore, output: Path, ran: Ran) -> Outcome:
    """A no that stops the day: nothing is committed, and the step's files are kept aside for a person to look at."""
    kept = store.keep_rejected(declared.name, ds, output) if any(output.iterdir()) else None
    reason = f"{ran.gate}\nthe output is kept in {kept}" if kept else ran.gate
    return Outcome(declared.name, ds, "gate_no", None, None, ran.metrics, ran.seconds, reason)


def _help(declared: Step, config: DayConfig, store: ScenarioStore, launcher: Launcher) -> Outcome:
    """A machine's part of a step that another machine leads: writes nothing, and ends well where that one commits.

    So a job of which the leader fails at its commit has no machine that counts as done.
    """
    begun, ds = time.time(), config.ds
    commit = store.find(declared.name, ds)
    if commit is not None:
        return _already_done(commit)
    inputs = _proven_inputs(declared, config, store)
    resume = store.objects.scratch.resume_place(*_resume_key(declared, config, inputs))  # the leader's: no lock
    with tempfile.TemporaryDirectory(prefix="recloop-help-") as output:
        call = Call(replace(config, resume=resume), _folders(inputs), Path(output))
        ran = _launch(launcher, declared, call, inputs, store)
    if ran.gate:  # the leader commits nothing either
        return Outcome(declared.name, ds, "gate_no", None, None, ran.metrics, ran.seconds, ran.gate)
    timeout_s = config.scenario.train.distributed.timeout_s
    deadline = time.monotonic() + timeout_s
    while (commit := store.find(declared.name, ds)) is None:
        if time.monotonic() > deadline:
            raise RetryLaterError(
                f"{declared.name} of {ds}: this machine's part is done, but the leader has committed nothing to"
                f" {store.url} within {timeout_s} s (train.distributed.timeout_s); see its own end"
            )
        time.sleep(0.2)
    seconds = {**ran.seconds, "total": round(time.time() - begun, 3)}
    return Outcome(declared.name, ds, "helped", commit.digest, commit.uri, {}, seconds)


def _proven_inputs(declared: Step, config: DayConfig, store: ScenarioStore) -> dict[str, Found]:
    inputs = resolve_inputs(declared, config.scenario, config.ds, store)
    # Each time, not once: a file that rotted on the disk since its commit must not be learned.
    for commit in flat(inputs.values()):
        store.verify(commit)
    return inputs


def _resume_folder(
    declared: Step, config: DayConfig, inputs: Mapping[str, Found], store: ScenarioStore
) -> contextlib.AbstractContextManager[Path | None]:
    """Opens the folder of a resumable step's progress, one for every set of inputs, config and code.

    All machines of a step read it. With a store elsewhere they share no disk, so such a step starts from the beginning.
    """
    is_shared = not is_remote(store.url) or Nodes.from_environment().size == 1
    if not declared.resumable or not is_shared:
        return contextlib.nullcontext()
    return store.objects.scratch.resume_folder(*_resume_key(declared, config, inputs))


def _resume_key(declared: Step, config: DayConfig, inputs: Mapping[str, Found]) -> tuple[str, str]:
    facts = facts_of_run(declared, config.scenario, inputs, None)  # progress of other inputs or code gives other bytes
    return f"{config.ds}.{declared.name}", sha256_of(canonical_json(facts))


def output_name_of(declared: Step, scenario: Scenario) -> str:
    """Returns the name of a step's output in the store: the step's name, and a digest of its variant if it has any."""
    if not declared.variants:
        return declared.name
    document = scenario.model_dump(mode="json", by_alias=True)
    values = canonical_json({path: value_at(document, path) for path in declared.variants})
    return f"{declared.name}-{sha256_of(values)[:12]}"


def _folders(inputs: Mapping[str, Found]) -> dict[str, Folder]:
    return {argument: _folder(found) for argument, found in inputs.items()}


def _folder(found: Found) -> Folder:
    if isinstance(found, dict):
        return {day: commit.folder for day, commit in found.items()}
    return found.folder if found else None


def facts_of_run(declared: Step, scenario: Scenario, inputs: Mapping[str, Found], gate: str | None) -> Facts:
    """Returns the content of a manifest besides its files."""

    def digests(found: Found) -> Digests:
        if isinstance(found, dict):
            return {day: commit.digest for day, commit in found.items()}
        return found.digest if found else None

    facts: Facts = {
        "scenario": scenario.name,
        "inputs": {argument: digests(found) for argument, found in inputs.items()},
        "sources": [commit.source for commit in flat(inputs.values())],
        "config": config_digest(scenario, declared),
        "settings": settings_of(scenario, declared),
        "code": code_digest(declared.name),
        "gate": gate,
    }
    for argument, read in declared.reads.items():
        if read.is_parent:
            link = inputs[argument]
            facts["parent"] = link.digest if isinstance(link, Commit) else None
    return facts


def config_digest(scenario: Scenario, declared: Step) -> str:
    """Digest of the scenario's part that a step's output depends on: values of its sections, content of its files."""
    parts = settings_of(scenario, declared)
    for name in declared.files:
        file: Path = getattr(scenario, name)
        parts[name] = sha256_of(file.read_bytes()) if file.is_file() else None
    # `code_digest` knows the project's files alone, not those of a user's package.
    if calls := [text for path in declared.config for text in _texts_in(parts[path]) if _CUSTOM.search(text)]:
        from feature_jobs.expressions.custom import digests_of

        parts["custom functions"] = digests_of(calls)
    return sha256_of(canonical_json(parts))


def _texts_in(value: Any) -> Iterator[str]:
    """All texts in a part of a scenario."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(inner)


def settings_of(scenario: Scenario, declared: Step) -> dict[str, Any]:
    """The values of the config paths that a step's output depends on; the data's place on this machine is left out.

    A dict, because a scenario can hold anything at a path.
    """
    document = scenario.model_dump(mode="json", by_alias=True)
    # Without the path, so that equal logs at two places give equal digests.
    document["data"] = {key: value for key, value in document["data"].items() if key != "path"}
    return {path: value_at(document, path) for path in declared.config}


def _already_done(standing: Commit) -> Outcome:
    gate = standing.manifest.get("gate")
    return Outcome(
        standing.step, standing.ds, "already_done", standing.digest, standing.uri, {}, {"compute": 0.0}, gate
    )


def _compare(declared: Step, config: DayConfig, standing: Commit, output: Path, metrics: Metrics) -> Outcome:
    """A source that is read again must give the same rows: late or corrected data is never taken silently."""
    store = standing.store
    if not {*_different_files(standing, output)} - {*declared.uncompared}:
        return _already_done(standing)
    raise BadInputError(
        f"{config.scenario.data.places}: the day {standing.ds} reads differently than when it was committed"
        f" ({_changed(store, standing, metrics)}); to learn from the corrected data start a new generation:"
        f" recloop chain replay {store.options} --from {standing.ds}"
    )


def _different_files(standing: Commit, output: Path) -> list[str]:
    then, now = standing.manifest["files"], files_of(output)
    return [one for one in {**then, **now} if then.get(one) != now.get(one)]


def files_read_again(
    declared: Step, config: DayConfig, store: ScenarioStore, launcher: Launcher, standing: Commit
) -> list[str]:
    """Runs a step that reads the source, without a commit; returns the files that differ from those of `standing`."""
    inputs = _proven_inputs(declared, config, store)
    with store.scratch() as scratch:
        output = scratch / declared.writes
        output.mkdir()
        _launch(launcher, declared, Call(config, _folders(inputs), output), inputs, store)
        return _different_files(standing, output)


def _changed(store: ScenarioStore, standing: Commit, metrics: Metrics) -> str:
    """Describes the difference, as far as the number of rows shows it."""
    then, now = store.run_record(standing).get("metrics", {}).get("rows"), metrics.get("rows")
    return "other content" if then == now or then is None else f"{then:,} rows then, {now:,} now"
