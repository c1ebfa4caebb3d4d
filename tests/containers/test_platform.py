"""infra/compose.yaml started as a whole: days run through Airflow's API, and no secret leaks.

As `make compose-up LOCAL=1` does it: Airflow, MLflow and the steps are our own images, Postgres, Redis and the object
store are the local substitutes of infra/compose/local.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from rich.console import Console

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from infra.airflow_api import AirflowApi
from infra.backfill import Backfill, failure_of
from infra.images import LOCAL_SERVICES, Parts, build
from infra.platform import BUCKET, PORTS, TOKENS, ports_in
from infra.servers import free_ports
from tasks.store.scenario_store import ScenarioStore, open_store
from tasks.store.verify import require_sound
from tests.containers.engine import DOCKER, TAG, await_none, containers, docker
from tests.paths import ROOT
from tests.plain_days import Digests
from tests.small import DAILY, days, write_small

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.airflow, pytest.mark.timeout(900)]
DAYS = days(2)
ROOMS = ("dags", "feature_jobs", "infra", "models", "serving", "tasks")
SERVICES = {
    "postgres",
    "redis",
    "objects",
    "objects-gate",
    "mlflow",
    "airflow-api",
    "airflow-scheduler",
    "airflow-dag-processor",
} | {
    "airflow-triggerer",
    "airflow-worker",
}


@dataclass(frozen=True)
class Platform:
    """A started platform: a project of its own, its folder of state, and the ports of its pages."""

    project: Path
    home: Path
    airflow_port: int
    mlflow_port: int
    objects_port: int

    def compose(self, *arguments: str, check: bool = True) -> str:
        files = ("infra/compose.yaml", "infra/compose/local/compose.yaml")
        program = Path(sys.executable).with_name("docker-compose")
        command = [program, "--env-file", self.home / "compose.env", *(p for file in files for p in ("-f", file))]
        done = subprocess.run([*command, *arguments], cwd=self.project, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr + self.logs()
        return done.stdout

    def inside(self, service: str, *command: str) -> str:
        """Runs a command in a service's container; returns its output, for any exit code."""
        return docker("exec", f"recloop-{service}-1", *command, check=False)

    def logs(self) -> str:
        """The logs of all containers."""
        names = docker("ps", "-a", "--format", "{{.Names}}").split()
        return "\n".join(f"== {name}\n{docker('logs', name, check=False)}" for name in names)

    def secret(self, name: str) -> str:
        return (self.home / "secrets" / name).read_text()

    @property
    def secrets(self) -> dict[str, str]:
        """Every password and key, alone: not the addresses and files that they are parts of."""
        passwords: dict[str, str] = json.loads(self.secret("airflow-passwords"))
        keys = {name: self.secret(name) for name in (*TOKENS, "airflow-fernet-key")}
        return {**keys, **{f"airflow-passwords of {user}": value for user, value in passwords.items()}}

    @property
    def airflow(self) -> AirflowApi:
        [(user, password)] = json.loads(self.secret("airflow-passwords")).items()
        return AirflowApi(f"http://127.0.0.1:{self.airflow_port}", user, password)


@pytest.fixture(scope="module")
def platform(parts: Parts, step_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    for role in ("airflow", "mlflow", LOCAL_SERVICES):
        build(role, parts, TAG)
    project = _project(tmp_path_factory.mktemp("project"))
    home = project / ".recloop" / "platform"
    home.mkdir(parents=True)
    ports = zip(PORTS, free_ports(0, 0, 0), strict=True)  # others may prefer the usual ones
    (home / "compose.env").write_text("".join(f"RECLOOP_{name.upper()}_PORT={port}\n" for name, port in ports))
    prepare = [sys.executable, "-m", "infra.platform", "--tag", TAG]
    subprocess.run(prepare, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, check=True)
    started = Platform(project, home, *ports_in(home / "compose.env").values())
    try:
        started.compose("up", "--detach", "--wait", "--wait-timeout", "300")
        yield started
    finally:
        started.compose("down", "--remove-orphans", "--timeout", "5", check=False)


def _project(folder: Path) -> Path:
    """This code beside the small shop's scenario and logs."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    write_small(folder / "scenarios", num_days=len(DAYS))
    (folder / "data").mkdir()
    (folder / "scenarios" / "data").rename(folder / "data" / "shop")
    file = folder / "scenarios" / "shop.yaml"
    file.write_text(file.read_text().replace("path: data\n", "path: ../data/shop\n"))
    return folder


@pytest.fixture(scope="module")
def store(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScenarioStore]:
    """The shop's part of the store, opened from this host with the credential of the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{platform.objects_port}")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(platform.home / "secrets" / "store-credentials"))
        patch.setenv("RECLOOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_store(f"s3://{BUCKET}/store", "shop")


@pytest.fixture(scope="module")
def ran(platform: Platform) -> dict[tuple[str, str], str]:
    """The shop's days, run by the platform: each task's end, or reason of failure, and if it ran in a container."""
    scenario = load_scenario(platform.project / "scenarios" / "shop.yaml")
    backfill = Backfill(platform.airflow, scenario, DAYS, None)
    backfill.await_dag()
    platform.airflow.unpause(backfill.dag_id)
    made = ["--filter=event=create", "--filter=label=recloop.step", "--format={{json .Actor}}"]
    watch = ["events", f"--since={int(time.time())}", *made]
    with subprocess.Popen([DOCKER, *watch], stdout=subprocess.PIPE, text=True) as events:
        try:
            backfill.create(lambda _: True, print)
            tasks = backfill.watch(Console(file=sys.stderr), lambda: None)
        finally:
            events.terminate()  # else leaving the block waits for it
        created = [json.loads(line)["Attributes"] for line in events.stdout or ()]
    contained = {(labels["recloop.ds"], labels["recloop.step"]) for labels in created}
    logs = platform.home / "airflow-logs"
    ended = {
        (task.ds, task.step): failure_of(task, backfill.dag_id, logs)[0] if task.state == "failed" else task.state
        for task in tasks
    }
    return {task: f"{how}, {'in' if task in contained else 'without'} a container" for task, how in ended.items()}


def test_every_part_is_healthy(platform: Platform) -> None:
    found = [json.loads(line) for line in platform.compose("ps", "--format", "json").splitlines()]
    assert {service["Service"]: service["Health"] for service in found} == dict.fromkeys(SERVICES, "healthy")


def test_days_run_in_containers_and_give_the_digests_of_a_process(
    platform: Platform, store: ScenarioStore, ran: dict[tuple[str, str], str], plain_days: Digests
) -> None:
    assert ran == {(ds, step): "success, in a container" for ds in DAYS for step in DAILY}
    theirs = {(commit.ds, commit.step): commit.digest for commit in store.commits()}
    pure = {place: digest for place, digest in plain_days.items() if place[1] not in ("register", "deploy")}
    assert {place: digest for place, digest in theirs.items() if place in pure} == pure
    assert theirs.keys() == plain_days.keys()
    require_sound(load_scenario(platform.project / "scenarios" / "shop.yaml"), store)
    await_none("label=recloop.step")


def test_the_champion_is_registered_and_its_files_are_in_the_object_store(
    platform: Platform, ran: dict[tuple[str, str], str], tmp_path: Path
) -> None:
    code = """if True:
        import sys
        import mlflow
        version = mlflow.MlflowClient().get_model_version_by_alias("shop", "champion")
        mlflow.artifacts.download_artifacts(version.source, dst_path=sys.argv[1])
    """
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{platform.mlflow_port}",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # the object store is reached through MLflow alone
        "MLFLOW_TRACKING_USERNAME": "recloop",
        "MLFLOW_TRACKING_PASSWORD": platform.secret("mlflow-recloop-password"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.onnx"))
    assert any(file.stat().st_size for file in (platform.home / "objects").rglob("*.dat"))


# access


def test_nobody_is_let_in_without_a_password(platform: Platform) -> None:
    airflow, mlflow = (f"http://127.0.0.1:{port}" for port in (platform.airflow_port, platform.mlflow_port))
    refused = {
        f"{airflow}/api/v2/dags": 401,
        f"{airflow}/api/v2/connections": 401,
        f"{mlflow}/": 401,
        f"{mlflow}/api/2.0/mlflow/registered-models/search": 401,
        f"{mlflow}/api/2.0/mlflow-artifacts/artifacts": 401,
    }
    assert {url: _status(url) for url in refused} == refused
    assert _status(f"{mlflow}/", "admin:password1234") == 401  # MLflow's own default password
    assert _status(f"{mlflow}/", f"admin:{platform.secret('mlflow-password')}") == 200
    assert _status(f"{airflow}/execution/task-instances/1/state") in (401, 403, 404, 405)


def test_pages_are_on_the_loopback_alone(platform: Platform) -> None:
    bound = re.findall(r'"HostIp": "([^"]*)"', docker("inspect", *docker("ps", "-q").split()))
    assert set(bound) == {"127.0.0.1"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; finds this machine's own address
        own = probe.getsockname()[0]
    for port in (platform.airflow_port, platform.mlflow_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((own, port), timeout=5)


def test_databases_broker_and_objects_ask_for_a_password_within(platform: Platform) -> None:
    ping = (
        "import socket; s = socket.create_connection(('redis', 6379), 5); s.sendall(b'PING\\r\\n'); print(s.recv(99))"
    )
    assert "NOAUTH" in platform.inside("airflow-worker", "python", "-c", ping)
    login = "import psycopg2; psycopg2.connect('postgresql://airflow:wrong@postgres/airflow')"
    assert "password authentication failed" in platform.inside("airflow-worker", "python", "-c", login)
    other = f"import psycopg2; psycopg2.connect('{platform.secret('airflow-database-url').replace('+psycopg2', '')}')"
    assert "permission denied" in platform.inside(
        "airflow-worker", "python", "-c", other.replace("/airflow'", "/mlflow'")
    )
    get = "import urllib.request as r; print(r.urlopen('http://objects:8333/mlflow?list-type=2').status)"
    assert "403" in platform.inside("mlflow", "python", "-c", get)


def test_the_credential_of_the_steps_opens_their_bucket_alone(store: ScenarioStore) -> None:
    assert store.keys("journal.jsonl/*")
    with pytest.raises(BadInputError, match=r"s3://mlflow/store.* refuses access \(403 AccessDenied\)"):
        open_store("s3://mlflow/store", "shop").keys("journal.jsonl/*")


def test_a_step_that_talks_to_mlflow_finds_neither_databases_nor_a_way_out(platform: Platform) -> None:
    places = ["mlflow:5000", "postgres:5432", "redis:6379", "1.1.1.1:443", "pypi.org:443"]
    # Of the object store the one port that has passwords.
    ports = (8333, 18333, 9333, 19333, 8888, 18888, 8080, 18080, 8181)
    places += [f"{host}:{port}" for host in ("objects", "objects-gate") for port in ports]
    look = (
        "import socket\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "def reached(place):\n"
        "    host, port = place.split(':')\n"
        "    try: socket.create_connection((host, int(port)), 3)\n"
        "    except OSError: return ''\n"
        "    return place\n"
        f"places = {places}\n"
        "print(*ThreadPoolExecutor(len(places)).map(reached, places))\n"
    )
    command = ["run", "--rm", "--network", "recloop-control", "--entrypoint", "python", f"recloop/step:{TAG}"]
    assert docker(*command, "-c", look).split() == ["mlflow:5000", "objects-gate:8333"]


# no secret in logs or databases


def test_no_secret_leaks(platform: Platform, ran: dict[tuple[str, str], str]) -> None:
    """In no container's description, arguments or output, no task's log, no database row and no artifact."""
    searched = {
        "containers": docker("inspect", *containers()),
        "arguments": "".join(docker("top", container, "-eo", "pid,args") for container in docker("ps", "-q").split()),
        "images": "".join(
            docker("image", "inspect", name) + docker("history", "--no-trunc", name)
            for name in docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
            if name.startswith("recloop/")
        ),
        "output": platform.logs(),
        "compose": platform.compose("config"),
        "task logs": _task_logs(platform),
        "databases": docker("exec", "recloop-postgres-1", "pg_dumpall", "--username=postgres"),
    }
    assert "rendered_task_instance_fields" in searched["databases"]
    assert "exec-step" in searched["databases"] or "shop_daily" in searched["databases"]
    for folder in ("objects", "cache"):
        searched[folder] = b"".join(p.read_bytes() for p in (platform.home / folder).rglob("*") if p.is_file()).decode(
            "latin1"
        )
    assert {place: len(text) > 100 for place, text in searched.items()} == dict.fromkeys(searched, True)
    assert [
        (name, place) for name, value in platform.secrets.items() for place, text in searched.items() if value in text
    ] == []


def test_what_is_stopped_leaves_nothing_and_starts_again(platform: Platform, ran: dict[tuple[str, str], str]) -> None:
    platform.compose("down", "--timeout", "10")
    assert not containers()
    assert docker("network", "ls", "--format", "{{.Name}}").split() == ["host", "none"]
    platform.compose("up", "--detach", "--wait", "--wait-timeout", "300")
    runs = platform.airflow.runs("shop_daily", f"{DAYS[0]}T00:00:00Z", f"{DAYS[-1]}T23:59:59Z")
    assert [run["state"] for run in runs] == ["success"] * len(DAYS)
    # The API server shares no folder with the worker: it asks the worker that has run the task.
    [file] = (platform.home / "airflow-logs").glob(f"dag_id=shop_daily/run_id={runs[0]['dag_run_id']}/task_id=train/*")
    task = f"/dags/shop_daily/dagRuns/{quote(runs[0]['dag_run_id'])}/taskInstances/train"
    shown = platform.airflow.call("GET", f"{task}/logs/1")["content"]
    lines = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert lines and [line["event"] for line in shown][-len(lines) :] == lines


def _task_logs(platform: Platform) -> str:
    return "\n".join(file.read_text(errors="replace") for file in (platform.home / "airflow-logs").rglob("*.log"))


def _status(url: str, login: str = "") -> int:
    user, _, password = login.partition(":")
    return requests.get(url, auth=(user, password) if login else None, timeout=10).status_code
