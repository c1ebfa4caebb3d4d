"""A day in Airflow's own hands, each task a pod. No cluster: Airflow, its pod operator and the Kubernetes client are
real, the API they talk to is a double that checks every pod and runs a small script in its place."""

import subprocess
import sys
from pathlib import Path

import pytest

from feature_jobs.schema import load_scenario
from tasks.steps import daily_steps
from tests.airflow_home import airflow_environment
from tests.cluster_double import ClusterDouble, serving
from tests.environment import inherited
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.airflow]
STEP = """
import json, sys
print("working", file=sys.stderr)
print(json.dumps({"digest": "d", "uri": "/store/" + sys.argv[1]}))
if sys.argv[1] == "deploy":
    print("recloop: not better than the champion", file=sys.stderr)
    sys.exit(3)
"""


def test_a_day_runs_as_pods_in_the_order_of_its_steps_and_a_gates_no_skips(tmp_path: Path) -> None:
    cluster = ClusterDouble([sys.executable, "-uc", STEP])
    with serving(cluster, tmp_path) as kubeconfig:
        environment = {
            **inherited("AIRFLOW"),
            **airflow_environment(tmp_path / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "PYTHONPATH": str(ROOT),
            "RECLOOP_EXECUTION": "kubernetes",
            "RECLOOP_TAG": "0.1.0",
            "KUBECONFIG": str(kubeconfig),
        }

        def airflow(*arguments: str) -> str:
            command = [Path(sys.executable).parent / "airflow", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        airflow("db", "migrate")
        airflow("pools", "set", "gpu", "1", "one training at a time")
        log = airflow("dags", "test", "movielens_daily", "1997-11-13")
    steps = [pod["metadata"]["labels"]["recloop/step"] for pod in cluster.created]
    daily = daily_steps(load_scenario(ROOT / "scenarios" / "movielens.yaml"))
    assert sorted(steps) == sorted(daily)
    assert (steps[0], steps[-1]) == (daily[0], daily[-1])
    assert not cluster.pods
    assert len(cluster.deleted) == len(daily)
    assert "not better than the champion" in log
    assert "state=success" in log
