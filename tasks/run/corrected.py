"""Committed days whose source reads differently by now, and all that a replay of them would change."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from feature_jobs.errors import BadInputError, ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range, is_day
from tasks.contract import DayConfig, Step
from tasks.run.inputs import flat, resolve_inputs
from tasks.run.launchers import InProcess
from tasks.run.reuse import is_read_again
from tasks.run.runner import config_digest, files_read_again
from tasks.steps import STEPS, daily_steps
from tasks.store.scenario_store import ScenarioStore


@dataclass(frozen=True)
class Corrected:
    """`days`: the tables that read differently, by day. `unread`: days that do not read any more, with the reason.
    The rest is what they touch: days by step, features, labels, registered versions with their day."""

    num_compared: int
    days: dict[str, list[str]]
    unread: dict[str, str]
    steps: dict[str, list[str]] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)


def find_corrected(scenario: Scenario, store: ScenarioStore, days: Collection[str]) -> Corrected:
    """Reads the source of the committed ones of these days again, each against its day before as it was committed.

    Nothing is committed. Days with rows left out on purpose, and those of other settings, are not compared.
    """
    from feature_jobs.joins.rules import touched_by

    found, unread, num_compared = dict[str, list[str]](), dict[str, str](), 0
    sources = [declared for declared in STEPS.values() if declared.source]
    for declared, ds in ((declared, ds) for ds in days for declared in sources):
        standing = store.find(declared.name, ds)
        config = DayConfig(scenario, ds, store, store.generation_of(ds))
        is_comparable = standing and standing.manifest.get("config") == config_digest(scenario, declared)
        if standing is None or not is_comparable or not is_read_again(declared, config, standing):
            continue
        num_compared += 1
        try:
            files = files_read_again(declared, config, store, InProcess(), standing)
        except BadInputError as error:
            unread[ds] = str(error)
            continue
        if files:
            tables = [file for file in files if file.endswith(".parquet")]  # beside them are only counts of them
            found[ds] = sorted(file.removesuffix(".parquet") for file in tables or files)
    if not found:
        return Corrected(num_compared, found, unread)
    newest = max(place.ds for place in store.places() if is_day(scenario, place.ds))
    later = day_range(scenario, min(found), newest)
    changed = {
        (name, ds)
        for name, ds in steps_that_change(scenario, store, later, {(step.name, ds) for step in sources for ds in found})
        if store.find(name, ds)
    }
    steps = {name: [ds for ds in later if (name, ds) in changed] for name in daily_steps(scenario)}
    features, labels = touched_by(scenario, {table for tables in found.values() for table in tables})
    versions = {}
    for name, ds in sorted(changed):
        commit = store.find(name, ds)
        if STEPS[name].registry and commit and "version" in (metrics := store.run_record(commit).get("metrics", {})):
            versions[ds] = int(metrics["version"])
    named = {name: touched for name, touched in steps.items() if touched}
    return Corrected(num_compared, found, unread, named, features, labels, versions)


def steps_that_change(
    scenario: Scenario, store: ScenarioStore, days: list[str], begins: set[tuple[str, str]]
) -> set[tuple[str, str]]:
    """(step, day) of these days that read something that changes, committed or not, and `begins`, with which it starts:
    those of steps that read the source."""
    changed = set(begins)
    for ds in days:
        for name in daily_steps(scenario):
            if not STEPS[name].source and _reads_changed(scenario, store, STEPS[name], ds, changed):
                changed.add((name, ds))
    return changed


def _reads_changed(
    scenario: Scenario, store: ScenarioStore, declared: Step, ds: str, changed: set[tuple[str, str]]
) -> bool:
    """Says if a step of a day reads one of `changed`, which are (step, day)."""
    try:
        inputs = flat(resolve_inputs(declared, scenario, ds, store).values())
    except (ParentMissingError, BadInputError):  # the latter where the features were changed after the day
        return True
    return declared.registry or any((commit.step, commit.ds) in changed for commit in inputs)


def corrected_lines(found: Corrected, options: str) -> list[str]:
    """For people. `options` are those of commands that it names."""
    lines = [f"{ds} reads differently than when it was committed: {', '.join(one)}" for ds, one in found.days.items()]
    lines += [f"{ds} does not read any more: {reason}" for ds, reason in found.unread.items()]
    if not lines:
        return [f"{found.num_compared} committed days read as they were committed"]
    if found.days:
        touched = {ds for days in found.steps.values() for ds in days}
        lines += [
            f"days that they touch: {', '.join(sorted(touched))}",
            *(f"  {name}: {days[0]} to {days[-1]} ({len(days)})" for name, days in found.steps.items()),
            f"features: {', '.join(found.features) or 'none'}",
            f"labels: {', '.join(found.labels) or 'none'}",
            f"versions: {', '.join(f'{number} ({ds})' for ds, number in found.versions.items()) or 'none'}",
            f"to compute these days again: recloop chain replay {options} --from {min(found.days)}",
        ]
    return lines
