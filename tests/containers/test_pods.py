"""Steps as pods, in the real step image. Airflow's pod operator, the Kubernetes client, the image and its containers
are real; in a cluster's place is a double of its API that runs each pod's container on the local engine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tests.airflow_home  # noqa: F401 (before the first import of Airflow)
from dags.execution import Execution, ProcessExecution
from feature_jobs.schema import load_scenario
from infra.platform import credentials
from tasks.contract import Resources
from tasks.run.runner import run_step
from tasks.steps import STEPS
from tasks.store.scenario_store import open_store
from tests.cluster_double import serving
from tests.containers.engine import TAG, await_none, containers, docker
from tests.containers.node_double import NodeDouble
from tests.mlflow_server import STEPS_USER, server_with_passwords
from tests.object_store import NARROW, ObjectServer
from tests.paths import ROOT
from tests.small import DAILY, days, write_day, write_small
from tests.waiting import awaited

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900)]
PURE = DAILY[: DAILY.index("register")]
FIRST, SECOND, POOR, OUTSIDE = *days(3), "2030-01-01"
# Exit code and the command that ends with it, after all those before it.
ENDS = [
    *((0, step, ds) for ds in (FIRST, SECOND) for step in PURE),
    (0, "ingest", POOR),
    (0, "summarize", POOR),
    (0, "join", POOR),
    (3, "validate", POOR),  # too few rows, says the suite
    (5, "train", POOR),  # nothing validated to learn from
    (4, "ingest", OUTSIDE),
    (6, "register", FIRST),  # nobody answers where MLflow is said to be
]
SUITE = {
    "name": "shop",
    "expectations": [
        {"type": "expect_table_row_count_to_be_between", "severity": "critical", "kwargs": {"min_value": 100}}
    ],
}
NOBODY_THERE = "http://127.0.0.1:1"
PODS = f"ancestor=shop/step:{TAG}"


@dataclass(frozen=True)
class Cluster:
    """A node, and the store of its pods: a prefix of the bucket that their credential opens."""

    node: NodeDouble
    store: str


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scenarios/shop.yaml beside data/shop, the layout of this project; the third day is a poor one."""
    folder = tmp_path_factory.mktemp("project")
    shop = write_small(folder / "data", num_days=3)
    write_day(folder / "data", POOR, rows=50)
    (folder / "scenarios").mkdir()
    text = shop.read_text().replace("path: data\n", "path: ../data/data\n")
    (folder / "scenarios" / "shop.yaml").write_text(text)
    (folder / "scenarios" / "shop.expectations.json").write_text(json.dumps(SUITE))
    shop.unlink()
    return folder


@pytest.fixture(scope="module")
def images(step_image: str, project: Path) -> str:
    """The step image with the scenario in it, as a project's own release would have it."""
    dockerfile = f"FROM {step_image}\nCOPY shop.* /opt/app/scenarios/\n"
    docker("build", "--tag", f"shop/step:{TAG}", "--file", "-", str(project / "scenarios"), input=dockerfile)
    return "shop"


@pytest.fixture
def cluster(project: Path, tmp_path: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Its store is empty, and this process can open it too."""
    store = f"s3://{object_server.narrow_bucket}/{tmp_path.name}"
    here = {"RECLOOP_STORE": store, "AWS_ENDPOINT_URL": object_server.endpoint, "MLFLOW_TRACKING_URI": NOBODY_THERE}
    narrow = credentials(NARROW, object_server.narrow_secret)
    secrets = {
        "recloop-mlflow-client": {"username": STEPS_USER, "password": "of nobody"},
        "recloop-store-client": {"store-credentials": narrow},
    }
    for name, value in object_server.environment(RECLOOP_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    environment = {**here, "RECLOOP_NO_TRACK": "1"}
    return Cluster(NodeDouble({"recloop-data": project / "data"}, secrets, environment, tmp_path / "node"), store)


@pytest.fixture
def node(cluster: Cluster) -> NodeDouble:
    return cluster.node


def _context(step: str) -> Any:
    instance = SimpleNamespace(
        dag_id="shop_daily", task_id=step, map_index=-1, try_number=1, xcom_push=lambda **_: None
    )
    return {"ti": instance, "run_id": "r", "dag": SimpleNamespace()}


def _as_pods(images: str, kubeconfig: Path, step: str) -> Any:
    from dags.kubernetes_execution import KubernetesExecution, PodSettings

    settings = PodSettings(images, TAG, kubeconfig=str(kubeconfig))
    return KubernetesExecution(settings, lambda: _context(step))


def _arguments(project: Path, step: str, ds: str) -> list[str]:
    return [step, "--scenario", str(project / "scenarios" / "shop.yaml"), "--ds", ds, "--json"]


def test_days_as_pods_have_the_digests_and_the_exit_codes_of_processes(
    cluster: Cluster, images: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(execution: Execution, root: Path, step: str, ds: str) -> tuple[int, str, dict[str, Any]]:
        out: list[str] = []
        err: list[str] = []
        code = execution.run(_arguments(root, step, ds), out.append, err.append)
        return code, "\n".join(err), json.loads(out[-1]) if out else {}

    plain_store = str(tmp_path / "plain")
    settings = {"RECLOOP_STORE": plain_store, "RECLOOP_NO_TRACK": "1", "MLFLOW_TRACKING_URI": NOBODY_THERE}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    with serving(cluster.node, tmp_path) as kubeconfig:
        for expected, step, ds in ENDS:
            plain = run(ProcessExecution(), project, step, ds)
            begun = time.monotonic()
            pod = run(_as_pods(images, kubeconfig, step), ROOT, step, ds)
            print(f"{step} {ds}: {pod[0]} in {time.monotonic() - begun:.1f} s")
            assert (plain[0], pod[0]) == (expected, expected), f"{step} {ds}\n{plain[1]}\n{pod[1]}"
            assert pod[2].get("digest") == plain[2].get("digest")
    plain, pods = (
        {(c.ds, c.step): (c.digest, c.manifest["code"]) for c in open_store(place, "shop").commits()}
        for place in (plain_store, cluster.store)
    )
    assert pods == plain
    assert len(pods) == 2 * len(PURE) + 3
    await_none(PODS, within_s=10)


def test_pods_register_and_deploy_as_the_user_of_steps(
    cluster: Cluster, images: str, project: Path, tmp_path: Path
) -> None:
    node, store = cluster.node, open_store(cluster.store, "shop")
    for step in PURE:
        run_step(step, load_scenario(project / "scenarios" / "shop.yaml"), FIRST, store, track=False)
    out: list[str] = []
    err: list[str] = []
    with server_with_passwords(tmp_path / "platform") as server, serving(node, tmp_path) as kubeconfig:
        password = server.password(STEPS_USER)
        node.secrets = {**node.secrets, "recloop-mlflow-client": {"username": STEPS_USER, "password": password}}
        node.environment = {**node.environment, "MLFLOW_TRACKING_URI": server.uri}
        del node.environment["RECLOOP_NO_TRACK"]
        for step in ("register", "deploy"):
            code = _as_pods(images, kubeconfig, step).run(_arguments(ROOT, step, FIRST), out.append, err.append)
            assert code == 0, err
        status, said = server.ask("api/2.0/mlflow/registered-models/get?name=shop", STEPS_USER)
    assert json.loads(out[-1])["metrics"]["promoted"] is True
    assert (status, json.loads(said)["registered_model"]["aliases"]) == (200, [{"alias": "champion", "version": "1"}])
    assert password not in json.dumps(node.created) + "".join(out + err)


def test_too_much_memory_is_reported_with_the_limit(
    node: NodeDouble, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(STEPS["ingest"], resources=Resources(memory_gib=1 / 16))
    monkeypatch.setitem(STEPS, "ingest", small)
    out: list[str] = []
    err: list[str] = []
    with serving(node, tmp_path) as kubeconfig:
        execution = _as_pods(images, kubeconfig, "ingest")
        code = execution.run(_arguments(ROOT, "ingest", FIRST), out.append, err.append)
    assert code == 137, err
    assert re.match(r"recloop: out of memory: ingest needed more than its limit of 0\.0625 GiB", err[-1])
    await_none(PODS, within_s=10)


def test_a_killed_task_leaves_no_container(
    node: NodeDouble, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's signal handler ends the operator of the task, and then its process: both within the same stack."""

    def kill_when_it_runs() -> None:
        awaited(lambda: containers(PODS, "status=running"), within_s=60)
        os.kill(os.getpid(), signal.SIGUSR1)

    def terminated(*_: object) -> None:
        begun = time.monotonic()
        execution.kill()
        assert time.monotonic() - begun < 3, "Airflow kills the task after 5 s"
        raise SystemExit

    before = signal.signal(signal.SIGUSR1, terminated)
    try:
        with serving(node, tmp_path) as kubeconfig, pytest.raises(SystemExit):
            execution = _as_pods(images, kubeconfig, "ingest")
            threading.Thread(target=kill_when_it_runs, daemon=True).start()
            execution.run(_arguments(ROOT, "ingest", FIRST), print, print)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not node.pods
    await_none(PODS, within_s=10)
