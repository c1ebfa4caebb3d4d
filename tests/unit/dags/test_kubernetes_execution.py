"""The pod of a step, and the meaning of its end. No cluster is at hand: the real operator and client talk to a
double that checks every pod against Kubernetes' own schemas and runs a script in the container's place."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml

import tests.airflow_home  # noqa: F401 (before the first import of Airflow)
from tasks.contract import Resources, Step
from tasks.run.modes import execution_of
from tasks.steps import STEPS
from tests.cluster_double import VERSION, ClusterDouble, serving
from tests.paths import ROOT

ARGUMENTS = ["--scenario", str(ROOT / "scenarios" / "movielens.yaml"), "--ds", "1997-11-13", "--json"]
RESULT = json.dumps({"digest": "d", "uri": "u"})


def _settings(**given: Any) -> Any:
    from dags.kubernetes_execution import PodSettings

    return PodSettings(**{"images": "registry.example/recloop", "tag": "0.1.0", **given})


def _pod(declared: Step, arguments: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    """The pod as it would be sent, checked strictly."""
    from kubernetes.client import ApiClient

    from dags.kubernetes_execution import StepPod

    operator = StepPod(
        task_id=declared.name,
        declared=declared,
        arguments=[declared.name, *(arguments or ARGUMENTS)],
        settings=_settings(**settings),
        on_line=print,
    )
    sent: dict[str, Any] = ApiClient().sanitize_for_serialization(operator.build_pod_request_obj(dry_run=True))
    kubernetes_validate.validate(sent, VERSION, strict=True)
    return sent


def _context() -> dict[str, Any]:
    instance = SimpleNamespace(
        dag_id="movielens_daily", task_id="train", map_index=-1, try_number=1, xcom_push=lambda **_: None
    )
    return {"ti": instance, "run_id": "r", "dag": SimpleNamespace()}


@pytest.mark.parametrize("declared", STEPS.values(), ids=STEPS)
def test_every_step_is_a_pod_that_can_do_no_harm(declared: Step) -> None:
    pod = _pod(declared)
    spec, [container] = pod["spec"], pod["spec"]["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] >= 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["restartPolicy"] == "Never"
    assert not {"hostPID", "hostIPC"} & spec.keys()
    assert not spec.get("hostNetwork")
    assert not any("hostPath" in volume for volume in spec["volumes"])
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["privileged"] is False
    assert container["image"] == f"registry.example/recloop/{declared.image}:0.1.0"


def test_limits_gpus_and_node_pool_are_the_declaration() -> None:
    declared = dataclasses.replace(STEPS["train"], resources=Resources(cpus=3.5, memory_gib=12, gpus=2))
    pod = _pod(declared)
    [container] = pod["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert (limits["cpu"], limits["memory"], limits["nvidia.com/gpu"]) == ("3500m", "12288Mi", "2")
    assert pod["spec"]["nodeSelector"] == {"recloop/pool": "gpu"}
    assert [toleration["key"] for toleration in pod["spec"]["tolerations"]] == ["nvidia.com/gpu"]
    assert container["image"].endswith("/step-cuda:0.1.0")
    assert {"name": "OMP_NUM_THREADS", "value": "3"} in container["env"]
    assert pod["spec"]["activeDeadlineSeconds"] > declared.timeout_s


def test_a_step_without_gpus_stays_off_gpu_nodes() -> None:
    pod = _pod(STEPS["join"])
    assert pod["spec"]["nodeSelector"] == {"recloop/pool": "cpu"}
    assert not pod["spec"].get("tolerations")
    assert "nvidia.com/gpu" not in pod["spec"]["containers"][0]["resources"]["limits"]


def test_the_command_is_the_same_as_in_a_process_and_names_the_scenario_as_the_image_does() -> None:
    [container] = _pod(STEPS["train"])["spec"]["containers"]
    assert container["args"] == ["train", "--scenario", "scenarios/movielens.yaml", "--ds", "1997-11-13", "--json"]
    assert not container.get("command"), "the image's own entry point is recloop"
    elsewhere = ["--scenario", "/mnt/scenarios/shop.yaml", "--ds", "2024-01-01"]
    assert _pod(STEPS["train"], elsewhere)["spec"]["containers"][0]["args"][2] == "/mnt/scenarios/shop.yaml"


def test_secrets_are_named_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush-hush")
    pod = _pod(STEPS["register"])
    assert "hush-hush" not in json.dumps(pod)
    held = {e["name"]: e for e in pod["spec"]["containers"][0]["env"]}
    assert held["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "recloop-mlflow-client"


def test_a_template_can_not_soften_the_pod(tmp_path: Path) -> None:
    template = yaml.safe_load((ROOT / "infra" / "kubernetes" / "base" / "step-pod.yaml").read_text())
    template["spec"].update(automountServiceAccountToken=True, hostNetwork=True, hostPID=True)
    template["spec"]["securityContext"] = {"runAsUser": 0, "runAsNonRoot": False}
    template["spec"]["containers"][0]["securityContext"] = {"privileged": True, "allowPrivilegeEscalation": True}
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(template))
    assert _pod(STEPS["join"], template=file)["spec"] == _pod(STEPS["join"])["spec"]


def _run(cluster: ClusterDouble, folder: Path, *arguments: str) -> tuple[int, list[str], list[str]]:
    from dags.kubernetes_execution import KubernetesExecution

    out: list[str] = []
    err: list[str] = []
    with serving(cluster, folder) as kubeconfig:
        settings = _settings(kubeconfig=str(kubeconfig))
        code = KubernetesExecution(settings, _context).run(arguments or ["train", *ARGUMENTS], out.append, err.append)
    return code, out, err


@pytest.mark.parametrize("code", [0, 3, 4, 5, 6])
def test_exit_codes_mean_the_same_and_the_pod_is_gone(tmp_path: Path, code: int) -> None:
    script = (
        f"import sys; print('epoch 1'); print({RESULT!r}); print('recloop: why', file=sys.stderr); sys.exit({code})"
    )
    cluster = ClusterDouble([sys.executable, "-uc", script])
    assert _run(cluster, tmp_path) == (code, [RESULT], ["epoch 1", "recloop: why"])
    assert not cluster.pods
    assert len(cluster.deleted) == len(cluster.created) == 1


def test_a_worker_of_a_search_starts_no_pod_because_no_other_pod_could_read_its_trials(tmp_path: Path) -> None:
    cluster = ClusterDouble([sys.executable, "-c", f"print({RESULT!r})"])
    shown = _run(cluster, tmp_path, "tune", *ARGUMENTS, "--worker", "0")
    assert (shown[0], json.loads(shown[1][-1])["outcome"], cluster.created) == (0, "done", [])
    assert "one pod does all the work of tune" in shown[2][0]
    assert _run(cluster, tmp_path, "tune", *ARGUMENTS)[:2] == (0, [RESULT])
    assert len(cluster.created) == 1


def test_out_of_memory_is_reported_with_the_limit(tmp_path: Path) -> None:
    cluster = ClusterDouble([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], reason="OOMKilled")
    code, _, err = _run(cluster, tmp_path)
    assert code == 137
    assert f"limit of {STEPS['train'].resources.memory_gib:g} GiB" in err[-1]
    assert err[-1].startswith("recloop: out of memory: train")


def test_a_killed_task_leaves_no_pod(tmp_path: Path) -> None:
    """Airflow's signal handler ends the task's operator, and then its process: both within the same stack."""
    from dags.kubernetes_execution import KubernetesExecution

    cluster = ClusterDouble([sys.executable, "-uc", "import time; print('on'); print('and on'); time.sleep(60)"])

    def terminated(line: str) -> None:
        begun = time.monotonic()
        execution.kill()
        assert time.monotonic() - begun < 3, "Airflow kills the task after 5 s"
        assert not cluster.pods
        raise SystemExit(line)

    with serving(cluster, tmp_path) as kubeconfig, pytest.raises(SystemExit):
        execution = KubernetesExecution(_settings(kubeconfig=str(kubeconfig)), _context)
        execution.run(["train", *ARGUMENTS], print, terminated)
    assert len(cluster.deleted) == len(cluster.created) == 1


def test_an_exception_such_as_airflows_timeout_deletes_the_pod(tmp_path: Path) -> None:
    from dags.kubernetes_execution import KubernetesExecution

    class TooLateError(BaseException):
        pass

    def late(line: str) -> None:
        raise TooLateError(line)

    cluster = ClusterDouble(
        [sys.executable, "-uc", "import time; print('on', flush=True); time.sleep(1); print('off')"]
    )
    with serving(cluster, tmp_path) as kubeconfig, pytest.raises(TooLateError):
        KubernetesExecution(_settings(kubeconfig=str(kubeconfig)), _context).run(["train", *ARGUMENTS], late, late)
    assert not cluster.pods


def test_a_pod_that_a_lost_worker_left_is_found_again(tmp_path: Path) -> None:
    from dags.kubernetes_execution import StepPod

    found = tmp_path / "found"
    script = (
        f"import pathlib, time\nwhile not pathlib.Path({str(found)!r}).exists(): time.sleep(0.05)\nprint({RESULT!r})"
    )
    cluster = ClusterDouble([sys.executable, "-uc", script])
    labels = StepPod._get_ti_pod_labels(_context())
    left = _pod(STEPS["train"])
    left["metadata"]["labels"].update(labels)
    cluster.create(left)
    cluster.on_follow = found.touch
    assert _run(cluster, tmp_path) == (0, [RESULT], [])
    assert len(cluster.created) == 1


def test_a_pod_that_was_evicted_is_worth_a_retry() -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    from dags.kubernetes_execution import ended

    evicted = SimpleNamespace(
        status=SimpleNamespace(
            container_statuses=None, phase="Failed", reason="Evicted", message="node was low on disk"
        )
    )
    with pytest.raises(AirflowException, match="Failed Evicted node was low on disk") as caught:
        ended(evicted, "base")
    assert not isinstance(caught.value, AirflowFailException)


def test_the_setting_wants_a_release_of_the_image(tmp_path: Path) -> None:
    for tag in ({}, {"RECLOOP_TAG": "latest"}):
        with pytest.raises(ValueError, match="not latest"):
            execution_of({"RECLOOP_EXECUTION": "kubernetes", **tag})
    with pytest.raises(ValueError, match=r"nowhere\.yaml: no such file"):
        execution_of({"RECLOOP_EXECUTION": "kubernetes", "RECLOOP_TAG": "1", "RECLOOP_POD_TEMPLATE": "nowhere.yaml"})
    assert type(execution_of({"RECLOOP_EXECUTION": "kubernetes", "RECLOOP_TAG": "1"})).__name__ == "KubernetesExecution"
