"""Parts of the daily and the tuning DAG. Airflow imports them for every parse: nothing heavy, no clock, no network."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, Param

from dags.assets import asset_of
from dags.notifier import FailureNotifier
from dags.timetable import DayTimetable, Picks
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, load_scenario, name_taken
from feature_jobs.schema.data import WEEKDAYS
from tasks.contract import Step
from tasks.steps import STEPS

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
GPU_POOL = "gpu"


def read_scenarios(folder: Path = SCENARIOS) -> tuple[list[Scenario], dict[Path, str]]:
    """The valid scenarios, and the error message of each invalid file.

    Of two files with one name neither is valid: Airflow would silently keep the DAG of one of them.
    """
    found, bad = [], {}
    for file in sorted(folder.glob("*.yaml")):
        try:
            found.append(_load(file, file.stat().st_mtime_ns))
        except BadInputError as error:
            bad[file] = str(error)
    files: dict[str, list[Path]] = {}
    for scenario in found:
        files.setdefault(scenario.name, []).append(scenario.file)
    bad |= {same[0]: name_taken(name, *same) for name, same in files.items() if len(same) > 1}
    return [scenario for scenario in found if len(files[scenario.name]) == 1], bad


@functools.cache
def _load(file: Path, modified_ns: int) -> Scenario:
    """Each DAG file reads all scenarios; a process that parses several of them reads an unchanged file once."""
    return load_scenario(file)


def scenario_dag(scenario: Scenario, suffix: str, timetable: DayTimetable, doc: str) -> DAG:
    """A DAG of the scenario, without tasks yet.

    `schedule.catch_up_from` schedules all days from there to the data's last; without it only the newest is scheduled.
    A backfill may take any day. Airflow leaves tasks out of a run that a person triggers before a DAG's start date,
    and calls such a run without tasks a success: so a DAG has no start date (a step refuses days that are not there),
    or, to catch up, it has one and can't be triggered, only backfilled.
    """
    dates: dict[str, Any] = {}
    if start := scenario.schedule.catch_up_from:
        dates["start_date"] = datetime.datetime.combine(start, datetime.time(), ZoneInfo(scenario.schedule.zone))
        dates["allowed_run_types"] = ["scheduled", "backfill"]
    return DAG(
        dag_id=f"{scenario.name}_{suffix}",
        description=scenario.description,
        doc_md=doc,
        schedule=timetable,
        **dates,
        catchup=bool(dates),
        # Only saves work: a step itself refuses a day whose day before is missing.
        max_active_runs=1,
        params={"data": Param(None, type=["null", "string"], description="Folder of the source, for data.path.")},
        tags=["recloop", scenario.name],
        default_args={
            "owner": "recloop",
            # Only exit code 6 and lost workers come to a retry; see StepOperator.
            "retries": 3,
            "retry_delay": datetime.timedelta(seconds=30),
            "retry_exponential_backoff": 2,  # each pause is twice the one before
            "max_retry_delay": datetime.timedelta(minutes=10),
            "on_failure_callback": FailureNotifier(),
        },
    )


def timetable_of(scenario: Scenario, cron: str, picks: Picks) -> DayTimetable:
    """The schedule over the days of the scenario's data."""
    days = scenario.data.days
    last = None if days.last is None else str(days.last)
    closed, skip = [WEEKDAYS.index(name) for name in days.closed], [str(day) for day in days.skip]
    return DayTimetable(cron, scenario.schedule.zone, picks=picks, last=last, skip=skip, closed=closed)


def step_arguments(scenario: Scenario, step: str) -> dict[str, Any]:
    """Keyword arguments of the step's Airflow task, from its declaration; Airflow defines their types."""
    declared = STEPS[step]
    pool = {"pool": GPU_POOL} if wants_gpu(declared) else {}
    return {
        "step": step,
        "scenario": str(scenario.file),
        "zone": scenario.schedule.zone,
        "on_no": declared.on_no,
        "outlets": [asset_of(scenario.name, declared.asset)] if declared.asset else [],
        "execution_timeout": datetime.timedelta(seconds=declared.timeout_s),
        "doc_md": f"{declared.doc}\n\nReads: {', '.join(declared.reads) or 'the source'}. Writes: {declared.writes}.",
        **pool,
    }


def wants_gpu(declared: Step) -> bool:
    """Says if the step needs a slot of the GPU pool; training always does, so that one runs at a time."""
    return declared.resources.gpus > 0 or declared.writes == "checkpoint"
