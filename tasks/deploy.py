"""deploy: may the day's version serve? Every gate is tried, all numbers are kept, then the champion log decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from tasks.contract import DayConfig, Input, Metrics, Resources, step
from tasks.store.champion_log import CHALLENGER, PREFIX, ChampionLog, ChampionMovedError, Entry
from tasks.store.output_files import read_json, write_json

NO_CHAMPION = "no champion yet"


@dataclass(frozen=True)
class Gate:
    """One condition of a promotion, and the numbers that it was decided on."""

    name: str
    ok: bool
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)


@step(
    reads={"registration": Input(), "evaluation": Input(), "export": Input(), "validation": Input()},
    writes="deployment",
    asset="champion",
    config=("deploy", "quantize"),
    resources=Resources(memory_gib=3.0),
    timeout_s=1200,
    imports=("tasks.tracking.logged_models",),
    on_no="skip",
    registry=True,
    keeps=PREFIX,
)
def deploy(
    config: DayConfig, *, registration: Path, evaluation: Path, export: Path, validation: Path, deployment: Path
) -> Metrics:
    """Promotes the registered version to champion if every gate agrees; says no, with the numbers, if one does not.

    The version is loaded in a fresh process and must reproduce the stored scores; int8 must stay within its allowance;
    it must not be worse than the champion, be calibrated, come from a valid day, and not replace a later day's
    champion. Writes verdict.json; the champion log is compared and swapped, the alias follows.
    """
    from tasks import tracking

    if config.store is None:
        raise BadInputError("deploy keeps the champion log in the store: run it with --store")
    scenario, log = config.scenario, ChampionLog(config.store)
    version, judged = read_json(registration, "version.json"), read_json(evaluation, "evaluation.json")
    champion, _ = log.as_of(config.ds, config.generation)
    gates = [
        _reproduces(scenario, version, export),
        _quantized(scenario, read_json(export, "quantization.json")),
        _not_worse(judged, champion),
        _calibrated(scenario, judged),
        _valid(read_json(validation, "verdict.json")),
        _next_day(judged),
    ]
    candidate = Entry(
        "promotion", version["name"], version["version"], config.ds, config.generation, version["checkpoint"]
    )
    order, entry = _swap(log, candidate, wanted=all(gate.ok for gate in gates))
    gates.append(order)
    refused = [gate for gate in gates if not gate.ok]
    verdict = {
        "promoted": not refused,
        "version": version["version"],
        "checkpoint": version["checkpoint"],
        "gates": [asdict(gate) for gate in gates],
        "champion": asdict(entry) if entry else None,
    }
    write_json(deployment, "verdict.json", verdict)
    told = "promoted" if not refused else "no: " + "; ".join(gate.reason for gate in refused)
    tracking.set_version_tags(version["name"], version["version"], {tracking.VERDICT_TAG: told[:4000]})
    tracking.mirror_alias(log)
    if not refused and tracking.aliases(version["name"]).get(CHALLENGER) == version["version"]:
        tracking.delete_alias(version["name"], CHALLENGER)
    metrics: Metrics = {
        "promoted": not refused,
        "version": int(version["version"]),
        "auc": {task: facts["challenger"]["auc"] for task, facts in judged["overall"].items()},
        "gates": {gate.name: gate.ok for gate in gates},
    }
    return metrics if not refused else {**metrics, "gate": told}


def _reproduces(scenario: Scenario, version: Mapping[str, Any], export: Path) -> Gate:
    from tasks import tracking

    facts = tracking.check_loads(version["name"], version["version"], export / "reference.parquet")
    tolerance = scenario.deploy.tolerance
    if not facts["loaded"]:
        return Gate("reproduces", False, f"the registered model does not load: {facts['problem']}", {})
    numbers = {"rows": facts["rows"], "max_difference": facts["max_difference"], "tolerance": tolerance}
    if not facts["own_code"]:
        return Gate("reproduces", False, "the registered model needs code that is not in it", numbers)
    worst = max(facts["max_difference"].values())
    if not worst <= tolerance:
        reason = f"its scores differ by {worst:.2g} from the stored ones where {tolerance:g} is allowed"
        return Gate("reproduces", False, reason, numbers)
    return Gate("reproduces", True, f"a fresh process reproduces {facts['rows']} stored scores", numbers)


def _quantized(scenario: Scenario, facts: Mapping[str, Any]) -> Gate:
    rules, fp32, int8 = scenario.quantize, facts["fp32"], facts["int8"]
    numbers, problems = {}, []
    for task in scenario.tasks:
        loss = _gap(fp32["auc"].get(task), int8["auc"].get(task))
        shift = _gap(int8["calibration"].get(task), fp32["calibration"].get(task))
        numbers[task] = {"auc_loss": loss, "calibration_shift": shift}
        if loss is not None and loss > rules.max_auc_loss:
            problems.append(f"{task}: int8 loses {loss:.4f} AUC where {rules.max_auc_loss:g} is allowed")
        if shift is not None and abs(shift) > rules.max_calibration_shift:
            problems.append(
                f"{task}: int8 shifts calibration by {shift:+.3f} where {rules.max_calibration_shift:g} is allowed"
            )
    return Gate("int8", not problems, "; ".join(problems) or "int8 costs no more than is allowed", numbers)


def _gap(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _not_worse(judged: Mapping[str, Any], champion: Entry | None) -> Gate:
    """The evaluation's comparison, if it was made with the champion that still is the one of this day."""
    numbers = {
        "overall": {task: facts["difference"] for task, facts in judged["overall"].items()},
        "segments": {
            segment: {task: facts["difference"] for task, facts in tasks.items() if facts["judged"]}
            for segment, tasks in judged["segments"].items()
        },
    }
    if judged["champion"] != (champion.checkpoint if champion else None):
        then, now = (
            digest[:12] if digest else "none" for digest in (judged["champion"], champion and champion.checkpoint)
        )
        reason = f"the champion changed since the comparison (then {then}, now {now}); the next day decides"
        return Gate("not_worse", False, reason, numbers)
    comparison = judged["comparison"]
    good = NO_CHAMPION if champion is None else "not worse than the champion, overall and per segment"
    return Gate("not_worse", comparison["ok"], "; ".join(comparison["reasons"]) or good, numbers)


def _calibrated(scenario: Scenario, judged: Mapping[str, Any]) -> Gate:
    """Whether the calibration's whole interval lies beyond the allowance: more than which users came explains."""
    allowed = scenario.deploy.max_calibration_error
    numbers, problems = {}, []
    for task, facts in judged["overall"].items():
        value, (low, high) = facts["challenger"]["calibration"], facts["challenger"]["calibration_interval"]
        if value is None:  # no positive came
            continue
        numbers[task] = {"calibration": value, "low": low, "high": high}
        if (low or 0) > 1 + allowed or (high is not None and high < 1 - allowed):
            interval = f"[{low or 0:.2f}, {'∞' if high is None else f'{high:.2f}'}]"
            problems.append(f"{task}: calibration {value:.2f} {interval} where 1 ± {allowed:g} is allowed")
    return Gate("calibration", not problems, "; ".join(problems) or "scores mean what they say", numbers)


def _valid(verdict: Mapping[str, Any]) -> Gate:
    failures = len(verdict.get("failures", []))
    reason = (
        "the day's data passed validation" if verdict["ok"] else f"the day's data failed {failures} blocking checks"
    )
    return Gate("validation", bool(verdict["ok"]), reason, {"failures": failures})


def _next_day(judged: Mapping[str, Any]) -> Gate:
    found = judged["next_day"]
    if found["verdict"] == "hold":
        return Gate("next_day", False, "the chain fell behind the champion: " + "; ".join(found["reasons"]))
    reason = "the new day gives no reason to hold" if found["verdict"] == "ok" else "; ".join(found["reasons"])
    return Gate("next_day", True, reason, {"verdict": found["verdict"]})


def _swap(log: ChampionLog, candidate: Entry, *, wanted: bool) -> tuple[Gate, Entry | None]:
    """Appends the candidate to the champion log, unless a later day's champion serves; returns what serves then.

    A run that was killed after its promotion finds it and does not promote again.
    """
    while True:
        history = log.history()
        current = history[-1] if history else None
        ours = [e for e in history if _same(e, candidate)]
        if ours:
            return Gate("order", True, "promoted", {"sequence": ours[-1].sequence}), ours[-1]
        if current and current.ds > candidate.ds and log.is_committed(current):
            reason = f"held: champion is of a later day ({current.ds}, version {current.version})"
            return Gate("order", False, reason, {"champion_ds": current.ds}), current
        if not wanted:
            return Gate("order", True, "no later champion", {}), current
        try:
            entry = log.promote(current.sequence if current else 0, candidate)
        except ChampionMovedError:
            continue  # look at who came first, and decide again
        return Gate("order", True, "promoted", {"sequence": entry.sequence}), entry


def _same(entry: Entry, candidate: Entry) -> bool:
    place = ("kind", "model", "version", "ds", "generation", "checkpoint")
    return all(getattr(entry, name) == getattr(candidate, name) for name in place)
