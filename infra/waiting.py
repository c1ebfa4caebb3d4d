"""Reasons why the demo waits while nothing changes in Airflow."""

from __future__ import annotations

import time
from collections.abc import Sequence

from infra.airflow_api import AirflowApi, Pool
from infra.day_task import Task

PATIENCE_S = 20.0
WAITING_FOR_A_SLOT = ("scheduled", "queued")


def reasons(api: AirflowApi, dag_id: str, tasks: Sequence[Task]) -> list[str]:
    """A line for each thing that the days wait for, the likeliest cause first; empty where Airflow shows none."""
    found = []
    if api.scheduler_health() != "healthy":
        found.append("Airflow's scheduler has not reported for a while; its log is scheduler.log")
    if api.is_paused(dag_id):
        found.append(f"{dag_id} is paused: unpause it at {api.url}/dags/{dag_id}")
    pools = {pool["name"]: pool for pool in api.pools()}
    for task in tasks:
        pool = pools.get(task.pool)
        if task.state in WAITING_FOR_A_SLOT and pool is not None and not pool["open_slots"]:
            found.append(f"{task.step} of {task.ds} waits for {_slots(pool)}")
        elif task.state == "up_for_retry":
            found.append(f"{task.step} of {task.ds} failed at try {task.try_number} and is tried again soon")
        elif task.state == "running" and task.start is not None:
            found.append(f"{task.step} of {task.ds} has been running for {time.time() - task.start:.0f} s")
    return found


def _slots(pool: Pool) -> str:
    """Describes the missing slot of a pool."""
    if not pool["slots"]:
        return f"the pool {pool['name']}, which has no slots: give it one under Admin > Pools"
    return f"a slot of the pool {pool['name']}: all {pool['slots']} are taken"
