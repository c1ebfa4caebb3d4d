"""Marks of the committed steps that MLflow shows, and functions that show the others.

A mark `tracked/g0000/DS/STEP` in the store says that a commit is shown. A commit has none where its step left that to
a later one (docs/decisions/0009-mlflow-client.md), or where MLflow did not answer. So each process that shows something
shows all that waits.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from feature_jobs.errors import RecloopError
from feature_jobs.schema import Scenario
from tasks.contract import Step
from tasks.steps import STEPS
from tasks.store.keys import ALL_RECORDS, ALL_TRACKED, commit_key, place_of_record, tracked_key
from tasks.store.scenario_store import Commit, ScenarioStore

WORTH_AN_IMPORT_S = 20.0  # beside so long a step the import costs little


def not_shown(store: ScenarioStore) -> list[Commit]:
    """Commits of tracked steps that MLflow does not show yet, oldest generation and day first.

    They are found by the records of their runs, which are written before each commit: two listings, however long the
    chain is.
    """
    waiting, shown = [], set(store.keys(ALL_TRACKED))
    for place in filter(None, map(place_of_record, store.keys(ALL_RECORDS))):
        declared = STEPS.get(place.step.partition("-")[0])  # a step with variants commits each as NAME-DIGEST
        if declared is not None and declared.tracked and tracked_key(*place) not in shown:
            waiting.append(commit_key(*place))
    return [commit for commit in store.objects.each(store.commit_at, waiting) if commit is not None]


def show(scenario: Scenario, store: ScenarioStore, commits: Sequence[Commit]) -> None:
    """Shows commits in MLflow and marks them, day by day. Raises RecloopError where MLflow does not answer or refuses;
    days that were shown before that stay marked."""
    from tasks import tracking

    days: dict[tuple[int, str], list[Commit]] = {}
    for commit in commits:
        days.setdefault((commit.generation, commit.ds), []).append(commit)
    view = tracking.View(scenario, store, STEPS)
    for of_day in days.values():
        view.show(of_day)
        for commit in of_day:
            with contextlib.suppress(OSError):
                store.put_if_absent(tracked_key(commit.generation, commit.ds, commit.step), b"")


def show_after(scenario: Scenario, store: ScenarioStore, ds: str, *, at_once: bool) -> None:
    """Shows commits that are not shown yet, after a step of `ds`. MLflow is a view: where it can't be reached, the
    commits still stand, and a message gives the remedy.

    `at_once`: not only where another day's steps wait, which no step of that day may ever show.
    """
    try:
        waiting = not_shown(store)
        if at_once or any(commit.ds != ds for commit in waiting):
            show(scenario, store, waiting)
    except RecloopError as error:
        remedy = f"the next step tries again, and so does: recloop status {store.options} --repair"
        print(f"not shown in MLflow yet: {error}; {remedy}", file=sys.stderr)


def show_before(scenario: Scenario, store: ScenarioStore) -> None:
    """Shows the earlier steps before one that talks to MLflow itself. Such a step opens the run of its day, which would
    else begin with this step: MLflow can't move a run's start, and shows the duration since then."""
    # MLflow that does not answer makes the step fail, with the remedy.
    with contextlib.suppress(RecloopError):
        if waiting := not_shown(store):
            show(scenario, store, waiting)


def is_time_to_show(declared: Step, seconds: float, *, refused: bool) -> bool:
    """Says if the day is to be shown in MLflow now, or by the next step of the day.

    Importing MLflow takes a process 1.5 s, as much as a short step itself. So short steps that have not imported it are
    shown by the day's next step that has; one of them ends every day (docs/decisions/0009-mlflow-client.md).
    """
    is_loaded = "mlflow" in sys.modules
    is_long = seconds >= WORTH_AN_IMPORT_S
    return is_loaded or is_long or declared.registry or not declared.daily or refused
