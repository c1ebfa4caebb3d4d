"""Step `ingest`: one day of the source becomes typed, checked Parquet."""

from __future__ import annotations

import atexit
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day
from feature_jobs.sources.copies import Copies
from feature_jobs.sources.output_files import COLUMNS_FILE
from feature_jobs.sources.user_ids import Found, Users
from tasks.contract import DayConfig, Forgetting, Input, Metrics, Resources, step

if TYPE_CHECKING:
    from tasks.store.scenario_store import ScenarioStore

_COPIES: dict[Path, Copies] = {}


def _find(scenario: Scenario, events: Path, users: Users) -> Found:
    from feature_jobs.sources.leave_out import find

    return find(scenario, events, users)


def _leave_out(scenario: Scenario, events: Path, users: Users, output: Path) -> Metrics:
    from feature_jobs.sources.leave_out import leave_out

    return {**leave_out(scenario, events, users, output)}


def _copies_in(store: ScenarioStore) -> Copies:
    """This process's copies of source files, in a scratch folder of the store that is removed when the process ends."""
    scratch = store.objects.scratch

    def folder() -> Path:
        held = contextlib.ExitStack()
        # With the process, not with the day: the days after it read the copies too.
        atexit.register(held.close)
        return held.enter_context(scratch.folder())

    return _COPIES.setdefault(scratch.work, Copies(folder))


@step(
    reads={"yesterday": Input(of="events", days="previous")},
    writes="events",
    config=("data", "ingest"),
    source=True,
    uncompared=(COLUMNS_FILE,),  # a column that nobody declares changes no row
    forgetting=Forgetting(_find, _leave_out),
    imports=("feature_jobs.sources.ingest",),
    resources=Resources(cpus=2, memory_gib=4),
)
def ingest(config: DayConfig, *, yesterday: Path | None, events: Path) -> Metrics:
    """Writes one day of the source as typed Parquet. It drops exact duplicates and quarantines malformed rows, and
    counts both.

    Of entities it lands what is new or changed since the day before. It warns of columns of the source that the
    scenario does not declare and no earlier day had.

    Refuses a day without events, an unreadable source, more malformed rows than `ingest.max_quarantined_share`,
    integers that floats have rounded, and columns of another type than on the day before.
    """
    from feature_jobs.sources.ingest import ingest_day
    from feature_jobs.sources.new_columns import new_columns_text
    from feature_jobs.sources.retyped import refuse_retyped_events

    scenario, before = config.scenario, previous_day(config.scenario, config.ds)
    if yesterday and before:
        refuse_retyped_events(scenario, config.ds, before, yesterday)
    copies = _copies_in(config.store) if config.store else None
    counts = ingest_day(scenario, config.ds, events, copies, yesterday=yesterday)
    for place, new in counts.get("new_columns", {}).items():  # on stderr, because stdout holds the JSON line
        what, remedy = new_columns_text(new)
        warning = f"{config.ds}: {place}: {what}; {remedy} in {scenario.file}"
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return {**counts}
