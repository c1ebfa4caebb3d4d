"""The demo on a small shop: real scheduler, real MLflow server, whole days. The tests build on one another."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.airflow_project import ENDED, Project, await_run, processes_of, returned, state_of
from tests.plain_days import Digests
from tests.small import DAILY, days, write_small
from tests.waiting import awaited

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]
DAG = "shop_daily"
EXPERIMENT = {"experiment_name": "shop"}
ON_CHAMPION = """
from airflow.sdk import DAG, Asset, task

with DAG("on_champion", schedule=[Asset("shop.champion")], is_paused_upon_creation=False):

    @task
    def versions(triggering_asset_events=None):
        return [event.extra["version"] for events in triggering_asset_events.values() for event in events]

    versions()
"""


def demo(project: Project, num_days: int) -> subprocess.CompletedProcess[str]:
    return project.python("infra.demo", "--scenario", "shop", "--days", str(num_days), "--home", str(project.home))


def facts_of(project: Project) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((project.root / "demo.json").read_text())
    return facts


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("project")
    project = Project.new(root)
    (root / "dags" / "on_champion.py").write_text(ON_CHAMPION)
    write_small(root / "scenarios", num_days=4)
    try:
        yield project
    finally:
        project.python("infra.down", "--home", str(project.home))


def test_the_demo_runs_days_and_reports_their_facts(project: Project) -> None:
    done = demo(project, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = facts_of(project)
    assert [day["ds"] for day in facts["days"]] == days(2)
    first, second = facts["days"]
    assert first["auc_progressive"]["buy"] is None  # nothing to score with before the first day
    assert 0.5 < second["auc_progressive"]["buy"] < 1
    assert set(second["gate_auc"]) == {"champion", "challenger"}
    assert set(DAILY) == set(second["seconds"])
    assert facts["champion"]["checkpoint"] in {first["checkpoint"], second["checkpoint"]}
    assert 0 < facts["useful_compute_share"] < 1
    assert facts["tracking_uri"] == f"sqlite:///{project.home}/store/mlflow.db"
    assert project.local().password in done.stdout
    assert "useful compute" in done.stdout
    number = requests.get(
        f"{project.local().mlflow_url}/api/2.0/mlflow/experiments/get-by-name", EXPERIMENT, timeout=30
    )
    found = number.json()["experiment"]["experiment_id"]
    assert f"{project.local().mlflow_url}/#/experiments/{found}/runs?workflowType=machine_learning" in done.stdout


def test_all_parts_of_airflow_are_healthy(project: Project) -> None:
    health = project.api().call("GET", "/monitor/health")
    assert {part: facts["status"] for part, facts in health.items()} == dict.fromkeys(
        ("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy"
    )


def test_servers_listen_on_the_loopback_alone(project: Project) -> None:
    servers = [psutil.Process(started.pid) for started in project.local().processes]
    children = [child for server in servers for child in server.children(recursive=True)]  # some overwrite their token
    listening = set()
    for process in {*servers, *children, *processes_of(project.local().token)}:
        with contextlib.suppress(psutil.Error):  # it has ended: Airflow's parsers live for a second
            connections = process.net_connections(kind="inet")
            listening |= {one.laddr for one in connections if one.status == psutil.CONN_LISTEN}
    assert {address.port for address in listening} >= {project.local().airflow_port, project.local().mlflow_port}
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_dag_of_a_user_runs_on_a_new_champion(project: Project) -> None:
    api = project.api()
    promoted = [day for day in facts_of(project)["days"] if (day["gate"] or "").startswith("promoted")]

    def seen() -> list[int]:
        """Versions that the user's DAG was started with, over all of its runs."""
        found: list[int] = []
        for run in api.call("GET", "/dags/on_champion/dagRuns", state="success")["dag_runs"]:
            found += returned(api, "on_champion", run["dag_run_id"], "versions")
        return sorted(found)

    # Before the events are read: Airflow answers 500 to that while a run that one of them created is still queued.
    expected = [int(day["version"]) for day in promoted]
    awaited(lambda: seen() == expected, within_s=120, said=lambda: f"{seen()} of {expected}", every_s=1.0)
    [champion] = [a for a in api.call("GET", "/assets", limit=100)["assets"] if a["name"] == "shop.champion"]
    events = api.call("GET", "/assets/events", asset_id=champion["id"])["asset_events"]
    announced = {event["extra"]["ds"]: event["extra"] for event in events}
    assert [announced[day["ds"]]["version"] for day in promoted] == expected
    assert len(events) == len(promoted)
    assert all(len(event["extra"]["digest"]) == 64 for event in events)
    newest = promoted[-1]
    assert announced[newest["ds"]]["auc.buy"] == pytest.approx(newest["gate_auc"]["challenger"]["buy"])


def test_the_tuning_dag_searches_and_proposes(project: Project) -> None:
    api, day = project.api(), days(2)[1]
    api.unpause("shop_tuning")
    run = {"logical_date": f"{day}T00:00:00Z", "dag_run_id": "search"}
    api.call("POST", "/dags/shop_tuning/dagRuns", run)
    awaited(lambda: state_of(api, "shop_tuning", "search") in ENDED, within_s=400, every_s=1.0)
    tasks = api.task_instances("shop_tuning", "search")
    assert {(task["task_id"], task["state"]) for task in tasks} == {("tune_worker", "success"), ("tune", "success")}
    proposal = Path(returned(api, "shop_tuning", "search", "tune")["uri"])
    trials = json.loads((proposal / "proposal.json").read_text())["trials"]
    assert [trial["number"] for trial in trials] == [0, 1, 2]


def test_the_same_days_without_airflow_have_the_same_digests(project: Project, plain_days: Digests) -> None:
    assert [day["checkpoint"] for day in facts_of(project)["days"]] == [plain_days[ds, "train"] for ds in days(2)]


def test_a_second_call_reuses_servers_and_days(project: Project) -> None:
    before = [started.pid for started in project.local().processes]
    journal = (project.home / "store" / "shop" / "journal.jsonl").read_text()
    begun = time.monotonic()
    done = demo(project, 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - begun < 60
    assert [started.pid for started in project.local().processes] == before
    assert (project.home / "store" / "shop" / "journal.jsonl").read_text() == journal


def test_a_run_outside_of_the_data_is_never_green_and_empty(project: Project) -> None:
    api = project.api()
    for run_id, day in (("early", "2020-01-01"), ("late", "2025-01-01")):
        api.call("POST", f"/dags/{DAG}/dagRuns", {"logical_date": f"{day}T00:00:00Z", "dag_run_id": run_id})
        assert await_run(api, DAG, run_id)["ingest"]["state"] == "failed"
        assert "exit code 4" in project.log(DAG, run_id, "ingest")
    assert api.call("GET", f"/dags/{DAG}/dagRuns", run_type="scheduled")["dag_runs"] == []  # the data has ended


def test_a_run_is_named_by_its_day(project: Project) -> None:
    runs = project.api().runs(DAG, f"{days(2)[0]}T00:00:00Z", f"{days(2)[1]}T23:59:59Z")
    assert [run["dag_run_id"][:20] for run in runs] == [f"backfill__{day}" for day in days(2)]


def test_xcom_holds_digest_and_uri_alone(project: Project) -> None:
    api = project.api()
    [run, *_] = api.runs(DAG, f"{days(2)[0]}T00:00:00Z", f"{days(2)[1]}T23:59:59Z")
    path = f"/dags/{DAG}/dagRuns/{run['dag_run_id']}/taskInstances/train/xcomEntries"
    assert [entry["key"] for entry in api.call("GET", path)["xcom_entries"]] == ["return_value"]
    assert set(returned(api, DAG, run["dag_run_id"], "train")) == {"digest", "uri"}


def test_a_day_without_its_parent_fails_at_once_and_says_so(project: Project) -> None:
    api, day = project.api(), days(4)[3]
    api.call("POST", f"/dags/{DAG}/dagRuns", {"logical_date": f"{day}T12:00:00Z", "dag_run_id": "alone"})
    tasks = await_run(api, DAG, "alone")
    failed = [name for name, task in tasks.items() if task["state"] == "failed"]
    assert failed == ["ingest"]  # the first step reads the day before already
    assert tasks[failed[0]]["try_number"] == 1  # no retry helps where a parent is missing
    log = project.log(DAG, "alone", failed[0])
    assert "exit code 5" in log
    assert "is not committed" in log  # the message names the step and day that are missing
    assert "step_failed" in log  # the notifier's line


def test_a_bad_day_stops_with_its_reason_and_goes_on_once_fixed(project: Project) -> None:
    file = project.root / "scenarios" / "data" / "events" / f"{days(3)[2]}.csv"
    good = file.read_text()
    file.write_text(good.replace(",0,", ",maybe,"))
    bad = demo(project, 3)
    assert bad.returncode == 1
    assert f"{days(3)[2]}: ingest ended with exit code 4" in bad.stdout
    assert "attempt=1.log" in bad.stdout
    file.write_text(good)
    fixed = demo(project, 3)
    assert fixed.returncode == 0, fixed.stdout + fixed.stderr
    assert [bool(day["checkpoint"]) for day in facts_of(project)["days"]] == [True, True, True]


def test_a_task_that_a_person_stops_ends_its_step(project: Project) -> None:
    api = project.api()
    api.call("POST", f"/dags/{DAG}/dagRuns", {"logical_date": f"{days(4)[3]}T13:00:00Z", "dag_run_id": "stopped"})
    steps = awaited(project.steps, within_s=120, every_s=0.2)
    api.call("PATCH", f"/dags/{DAG}/dagRuns/stopped", {"state": "failed"})
    _, alive = psutil.wait_procs(steps, timeout=60)
    assert not alive


def test_down_ends_all_of_it_and_nothing_else(project: Project) -> None:
    """Also the workers of a scheduler that was killed, which don't end by themselves."""
    token = project.local().token
    [scheduler] = [psutil.Process(started.pid) for started in project.local().processes if started.name == "scheduler"]
    workers = scheduler.children(recursive=True)
    assert workers
    scheduler.kill()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    try:
        assert processes_of(token)
        done = project.python("infra.down", "--home", str(project.home))
        assert done.returncode == 0
        assert not processes_of(token)
        assert not [worker for worker in workers if worker.is_running()]
        assert bystander.poll() is None
        assert project.python("infra.down", "--home", str(project.home)).stdout == "nothing was running\n"
    finally:
        bystander.kill()
        bystander.wait()
