"""infra/compose.yaml as the real compose reads it, and the secrets that it is given. Nothing is started here."""

import json
import os
import re
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError

from infra.platform import (
    BUCKET,
    BUCKETS_USER,
    MLFLOW_BUCKET,
    MLFLOW_USER,
    STEPS_USER,
    TOKENS,
    ports_in,
    prepare,
)
from tests.object_store import REGION, ObjectServer
from tests.paths import ROOT

COMPOSE = ROOT / "infra" / "compose.yaml"
OURS = {"airflow", "mlflow", "step"}
ONE_SHOT = {"airflow-init", "mlflow-init", "objects-init"}
PUBLISHED = {"airflow-api": 8080, "mlflow": 5000, "objects-gate": 8333}


def _compose(*arguments: str, settings: Path, file: Path = COMPOSE) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "docker-compose"
    command = [program, "--env-file", settings, "-f", file, "--project-directory", COMPOSE.parent, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture(scope="module")
def settings(home: Path) -> Path:
    return prepare(home, home / "data", "recloop", "0.1.0")


@pytest.fixture(scope="module")
def rendered(settings: Path) -> str:
    done = _compose("config", "--format", "json", settings=settings)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def services(rendered: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(rendered)["services"]
    return found


def test_compose_rejects_a_field_that_it_does_not_know(settings: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(COMPOSE.read_text())
    document["services"]["redis"]["privilegd"] = False
    broken = tmp_path / "compose.yaml"
    broken.write_text(yaml.safe_dump(document))
    assert _compose("config", "-q", settings=settings).returncode == 0
    refused = _compose("config", "-q", settings=settings, file=broken)
    assert refused.returncode != 0
    assert "privilegd" in refused.stderr


def test_every_part_of_the_platform_is_there(services: dict[str, Any]) -> None:
    airflow = {f"airflow-{part}" for part in ("init", "api", "scheduler", "dag-processor", "triggerer", "worker")}
    assert set(services) == airflow | {"postgres", "redis", "objects", "objects-gate", "mlflow"} | ONE_SHOT


def test_few_ports_are_published_and_only_on_the_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert {name: [port["target"] for port in ports] for name, ports in published.items()} == {
        name: [port] for name, port in PUBLISHED.items()
    }
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}
    assert not any(service.get("network_mode") for service in services.values())


def test_networks_have_no_way_out(rendered: str, services: dict[str, Any]) -> None:
    networks = json.loads(rendered)["networks"]
    open_ones = {name for name, network in networks.items() if not network.get("internal")}
    assert open_ones == {"loopback"}
    assert networks["loopback"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert {name for name, service in services.items() if "loopback" in service["networks"]} == set(PUBLISHED)
    meets = {
        network: {name for name, service in services.items() if network in service["networks"]} for network in networks
    }
    assert meets["objects"] == {"objects", "objects-init", "objects-gate", "mlflow"}
    assert set(services["objects"]["networks"]) == {"objects"}
    assert "mlflow" not in meets["broker"]


def test_no_secret_is_rendered(home: Path, rendered: str, services: dict[str, Any]) -> None:
    held = {name: (home / "secrets" / name).read_text() for name in TOKENS}
    assert not [name for name, value in held.items() if value in rendered]
    passwords = json.loads((home / "secrets" / "airflow-passwords").read_text())
    assert not [user for user, password in passwords.items() if password in rendered]
    for name, service in services.items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN|CONN|BROKER|CREDENTIALS", variable):
                assert "/run/secrets/" in value or variable.endswith("PASSWORDS_FILE"), f"{name}: {variable}"


def test_secrets_are_the_owners_alone_and_are_kept(home: Path) -> None:
    files = sorted((home / "secrets").iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((home / "secrets").stat().st_mode) == 0o700
    before = {file: file.read_text() for file in files}
    assert len(set(before.values())) == len(before)
    prepare(home, home / "data", "recloop", "0.1.0")
    assert {file: file.read_text() for file in files} == before


def test_settings_are_kept_and_those_of_an_older_version_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> str:
        return prepare(home, home / "data", "recloop", "0.1.0").read_text()

    monkeypatch.setenv("DOCKER_HOST", "")  # as Docker's own command: not set
    before = again()
    assert "RECLOOP_ENGINE_SOCKET=/var/run/docker.sock" in before
    assert again() == before
    older = tmp_path / "compose.env"
    older.write_text("".join(line for line in before.splitlines(keepends=True) if "PORT" not in line))
    assert ports_in(older) == {"Airflow": 8080, "MLflow": 5000, "Objects": 8333}


def test_secrets_live_where_git_does_not_look() -> None:
    from infra.platform import HOME

    done = subprocess.run(["git", "check-ignore", "-q", HOME / "secrets" / "redis-url"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_containers_are_hardened(services: dict[str, Any]) -> None:
    for name, service in services.items():
        user = service["user"].split(":")[0]
        assert user.isdigit(), name
        assert int(user) > 0, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("cap_add"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert service["mem_limit"], name
        assert service["pids_limit"], name


def test_only_the_worker_holds_the_engines_socket(services: dict[str, Any]) -> None:
    def sources(service: dict[str, Any]) -> set[str]:
        return {volume["source"] for volume in service.get("volumes", [])}

    assert {name for name, service in services.items() if any("docker.sock" in s for s in sources(service))} == {
        "airflow-worker"
    }


def test_what_a_step_is_given_has_one_path(home: Path, services: dict[str, Any]) -> None:
    """The worker names folders to the engine, which looks for them on the host."""
    volumes = {volume["source"]: volume for volume in services["airflow-worker"]["volumes"]}
    for folder in (home / "cache", home / "data", ROOT / "scenarios"):
        assert volumes[str(folder)]["target"] == str(folder)
    assert services["airflow-worker"]["environment"]["RECLOOP_CACHE"] == str(home / "cache")
    assert not volumes[str(home / "cache")].get("read_only")
    assert volumes[str(home / "data")]["read_only"]
    assert volumes[str(ROOT / "scenarios")]["read_only"]
    assert services["airflow-worker"]["environment"]["AIRFLOW__CORE__DAGS_FOLDER"] == str(ROOT / "dags")


def test_no_container_sees_all_secrets(home: Path, services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            assert not (home / "secrets").is_relative_to(volume["source"])


def test_images_are_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        image = service["image"]
        assert ":latest" not in image, name
        assert re.fullmatch(r"[^@]+:[^@:]+@sha256:[0-9a-f]{64}", image) or image in {f"recloop/{i}:0.1.0" for i in OURS}


def test_start_is_ordered_by_health(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name not in ONE_SHOT:
            assert service["healthcheck"]["test"], name
        for before, how in (service.get("depends_on") or {}).items():
            wanted = "service_completed_successfully" if before in ONE_SHOT else "service_healthy"
            assert how["condition"] == wanted, f"{name} after {before}"
    worker = set(services["airflow-worker"]["depends_on"])
    assert worker >= {"airflow-init", "airflow-api", "mlflow-init", "mlflow", "redis", "postgres"}


def test_mlflow_asks_for_a_password(services: dict[str, Any], home: Path) -> None:
    assert "--app-name basic-auth" in services["mlflow"]["command"][0]
    auth = (home / "secrets" / "mlflow-auth").read_text()
    assert f"admin_password = {(home / 'secrets' / 'mlflow-password').read_text()}" in auth


def test_steps_do_not_log_in_to_mlflow_as_its_admin(services: dict[str, Any], rendered: str) -> None:
    [command] = services["airflow-worker"]["command"]
    assert "MLFLOW_TRACKING_USERNAME=recloop " in command
    assert "--name=recloop" in services["mlflow-init"]["command"]
    assert "secrets/mlflow-password" not in rendered
    holders = {name for name, service in services.items() if "mlflow-auth" in json.dumps(service.get("secrets"))}
    assert holders == {"mlflow", "mlflow-init"}


def test_what_a_container_reads_as_a_secret_is_given_to_it(services: dict[str, Any]) -> None:
    for name, service in services.items():
        given = {secret["source"] for secret in service.get("secrets", [])}
        used = set(re.findall(r"/run/secrets/([a-z0-9-]+)", json.dumps(service)))
        mounted = {secret["target"].rsplit("/", 1)[-1] for secret in service.get("secrets", [])}
        assert used - given - mounted == set(), name


def test_the_store_is_a_bucket_that_the_worker_alone_can_open(home: Path, services: dict[str, Any]) -> None:
    worker = services["airflow-worker"]
    assert worker["environment"]["RECLOOP_STORE"] == f"s3://{BUCKET}/store"
    holders = {name for name, service in services.items() if "store-credentials" in json.dumps(service.get("secrets"))}
    assert holders == {"airflow-worker"}
    assert worker["environment"]["AWS_ENDPOINT_URL"] == "http://objects-gate:8333"
    [name] = re.findall(r"aws_access_key_id = (.*)", (home / "secrets" / "store-credentials").read_text())
    identities = json.loads((home / "secrets" / "objects-identities").read_text())["identities"]
    [actions] = [identity["actions"] for identity in identities if identity["name"] == name]
    assert sorted(actions) == [f"List:{BUCKET}", f"Read:{BUCKET}", f"Write:{BUCKET}"]


def test_mlflow_and_the_steps_open_one_bucket_each(object_server: ObjectServer, services: dict[str, Any]) -> None:
    """Only the container that creates the buckets has rights over both."""
    given = {name: json.dumps(service.get("secrets")) for name, service in services.items()}
    assert {name for name, secrets in given.items() if "buckets-credentials" in secrets} == {"objects-init"}
    assert {name for name, secrets in given.items() if "objects-credentials" in secrets} == {"mlflow"}
    [code] = services["objects-init"]["command"]
    login = {**object_server.environment(AWS_ACCESS_KEY_ID=BUCKETS_USER), "AWS_DEFAULT_REGION": REGION}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **login}, check=True, timeout=120)
    for user, bucket, other in ((MLFLOW_USER, MLFLOW_BUCKET, BUCKET), (STEPS_USER, BUCKET, MLFLOW_BUCKET)):
        client = object_server.client(user)
        client.put_object(Bucket=bucket, Key="a/b", Body=b"bytes")
        assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == b"bytes"
        assert [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["a/b"]
        client.delete_object(Bucket=bucket, Key="a/b")
        for call in (
            partial(client.put_object, Key="a/b", Body=b""),
            partial(client.get_object, Key="a/b"),
            partial(client.delete_object, Key="a/b"),
            client.list_objects_v2,
            client.delete_bucket,
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                call(Bucket=other)
        for call in (client.create_bucket, client.delete_bucket, client.list_objects_v2):
            with pytest.raises(ClientError, match="AccessDenied"):
                call(Bucket="another")
