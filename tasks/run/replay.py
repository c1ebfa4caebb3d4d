"""Computing days again: a new generation from a day on, or the rest of one that was begun and not finished."""

from __future__ import annotations

from dataclasses import dataclass

from feature_jobs.errors import BadInputError, ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, day_range, previous_day
from tasks.steps import DAILY
from tasks.store.scenario_store import ScenarioStore


@dataclass(frozen=True)
class Replay:
    """The generation to compute, its days, and whether an earlier call began it."""

    generation: int
    days: list[str]
    resumed: bool


def begin_replay(
    scenario: Scenario, store: ScenarioStore, first: str, last: str | None, reason: str, *, restart: bool = False
) -> Replay:
    """Starts a generation from `first` on, to `last` or the newest day there is.

    Where the newest generation begins at the same day and does not yet hold all that it replaces, it goes on with that
    one, unless `restart`. Works also where commit records are damaged: only their keys are read. Nothing is written
    where it raises.
    """
    for ds in (first, last or first):
        check_day(scenario, ds)
    if last is not None and last < first:
        raise BadInputError(f"--from {first} is after --to {last}; swap them")
    committed = _in_view(store)
    if not committed:
        raise BadInputError(
            f"{store.url}: nothing is committed, so there is nothing to replay; run some days first:"
            f" recloop run {store.options}"
        )
    before = previous_day(scenario, first)
    if before and not any(ds == before for ds, _ in committed):
        raise ParentMissingError(
            f"{store.url}: {before} is not committed, and {first} learns from it; begin earlier, at a day whose day"
            f" before is committed, or at {scenario.data.days.first}",
            before,
        )
    open_one = store.generations()[-1]
    newest = max(first, open_one.to_ds or first, *(ds for ds, _ in committed))
    resumed = not restart and open_one.from_ds == first and not _replaced(store) <= committed
    generation = open_one.number if resumed else store.new_generation(first, reason, last or newest)
    return Replay(generation, day_range(scenario, first, last or newest), resumed)


def _in_view(store: ScenarioStore, generation: int | None = None) -> set[tuple[str, str]]:
    """(day, step) of what is committed as seen from a generation (default: the newest)."""
    found = set()
    for key in store.commit_keys():
        number, ds, step = key.split("/")
        if store.generation_of(ds, generation) == int(number[1:]):
            found.add((ds, step))
    return found


def _replaced(store: ScenarioStore) -> set[tuple[str, str]]:
    """What the newest generation has to compute: the daily outputs that older ones have in its days."""
    newest = store.generations()[-1]
    from_ds, to_ds = newest.from_ds or "", newest.to_ds or ""
    older = (key.split("/") for key in store.commit_keys() if not key.startswith(f"g{newest.number:04}/"))
    return {(ds, step) for _, ds, step in older if from_ds <= ds <= to_ds and step in DAILY}
