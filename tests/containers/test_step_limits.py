"""A step in its container reaches what it declares, and nothing else; no secret is left anywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tasks.run.container import NOBODY, ContainerSettings
from tests.containers.engine import TAG, containers, docker
from tests.containers.probing import in_background, probe_step, socket_server
from tests.small import write_small
from tests.waiting import awaited

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("none_left")]
SECRET = "correct-horse-battery-staple"


def test_a_step_writes_its_output_and_nothing_else(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    kept = ["/", "/etc", "/opt/app", "/opt/recloop", "/usr/bin", "/var/tmp", str(tmp_path / "events"), str(tmp_path)]
    found = probe_step(probe, shop, tmp_path, write=[str(tmp_path / "out"), "/tmp", *kept])
    assert found["write"].pop(str(tmp_path / "out")) == "ok"
    assert found["write"].pop("/tmp") == "ok"  # memory of the container's own
    assert set(found["write"]) == set(kept)
    assert not {place: error for place, error in found["write"].items() if error not in ("OSError", "PermissionError")}


def test_a_step_gains_no_rights_and_is_limited(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    found = probe_step(probe, shop, tmp_path)
    assert found["uid"] == (os.getuid() or NOBODY)
    assert (found["setuid"], found["chown"], found["mknod"]) == ("PermissionError",) * 3
    assert int(found["capabilities"], 16) == 0
    assert found["no_new_privileges"] == "1"
    assert 100 < found["children"] < 512


def test_a_step_reaches_no_network_unless_it_declares_one(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    with socket_server() as port:
        places = [f"127.0.0.1:{port}", "1.1.1.1:443", "pypi.org:443"]
        found = probe_step(probe, shop, tmp_path, connect=places)
        assert "ok" not in found["connect"].values()
        assert found["interfaces"] == ["lo"]
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        try:
            found = probe_step(probe, shop, tmp_path, step="register", connect=places[:1])
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]
        assert found["connect"] == {places[0]: "ok"}


def test_a_step_sees_neither_the_source_nor_another_scenario(
    probe: ContainerSettings, shop: Path, tmp_path: Path
) -> None:
    other = write_small(tmp_path / "other", num_days=1)
    secret = tmp_path / "store" / "another" / "g0000" / "commit.json"
    secret.parent.mkdir(parents=True)
    secret.write_text("{}")
    (tmp_path / "store" / "shop").mkdir()
    hidden = [secret, other, other.parent / "data", tmp_path / "store" / "shop", "/var/run/docker.sock", "/root/.ssh"]
    found = probe_step(probe, shop, tmp_path, read=[str(shop), str(shop.parent / "data"), *map(str, hidden)])
    assert found["read"].pop(str(shop)) == shop.stat().st_size
    assert set(found["read"].values()) <= {"FileNotFoundError", "PermissionError"}
    landed = probe_step(probe, shop, tmp_path, step="ingest", read=[str(shop.parent / "data"), *map(str, hidden)])
    assert isinstance(landed["read"].pop(str(shop.parent / "data")), int)
    assert set(landed["read"].values()) <= {"FileNotFoundError", "PermissionError"}


def test_a_password_is_in_no_image_environment_label_or_log(
    probe: ContainerSettings,
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", SECRET)
    ended = in_background(lambda: probe_step(probe, shop, tmp_path, step="register", sleep=True))
    [container] = awaited(containers)
    awaited(lambda: "sleeping" in capfd.readouterr().err)
    said = docker("inspect", container) + docker("top", container, "-eo", "pid,args")
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
    docker("kill", container)
    ended.join()
    image = docker("history", "--no-trunc", f"recloop/step:{TAG}") + docker("image", "inspect", f"recloop/step:{TAG}")
    assert SECRET not in said + kept + image
    assert not re.search(r"(?i)(password|secret|token|api_key)=", image)
    found = probe_step(probe, shop, tmp_path, step="join")
    assert not {name for name in found["environment"] if name.startswith(("MLFLOW", "AWS", "AIRFLOW", "RECLOOP"))}
