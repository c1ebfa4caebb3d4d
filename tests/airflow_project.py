"""A project of a test's own with a real Airflow: its DAG folder, scenarios and .recloop are below one folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from infra.airflow_api import AirflowApi, TaskInstance
from infra.processes import MARK
from infra.servers import USER, Local, free_ports
from tests.paths import ROOT
from tests.waiting import awaited

ENDED = ("success", "failed")


@dataclass
class Project:
    """A project with the DAGs and the infra of this one, and scenarios of its own."""

    root: Path

    @classmethod
    def new(cls, root: Path) -> Project:
        """Copies the folders that the project needs; the others are imported from here."""
        for room in ("dags", "infra"):
            shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
        return cls(root)

    @property
    def home(self) -> Path:
        return self.root / ".recloop"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{self.root}{os.pathsep}{ROOT}"}

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.root,
            env={**self.environment, **environment},
            check=False,
            timeout=600,
        )

    def choose_ports(self) -> None:
        """Ports that another test, which starts its servers at the same moment, does not choose too."""
        self.home.mkdir()
        local = Local.new(self.home)
        local.airflow_port, local.mlflow_port = free_ports(0, 0)
        local.save()

    def local(self) -> Local:
        local = Local.load(self.home)
        assert local is not None
        return local

    def api(self) -> AirflowApi:
        return AirflowApi(self.local().airflow_url, USER, self.local().password)

    def log(self, dag_id: str, run_id: str, task: str, attempt: int = 1) -> str:
        folder = self.home / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task}"
        return (folder / f"attempt={attempt}.log").read_text()

    def steps(self, *words: str) -> list[psutil.Process]:
        """Processes of steps that run, by words of their command."""
        found = [process for process in processes_of(self.local().token) if "--ds" in command_of(process)]
        return [process for process in found if set(words) <= set(command_of(process))]


def processes_of(token: str) -> list[psutil.Process]:
    """Processes that were started with the token of a project's servers."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; empty where it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def state_of(api: AirflowApi, dag_id: str, run_id: str) -> str:
    """State of a run."""
    return str(api.call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")["state"])


def await_run(api: AirflowApi, dag_id: str, run_id: str, within_s: float = 300) -> dict[str, TaskInstance]:
    """Waits for a run's end; returns its tasks."""
    awaited(lambda: state_of(api, dag_id, run_id) in ENDED, within_s=within_s, every_s=1.0)
    return {task["task_id"]: task for task in api.task_instances(dag_id, run_id)}


def returned(api: AirflowApi, dag_id: str, run_id: str, task_id: str) -> Any:
    """Reads the value that a task returned."""
    path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
    value = api.call("GET", path, deserialize=False)["value"]
    return json.loads(value) if isinstance(value, str) else value
