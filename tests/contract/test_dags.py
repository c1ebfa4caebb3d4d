"""The DAG folder: light and quick to parse, and nothing but the declarations in it."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest

from feature_jobs.schema import load_scenario
from tasks.steps import DAILY, STEPS, daily_steps, upstream
from tests.airflow_home import airflow_environment
from tests.paths import ROOT, SCENARIOS
from tests.small import write_small

HEAVY = {
    "torch",
    "pandas",
    "mlflow",
    "duckdb",
    "pyarrow",
    "numpy",
    "great_expectations",
    "optuna",
    "onnx",
    "matplotlib",
}
PARSE_BUDGET_S = 1.0
PARSE = """
import airflow.sdk, json, runpy, sys, time
begun = time.process_time()  # seconds of CPU: other processes on the machine do not count
for file in ("recloop_daily", "recloop_tuning", "scenario_errors"):
    runpy.run_path(f"{sys.argv[1]}/dags/{file}.py")
print(json.dumps({"seconds": time.process_time() - begun, "modules": sorted({m.split(".")[0] for m in sys.modules})}))
"""
BAG = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(f"{sys.argv[1]}/dags")
print(json.dumps({"dags": sorted(bag.dags), "errors": bag.import_errors}))
"""


def _in_airflow(code: str, project: Path, home: Path) -> dict[str, Any]:
    """The JSON that the code prints last, run beside an Airflow of its own on the DAGs of `project`."""
    environment = {**os.environ, **airflow_environment(home), "PYTHONPATH": f"{project}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, str(project)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def dags() -> dict[str, Any]:
    """All DAGs of the project, as Airflow loads them."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(ROOT / "dags"))
    assert not bag.import_errors
    return dict(bag.dags)


def test_airflow_parses_the_files_alone_that_declare_dags_or_report_errors() -> None:
    """It starts a process for each of them, again and again."""
    from airflow.utils.file import list_py_file_paths

    parsed = {Path(file).stem for file in list_py_file_paths(ROOT / "dags")}
    assert parsed == {"recloop_daily", "recloop_tuning", "scenario_errors"}


def test_parsing_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    parsed = _in_airflow(PARSE, ROOT, tmp_path)
    assert parsed["seconds"] < PARSE_BUDGET_S
    assert not set(parsed["modules"]) & HEAVY


def test_every_scenario_has_a_daily_dag_and_a_tuning_dag_where_it_says_what_to_search(dags: dict[str, Any]) -> None:
    scenarios = [load_scenario(file) for file in SCENARIOS.glob("*.yaml")]
    daily = {f"{scenario.name}_daily" for scenario in scenarios}
    tuning = {f"{scenario.name}_tuning" for scenario in scenarios if scenario.tune.space}
    assert set(dags) == daily | tuning


def test_order_is_that_of_the_declarations_without_a_redundant_edge(dags: dict[str, Any]) -> None:
    closure: dict[str, set[str]] = {}
    for step in DAILY:
        closure[step] = set(upstream(step)).union(*(closure[before] for before in upstream(step)))
    for dag_id, dag in dags.items():
        if dag_id.endswith("_daily"):
            assert next(task.task_id for task in dag.topological_sort()) == DAILY[0]
            found = {task.task_id: task.get_flat_relative_ids(upstream=True) for task in dag.tasks}
            scenario = load_scenario(SCENARIOS / f"{dag_id.removesuffix('_daily')}.yaml")
            assert found == {step: closure[step] for step in daily_steps(scenario)}
            for task in dag.tasks:
                before = task.upstream_task_ids
                assert not any(other in closure[step] for step in before for other in before)
            evaluate, quantize = dag.get_task("evaluate"), dag.get_task("quantize")
            assert quantize.task_id not in evaluate.get_flat_relative_ids(upstream=True)
            assert evaluate.task_id not in quantize.get_flat_relative_ids(upstream=True)


def test_a_failed_step_can_not_end_green(dags: dict[str, Any]) -> None:
    assert {task.trigger_rule.value for dag in dags.values() for task in dag.tasks} == {"all_success"}


def test_tasks_follow_their_declaration(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag.max_active_runs == 1
        assert dag.doc_md
        for task in dag.tasks:
            arguments = task.partial_kwargs if task.is_mapped else vars(task)
            declared = STEPS[arguments["step"]]
            assert task.execution_timeout == datetime.timedelta(seconds=declared.timeout_s)
            assert task.pool == (
                "gpu" if declared.resources.gpus or declared.writes == "checkpoint" else "default_pool"
            )
            assert declared.doc in task.doc_md
            assert task.retries == 3
            assert task.retry_exponential_backoff
            assert [type(callback).__name__ for callback in task.on_failure_callback] == ["FailureNotifier"]


def test_tuning_maps_workers_and_ends_in_one_task() -> None:
    import dags.recloop_tuning as tuning

    scenario = load_scenario(SCENARIOS / "movielens.yaml")
    space = {"train.learning_rate": {"low": 0.001, "high": 0.1}}
    tune = scenario.tune.model_copy(update={"space": space, "workers": 3})
    dag = tuning.build(scenario.model_copy(update={"tune": tune}))
    assert dag is not None
    assert dag.get_task("tune").upstream_task_ids == {"tune_worker"}
    mapped = dag.get_task("tune_worker")
    assert mapped.is_mapped
    assert [share[1] for share in mapped.expand_input.value["options"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_a_broken_scenario_is_reported_and_leaves_the_others_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    write_small(tmp_path / "scenarios", num_days=1)
    broken = (tmp_path / "scenarios" / "shop.yaml").read_text().replace("labels:", "lables:")
    (tmp_path / "scenarios" / "broken.yaml").write_text(broken.replace("name: shop", "name: broken"))
    found = _in_airflow(BAG, tmp_path, tmp_path / "airflow")
    assert "shop_daily" in found["dags"]
    assert "broken_daily" not in found["dags"]
    [(file, message)] = found["errors"].items()
    assert "scenario_errors.py" in file
    assert "lables" in message
    assert "labels" in message


@pytest.mark.slow
def test_two_scenarios_of_one_name_are_refused_and_leave_the_others_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    scenario = write_small(tmp_path / "scenarios", num_days=1)
    for name in ("twice", "twice", "once"):
        file = scenario.with_name(f"{name}{len(list(scenario.parent.glob('*.yaml')))}.yaml")
        file.write_text(scenario.read_text().replace("name: shop", f"name: {name}"))
    found = _in_airflow(BAG, tmp_path, tmp_path / "airflow")
    assert found["dags"] == ["once_daily", "once_tuning", "shop_daily", "shop_tuning"]
    [message] = found["errors"].values()
    assert "twice1.yaml" in message
    assert "twice2.yaml" in message
    assert "give each file a name of its own" in message


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/Los_Angeles"])
def test_a_backfill_has_the_days_that_it_names(zone: str) -> None:
    dag = _serialized(_catching_up(zone=zone))

    def between(first: str, last: str) -> list[str]:
        moments = map(datetime.datetime.fromisoformat, (first, last))
        return [info.run_after.isoformat()[:10] for info in dag.iter_dagrun_infos_between(*moments)]

    as_typed = between("1997-11-12T00:00:00+00:00", "1997-11-21T00:00:00+00:00")  # --to-date 1997-11-21
    assert as_typed == [f"1997-11-{day}" for day in range(12, 22)]
    assert between("1997-11-13T00:00:00+00:00", "1997-11-13T00:00:00+00:00") == ["1997-11-13"]
    assert between("1997-11-20T00:00:00+00:00", "2999-01-01T00:00:00+00:00") == ["1997-11-20", "1997-11-21"]
    begin, end = (
        datetime.datetime(1997, 11, 14, hour, 30, tzinfo=ZoneInfo(zone)).isoformat() for hour in (0, 23)
    )  # as infra.backfill and a date with a time of the day in the UI
    assert between(begin, end) == ["1997-11-14"]


def test_a_weekly_backfill_has_the_week_whose_last_day_it_names(dags: dict[str, Any]) -> None:
    dag = _serialized(dags["movielens_tuning"])  # runs on Mondays about the Sunday
    sunday = datetime.datetime(1997, 11, 16, tzinfo=datetime.UTC)
    assert [str(info.run_after.date()) for info in dag.iter_dagrun_infos_between(sunday, sunday)] == ["1997-11-16"]


def test_a_date_in_the_future_is_refused_with_the_reason(dags: dict[str, Any]) -> None:
    timetable = _serialized(dags["movielens_daily"]).timetable
    with pytest.raises(ValueError, match=r"2999-01-01T00:00:00\+00:00 is in the future; give a day whose data is"):
        timetable.infer_manual_data_interval(run_after=pendulum.datetime(2999, 1, 1))


def test_a_triggered_run_is_not_named_by_a_day_that_is_not_its_own(dags: dict[str, Any]) -> None:
    """`airflow dags trigger` asks for the interval of this moment, for any --logical-date."""
    from airflow.utils.types import DagRunType

    timetable, now = _serialized(dags["movielens_daily"]).timetable, pendulum.now("UTC")
    interval = timetable.infer_manual_data_interval(run_after=now)
    name = timetable.generate_run_id(run_type=DagRunType.MANUAL, run_after=now, data_interval=interval)
    assert name == f"manual__{now.isoformat()}"


def test_a_run_outside_of_the_dates_can_not_be_an_empty_success(dags: dict[str, Any]) -> None:
    for dag in [*dags.values(), _catching_up()]:
        manual = dag.allowed_run_types is None or "manual" in {kind.value for kind in dag.allowed_run_types}
        assert not manual or {(task.start_date, task.end_date) for task in dag.tasks} == {(None, None)}


def test_without_catching_up_only_the_newest_day_is_scheduled() -> None:
    info = _serialized(_open_ended()).next_dagrun_info(last_automated_run_info=None)
    assert info is not None
    assert abs(info.data_interval.end - datetime.datetime.now(datetime.UTC)) <= datetime.timedelta(days=1)


def test_no_run_is_scheduled_after_the_data_has_ended(dags: dict[str, Any]) -> None:
    for dag in dags.values():  # their data ended years ago
        assert _serialized(dag).next_dagrun_info(last_automated_run_info=None) is None


def test_runs_are_named_by_their_day_in_the_zone_of_the_scenario() -> None:
    from airflow.utils.types import DagRunType

    timetable = _serialized(_catching_up()).timetable
    [first, *_] = _scheduled(_catching_up())
    interval = first.data_interval
    assert interval.start.isoformat() == "1997-11-14T19:00:00+00:00"  # 03:00 of the 15th in Shanghai
    run_id = timetable.generate_run_id
    assert run_id(run_type=DagRunType.SCHEDULED, run_after=interval.end, data_interval=interval) == (
        "scheduled__1997-11-15"
    )
    manual = timetable.infer_manual_data_interval(run_after=interval.start)
    assert run_id(run_type=DagRunType.MANUAL, run_after=interval.end, data_interval=manual).startswith(
        "manual__1997-11-15__"
    )
    assert str(first.run_after.date()) == "1997-11-15"  # which names a backfill's run


def test_skipped_days_have_no_run() -> None:
    days = load_scenario(SCENARIOS / "movielens.yaml").data.days
    skipped = days.model_copy(update={"skip": (datetime.date(1997, 11, 16), datetime.date(1997, 11, 17))})
    named = [str(info.run_after.date()) for info in _scheduled(_catching_up(skipped))]
    assert named == ["1997-11-15", "1997-11-18", "1997-11-19", "1997-11-20", "1997-11-21"]


def test_closed_days_of_the_week_have_no_run() -> None:
    days = load_scenario(SCENARIOS / "movielens.yaml").data.days
    closed = days.model_copy(update={"closed": ("sunday", "wednesday")})  # the 16th, and the 19th
    named = [str(info.run_after.date()) for info in _scheduled(_catching_up(closed))]
    assert named == ["1997-11-15", "1997-11-17", "1997-11-18", "1997-11-20", "1997-11-21"]


def test_what_steps_announce_are_outlets_of_their_tasks(dags: dict[str, Any]) -> None:
    for name, dag in dags.items():
        for task in dag.tasks:
            arguments = task.partial_kwargs if task.is_mapped else vars(task)
            declared = STEPS[arguments["step"]]
            expected = [f"{name.rsplit('_', 1)[0]}.{declared.asset}"] if declared.asset else []
            assert [outlet.name for outlet in arguments["outlets"]] == expected
    assert {"samples", "checkpoint", "version", "champion"} == {s.asset for s in STEPS.values() if s.asset}


def test_catching_up_begins_where_the_scenario_says_and_ends_with_the_data() -> None:
    scheduled = _scheduled(_catching_up())
    assert scheduled[0].logical_date.isoformat() == "1997-11-14T19:00:00+00:00"  # 03:00 of the 15th in Shanghai
    assert len(scheduled) == 7


def _scheduled(dag: Any) -> list[Any]:
    """All runs that the scheduler would create, one after the other."""
    read = _serialized(dag)
    infos, info = [], read.next_dagrun_info(last_automated_run_info=None)
    while info is not None:
        infos.append(info)
        info = read.next_dagrun_info(last_automated_run_info=info)
    return infos


def _catching_up(days: Any = None, zone: str = "Asia/Shanghai") -> Any:
    from dags.recloop_daily import build

    scenario = load_scenario(SCENARIOS / "movielens.yaml")
    schedule = scenario.schedule.model_copy(update={"catch_up_from": datetime.date(1997, 11, 15), "zone": zone})
    data = scenario.data.model_copy(update={"days": days or scenario.data.days})
    return build(scenario.model_copy(update={"schedule": schedule, "data": data}))


def _open_ended() -> Any:
    from dags.recloop_daily import build

    scenario = load_scenario(SCENARIOS / "movielens.yaml")
    data = scenario.data.model_copy(update={"days": scenario.data.days.model_copy(update={"last": None})})
    return build(scenario.model_copy(update={"data": data}))


def _serialized(dag: Any) -> Any:
    """The DAG as the scheduler reads it from its database."""
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag))
