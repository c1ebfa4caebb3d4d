"""Fails runs that Airflow would keep waiting, or would call a success without their work done.

Airflow's plugin registers this module.
"""

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


def on_dag_run_success(dag_run: DagRun, msg: str) -> None:
    """Fails a run of which a person marked a task as successful that did not run, with the reason as its note.

    Airflow takes the person's word; the tasks behind such a task find its output missing, but behind the last one
    nothing looks. A step that has run left its digest as its return value.
    """
    from airflow.models.xcom import XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None or not isinstance(dag_run.get_dag().timetable, DayTimetable):
        return
    returned = select(XComModel.task_id).where(
        XComModel.dag_id == dag_run.dag_id, XComModel.run_id == dag_run.run_id, XComModel.key == "return_value"
    )
    done = {task.task_id for task in dag_run.get_task_instances(state=["success"], session=session)}
    if by_hand := sorted(done - set(session.scalars(returned))):
        dag_run.note = (
            f"marked as successful by hand, without having run: {', '.join(by_hand)}. Clear it: it runs, or finds its "
            f"output committed"
        )
        dag_run.set_state("failed")


for _hook in (on_dag_run_running, on_dag_run_success):
    hookimpl(_hook)  # marks it; as a decorator it would hide the function's types
