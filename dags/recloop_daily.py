"""A daily Airflow DAG per scenario: its tasks and edges are the declarations of tasks.steps."""

from __future__ import annotations

from airflow.sdk import DAG

from dags.common import read_scenarios, scenario_dag, step_arguments, timetable_of
from dags.step_operator import StepOperator
from feature_jobs.schema import Scenario
from tasks.steps import DAILY, daily_steps, upstream

DOC = """
{description}

One run processes one day of data, which is in the run's id: `scheduled__2022-04-25` starts on the 26th. Each day
learns from the checkpoint of the day before, so the days run in order, one at a time. No run is scheduled for days
after the data's last, or for skipped days.

- **Past days**: *Trigger → Backfill* above, or
  `airflow backfill create --dag-id {dag_id} --from-date FIRST --to-date LAST --max-active-runs 1`.
  FIRST and LAST are days, 2022-04-25, and both are included. Steps that are committed already are left as they are.
- **A failed day**: the end of the failed task's log says what to do. The days after it failed too, because the chain
  has a gap: backfill all of them with `--reprocess-behavior failed`.
- **Corrected data**: `recloop chain replay -s {scenario} --from DAY --no-run` starts a new generation; then backfill
  from that day with `--reprocess-behavior completed`.
- **Pool**: `train` needs a slot of the pool `gpu`: `airflow pools set gpu 1 "one training at a time"`.
- **Your own DAG on a new champion**: `schedule=[Asset("{scenario}.champion")]`; `{scenario}.samples`,
  `{scenario}.checkpoint` and `{scenario}.version` are assets too. An event's metadata has day, digest and AUC.
"""


def build(scenario: Scenario) -> DAG:
    """The scenario's daily DAG. Airflow registers DAGs that are created in a `with` block."""
    doc = DOC.format(description=scenario.description, dag_id=f"{scenario.name}_daily", scenario=scenario.name)
    with scenario_dag(scenario, "daily", timetable_of(scenario, scenario.schedule.daily, "first"), doc) as dag:
        tasks = {step: StepOperator(task_id=step, **step_arguments(scenario, step)) for step in daily_steps(scenario)}
    for step, task in tasks.items():
        for before in direct_upstream(step):
            tasks[before] >> task
    return dag


def direct_upstream(step: str) -> set[str]:
    """The declared edges into a step, without those that a longer path implies: same order, a readable graph."""
    before = set(upstream(step)) & set(DAILY)
    return before.difference(*(ancestors(other) for other in before))


def ancestors(step: str) -> set[str]:
    """All steps of the day that must be done before a step."""
    before = set(upstream(step)) & set(DAILY)
    return before.union(*(ancestors(other) for other in before))


for _scenario in read_scenarios()[0]:
    build(_scenario)
