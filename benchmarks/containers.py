"""The same days in every execution mode: digest and seconds of each step, and the cost of the images and of a
container.

    python -m benchmarks.containers [--scenario movielens] [--data FOLDER] [--days 3] [--tag TAG] [--modes MODE...]

Needs an engine (DOCKER_HOST; `infra/engine.sh start` on a plain Debian) with the step image of this checkout:
`make images ROLES=step`. Each mode has its own store and MLflow server and runs `recloop STEP` for every day
and step, as Airflow does: `process` beside the caller, `docker` with the step's function in a container, `kubernetes`
through Airflow's real pod operator against a double of the cluster's API that starts the pod's container on the engine
(tests/containers/node_double.py), `dvc` under `dvc repro`. Where the name ends with `s3`, and in `kubernetes`, the
store is in a bucket of SeaweedFS on this machine. Seconds are those of the whole command; for dvc, those that its steps
recorded.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import functools
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from feature_jobs.schema import Scenario, load_scenario
from infra.images import docker
from infra.platform import credentials
from tasks.commands.common import scenario_file
from tasks.commands.days import scenario_days
from tasks.run.container import release
from tasks.steps import DAILY
from tasks.store.keys import JOURNAL
from tasks.store.scenario_store import open_store
from tasks.store.source_digest import ROOMS
from tests.environment import inherited
from tests.mlflow_server import mlflow_server
from tests.object_store import NARROW, ObjectServer, object_server

ROOT = Path(__file__).resolve().parent.parent
MODES = ("process", "process s3", "docker", "docker s3", "kubernetes", "dvc")
HARDENED = ("--rm", "--read-only", "--network=none", "--tmpfs=/tmp", "--cap-drop=ALL")
STARTS = 9
Cells = dict[tuple[str, str], tuple[str, float]]
"""Of each day and step, its digest and seconds."""


def timed(command: Sequence[str | Path], environment: Mapping[str, str]) -> float:
    """Seconds that a command takes. Raises SystemExit with its output if it fails."""
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return time.perf_counter() - begun


def run_commands(
    mode: str, scenario: Scenario, days: Sequence[str], store: str, *, tag: str, mlflow: str
) -> dict[Any, float]:
    """Modes `process` and `docker`: a command for each step."""
    settings = {"RECLOOP_EXECUTION": mode, "RECLOOP_TAG": tag, "RECLOOP_DOCKER_NETWORK": "host"}
    settings["RECLOOP_CACHE"] = os.environ["RECLOOP_CACHE"]
    environment = {**inherited(), **settings, "MLFLOW_TRACKING_URI": mlflow}
    where = ["-s", str(scenario.file), "--store", store, "--data", scenario.data.path]
    program = [sys.executable, "-P", "-m", "tasks"]
    return {(ds, step): timed([*program, step, *where, "--ds", ds], environment) for ds in days for step in DAILY}


def run_pods(
    scenario: Scenario, days: Sequence[str], tag: str, mlflow: str, objects: ObjectServer
) -> tuple[str, dict[Any, float]]:
    """Mode `kubernetes`: a pod for each step, with a credential for one bucket. Returns the store too."""
    import tests.airflow_home  # noqa: F401 (before the first import of Airflow)
    from dags.kubernetes_execution import KubernetesExecution
    from dags.kubernetes_execution import PodSettings as Cluster
    from tests.cluster_double import serving
    from tests.containers.node_double import NodeDouble

    store, seconds = f"s3://{objects.narrow_bucket}/kubernetes", {}
    claims = {"recloop-data": Path(scenario.data.path).parent}
    secrets = {
        "recloop-mlflow-client": {"username": "nobody", "password": "none"},
        "recloop-store-client": {"store-credentials": credentials(NARROW, objects.narrow_secret)},
    }
    here = {"RECLOOP_STORE": store, "AWS_ENDPOINT_URL": objects.endpoint, "MLFLOW_TRACKING_URI": mlflow}
    with tempfile.TemporaryDirectory() as name:
        node = NodeDouble(claims, secrets, here, Path(name) / "node")
        with serving(node, Path(name)) as kubeconfig:
            cluster = Cluster("recloop", tag, kubeconfig=str(kubeconfig))
            for ds, step in itertools.product(days, DAILY):
                instance = SimpleNamespace(
                    dag_id="d", task_id=step, map_index=-1, try_number=1, xcom_push=lambda **_: None
                )
                context: Any = {"ti": instance, "run_id": f"r{ds}", "dag": SimpleNamespace()}
                execution = KubernetesExecution(cluster, functools.partial(dict, context))
                output: list[str] = []
                arguments = [step, "--scenario", str(scenario.file), "--ds", ds, "--json"]
                begun = time.perf_counter()
                code = execution.run(arguments, output.append, output.append)
                seconds[ds, step] = time.perf_counter() - begun
                if code:
                    sys.exit("\n".join(output))
    return store, seconds


def run_dvc(scenario: Scenario, days: Sequence[str], folder: Path, mlflow: str) -> tuple[str, dict[Any, float]]:
    """`dvc repro` of a copy of this code in its own repository. Returns its store too."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "scenarios", folder / "scenarios", ignore=shutil.ignore_patterns("data"))
    shutil.copytree(scenario.data.path, folder / "data" / Path(scenario.data.path).name)
    (folder / ".gitignore").write_text(".recloop/\n__pycache__/\n")
    tools = str(Path(sys.executable).parent)
    paths = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    environment = {**inherited(), **paths, "MLFLOW_TRACKING_URI": mlflow}
    file = f"scenarios/{scenario.file.name}"
    for command in (
        ("git", "init", "-q"),
        ("dvc", "init", "-q"),
        ("recloop", "dvc-render", "-s", file, "--from", days[0], "--to", days[-1]),
        ("dvc", "repro", "-q"),
    ):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    store = folder / ".recloop" / "dvc"
    noted = [json.loads(line) for line in (store / scenario.name / JOURNAL).read_text().splitlines()]
    taken = {(entry["ds"], entry["step"]): entry["seconds"]["total"] for entry in noted if entry["step"] in DAILY}
    return str(store), taken


def cells(scenario: Scenario, store: str, seconds: Mapping[Any, float]) -> Cells:
    """The digests in a store, beside the seconds."""
    commits = {(commit.ds, commit.step): commit.digest for commit in open_store(store, scenario.name).commits()}
    return {at: (commits[at], taken) for at, taken in seconds.items()}


def print_table(by_mode: Mapping[str, Cells]) -> bool:
    """Returns True if all modes have the same digests."""
    first = next(iter(by_mode.values()))
    print(f"\n{'day':<11}{'step':<10}{'digest':<14}" + "".join(f"{mode:>12}" for mode in by_mode))
    same = True
    for at, (digest, _) in first.items():
        found = [by_mode[mode][at] for mode in by_mode]
        same &= all(other == digest for other, _ in found)
        shown = "".join(f"{taken:>10.1f}{' =' if other == digest else ' ≠'}" for other, taken in found)
        print(f"{at[0]:<11}{at[1]:<10}{digest[:12]:<14}{shown}")
    totals = {mode: sum(taken for _, taken in found.values()) for mode, found in by_mode.items()}
    print(f"{'':<11}{'all':<24}" + "".join(f"{total:>10.1f}  " for total in totals.values()))
    for mode in by_mode:
        extra = [by_mode[mode][at][1] - first[at][1] for at in first]
        print(f"{mode}: a step takes {statistics.median(extra):+.2f} s (median) beside {next(iter(by_mode))}")
    return same


def print_images(tag: str) -> None:
    """Sizes of the images that the engine holds, and the largest folders of the step image."""
    listed = subprocess.run(
        [docker(), "images", "--format", "{{.Repository}}:{{.Tag}}"], capture_output=True, text=True, check=True
    ).stdout.split()
    for name in sorted(name for name in listed if name.startswith("recloop/") and name.endswith(f":{tag}")):
        shown = subprocess.run(
            [docker(), "image", "inspect", "--format", "{{.Size}}", name], capture_output=True, text=True, check=True
        )
        print(f"{name:<24}{int(shown.stdout) / 1e9:6.2f} GB")
    du = "du -xs -B1 /opt/recloop/lib/python3.*/site-packages/* /usr /opt/app | sort -rn | head -12"
    shown = subprocess.run(
        [docker(), "run", *HARDENED, "--user=0", "--entrypoint=sh", f"recloop/step:{tag}", "-c", du],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in shown.stdout.splitlines():
        size, place = line.split()
        print(f"    {int(size) / 1e6:7.0f} MB  {place}")


def print_starts(tag: str) -> None:
    """A command that does nothing, alternately as a process and in containers."""
    image = f"recloop/step:{tag}"
    ways: dict[str, list[str]] = {
        "a process": [sys.executable, "-P", "-m", "tasks", "train", "--help"],
        "an empty container": [docker(), "run", *HARDENED, "--entrypoint=/bin/true", image],
        "a step's container": [docker(), "run", *HARDENED, image, "train", "--help"],
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(STARTS):
        for way, command in ways.items():
            taken[way].append(timed(command, inherited()))
    for way, found in taken.items():
        print(f"{way:<20}{statistics.median(found):6.2f} s ({min(found):.2f}-{max(found):.2f}, {STARTS} starts)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if all modes have the same digests."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.containers", description=__doc__.split("\n")[0])
    parser.add_argument("--scenario", default="movielens")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--tag", default=release())
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE")
    given = parser.parse_args(arguments)
    scenario = load_scenario(scenario_file(given.scenario), data=given.data)
    days = scenario_days(scenario, None, None, None)[: given.days]
    print_images(given.tag)
    print_starts(given.tag)
    by_mode: dict[str, Cells] = {}
    with tempfile.TemporaryDirectory() as name, object_server(Path(name) / "objects") as objects:
        os.environ.update(objects.environment(RECLOOP_CACHE=f"{name}/cache"))
        for mode in given.modes:
            work = Path(name) / mode.replace(" ", "-")
            work.mkdir()
            # One for each mode: the number of a version depends on earlier registrations.
            with mlflow_server(work / "mlflow") as mlflow:
                if mode == "kubernetes":
                    store, seconds = run_pods(scenario, days, given.tag, mlflow, objects)
                elif mode == "dvc":
                    store, seconds = run_dvc(scenario, days, work / "project", mlflow)
                else:
                    store = objects.new_url() if mode.endswith(" s3") else str(work / "store")
                    execution = mode.removesuffix(" s3")
                    seconds = run_commands(execution, scenario, days, store, tag=given.tag, mlflow=mlflow)
            by_mode[mode] = cells(scenario, store, seconds)
        return 0 if print_table(by_mode) else 1


if __name__ == "__main__":
    sys.exit(main())
