"""Inputs of a step: the commits that it reads on a day."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from feature_jobs.errors import ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day, trailing_days
from tasks.contract import Choice, Input, Step
from tasks.steps import WRITERS, writer_of
from tasks.store.scenario_store import Commit, ScenarioStore

Found = Commit | None | dict[str, Commit]


def resolve_inputs(declared: Step, scenario: Scenario, ds: str, store: ScenarioStore) -> dict[str, Found]:
    """The commits that a step reads on a day, by argument. Raises ParentMissingError where one is not there."""
    return {argument: _resolve(declared, argument, scenario, ds, store) for argument in declared.reads}


def _resolve(declared: Step, argument: str, scenario: Scenario, ds: str, store: ScenarioStore) -> Found:
    source, writer = declared.reads[argument], writer_of(declared, argument)
    if source.days == "trailing":
        if source.choice:  # also days that the scenario does not have any more: the output that names them counts
            days = sorted(_chosen(source.choice, scenario, ds, store))
        else:
            days = trailing_days(scenario, ds, window_of(scenario, source))
        found = {day: store.find(writer, day) for day in days}
        missing = [day for day, commit in found.items() if commit is None]
        if missing and not source.optional:
            raise _missing(declared, ds, writer, missing[0], scenario=scenario, store=store)
        return {day: commit for day, commit in found.items() if commit is not None}
    if source.days in ("champion", "former_champion"):
        from tasks.store.champion_log import ChampionLog

        champion, former = ChampionLog(store).as_of(ds)
        entry = champion if source.days == "champion" else former
        return None if entry is None else store.find(writer, entry.ds, entry.generation)
    day: str | None = ds if source.days == "same" else previous_day(scenario, ds)
    if day is None:
        return None
    commit = store.find(writer, day)
    if commit is None and not source.optional:
        raise _missing(declared, ds, writer, day, scenario=scenario, store=store)
    return commit


def _chosen(choice: Choice, scenario: Scenario, ds: str, store: ScenarioStore) -> Collection[str]:
    day = ds if choice.by.days == "same" else previous_day(scenario, ds)
    commit = store.find(WRITERS[str(choice.by.of)], day) if day else None
    # A step that reads a missing output, or one whose files were deleted, is refused for that input itself.
    if commit is None or store.is_collected(commit):
        return ()
    return choice.days(scenario, ds, lambda name: store.file_of(commit, name))


def window_of(scenario: Scenario, source: Input) -> int:
    """Returns the number of trailing days of an input: the value at its config path, or its function's result."""
    if callable(source.window):
        return source.window(scenario)
    value: Any = scenario
    for part in (source.window or "").split("."):
        value = getattr(value, part)
    return int(value)


def _missing(
    declared: Step, ds: str, writer: str, day: str, *, scenario: Scenario, store: ScenarioStore
) -> ParentMissingError:
    first, begin = scenario.data.days.first, min(day, ds)
    # The command that is printed must run as it is: it begins where the chain has its first gap.
    while (before := previous_day(scenario, begin)) and store.find(writer, before) is None:
        begin = before  # the missing day needs the days before it, too
    remedy = f"recloop run {store.options} --from {begin} --to {ds}"
    return ParentMissingError(
        f"{declared.name} of {ds} needs the output of {writer} of {day}, which is not committed"
        f" (the chain begins at {first}); run it first: {remedy}",
        day,
    )


def flat(found: Iterable[Found]) -> list[Commit]:
    """The commits of several inputs."""
    commits: list[Commit] = []
    for item in found:
        if isinstance(item, Commit):
            commits.append(item)
        elif isinstance(item, dict):
            commits += item.values()
    return commits
