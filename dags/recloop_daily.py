"""A daily Airflow DAG per scenario: its tasks and edges are the declarations of tasks.steps."""

from __future__ import annotations

from airflow.sdk import DAG

from dags.common import read_scenarios, scenario_dag, step_arguments, timetable_of
from dags.step_operator import StepOperator
from feature_jobs.schema import Scenario
from tasks.steps import DAILY, upstream

DOC = """
{description}

One run is one day, its logical date. The days form a chain, so they run in order and one at a time.

- **Past days**: *Trigger → Backfill* above, or
  `airflow backfill create --dag-id {dag_id} --from-date FIRST --to-date LAST --max-active-runs 1`.
  What is committed already is found done and costs nothing.
- **A failed day**: the end of the failed task's log says what to do. The days after it failed too, as the chain has
  a gap: backfill them all with `--reprocess-behavior failed`.
- **Corrected data**: `recloop chain replay --scenario {file} --from DAY --no-run` begins a generation; then backfill
  from that day with `--reprocess-behavior completed`.
- **Pool**: `train` takes a slot of the pool `gpu`: `airflow pools set gpu 1 "one training at a time"`.
"""


def build(scenario: Scenario) -> DAG:
    """The scenario's daily DAG. Airflow registers what is made inside `with`."""
    doc = DOC.format(description=scenario.description, dag_id=f"{scenario.name}_daily", file=scenario.file.name)
    with scenario_dag(scenario, "daily", timetable_of(scenario, scenario.schedule.daily, "first"), doc) as dag:
        tasks = {step: StepOperator(task_id=step, **step_arguments(scenario, step)) for step in DAILY}
    for step, task in tasks.items():
        for before in direct_upstream(step):
            tasks[before] >> task
    return dag


def direct_upstream(step: str) -> set[str]:
    """The declared edges into a step, less those that a longer way implies: same order, a graph that one can read."""
    before = set(upstream(step)) & set(DAILY)
    return before.difference(*(ancestors(other) for other in before))


def ancestors(step: str) -> set[str]:
    """All steps of the day that must be done before a step."""
    before = set(upstream(step)) & set(DAILY)
    return before.union(*(ancestors(other) for other in before))


for _scenario in read_scenarios()[0]:
    build(_scenario)
