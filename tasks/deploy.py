"""deploy: may the day's version serve? Every gate is tried, all numbers are kept, then the champion log decides."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feature_jobs.errors import BadInputError, GateError
from feature_jobs.schema import Scenario
from feature_jobs.validation.files import VERDICT_FILE as VALIDATION_FILE
from models.export.files import QUANTIZATION_FILE
from models.runtime.files import REFERENCE_FILE
from tasks.contract import DayConfig, Input, Metrics, Resources, step
from tasks.evaluation.comparison import Evaluation, judge_scores
from tasks.evaluation.files import EVALUATION_FILE
from tasks.store.champion_log import (
    CHALLENGER,
    PREFIX,
    ChampionLog,
    ChampionMovedError,
    Entry,
    promotions_held,
    resume_command,
    served_in_turn,
)
from tasks.store.output_files import read_json, write_json
from tasks.tracking.files import Registration, read_registration

if TYPE_CHECKING:
    from models.metrics.comparison import Comparison

DEPLOYMENT_FILE = "verdict.json"
NO_CHAMPION = "no champion yet"
HELD = "held"
"""The first word of a reason that is not about the version: another day or a person decides."""
Answer = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Gate:
    """One condition of a promotion, and the numbers that it was decided on. `unknown`: too little data to judge."""

    name: str
    answer: Answer
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """The result of all gates together. `wanted`: the version may be promoted, as far as the log allows it."""

    wanted: bool
    refused: list[str]
    unjudged: list[str]

    def words(self, *, promoted: bool) -> str:
        """The verdict in one line: "promoted", "promoted, unjudged: …" or "no: …"."""
        doubts = "; ".join(self.unjudged)
        if promoted:
            return f"promoted, unjudged: {doubts}" if doubts else "promoted"
        if self.refused:
            # What the version itself lacks comes first, so that the first word says if it was refused or held.
            return "no: " + "; ".join(sorted(self.refused, key=lambda reason: reason.startswith(HELD)))
        return f"no: {HELD}, because deploy.when_unsure is hold and this is unjudged: {doubts}"


@step(
    reads={"registration": Input(), "evaluation": Input(), "export": Input(), "validation": Input()},
    writes="deployment",
    asset="champion",
    config=("deploy", "quantize"),
    resources=Resources(memory_gib=3.0),
    timeout_s=1200,
    imports=("tasks.tracking.logged_models",),  # the rest while the process that loads the version imports MLflow
    on_no="skip",  # a day whose version is refused is an ordinary day: the next one goes on
    registry=True,
    appends=PREFIX,
    headline={"promoted": "promoted"},
)
def deploy(
    config: DayConfig, *, registration: Path, evaluation: Path, export: Path, validation: Path, deployment: Path
) -> Metrics:
    """Promotes the version if every gate agrees. It is then the champion; where a gate says no, the numbers are kept.

    The version is loaded in a fresh process and must reproduce the stored scores; int8 must stay within its allowance;
    it must not be worse than the champion, be calibrated, come from a valid day, and not replace a later day's
    champion, nor the champion that a rollback restored. A gate without enough data is unknown; then the scenario's
    `deploy.when_unsure` decides. Writes verdict.json; the champion log is compared and swapped, the alias follows.
    """
    if config.store is None:
        raise BadInputError("deploy keeps the champion log in the store: run it with --store")
    scenario, log = config.scenario, ChampionLog(config.store)
    version, judged = read_registration(registration, _again(config)), _evaluation(config, evaluation)
    reproduces = _reproduces(scenario, version, export)
    champion, _ = log.as_of(config.ds, config.generation)
    gates = [
        reproduces,
        _quantized(scenario, read_json(export, QUANTIZATION_FILE)),
        _not_worse(judged, champion),
        _calibrated(scenario, judged),
        _valid(read_json(validation, VALIDATION_FILE)),
        _next_day(judged),
    ]
    named = version["name"], version["version"]
    candidate = Entry("promotion", *named, config.ds, config.generation, version["checkpoint"])
    # The last gate, because it promotes: only the log has, at that moment, the champion to replace.
    order, entry = _swap(scenario, log, candidate, wanted=decide(scenario, gates).wanted)
    decision = decide(scenario, [*gates, order])
    words = decision.words(promoted=decision.wanted)
    verdict = {
        "promoted": decision.wanted,
        "words": words,
        "unjudged": decision.unjudged,
        "warnings": judged["warnings"],
        "version": version["version"],
        "checkpoint": version["checkpoint"],
        "gates": [asdict(gate) for gate in [*gates, order]],
        "champion": asdict(entry) if entry else None,
    }
    # After the promotion: a run that is killed in between is repeated, and `_swap` finds its record.
    write_json(deployment, DEPLOYMENT_FILE, verdict)
    _show_in_registry(*named, log, words, promoted=decision.wanted)
    for warning in judged["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    metrics: Metrics = {
        "promoted": decision.wanted,
        "version": int(version["version"]),
        "auc": {task: facts["challenger"]["auc"] for task, facts in judged["overall"].items()},
        "unjudged": len(decision.unjudged),
        # Unknown ones are left out: a metric is a number, and can only say yes or no.
        "gates": {gate.name: gate.answer == "yes" for gate in [*gates, order] if gate.answer != "unknown"},
    }
    if promotions_held(scenario, log):  # on the screen alone: no output may hold the store's path
        print(f"to allow promotions again: {resume_command(config.store.options)}", file=sys.stderr)
    if not decision.wanted:
        raise GateError(words, metrics)
    # Not printed: the commands show the verdict of a step.
    return {**metrics, "verdict": words.replace("promoted", f"promoted version {version['version']}", 1)}


def _show_in_registry(model: str, version: str, log: ChampionLog, words: str, *, promoted: bool) -> None:
    """The verdict on the version, and the aliases. The log is the truth; the aliases only show it."""
    from tasks import tracking

    # A replay judges a version once more, and its no does not end what the log says: the version serves, or served.
    if not promoted and any(entry.version == version for entry in served_in_turn(log.history())):
        words = f"promoted before, judged again: {words}"
    # On some databases MLflow takes no tag of more than 5,000 characters.
    tracking.set_version_tags(model, version, {tracking.VERDICT_TAG: words[:4000]})
    read = functools.cache(tracking.versions)  # a read of all versions takes longer than the rest of this
    tracking.mirror_alias(log, read)
    if promoted and any(CHALLENGER in one["aliases"] for one in read(model) if one["version"] == version):
        tracking.delete_alias(model, CHALLENGER)


def decide(scenario: Scenario, gates: list[Gate]) -> Decision:
    """One no refuses the version; where gates are unknown, `deploy.when_unsure` decides."""
    refused = [gate.reason for gate in gates if gate.answer == "no"]
    unjudged = [gate.reason for gate in gates if gate.answer == "unknown"]
    held = bool(unjudged) and scenario.deploy.when_unsure == "hold"
    return Decision(not refused and not held, refused, unjudged)


def _again(config: DayConfig) -> str:
    return f"compute the day again: recloop chain replay {config.scenario.option} --from {config.ds}"


def _evaluation(config: DayConfig, folder: Path) -> Evaluation:
    written: Any = read_json(folder, EVALUATION_FILE)
    if "warnings" not in written:
        raise BadInputError(
            f"{folder / EVALUATION_FILE}: an older release wrote it, without verdicts; {_again(config)}"
        )
    judged: Evaluation = written
    return judged


def _answer(*, bad: object, unknown: object = None) -> Answer:
    return "no" if bad else "unknown" if unknown else "yes"


def _reproduces(scenario: Scenario, version: Registration, export: Path) -> Gate:
    from tasks import tracking

    facts = tracking.check_loads(version["name"], version["version"], version["files"], export / REFERENCE_FILE)
    from models.metrics.judgement import counted

    tolerance = scenario.deploy.tolerance
    loaded = {"rows": facts.rows, "max_difference": facts.max_difference, "tolerance": tolerance}
    numbers = {} if facts.problem else loaded
    if refusal := facts.refusal(tolerance):
        return Gate("reproduces", "no", refusal, numbers)
    return Gate("reproduces", "yes", f"a fresh process reproduces {counted(facts.rows, 'stored score')}", numbers)


def _quantized(scenario: Scenario, facts: Mapping[str, Any]) -> Gate:
    rules, fp32, int8 = scenario.quantize, facts["fp32"], facts["int8"]
    numbers: dict[str, Any] = {}
    problems, unknown = [], []
    for task in scenario.tasks:
        loss = _gap(fp32["auc"].get(task), int8["auc"].get(task))
        shift = _gap(int8["calibration"].get(task), fp32["calibration"].get(task))
        numbers[task] = {"auc_loss": loss, "calibration_shift": shift}
        if lacking := facts.get("unjudged", {}).get(task):
            unknown.append(f"{task}: the loss by int8 is not judged: {lacking}")
        elif loss is None:
            unknown.append(f"{task}: int8 and fp32 have no AUC to compare: the day holds one class only")
        elif loss > rules.max_auc_loss:
            problems.append(f"{task}: int8 loses {loss:.4f} AUC where {rules.max_auc_loss:g} is allowed")
        if not lacking and shift is not None and abs(shift) > rules.max_calibration_shift:
            problems.append(
                f"{task}: int8 shifts calibration by {shift:+.3f} where {rules.max_calibration_shift:g} is allowed"
            )
    reason = "; ".join(problems or unknown) or "int8 costs no more than is allowed"
    return Gate("int8", _answer(bad=problems, unknown=unknown), reason, numbers)


def _gap(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _not_worse(judged: Evaluation, champion: Entry | None) -> Gate:
    """The evaluation's comparison, if it was made with the champion that still is the one of this day."""

    def numbers_of(tasks: Mapping[str, Comparison]) -> Metrics:
        return {task: {**(facts["difference"] or {}), "judgement": facts["judgement"]} for task, facts in tasks.items()}

    numbers = {
        "overall": numbers_of(judged["overall"]),
        "segments": {segment: numbers_of(tasks) for segment, tasks in judged["segments"].items()},
    }
    if judged["champion"] != (champion.checkpoint if champion else None):
        then, now = (
            digest[:12] if digest else "none" for digest in (judged["champion"], champion and champion.checkpoint)
        )
        # Worse or not is known only against the champion that was compared; another one asks for another comparison.
        reason = f"{HELD}: the champion changed since the comparison (then {then}, now {now}); the next day decides"
        return Gate("not_worse", "no", reason, numbers)
    comparison = judged["comparison"]
    verdict = comparison["verdict"]
    good = NO_CHAMPION if champion is None else "not worse than the champion, overall and per segment"
    reason = "; ".join(comparison["reasons"] or comparison["unknown"]) or good
    return Gate("not_worse", _answer(bad=verdict == "worse", unknown=verdict == "unknown"), reason, numbers)


def _calibrated(scenario: Scenario, judged: Evaluation) -> Gate:
    numbers: dict[str, Any] = {}
    problems, unknown = [], []
    for task, facts in judged["overall"].items():
        value, (low, high) = facts["challenger"]["calibration"], facts["challenger"]["calibration_interval"]
        numbers[task] = {"calibration": value, "low": low, "high": high}
        found = judge_scores(scenario, facts)
        if found.verdict == "worse":
            problems.append(f"{task}: {found.reason}")
        elif found.verdict == "unknown":
            unknown.append(f"{task}: {found.reason}")
    reason = "; ".join(problems or unknown) or "the mean score is near the mean label in every task"
    return Gate("calibration", _answer(bad=problems, unknown=unknown), reason, numbers)


def _valid(verdict: Mapping[str, Any]) -> Gate:
    from models.metrics.judgement import counted

    failures = len(verdict.get("failures", []))
    failed = f"the day's data failed {counted(failures, 'blocking check')}"
    reason = "the day's data passed validation" if verdict["ok"] else failed
    return Gate("validation", _answer(bad=not verdict["ok"]), reason, {"failures": failures})


def _next_day(judged: Evaluation) -> Gate:
    """The champion's own next day: where the chain fell behind it, nothing from the chain replaces it."""
    found = judged["next_day"]
    verdict, numbers = found["verdict"], {"verdict": found["verdict"]}
    if verdict == "hold":
        reason = f"{HELD}: the chain fell behind the champion: " + "; ".join(found["reasons"])
    else:
        reason = "; ".join(found["reasons"] or found["unknown"]) or "the new day gives no reason to hold"
    return Gate("next_day", _answer(bad=verdict == "hold", unknown=verdict == "unknown"), reason, numbers)


def _swap(scenario: Scenario, log: ChampionLog, candidate: Entry, *, wanted: bool) -> tuple[Gate, Entry | None]:
    """Appends the candidate to the champion log, unless a later day's champion serves or a rollback holds promotions;
    returns the entry that serves then.

    A run that was killed after its promotion finds it and does not promote again. Nothing holds a version that serves
    or served before the champion: a replay made its day again with the same content.
    """
    while True:
        history = log.history()
        current = history[-1] if history else None
        ours = [e for e in history if _same(e, candidate)]
        if ours:  # also after a later champion: a repeated run must end as the first did
            return Gate("order", "yes", "promoted", {"sequence": ours[-1].sequence}), ours[-1]
        held = _held(scenario, log, current, candidate)
        before = [e for e in served_in_turn(history) if _is_of(e, candidate) and log.is_committed(e)] if held else []
        if before:
            return Gate("order", "yes", "promoted", {"sequence": before[-1].sequence}), before[-1]
        if held:
            return held, current
        if not wanted:
            return Gate("order", "yes", "no later champion", {}), current
        try:
            entry = log.promote(current.sequence if current else 0, candidate)
        except ChampionMovedError:
            continue  # another process wrote the next record: read it and decide again
        return Gate("order", "yes", "promoted", {"sequence": entry.sequence}), entry


def _held(scenario: Scenario, log: ChampionLog, current: Entry | None, candidate: Entry) -> Gate | None:
    # Not where that day's checkpoint is gone (DVC runs the day again): such a record keeps nobody from its place.
    if current and current.ds > candidate.ds and log.is_committed(current):
        reason = f"{HELD}: the champion is of a later day ({current.ds}, version {current.version})"
        return Gate("order", "no", reason, {"champion_ds": current.ds})
    reason_to_hold = promotions_held(scenario, log)
    return Gate("order", "no", reason_to_hold, {}) if reason_to_hold else None


def _same(entry: Entry, candidate: Entry) -> bool:
    is_ours = entry.kind == candidate.kind and entry.generation == candidate.generation
    return is_ours and _is_of(entry, candidate)


def _is_of(entry: Entry, candidate: Entry) -> bool:
    place = ("model", "version", "ds", "checkpoint")
    return all(getattr(entry, name) == getattr(candidate, name) for name in place)
