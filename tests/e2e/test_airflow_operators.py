"""Actions of operators on a running Airflow, and failures of its machines. The tests build on one another.

After each of them: one commit per step and day, a chain that `verify` calls clean, no run or version twice in MLflow,
no run green whose day is not committed. Two scenarios run all the time: `shop`, on which the operators work, and
`late`, which catches up beside it. The store is in a bucket, and MLflow is reached through its server, as in the
platform, so that it can be away.
"""

import datetime
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import load_scenario
from infra import servers
from infra.airflow_api import AirflowApi
from infra.day_task import task_of
from infra.processes import find
from infra.servers import Local
from infra.waiting import reasons
from tasks.run.shown import not_shown
from tasks.store.scenario_store import ScenarioStore, open_store
from tasks.store.verify import require_sound
from tests.airflow_operator import Operator, backfill_id
from tests.airflow_project import Project, returned
from tests.object_store import ObjectServer
from tests.paths import ROOT
from tests.plain_days import Digests
from tests.small import DAILY, days, write_small
from tests.waiting import awaited

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]
DAYS = days(5)


@pytest.fixture(scope="module")
def bucket(object_server: ObjectServer) -> str:
    """URL of the store."""
    return object_server.new_url()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, object_server: ObjectServer, bucket: str) -> Iterator[Project]:
    """A project whose servers run, with shorter pauses between tries."""
    root = tmp_path_factory.mktemp("operators")
    project = Project.new(root)
    spoil(root / "dags" / "common.py", "timedelta(seconds=30)", "timedelta(seconds=4)")
    write_small(root / "scenarios", num_days=len(DAYS))
    write_late(root)
    usual = servers.settings

    def settings(local: Local) -> dict[str, str]:
        return {
            **usual(local),
            "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
            "AIRFLOW__WORKERS__MISSING_DAG_RETRY_DELAY": "4",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",  # at 0.2 s the scheduler takes a tenth of a core
            "RECLOOP_STORE": bucket,
            "MLFLOW_TRACKING_URI": local.mlflow_url,
            "RECLOOP_MLFLOW_SERVER": "",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{root}{os.pathsep}{ROOT}")
        for name, value in object_server.environment(RECLOOP_CACHE=str(root / "cache")).items():
            patch.setenv(name, value)
        patch.setattr(servers, "settings", settings)
        patch.delitem(servers.AIRFLOW, "triggerer")  # nothing defers
        try:
            project.choose_ports()
            servers.start_servers(project.home, print)
            api = project.api()
            api.ensure_pool("gpu", 1, "one training at a time")
            awaited(lambda: api.has_dag("shop_daily") and api.has_dag("late_daily"), within_s=120, every_s=0.5)
            api.unpause("shop_daily")
            yield project
        finally:
            servers.stop_servers(project.home)


@pytest.fixture
def shop(project: Project) -> Operator:
    return Operator(project, "shop_daily")


@pytest.fixture
def late(project: Project) -> Operator:
    return Operator(project, "late_daily")


def write_late(root: Path) -> None:
    """A scenario that catches up from its first day on; its second day is not readable at first."""
    head, _ = write_small(root / "elsewhere", num_days=3).read_text().split("tune:")
    text = head.replace("name: shop", "name: late").replace("path: data\n", "path: ../elsewhere/data\n")
    (root / "scenarios" / "late.yaml").write_text(f"{text}schedule: {{catch_up_from: {DAYS[0]}}}\n")
    spoil(second_day(root), ",0,", ",maybe,")


def await_errors(project: Project, api: AirflowApi, *words: str) -> None:
    """Waits until Airflow's import errors have all the words, or, without words, until there are none.

    It parses a file that has changed at once, else within a minute.
    """

    def found() -> bool:
        for file in (project.root / "dags").glob("*.py"):
            file.touch()
        said = "".join(api.import_errors())
        return all(word in said for word in words) if words else not said

    awaited(found, within_s=200, said=lambda: "".join(api.import_errors()), every_s=2.0)


def second_day(root: Path) -> Path:
    return root / "elsewhere" / "data" / "events" / f"{DAYS[1]}.csv"


def spoil(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.fixture(autouse=True)
def sound_afterwards(project: Project, bucket: str, shop: Operator, late: Operator) -> Iterator[None]:
    """Checks the facts that must be true after any action of an operator."""
    yield
    for operator in (shop, late):
        name = operator.dag_id.removesuffix("_daily")
        store = open_store(bucket, name)
        require_sound(load_scenario(project.root / "scenarios" / f"{name}.yaml"), store)
        # In this order: a step that runs on may commit in between, its files first and its record last.
        folders = {key.rpartition("/")[0] for key in store.keys("g*/*/*/*/*")}
        done = {key.rpartition("/")[0] for key in store.keys("g*/*/*/commit.json")}
        committed = {commit.key for commit in store.commits()}
        assert {key for key in folders if key.rpartition("/")[0] in done} <= committed
        for run in operator.runs():
            if run["state"] == "success":
                states = set(operator.states(run["dag_run_id"]).values())
                assert states <= {"success"}, run
                assert missing(store, run["logical_date"][:10]) == [], run
    assert_nothing_twice(project)


def missing(store: ScenarioStore, ds: str) -> list[str]:
    """Daily steps that are not committed."""
    return [step for step in DAILY if store.find(step, ds) is None]


def assert_nothing_twice(project: Project) -> None:
    client = MlflowClient(project.local().mlflow_url)
    for experiment in client.search_experiments():
        tags = [run.data.tags for run in client.search_runs([experiment.experiment_id], max_results=1000)]
        keys = ("recloop.kind", "recloop.ds", "recloop.step", "recloop.generation")
        runs = Counter(tuple(of.get(key) for key in keys) for of in tags if "recloop.trial" not in of)
        assert not [key for key, count in runs.items() if count > 1]
        found = [version.tags for version in client.search_model_versions(f"name='{experiment.name}'")]
        versions = Counter((of["recloop.checkpoint"], of["recloop.export"]) for of in found)
        assert not [key for key, count in versions.items() if count > 1]


def test_a_date_in_the_future_is_refused_however_it_is_asked_for(shop: Operator) -> None:
    with pytest.raises(BadInputError, match=r"400.*2999-01-01.* is in the future; give a day whose data is there"):
        shop.trigger("future", "2999-01-01T00:00:00Z")
    interval = {"data_interval_start": "2999-01-01T00:00:00Z", "data_interval_end": "2999-01-02T00:00:00Z"}
    shop.trigger("interval", "2999-01-01T00:00:00Z", **interval)
    shop.command("dags", "trigger", shop.dag_id, "--logical-date", "2998-01-01T00:00:00+00:00", "--run-id", "typed")
    for run_id in ("interval", "typed"):
        shop.ended(run_id)
        assert shop.state(run_id) == "failed"
        assert shop.states(run_id) == dict.fromkeys(DAILY)  # nothing ran
        assert "is in the future" in shop.run(run_id)["note"]


def test_days_that_are_not_there_fail_at_once_with_the_reason(shop: Operator) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    asked = {
        "today": (f"{today}T00:00:00Z", f"{today} is not over yet in UTC"),
        "dateless": (None, "has no logical date, so its day is unknown; trigger it with the day"),
        "before": ("2020-01-01T00:00:00Z", f"exit code 4: .*2020-01-01 is outside {DAYS[0]}"),
    }
    for run_id, (date, _) in asked.items():
        shop.trigger(run_id, date)
    for run_id, (_, expected) in asked.items():
        assert shop.ended(run_id)["ingest"]["state"] == "failed"
        assert re.search(expected, shop.reason(run_id, "ingest"))


def test_the_documented_backfill_waits_while_paused_and_while_the_pool_is_empty(shop: Operator, late: Operator) -> None:
    run_id = backfill_id(DAYS[0])
    shop.set_slots(0)
    doc = shop.api.call("GET", f"/dags/{shop.dag_id}/details")["doc_md"]
    [command] = re.findall(r"`airflow (backfill create .*?)`", doc)
    shop.command(*command.replace("FIRST", DAYS[0]).replace("LAST", DAYS[1]).split())
    late.api.unpause(late.dag_id)
    shop.reached(run_id, "ingest", "running", "success")
    shop.api.call("PATCH", f"/dags/{shop.dag_id}", {"is_paused": True})
    assert "shop_daily is paused: unpause it at" in "\n".join(reasons(shop.api, shop.dag_id, []))
    shop.reached(run_id, "ingest", "success")  # a running task is not stopped
    time.sleep(3)
    assert shop.states(run_id)["join"] is None
    shop.api.unpause(shop.dag_id)
    shop.reached(run_id, "train", "scheduled")
    tasks = [task_of(DAYS[0], run_id, task) for task in shop.api.task_instances(shop.dag_id, run_id)]
    waits = "\n".join(reasons(shop.api, shop.dag_id, tasks))
    assert f"train of {DAYS[0]} waits for the pool gpu, which has no slots" in waits


def test_states_set_by_hand_make_no_day_green_that_is_not_committed(shop: Operator) -> None:
    first, second = map(backfill_id, DAYS[:2])
    shop.set_state(first, "deploy", "success")  # the last task: for Airflow it decides over the run
    shop.set_state(first, "train", "failed")
    shop.ended(first)
    assert shop.states(first)["register"] == "upstream_failed"
    assert shop.state(first) == "failed"
    assert "by hand, without having run: deploy" in shop.run(first)["note"]
    shop.set_slots(1)
    shop.ended(second)  # the day after can't learn, and says which day is missing
    assert f"exit code 5: train of {DAYS[1]} needs the output of train of {DAYS[0]}" in shop.reason(second, "train")
    shop.set_state(first, "train", "success")
    shop.ended(first)  # Airflow starts the tasks that had been waiting for it
    assert shop.state(first) == "failed"
    assert f"needs the output of train of {DAYS[0]}, which is not committed" in shop.reason(first, "evaluate")
    shop.clear(first, "train", downstream=True)
    assert shop.state(first) == "success"
    shop.end_backfills()
    assert shop.backfill(DAYS[0], DAYS[1], "failed") == [DAYS[1]]
    assert shop.state(second) == "success"


def test_cleared_tasks_find_their_work_done(bucket: str, shop: Operator) -> None:
    run_id, store = backfill_id(DAYS[1]), open_store(bucket, "shop")
    before = store.commits()
    assert shop.clear(run_id, "train") == ["train"]
    assert shop.clear(run_id, "register", downstream=True) == ["deploy", "register"]
    assert shop.clear(run_id) == sorted(DAILY)
    assert shop.state(run_id) == "success"
    assert store.commits() == before


def test_days_in_a_bucket_have_the_digests_of_a_folder(bucket: str, plain_days: Digests) -> None:
    """Whatever operators did to these days in the tests above."""
    found = {(commit.ds, commit.step): commit.digest for commit in open_store(bucket, "shop").commits()}
    assert {place: found.get(place) for place in plain_days} == plain_days


def test_a_past_day_is_triggered_from_the_command_line(shop: Operator) -> None:
    date = f"{DAYS[0]}T00:00:00+00:00"
    shop.command("dags", "trigger", shop.dag_id, "--logical-date", date, "--run-id", "past")
    assert {task["state"] for task in shop.ended("past").values()} == {"success"}
    assert f"--ds {DAYS[0]}" in shop.logs("past", "ingest")[0]


def test_two_runs_of_one_day_at_once_and_a_killed_step(project: Project, shop: Operator) -> None:
    day, runs = DAYS[2], ("beside", backfill_id(DAYS[2]))
    number = shop.start_backfill(day, day, "none")
    shop.trigger("beside", f"{day}T00:00:00Z")
    with pytest.raises(BadInputError, match=r"409.*Unique constraint"):
        shop.trigger("again", f"{day}T00:00:00Z")
    with pytest.raises(BadInputError, match=r"409.*already a running backfill"):
        shop.start_backfill(day, day, "none")
    kill_step(project, "train", f"{project.root}/scenarios/shop.yaml")
    shop.all_ended()
    shop.end_backfills(number)
    [killed] = [run for run in runs if len(shop.logs(run, "train")) > 1]
    assert shop.reason(killed, "train", 0).startswith("train ended with exit code -9: SIGKILL: out of memory")
    assert [shop.state(run) for run in runs] == ["success", "success"]


def kill_step(project: Project, *words: str) -> None:
    [step, *_] = awaited(lambda: project.steps(*words), within_s=200, every_s=0.05)
    step.kill()


def test_scenarios_are_broken_and_edited_while_a_day_runs(project: Project, shop: Operator, late: Operator) -> None:
    folder = project.root / "scenarios"
    file, copies = folder / "shop.yaml", [folder / "copy1.yaml", folder / "copy2.yaml"]
    shop.trigger("edited", f"{DAYS[3]}T00:00:00Z")
    shop.reached("edited", "ingest", "success")
    for one in copies:
        one.write_text(file.read_text().replace("name: shop", "name: copy"))
    spoil(file, "labels:", "lables:")
    same_name, unknown_key = f"{copies[0]} and {copies[1]}: name: 'copy'", "lables: unknown key; did you mean labels?"
    await_errors(project, shop.api, same_name, f"{file}:", unknown_key)
    assert not shop.api.has_dag("copy_daily")
    assert not late.api.call("GET", f"/dags/{late.dag_id}")["is_stale"]
    for one in copies:
        one.unlink()
    spoil(file, "lables:", "labels:")
    spoil(file, "batch_size: 64", "batch_size: 32")
    await_errors(project, shop.api)


def test_mlflow_is_away_when_the_day_registers_and_deploys(project: Project, bucket: str, shop: Operator) -> None:
    """The run of the test before goes on, with the scenario as it is now."""
    shop.reached("edited", "quantize", "success")
    for step in ("register", "deploy"):
        kill_server(project, "mlflow")
        shop.reached("edited", step, "up_for_retry")
        expected = rf"{step} ended with exit code 6: MLflow at http\S+ does not answer"
        assert re.match(expected, shop.reason("edited", step))
        servers.start_servers(project.home, print)
        shop.reached("edited", step, "success")
    shop.ended("edited")
    store = open_store(bucket, "shop")
    learned = store.find("train", DAYS[3])
    assert learned is not None
    assert learned.manifest["settings"]["train"]["batch_size"] == 32
    assert not_shown(store) == []


def kill_server(project: Project, name: str) -> None:
    """kill -9. MLflow's own server process is a child of the one that was started."""
    [started] = [started for started in project.local().processes if started.name == name]
    server = find(started)
    assert server is not None
    for process in [*(server.children(recursive=True) if name == "mlflow" else []), server]:
        process.kill()
        process.wait(10)


def test_a_killed_scheduler_leaves_nothing_that_disturbs_the_next_one(project: Project, shop: Operator) -> None:
    shop.trigger("orphan", f"{DAYS[4]}T00:00:00Z")
    [step, *_] = awaited(lambda: project.steps("train", f"{project.root}/scenarios/shop.yaml"), within_s=300)
    kill_server(project, "scheduler")
    with pytest.raises(
        RetryLaterError, match=r"scheduler has ended, see .*scheduler\.log; `make demo` starts it again"
    ):
        project.local().require_running()
    said: list[str] = []
    servers.start_servers(project.home, said.append)
    assert re.search(r"scheduler had ended; stopped \d+ processes that were left of it", "\n".join(said))
    assert not step.is_running()
    assert {task["state"] for task in shop.ended("orphan").values()} == {"success"}


def test_a_killed_worker_of_the_tuning_dag_resumes_its_study(project: Project, bucket: str) -> None:
    tuning = Operator(project, "shop_tuning")
    tuning.api.unpause(tuning.dag_id)
    tuning.trigger("search", f"{DAYS[2]}T00:00:00Z")
    kill_step(project, "tune", "--worker")
    assert {task["state"] for task in tuning.ended("search").values()} == {"success"}
    found = tuning.reasons("search", "tune_worker")  # of both workers; one of them was killed
    assert sum("SIGKILL: out of memory, or killed by hand" in reason for reason in found) == 1
    key = returned(tuning.api, tuning.dag_id, "search", "tune")["uri"].removeprefix(f"{bucket}/shop/")
    proposal = open_store(bucket, "shop").read(f"{key}/proposal.json")
    assert proposal is not None
    assert [trial["number"] for trial in json.loads(proposal)["trials"]] == [0, 1, 2]


def test_catching_up_goes_on_behind_a_failing_day_once_it_is_fixed(project: Project, late: Operator) -> None:
    """All of it until here ran beside the tests above."""
    _, second, third = runs = [f"scheduled__{ds}" for ds in DAYS[:3]]
    awaited(lambda: len(late.runs()) == len(runs), within_s=300, every_s=1.0)
    late.all_ended()
    assert [late.state(run) for run in runs] == ["success", "failed", "failed"]
    assert "exit code 4" in late.reason(second, "ingest")
    failed = [task for task, state in late.states(third).items() if state == "failed"]
    assert "exit code 5" in late.reason(third, failed[0])
    with pytest.raises(BadInputError, match="does not allow manual runs"):
        late.trigger("manual", f"{DAYS[0]}T00:00:00Z")
    spoil(second_day(project.root), ",maybe,", ",0,")
    assert late.backfill(DAYS[1], DAYS[2], "failed", backwards=True) == [DAYS[2], DAYS[1]]
    assert [late.state(run) for run in runs] == ["success", "success", "failed"]
    assert late.backfill(DAYS[0], DAYS[2], "none") == []
    assert late.backfill(DAYS[0], DAYS[2], "failed") == [DAYS[2]]
    assert late.backfill(DAYS[2], DAYS[2], "completed") == [DAYS[2]]
    assert [late.state(run) for run in runs] == ["success"] * 3
