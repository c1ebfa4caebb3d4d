"""Committed days whose source reads differently by now, and all that a replay of them would change."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping
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

FEATURES_UNTIL = "feature_jobs.joins.touched:features_until"


@dataclass(frozen=True)
class Corrected:
    """`days`: the tables that read differently, by day. `unread`: days that do not read any more, with the reason.

    The rest is what they touch, at most: days by step that a replay computes again, beside the reading of all later
    days; features, labels, and the last day on which features differ (None: all later ones can); registered versions
    with their day.
    """

    num_compared: int
    days: dict[str, list[str]]
    unread: dict[str, str]
    steps: dict[str, list[str]] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    features_until: str | None = None
    versions: dict[str, int] = field(default_factory=dict)


def find_corrected(scenario: Scenario, store: ScenarioStore, days: Collection[str]) -> Corrected:
    """Reads the source of the committed ones of these days again, each against its day before as it was committed.

    Nothing is committed. Days with rows left out on purpose, and those of other settings, are not compared.
    """
    from feature_jobs.joins.rules import touched_by

    found, unread, num_compared = dict[str, list[str]](), dict[str, str](), 0
    is_carried = False  # a file that is not compared, such as the list of columns, which each later day goes on with
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
        if compared := [file for file in files if file not in declared.uncompared]:
            tables = [file for file in compared if file.endswith(".parquet")]  # beside them are only counts of them
            found[ds] = sorted(file.removesuffix(".parquet") for file in tables or compared)
            is_carried = is_carried or len(compared) < len(files)
    if not found:
        return Corrected(num_compared, found, unread)
    newest = max(place.ds for place in store.places() if is_day(scenario, place.ds))
    later = day_range(scenario, min(found), newest)
    begins = {(step.name, ds) for step in sources for ds in found}
    until = {name: _newest_of(scenario, found, STEPS[name].touched_until) for name in daily_steps(scenario)}
    if is_carried:
        begins |= {(step.name, ds) for step in sources for ds in later}
        until = {}
    changed = {
        (name, ds) for name, ds in steps_that_change(scenario, store, later, begins, until) if store.find(name, ds)
    }
    steps = {name: [ds for ds in later if (name, ds) in changed] for name in daily_steps(scenario)}
    features, labels = touched_by(scenario, {table for tables in found.values() for table in tables})
    versions = {}
    for name, ds in sorted(changed):
        commit = store.find(name, ds)
        if STEPS[name].registry and commit and "version" in (metrics := store.run_record(commit).get("metrics", {})):
            versions[ds] = int(metrics["version"])
    named = {name: touched for name, touched in steps.items() if touched}
    last = _newest_of(scenario, found, FEATURES_UNTIL)
    return Corrected(num_compared, found, unread, named, features, labels, last, versions)


def _newest_of(scenario: Scenario, days: Mapping[str, Collection[str]], until: str | None) -> str | None:
    """The last day that any of these days' tables touches, by a function's name; None where later ones are too."""
    if until is None:
        return None
    found = [pkgutil.resolve_name(until)(scenario, ds, tables) for ds, tables in days.items()]
    return None if None in found else max(found)


def steps_that_change(
    scenario: Scenario,
    store: ScenarioStore,
    days: list[str],
    begins: set[tuple[str, str]],
    until: Mapping[str, str | None] | None = None,
) -> set[tuple[str, str]]:
    """(step, day) of these days that read something that changes, committed or not, and `begins`, with which it starts:
    those of steps that read the source. `until`: by step the last day on which its output can change, where there is
    one; what reads later outputs of it is as it was."""
    computed, changed = set(begins), set(begins)
    for ds in days:
        for name in daily_steps(scenario):
            if not STEPS[name].source and _reads_changed(scenario, store, STEPS[name], ds, changed):
                computed.add((name, ds))
                last = until.get(name) if until else None
                if last is None or ds <= last:
                    changed.add((name, ds))
    return computed


def _reads_changed(
    scenario: Scenario, store: ScenarioStore, declared: Step, ds: str, changed: set[tuple[str, str]]
) -> bool:
    """Says if a step of a day reads one of `changed`, which are (step, day), and no other input names its content."""
    try:
        found = resolve_inputs(declared, scenario, ds, store)
    except (ParentMissingError, BadInputError):  # the latter where the features were changed after the day
        return True
    inputs = flat(commits for name, commits in found.items() if not declared.reads[name].is_named)
    return declared.registry or any((commit.step, commit.ds) in changed for commit in inputs)


def corrected_lines(found: Corrected, options: str) -> list[str]:
    """For people. `options` are those of commands that it names."""
    lines = [f"{ds} reads differently than when it was committed: {', '.join(one)}" for ds, one in found.days.items()]
    lines += [f"{ds} does not read any more: {reason}" for ds, reason in found.unread.items()]
    if not lines:
        return [f"{found.num_compared} committed days read as they were committed"]
    if found.days:
        touched = {ds for days in found.steps.values() for ds in days}
        until = f" (until {found.features_until})" if found.features_until else " (of all later days)"
        lines += [
            f"days that they touch: {', '.join(sorted(touched))}",
            "a replay reads all later days, and computes at most:",
            *(f"  {name}: {days[0]} to {days[-1]} ({len(days)})" for name, days in found.steps.items()),
            f"features: {', '.join(found.features) + until if found.features else 'none'}",
            f"labels: {', '.join(found.labels) or 'none'}",
            f"versions: {', '.join(f'{number} ({ds})' for ds, number in found.versions.items()) or 'none'}",
            f"to compute these days again: recloop chain replay {options} --from {min(found.days)}",
        ]
    return lines
