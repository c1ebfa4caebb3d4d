"""infra/kubernetes as kustomize renders it: only fields that Kubernetes knows, and nothing that could harm a node."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from feature_jobs.checks.check import check
from feature_jobs.errors import RetryLaterError
from feature_jobs.schema import load_scenario
from feature_jobs.schema.bounded_yaml import parse_yaml
from infra.platform import BUCKET
from tasks.steps import STEPS
from tests.cluster_double import VERSION
from tests.paths import ROOT

FOLDERS = ("base", "training", "training-gpu", "training-pytorchjob")
CUSTOM = {"PyTorchJob"}  # not in Kubernetes' own schemas: its pods are checked, its head is not
OURS = re.compile(r"registry\.example/recloop/(airflow|mlflow|step|step-cuda):\d+\.\d+\.\d+")
PINNED = re.compile(r"[^@]+:[^@:]+@sha256:[0-9a-f]{64}")


def _rendered(folder: str, root: Path = ROOT / "infra" / "kubernetes") -> list[dict[str, Any]]:
    program = Path(sys.executable).parent / "kubectl"
    command = [program, "kustomize", root / folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns"
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def documents() -> dict[str, list[dict[str, Any]]]:
    return {folder: _rendered(folder) for folder in FOLDERS}


@pytest.fixture(scope="module")
def everything(documents: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [document for found in documents.values() for document in found]


def _worker(documents: list[dict[str, Any]]) -> dict[str, Any]:
    [worker] = [d for d in documents if (d["kind"], d["metadata"]["name"]) == ("StatefulSet", "airflow-worker")]
    return worker


def _templates(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in a document, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value
        for inner in value.values():
            yield from _templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _templates(inner)


@pytest.fixture(scope="module")
def pods(everything: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [template for document in everything for template in _templates(document)]
    assert len(found) == 13  # redis, two of MLflow, six of Airflow, two of Indexed Jobs, two of the PyTorchJob's
    return found


def test_every_document_is_strictly_valid(everything: list[dict[str, Any]]) -> None:
    for document in everything:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, VERSION, strict=True)
        for template in _templates(document):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template}
            kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_check_sees_a_field_that_is_none(everything: list[dict[str, Any]]) -> None:
    broken = json.loads(json.dumps(next(d for d in everything if d["kind"] == "Deployment")))
    broken["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_pods_keep_to_the_restricted_standard(pods: list[dict[str, Any]]) -> None:
    for pod in pods:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert isinstance(spec["securityContext"]["runAsUser"], int)
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        kinds = {next(key for key in volume if key != "name") for volume in spec["volumes"]}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim", "projected"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["privileged"] is False


def test_pods_say_what_they_may_use_and_where(pods: list[dict[str, Any]]) -> None:
    for pod in pods:
        for container in pod["spec"]["containers"]:
            limits = container["resources"]["limits"]
            assert {"cpu", "memory", "ephemeral-storage"} <= limits.keys()
            assert limits["memory"] == container["resources"]["requests"]["memory"]
            gpu = "nvidia.com/gpu" in limits
            assert pod["spec"]["nodeSelector"] == {"recloop/pool": "gpu" if gpu else "cpu"}
            assert gpu == any(t["key"] == "nvidia.com/gpu" for t in pod["spec"].get("tolerations", []))


def test_images_are_releases(pods: list[dict[str, Any]]) -> None:
    for pod in pods:
        for container in pod["spec"]["containers"]:
            assert OURS.fullmatch(container["image"]) or PINNED.fullmatch(container["image"]), container["image"]


def test_secrets_are_referred_to_and_never_held(everything: list[dict[str, Any]], pods: list[dict[str, Any]]) -> None:
    assert not [d for d in everything if d["kind"] == "Secret"]
    for pod in pods:
        for variable in (v for c in pod["spec"]["containers"] for v in c.get("env", []) if "value" in v):
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN|CONN|BROKER|CREDENTIALS", variable["name"]):
                assert "/run/secrets/" in variable["value"] or variable["name"].endswith("PASSWORDS_FILE")


def test_namespaces_enforce_the_standard_and_start_from_nothing(documents: dict[str, list[dict[str, Any]]]) -> None:
    base = documents["base"]
    spaces = {d["metadata"]["name"]: d["metadata"]["labels"] for d in base if d["kind"] == "Namespace"}
    assert set(spaces) == {"recloop", "recloop-steps"}
    for name, labels in spaces.items():
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        mine = [d for d in base if d["metadata"].get("namespace") == name]
        deny = next(d for d in mine if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "default-deny")
        assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        assert {"ResourceQuota", "LimitRange"} <= {d["kind"] for d in mine}


def test_a_step_reaches_mlflow_the_store_and_names_only(documents: dict[str, list[dict[str, Any]]]) -> None:
    policies = [
        d for d in documents["base"] if d["kind"] == "NetworkPolicy" and d["metadata"]["namespace"] == "recloop-steps"
    ]
    ports = {
        (policy["metadata"]["name"], port["port"])
        for policy in policies
        for rule in policy["spec"].get("egress", [])
        for port in rule.get("ports", [])
    }
    assert ports == {("names", 53), ("steps-to-mlflow", 5000), ("steps-to-store", 443), ("steps-to-store", 8333)}
    for policy in policies:
        for rule in policy["spec"].get("egress", []):
            assert rule.get("to"), f"{policy['metadata']['name']}: egress to everywhere"


def test_steps_do_not_log_in_to_mlflow_as_its_admin(documents: dict[str, list[dict[str, Any]]]) -> None:
    [job] = [d for d in documents["base"] if d["metadata"]["name"] == "mlflow-user" and d["kind"] == "Job"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    [name] = [a.removeprefix("--name=") for a in container["args"] if a.startswith("--name=")]
    assert re.findall(r"recloop-mlflow-client --from-literal=username=(\w+)", PAGE) == [name] == ["recloop"]


def test_what_is_named_exists(documents: dict[str, list[dict[str, Any]]], everything: list[dict[str, Any]]) -> None:
    claims = {d["metadata"]["name"] for d in everything if d["kind"] == "PersistentVolumeClaim"}
    accounts = {d["metadata"]["name"] for d in everything if d["kind"] == "ServiceAccount"}
    maps = {d["metadata"]["name"] for d in everything if d["kind"] == "ConfigMap"} | {"kube-root-ca.crt"}
    step = yaml.safe_load((ROOT / "infra" / "kubernetes" / "base" / "step-pod.yaml").read_text())
    text = json.dumps([everything, step])
    assert set(re.findall(r'"claimName": "([^"]+)"', text)) == claims
    assert set(re.findall(r'"serviceAccountName": "([^"]+)"', text)) == accounts
    assert set(re.findall(r'"configMap": {"[^}]*?"name": "([^"]+)"', text)) <= maps
    for document in everything:
        if document["kind"] == "Service" and "selector" in document["spec"]:
            selected = [
                t["metadata"]["labels"]
                for found in documents.values()
                if document in found
                for other in found
                for t in _templates(other)
                if document["spec"]["selector"].items() <= t["metadata"]["labels"].items()
            ]
            assert {labels["app.kubernetes.io/part-of"] for labels in selected} == {"recloop"}


def test_only_the_worker_may_start_pods_and_only_among_the_steps(documents: dict[str, list[dict[str, Any]]]) -> None:
    assert not [d for d in documents["base"] if d["kind"].startswith("ClusterRole")]
    [binding] = [d for d in documents["base"] if d["kind"] == "RoleBinding"]
    assert binding["metadata"]["namespace"] == "recloop-steps"
    assert [subject["name"] for subject in binding["subjects"]] == ["airflow-worker"]
    [role] = [d for d in documents["base"] if d["kind"] == "Role"]
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"pods", "pods/log", "events"}


def test_all_of_airflow_shares_its_settings(documents: dict[str, list[dict[str, Any]]]) -> None:
    parts = [d for d in documents["base"] if d["metadata"].get("labels", {}).get("recloop/role") == "airflow"]
    assert len(parts) == 6
    for part in parts:
        template = part["spec"]["template"]
        assert template["metadata"]["labels"]["recloop/role"] == "airflow", "network policies select by it"
        [container] = template["spec"]["containers"]
        settings = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert settings["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
        assert "airflow-database-url" in settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD"]


def test_values_of_the_official_chart_say_what_the_base_says(documents: dict[str, list[dict[str, Any]]]) -> None:
    values = yaml.safe_load((ROOT / "infra" / "kubernetes" / "airflow-chart-values.yaml").read_text())
    pod = _worker(documents["base"])["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert values["securityContexts"] == {
        "pod": pod["spec"]["securityContext"],
        "containers": container["securityContext"],
    }
    image = values["images"]["airflow"]
    assert f"{image['repository']}:{image['tag']}" == container["image"]
    assert f"apache-airflow=={values['airflowVersion']}" in (ROOT / "infra/docker/airflow.lock").read_text().split()
    said = {variable["name"]: variable["value"] for variable in container["env"]}
    given = {v["name"]: v["value"] for v in values["env"] + values["workers"]["celery"]["env"]}
    assert given == {name: value for name, value in said.items() if name.endswith("_CMD") or name.startswith("RECLOOP")}
    labels = values["labels"] | values["workers"]["celery"]["labels"]
    assert labels.items() <= pod["metadata"]["labels"].items(), "network policies select by them"
    assert set(values["enableBuiltInSecretEnvVars"].values()) == {False}


def test_step_pods_are_of_the_same_release_as_airflow(documents: dict[str, list[dict[str, Any]]]) -> None:
    [container] = _worker(documents["base"])["spec"]["template"]["spec"]["containers"]
    settings = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert container["image"] == f"{settings['RECLOOP_IMAGES']}/airflow:{settings['RECLOOP_TAG']}"


def test_each_machine_of_a_training_knows_its_rank(documents: dict[str, list[dict[str, Any]]]) -> None:
    for folder in ("training", "training-gpu"):
        service, job = sorted(documents[folder], key=lambda d: d["kind"] != "Service")
        spec, name = job["spec"], service["metadata"]["name"]
        [container] = spec["template"]["spec"]["containers"]
        assert "command" not in container, "the image's entry point: recloop"
        environment = {variable["name"]: variable for variable in container["env"]}
        assert spec["completionMode"] == "Indexed"
        assert spec["parallelism"] == spec["completions"] == int(environment["PET_NNODES"]["value"])
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        assert environment["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"] == index
        assert environment["PET_MASTER_ADDR"]["value"] == f"{job['metadata']['name']}-0.{name}"
        assert [int(environment["PET_MASTER_PORT"]["value"])] == [port["containerPort"] for port in container["ports"]]
        assert spec["template"]["spec"]["subdomain"] == name
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True


def test_a_training_that_only_a_person_can_fix_is_not_tried_again(documents: dict[str, list[dict[str, Any]]]) -> None:
    [job] = [d for d in documents["training"] if d["kind"] == "Job"]
    rules = {rule["action"]: rule for rule in job["spec"]["podFailurePolicy"]["rules"]}
    assert rules["FailJob"]["onExitCodes"]["values"] == list(range(1, RetryLaterError.exit_code))
    assert rules["Ignore"]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_the_operators_machines_are_those_of_the_job(documents: dict[str, list[dict[str, Any]]]) -> None:
    [job] = [d for d in documents["training"] if d["kind"] == "Job"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    [pytorch] = documents["training-pytorchjob"]
    replicas = pytorch["spec"]["pytorchReplicaSpecs"]
    assert sum(role["replicas"] for role in replicas.values()) == job["spec"]["completions"]
    for role in replicas.values():
        [other] = role["template"]["spec"]["containers"]
        assert (other["args"], other["resources"]) == (container["args"], container["resources"])
        assert "command" not in other
        names = {variable["name"] for variable in other["env"]}
        assert names == {v["name"] for v in container["env"] if not v["name"].startswith("PET_")}


def test_the_trainings_command_is_one_for_several_machines(documents: dict[str, list[dict[str, Any]]]) -> None:
    [job] = [d for d in documents["training"] if d["kind"] == "Job"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    step, *options = container["args"]
    given = [option.removeprefix("--").split("=", 1) for option in options if "=" in option]
    written = dict(value.split("=") for name, value in given if name == "set")
    settings = {path: parse_yaml(value, path) for path, value in written.items()}
    scenario = load_scenario(ROOT / dict(given)["scenario"], overrides=settings)
    assert STEPS[step].shared
    assert scenario.train.backend == "torchrec"
    assert scenario.train.distributed.ranks % job["spec"]["completions"] == 0
    check(scenario, with_data=False)


def test_no_volume_is_written_by_several_nodes(everything: list[dict[str, Any]]) -> None:
    claims = [d["spec"] for d in everything if d["kind"] == "PersistentVolumeClaim"]
    claims += [c["spec"] for d in everything for c in d.get("spec", {}).get("volumeClaimTemplates", [])]
    assert sorted(mode for claim in claims for mode in claim["accessModes"]) == ["ReadOnlyMany", "ReadWriteOnce"]


def test_a_workers_name_leads_to_the_logs_of_its_tasks(documents: dict[str, list[dict[str, Any]]]) -> None:
    worker = _worker(documents["base"])["spec"]
    [service] = [
        d["spec"] for d in documents["base"] if (d["kind"], d["metadata"]["name"]) == ("Service", worker["serviceName"])
    ]
    assert service["clusterIP"] == "None"
    assert service["selector"].items() <= worker["template"]["metadata"]["labels"].items()
    [container] = worker["template"]["spec"]["containers"]
    [folder] = [v["value"] for v in container["env"] if v["name"] == "AIRFLOW__LOGGING__BASE_LOG_FOLDER"]
    [kept] = worker["volumeClaimTemplates"]
    assert {m["name"]: m["mountPath"] for m in container["volumeMounts"]}[kept["metadata"]["name"]] == folder
    assert (
        [port["port"] for port in service["ports"]] == [port["containerPort"] for port in container["ports"]] == [8793]
    )


def test_steps_reach_the_store_by_a_credential_for_its_bucket_alone(
    documents: dict[str, list[dict[str, Any]]],
) -> None:
    pods = [yaml.safe_load(d["data"]["step-pod.yaml"]) for d in documents["base"] if d["kind"] == "ConfigMap"]
    pods += [
        pod for folder in FOLDERS if folder.startswith("training") for d in documents[folder] for pod in _templates(d)
    ]
    assert len(pods) == 1 + 4
    [(secret, file)] = re.findall(r"create secret generic (recloop-store-client) \$\(files (\S+)\)", PAGE)
    for pod in pods:
        [container] = pod["spec"]["containers"]
        settings = {v["name"]: v.get("value") for v in container["env"]}
        assert settings["RECLOOP_STORE"] == f"s3://{BUCKET}/store"
        folder, _, name = settings["AWS_SHARED_CREDENTIALS_FILE"].rpartition("/")
        [volume] = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == folder]
        secrets = {v["name"]: v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v}
        assert (secrets, name) == ({volume: secret}, file)


PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


def test_the_pages_overlay_builds_and_says_where_things_are(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra" / "kubernetes", tmp_path / "kubernetes")
    [overlay] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "kubernetes" / "mine").mkdir()
    (tmp_path / "kubernetes" / "mine" / "kustomization.yaml").write_text(overlay)
    documents = _rendered("mine", tmp_path / "kubernetes")
    for document in documents:
        kubernetes_validate.validate(document, VERSION, strict=True)
    text = json.dumps(documents)
    assert "example" not in text, "all that is somebody's own is named by the page's overlay"
    [container] = _worker(documents)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.mine/recloop/airflow:0.1.0"
    assert len(container["env"]) > 15, "the overlay adds settings and takes none"


def test_the_page_makes_every_secret_with_every_file_that_is_read(everything: list[dict[str, Any]]) -> None:
    made = {
        name: set(files.split()) for name, files in re.findall(r"create secret generic (\S+) \$\(files ([^)]+)\)", PAGE)
    }
    read: dict[str, set[str]] = {}
    for document in everything:
        for template in _templates(document):
            for volume in template["spec"]["volumes"]:
                if "secret" in volume:
                    used = re.findall(r"/run/secrets/recloop/([a-z0-9-]+)", json.dumps(template))
                    read.setdefault(volume["secret"]["secretName"], set()).update(used)
    assert made == read
    client = set(
        re.findall(r'"secretKeyRef": {"key": "(\w+)", "name": "recloop-mlflow-client"}', json.dumps(everything))
    )
    assert client == set(re.findall(r"--from-(?:literal|file)=(\w+)=", PAGE)) == {"username", "password"}
