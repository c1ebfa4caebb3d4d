"""Ports, files and settings of the local servers."""

import json
import socket
import stat
from pathlib import Path

import pytest

from infra.servers import HOST, Local, free_ports, inherited, settings, write_private


def test_a_taken_port_is_replaced_and_no_two_are_the_same() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = free_ports(port, port, 0)
    assert port not in ports
    assert len(set(ports)) == 3


def test_secrets_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    local = Local.new(tmp_path)
    local.save()
    write_private(tmp_path / "servers.json", (tmp_path / "servers.json").read_text())
    assert stat.S_IMODE((tmp_path / "servers.json").stat().st_mode) == 0o600
    assert Local.load(tmp_path) == local
    assert Local.new(tmp_path).password != local.password


def test_everything_is_below_the_folder_and_on_the_loopback(tmp_path: Path) -> None:
    local = Local.new(tmp_path)
    values = settings(local)
    assert local.store == tmp_path / "store"
    assert values["AIRFLOW_HOME"].startswith(str(tmp_path))
    assert local.tracking_uri == f"sqlite:///{tmp_path}/store/mlflow.db"
    assert values["AIRFLOW__API__HOST"] == HOST
    assert values["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].startswith(f"http://{HOST}:")


def test_settings_of_another_airflow_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", "/elsewhere")
    monkeypatch.setenv("RECLOOP_DATA", "/of one scenario")
    monkeypatch.setenv("RECLOOP_ALERT_URL", "http://127.0.0.1/hook")
    seen = inherited()
    assert not {"AIRFLOW__CORE__DAGS_FOLDER", "RECLOOP_DATA"} & set(seen)
    assert seen["RECLOOP_ALERT_URL"] == "http://127.0.0.1/hook"


def test_the_file_of_an_older_release_is_read(tmp_path: Path) -> None:
    local = Local.new(tmp_path)
    local.save()
    file = tmp_path / "servers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "log_port": 8793}))
    assert Local.load(tmp_path) == local
