"""Computing days again: a new generation from a day on, or the rest of one that was begun and not finished."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace

from feature_jobs.errors import BadInputError, ParentMissingError, RecloopError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, day_range, is_day, previous_day
from tasks.run.collect import LINK_STEPS
from tasks.run.inputs import flat, resolve_inputs
from tasks.steps import DAILY, STEPS, daily_steps
from tasks.store.forgotten import leaves_out
from tasks.store.records import holder_of
from tasks.store.scenario_store import ScenarioStore


@dataclass(frozen=True)
class Replay:
    """The generation to compute and its days. `resumed`: an earlier call began it."""

    generation: int
    days: list[str]
    resumed: bool


def begin_replay(
    scenario: Scenario,
    store: ScenarioStore,
    first: str,
    last: str | None,
    reason: str,
    *,
    restart: bool = False,
    source_cleaned: bool = False,
    computes_all: bool = False,
) -> Replay:
    """Starts a generation from `first` on, to `last` or the newest day there is.

    Where the newest generation begins at the same day and does not yet hold all that it replaces, it goes on with that
    one, unless `restart`. Steps that would write the same files again take them over from older generations, unless
    `computes_all`. Works also where commit records are damaged: only their keys are read. Days that rows of
    users were left out of are read from the source again only if a person says that the rows are gone there
    (`source_cleaned`). Nothing is written where it raises.
    """
    for ds in (first, last or first):
        check_day(scenario, ds)
    if last is not None and last < first:
        raise BadInputError(f"--from {first} is after --to {last}; swap them")
    # By the keys of records alone: a replay is the remedy for damaged ones, so it must not need to read them.
    committed, places = in_view(store), store.places()
    if not places:
        raise BadInputError(
            f"{store.url}: nothing is committed, so there is nothing to replay; run some days first:"
            f" recloop run {store.options}"
        )
    before = previous_day(scenario, first)
    learned = {place.step for place in places if place.step in LINK_STEPS and place.ds >= first}
    if before and (before not in {ds for ds, _ in committed} or not {(before, step) for step in learned} <= committed):
        raise ParentMissingError(
            f"{store.url}: {before} is not finished, and {first} learns from it; begin earlier, at a day whose day"
            f" before is finished, or at {scenario.data.days.first}",
            before,
        )
    # Only the newest generation can be unfinished: a newer one has taken the days of all before it.
    open_one = store.generations()[-1]
    # Days that the scenario does not have any more stay in older generations and are not computed again.
    newest = max(first, *(place.ds for place in places if is_day(scenario, place.ds)))
    is_the_same = (open_one.from_ds, open_one.computes_all) == (first, computes_all)
    resumed = not restart and is_the_same and is_unfinished(scenario, store)
    # Before the generation begins: else it would replace days, and only then find one that can't be computed.
    if not resumed and (deleted := deleted_input(scenario, store, first)):
        raise BadInputError(
            f"{store.url}: {first} needs files of {deleted}, which were deleted as no longer needed; begin at an"
            f" earlier day whose day before is kept, or at {scenario.data.days.first}"
        )
    days = day_range(scenario, first, last or newest)
    # One that goes on was allowed when it began.
    if not resumed and not source_cleaned:
        _refuse_left_out(store, days)
    generation = (
        open_one.number if resumed else store.new_generation(first, reason, last or newest, computes_all=computes_all)
    )
    return Replay(generation, days, resumed)


def deleted_input(scenario: Scenario, store: ScenarioStore, ds: str) -> str | None:
    """An earlier day of which gc deleted files that the steps of `ds` read; None where there is none."""
    for declared in (STEPS[name] for name in daily_steps(scenario)):
        for argument, read in declared.reads.items():
            if read.days not in ("previous", "trailing"):
                continue
            with contextlib.suppress(RecloopError):  # missing or damaged: the step itself will say so
                found = resolve_inputs(replace(declared, reads={argument: read}), scenario, ds, store)
                for commit in flat(found.values()):
                    if store.is_collected(commit):
                        return commit.ds
    return None


def _refuse_left_out(store: ScenarioStore, days: list[str]) -> None:
    if left_out := [ds for ds in days if leaves_out(store, ds)]:
        raise BadInputError(
            f"recloop forget left rows of users out of {left_out[0]}; a replay reads the day from its source again, and"
            " they would come back if they are still there. Delete them there first, then add --source-cleaned"
        )


def is_unfinished(scenario: Scenario, store: ScenarioStore, steps: Collection[str] = DAILY) -> bool:
    """Says if the newest generation does not yet hold all that it has to compute of these steps: the outputs that older
    ones have in its days, but for days that the scenario does not have any more."""
    newest = store.generations()[-1]
    from_ds, to_ds = newest.from_ds or "", newest.to_ds or ""
    older = [place for place in store.places() if place.generation != newest.number]
    # Of the generation's own days alone: `--to` can end it before the newest day.
    replaced = {(ds, step) for _, ds, step in older if from_ds <= ds <= to_ds and step in steps}
    return any(is_day(scenario, ds) for ds, _ in replaced - in_view(store))


def in_view(store: ScenarioStore, generation: int | None = None) -> set[tuple[str, str]]:
    """(day, step) of all that is committed, as seen from a generation (default: the newest)."""
    generations = store.generations()
    return {(ds, step) for number, ds, step in store.places() if holder_of(ds, generations, generation) == number}
