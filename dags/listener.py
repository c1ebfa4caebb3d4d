"""Ends runs that Airflow would keep waiting: see `on_dag_run_running`. Airflow's plugin registers this module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.listeners import hookimpl

from dags.timetable import DayTimetable, require_past

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun


def on_dag_run_running(dag_run: DagRun, msg: str) -> None:
    """Fails a run with a logical date in the future, with the reason as its note.

    The timetable refuses such a run before it exists, except from `airflow dags trigger` and from a request that gives
    its data interval itself: then Airflow does not ask the timetable about the logical date. Left alone, the run would
    have no task until its date comes, and would hold the DAG's one active run.
    """
    if dag_run.logical_date is None or not isinstance(dag_run.get_dag().timetable, DayTimetable):
        return
    try:
        require_past(dag_run.logical_date)
    except ValueError as error:
        dag_run.note = str(error)
        dag_run.set_state("failed")


hookimpl(on_dag_run_running)  # marks it; as a decorator it would hide the function's types
