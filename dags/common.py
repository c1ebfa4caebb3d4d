"""What the daily and the tuning DAG share. Read while Airflow parses: nothing heavy, no clock, no network."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, CronDataIntervalTimetable, Param

from dags.notifier import FailureNotifier
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, load_scenario
from tasks.contract import Step
from tasks.steps import STEPS

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
GPU_POOL = "gpu"


def read_scenarios(folder: Path = SCENARIOS) -> tuple[list[Scenario], dict[Path, str]]:
    """The scenarios that read well, and for each of the others what is wrong with it."""
    good, bad = [], {}
    for file in sorted(folder.glob("*.yaml")):
        try:
            good.append(load_scenario(file))
        except BadInputError as error:
            bad[file] = str(error)
    return good, bad


def scenario_dag(scenario: Scenario, suffix: str, cron: str, doc: str) -> DAG:
    """A DAG of the scenario, without tasks yet.

    `schedule.catch_up_from` schedules all days from there to the data's last; without it only the newest is scheduled,
    and skips where the data has ended. A backfill may take any day. Airflow leaves tasks out of a run that a person
    triggers outside of a DAG's dates, and calls such a run of nothing a success: so a DAG has no dates (a step refuses
    days that are not there), or, to catch up, it has dates and can't be triggered, only backfilled.
    """
    zone, schedule, days = ZoneInfo(scenario.schedule.zone), scenario.schedule, scenario.data.days
    dates: dict[str, Any] = {}
    if schedule.catch_up_from:
        dates["start_date"] = datetime.datetime.combine(schedule.catch_up_from, datetime.time(), zone)
        dates["end_date"] = days.last and datetime.datetime.combine(days.last, datetime.time.max, zone)
        dates["allowed_run_types"] = ["scheduled", "backfill"]
    return DAG(
        dag_id=f"{scenario.name}_{suffix}",
        description=scenario.description,
        doc_md=doc,
        schedule=CronDataIntervalTimetable(cron, timezone=schedule.zone),
        **dates,
        catchup=schedule.catch_up_from is not None,
        max_active_runs=1,
        params={"data": Param(None, type=["null", "string"], description="Folder of the source, for data.path.")},
        tags=["recloop", scenario.name],
        default_args={
            "owner": "recloop",
            # Only exit code 6 and lost workers come to a retry; see StepOperator.
            "retries": 3,
            "retry_delay": datetime.timedelta(seconds=30),
            "retry_exponential_backoff": 2,
            "max_retry_delay": datetime.timedelta(minutes=10),
            "on_failure_callback": FailureNotifier(),
        },
    )


def step_arguments(scenario: Scenario, step: str) -> dict[str, Any]:
    """What the step's declaration says to its Airflow task."""
    declared = STEPS[step]
    pool = {"pool": GPU_POOL} if wants_gpu(declared) else {}
    return {
        "step": step,
        "scenario": str(scenario.file),
        "zone": scenario.schedule.zone,
        "on_no": declared.on_no,
        "skip_days": [str(day) for day in scenario.data.days.skip],
        "last_day": str(scenario.data.days.last or "") or None,
        "execution_timeout": datetime.timedelta(seconds=declared.timeout_s),
        "doc_md": f"{declared.doc}\n\nReads: {', '.join(declared.reads) or 'the source'}. Writes: {declared.writes}.",
        **pool,
    }


def wants_gpu(declared: Step) -> bool:
    """Whether the step takes a slot of the GPU pool; training does on every machine, to run one at a time."""
    return declared.resources.gpus > 0 or declared.writes == "checkpoint"
