"""validate: is this day fit to learn from? Expectations, leaks and drift, before compute is spent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from feature_jobs.errors import GateError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_window
from feature_jobs.sources.output_files import COUNTS_FILE
from feature_jobs.validation.files import PROFILE_FILE, VERDICT_FILE
from tasks.contract import DayConfig, Input, Metrics, Resources, step
from tasks.store.output_files import read_json

if TYPE_CHECKING:
    from feature_jobs.validation.day_facts import DayFacts
    from feature_jobs.validation.day_samples import DaySamples
    from feature_jobs.validation.drift import ColumnDrift, Drift, LabelShift
    from feature_jobs.validation.leaks import Leak
    from feature_jobs.validation.run_suite import Failure

MAX_SHOWN = 3
MAX_LINE = 200  # on the screen; verdict.json has the whole


class Problem(TypedDict):
    """One entry of `failures` or `warnings` in verdict.json."""

    expectation: str
    column: str | None
    severity: str
    expected: str
    value: Any


class Verdict(TypedDict):
    """verdict.json. `sampled`: number of expectations that saw `sample_rows` rows of a larger day."""

    ok: bool
    rows: int
    suite: str
    expectations: int
    sampled: int
    sample_rows: int
    facts: DayFacts
    failures: list[Problem]
    warnings: list[Problem]
    leaks: list[dict[str, str | float | bool | None]]
    drift: dict[str, ColumnDrift]
    label_shift: dict[str, LabelShift]
    drift_days: list[str]
    drift_left_out: dict[str, str]
    drift_note: str | None


@step(
    reads={
        "samples": Input(),
        "events": Input(),
        "yesterday": Input(of="validation", days="previous"),
    },
    writes="validation",
    config=("validate", "labels", "features"),
    touched_until="feature_jobs.joins.touched:profiles_until",
    files=("suite_file",),
    imports=("feature_jobs.validation.run_suite", "feature_jobs.validation.drift"),
    resources=Resources(memory_gib=4.0),
    timeout_s=1800,
)
def validate(config: DayConfig, *, samples: Path, events: Path, yesterday: Path | None, validation: Path) -> Metrics:
    """Checks the day's samples before compute is spent. It looks for broken expectations, leaks of labels, and drift
    from the days before.

    Writes verdict.json, profile.json (for comparison on the next days) and docs/ (Great Expectations' Data Docs).
    Raises GateError, after writing them, where a blocking check failed; BadInputError where the suite is wrong.
    """
    from feature_jobs.validation import drift, hours
    from feature_jobs.validation.day_facts import ROWS, day_facts, facts_of_sources, rows_of_days
    from feature_jobs.validation.day_samples import read_samples
    from feature_jobs.validation.expectations import load_suite
    from feature_jobs.validation.leaks import find_leaks
    from feature_jobs.validation.run_suite import run_suite

    scenario, rules = config.scenario, config.scenario.validate_
    suite, source = load_suite(scenario)  # first: a wrong suite must end the step before a large day is read
    day, counts = read_samples(samples, scenario), read_json(events, COUNTS_FILE)
    # Yesterday's profile holds the days before it: so a day reads one input, however long the window.
    trailing = drift.window(drift.read_profile(yesterday), rules.trailing_days)
    profiles = drift.profile_days(config.ds, day.frame, scenario)
    found = drift.compare(config.ds, profiles[config.ds], trailing, scenario)
    leaks = find_leaks(day.frame, scenario, day.lists)
    own_hours = hours.hours_of_logs(scenario, config.ds, events)
    of_sources = facts_of_sources(events, own_hours, trailing)
    facts = day_facts(scenario, config.ds, day, counts, rows_of_days(trailing), of_sources=of_sources)
    profiles[config.ds] |= {"own_rows": facts[ROWS], "own_hours": own_hours}
    judged = run_suite(day, facts, suite, source, docs=validation / "docs", ds=config.ds)
    problems: list[Problem] = [
        *_missing_suite(source, scenario.suite_file.name),
        *_row_count(scenario, config.ds, day, counts["rows"]),
        *map(_failure, judged.failures),
        *map(_leak, leaks),
        *_drifts(found),
    ]
    # All checks have run by now: a person who corrects the data sees every problem at once.
    failures = [p for p in problems if p["severity"] == "blocking"]
    verdict = Verdict(
        ok=not failures,
        rows=day.num_rows,
        suite=source,
        expectations=len(suite["expectations"]),
        sampled=judged.num_sampled,
        sample_rows=len(day.frame),
        facts=facts,
        failures=failures,
        warnings=[p for p in problems if p["severity"] != "blocking"],
        leaks=[leak.to_json() for leak in leaks],
        drift=found["columns"],
        label_shift=found["labels"],
        drift_days=found["days"],
        drift_left_out=found["left_out"],
        drift_note=found["note"],
    )
    _write(validation / VERDICT_FILE, verdict)
    days = drift.window({**trailing, **profiles}, rules.trailing_days)
    _write(validation / PROFILE_FILE, {"days": days}, indent=None)  # many small numbers: a line each would be 5x it
    _print_warnings(config.ds, verdict)
    if failures:
        raise GateError(_refusal(config.ds, failures, len(suite["expectations"])))
    return _metrics(verdict)


def _print_warnings(ds: str, verdict: Verdict) -> None:
    for warning in verdict["warnings"]:  # on stderr, because stdout holds the JSON line
        print(_short(f"warning: {ds}: {_line(warning)}"), file=sys.stderr, flush=True)


def _problem(expectation: str, column: str | None, severity: str, expected: str, value: Any) -> Problem:
    return Problem(expectation=expectation, column=column, severity=severity, expected=expected, value=value)


def _missing_suite(source: str, name: str) -> list[Problem]:
    from feature_jobs.validation.expectations import BUILT_IN

    # A warning and no refusal: a new scenario has no suite yet, and must still run its first day.
    if source != BUILT_IN:
        return []
    return [
        _problem("suite", None, "warning", f"a suite file {name} beside the scenario", "none; checked the built-in one")
    ]


def _row_count(scenario: Scenario, ds: str, day: DaySamples, num_events: int) -> list[Problem]:
    """Each event is one sample: a join that loses or doubles rows must not go on."""
    num_own = day.num_rows
    # Others are negatives, or of earlier days, whose labels mature on this one.
    if scenario.outcome_labels or scenario.join.negative_sampler:
        times = day.shown(["key.event_time"])["key.event_time"]
        num_own = int((times >= day_window(scenario, ds)[0]).sum())
    if num_events == num_own:
        return []
    return [_problem("one sample for each event", None, "blocking", f"{num_events:,} rows", f"{num_own:,} rows")]


def _failure(failure: Failure) -> Problem:
    return _problem(failure.expectation, failure.column, failure.severity, failure.expected, failure.value)


def _leak(leak: Leak) -> Problem:
    value = f"AUC {leak.auc} for label {leak.label}, by {leak.way}"
    return _problem("likely leak", leak.feature, leak.severity, "a column that does not know a label", value)


def _drifts(found: Drift) -> list[Problem]:
    """Columns and labels that moved further from the trailing days than the scenario allows."""
    psi = [
        _problem("drift", name, facts["severity"], f"psi at most {facts['limit']}", _drift_found(facts))
        for name, facts in found["columns"].items()
        if not facts["ok"]
    ]
    shifts = [
        _problem(
            "label shift",
            f"label.{task}",
            facts["severity"],
            f"mean within {facts['limit']:.0%} of {facts['trailing_mean']:.4g}",
            round(facts["mean"] or 0.0, 6),
        )
        for task, facts in found["labels"].items()
        if not facts["ok"]
    ]
    return psi + shifts


def _drift_found(facts: ColumnDrift) -> str:
    return f"{facts['psi']} against {facts['against']}"


def _line(problem: Problem) -> str:
    """A problem for a person."""
    place = f"column {problem['column']}" if problem["column"] else "the whole day"
    return f"{problem['expectation']}: {place}: expected {problem['expected']}, found {problem['value']}"


def _short(line: str) -> str:
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."


def _refusal(ds: str, failures: list[Problem], num_expectations: int) -> str:
    """The message: the first failures, and the place of the others."""
    lines = [
        f"{ds}: the day is not fit to learn from: {len(failures)} blocking ({num_expectations} expectations checked)"
    ]
    for failure in failures[:MAX_SHOWN]:
        lines.append(f"  {_line(failure)}")
    if len(failures) > MAX_SHOWN:
        lines.append(f"  and {len(failures) - MAX_SHOWN} more in verdict.json")
    lines.append("correct the data, or the suite beside the scenario; report: docs/index.html and verdict.json")
    return "\n".join(lines)


def _metrics(verdict: Verdict) -> Metrics:
    from feature_jobs.validation.day_facts import PREFIX

    return {
        "rows": verdict["rows"],
        "expectations": verdict["expectations"],
        "warnings": len(verdict["warnings"]),
        "facts": {name.removeprefix(PREFIX): value for name, value in verdict["facts"].items() if value is not None},
        "psi": {name: facts["psi"] for name, facts in verdict["drift"].items() if facts["psi"] is not None},
        "label_shift": {t: f["shift"] for t, f in verdict["label_shift"].items() if f["shift"] is not None},
    }


def _write(file: Path, value: Any, indent: int | None = 1) -> None:
    import json

    file.write_text(json.dumps(value, indent=indent, sort_keys=True) + "\n", encoding="utf-8")
