"""A weekly Airflow DAG per scenario: workers search in parallel, then one task writes the proposal."""

from __future__ import annotations

from airflow.sdk import DAG

from dags.common import read_scenarios, scenario_dag, step_arguments, timetable_of
from dags.step_operator import StepOperator
from dags.timetable import Picks
from feature_jobs.schema import Scenario

PICKS: Picks = "last"  # the last day of the week before the run
DOC = """
{description}

Searches the scenario's `tune.space` with {trials} trials on {workers} workers. Each trial starts from the same parent
checkpoint and learns the same past days. To resume a stopped study, clear the failed worker. The last task writes the
proposal; a person accepts it (`recloop accept`), unless the scenario says `tune.apply: auto`.
"""


def build(scenario: Scenario) -> DAG | None:
    """The scenario's tuning DAG; None without a search space. Airflow registers DAGs created in a `with` block."""
    tune, workers = scenario.tune, scenario.tune.workers
    if not tune.space:
        return None
    doc = DOC.format(description=scenario.description, trials=tune.trials, workers=workers)
    arguments = {**step_arguments(scenario, "tune"), "picks": PICKS}
    with scenario_dag(scenario, "tuning", timetable_of(scenario, tune.schedule, PICKS), doc) as dag:
        shares = [["--worker", str(worker)] for worker in range(workers)]
        search = StepOperator.partial(task_id="tune_worker", **arguments).expand(options=shares)
        search >> StepOperator(task_id="tune", **arguments)
    return dag


for _scenario in read_scenarios()[0]:
    build(_scenario)
