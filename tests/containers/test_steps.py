"""Steps in containers, on a real engine: their output is that of a process, and they cost little more."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from infra.platform import credentials
from tasks.run.container import ContainerLauncher, ContainerSettings
from tasks.run.launchers import InProcess
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store
from tasks.store.verify import require_sound
from tests.containers.engine import DOCKER, TAG, containers
from tests.containers.probing import in_background
from tests.environment import inherited
from tests.mlflow_server import mlflow_server
from tests.object_store import NARROW, REGION, ObjectServer
from tests.paths import ROOT
from tests.small import DAILY, days
from tests.waiting import awaited

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("none_left")]
PURE = DAILY[: DAILY.index("register")]
MAX_START_S = 1.5


def _recloop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"RECLOOP_TAG": TAG, "RECLOOP_NO_TRACK": "1", **environment}
    command = [sys.executable, "-P", "-m", "tasks", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**inherited(), **settings}, cwd=ROOT, check=False
    )


def test_the_same_day_has_the_same_digests(
    step_image: str, shop: Path, tmp_path: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes with the store in a folder, as containers with the store in a bucket that they cannot reach.

    A second day is part of test_platform.py and test_pods.py.
    """
    for name, value in object_server.environment(RECLOOP_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    scenario, digests = load_scenario(shop), {}
    in_containers = ContainerLauncher(ContainerSettings("recloop", TAG))
    for place, launcher in ((str(tmp_path / "folder"), InProcess()), (object_server.new_url(), in_containers)):
        store = open_store(place, scenario.name)
        for step in PURE:
            run_step(step, scenario, days(1)[0], store, track=False, launcher=launcher)
        digests[place] = {(c.ds, c.step): (c.digest, c.manifest["code"]) for c in store.commits()}
    processes, containers = digests.values()
    assert containers == processes
    assert len(containers) == len(PURE)


def test_an_airflow_task_runs_its_step_in_a_container(
    step_image: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.airflow_home import executed  # isort: skip (before the first import of Airflow)
    from dags.step_operator import StepOperator

    settings = {"EXECUTION": "docker", "TAG": TAG, "STORE": str(tmp_path / "store"), "NO_TRACK": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"RECLOOP_{name}", value)
    monkeypatch.chdir(ROOT)
    seen: set[str] = set()
    watching = in_background(lambda: seen.update(awaited(containers, within_s=60)))
    operator = StepOperator(task_id="ingest", step="ingest", scenario=str(shop))
    day = datetime.datetime.fromisoformat(days(1)[0]).replace(tzinfo=datetime.UTC)
    interval = {"data_interval_start": day, "data_interval_end": day + datetime.timedelta(days=1)}
    context = {
        "dag_run": SimpleNamespace(run_id="r", run_type="scheduled"),
        "logical_date": day,
        "params": {},
        **interval,
    }
    result = executed(operator, context)
    watching.join()
    commit = open_store(tmp_path / "store", "shop").find("ingest", days(1)[0])
    assert commit is not None and result["digest"] == commit.digest
    assert seen, "no container ran"


def test_registering_and_deploying_in_containers(
    step_image: str, shop: Path, tmp_path: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the store in a bucket, and a credential that opens no other; `deploy` reads and writes its records there."""
    login = tmp_path / "credentials"
    login.write_text(credentials(NARROW, object_server.narrow_secret))
    bucket = {"AWS_ENDPOINT_URL": object_server.endpoint, "AWS_REGION": REGION}
    bucket |= {"AWS_SHARED_CREDENTIALS_FILE": str(login), "RECLOOP_CACHE": str(tmp_path / "cache")}
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{object_server.narrow_bucket}/{tmp_path.name}", "shop")
    with mlflow_server(tmp_path / "mlflow") as uri:
        where = ("-s", str(shop), "--store", store.url.rpartition("/")[0], "--json", "--ds", days(1)[0])
        track = {**bucket, "MLFLOW_TRACKING_URI": uri, "RECLOOP_EXECUTION": "docker"}
        for step in PURE:
            run_step(step, load_scenario(shop), days(1)[0], store, track=False)
        refused = _recloop("register", *where, **track)
        assert refused.returncode == BadInputError.exit_code
        assert "RECLOOP_DOCKER_NETWORK" in refused.stderr
        for step in ("register", "deploy"):
            done = _recloop(step, *where, **track, RECLOOP_DOCKER_NETWORK="host")
            assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["promoted"] is True
    require_sound(load_scenario(shop), store)


def test_a_container_adds_little_to_a_step_that_does_nothing(step_image: str) -> None:
    def best(command: list[str]) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            times.append(time.perf_counter() - begun)
        return min(times)

    hardened = ["--rm", "--read-only", "--network", "none", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    process = best([sys.executable, "-P", "-m", "tasks", "train", "--help"])
    empty = best([DOCKER, "run", *hardened, "--entrypoint", "/bin/true", step_image])
    container = best([DOCKER, "run", *hardened, step_image, "train", "--help"])
    print(
        f"a step that does nothing: process {process:.2f} s, container {container:.2f} s, empty container {empty:.2f} s"
    )
    assert container - process < MAX_START_S
