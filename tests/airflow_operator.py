"""Actions of a person on one DAG in Airflow, through its API and its command line."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from feature_jobs.errors import RetryLaterError
from infra import servers
from infra.airflow_api import AirflowApi, TaskInstance
from tests.airflow_project import ENDED, Project, await_run, state_of
from tests.waiting import awaited


def backfill_id(ds: str) -> str:
    """The run of a day that a backfill creates."""
    return f"backfill__{ds}T00:00:00+00:00"


@dataclass
class Operator:
    """Works on one DAG of a project."""

    project: Project
    dag_id: str

    @cached_property
    def api(self) -> AirflowApi:
        return self.project.api()

    def command(self, *arguments: str) -> str:
        """The command `airflow`, as a person types it; again where it found Airflow's SQLite locked."""
        command = [str(Path(sys.executable).with_name("airflow")), *arguments]
        environment = {**os.environ, **servers.settings(self.project.local())}
        for _ in range(20):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            if "database is locked" not in done.stdout + done.stderr:
                break
            if arguments[0] == "backfill":
                self.end_backfills()  # the half-made one would refuse the next
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def trigger(self, run_id: str, logical_date: str | None, **more: Any) -> None:
        body = {"logical_date": logical_date, "dag_run_id": run_id, **more}
        self.api.call("POST", f"/dags/{self.dag_id}/dagRuns", body)

    def runs(self) -> list[dict[str, Any]]:
        """All runs, as Airflow reports them."""
        found: list[dict[str, Any]] = self.api.call("GET", f"/dags/{self.dag_id}/dagRuns", limit=100)["dag_runs"]
        return found

    def run(self, run_id: str) -> dict[str, Any]:
        return next(run for run in self.runs() if run["dag_run_id"] == run_id)

    def state(self, run_id: str) -> str:
        return state_of(self.api, self.dag_id, run_id)

    def states(self, run_id: str) -> dict[str, str | None]:
        """State of each task of a run."""
        return {task["task_id"]: task["state"] for task in self.api.task_instances(self.dag_id, run_id)}

    def ended(self, run_id: str) -> dict[str, TaskInstance]:
        """Waits for a run's end; returns its tasks."""
        return await_run(self.api, self.dag_id, run_id)

    def all_ended(self) -> None:
        """Waits until no run is left."""
        awaited(lambda: all(run["state"] in ENDED for run in self.runs()), within_s=500, every_s=1.0)

    def reached(self, run_id: str, task: str, *wanted: str) -> None:
        """Waits until a task is in one of the states."""
        awaited(
            lambda: self.states(run_id).get(task) in wanted,
            within_s=300,
            said=lambda: f"{task} of {run_id}: {self.states(run_id)}",
            every_s=0.3,
        )

    def start_backfill(self, first: str, last: str, reprocess: str, *, backwards: bool = False) -> int:
        dates = {"from_date": f"{first}T00:00:00Z", "to_date": f"{last}T00:00:00Z", "max_active_runs": 1}
        how = {"reprocess_behavior": reprocess, "run_backwards": backwards, "dag_run_conf": {}}
        while True:
            try:
                return self.api.create_backfill({"dag_id": self.dag_id, **dates, **how})
            except RetryLaterError:  # SQLite was locked; Airflow may keep the half-made backfill as an active one
                self.end_backfills()

    def backfill(self, first: str, last: str, reprocess: str, *, backwards: bool = False) -> list[str]:
        """Runs a backfill to its end; returns the days that it ran, in its order."""
        before = self._starts()
        number = self.start_backfill(first, last, reprocess, backwards=backwards)
        self.all_ended()
        self.end_backfills(number)
        return [ds for _, ds in sorted(self._starts() - before)]

    def end_backfills(self, *numbers: int) -> None:
        """Closes backfills whose runs have ended, as Airflow itself does every half minute.

        Not by the API's `cancel`: it leaves a backfill paused for good, and its runs could not be cleared any more.
        """
        with contextlib.closing(sqlite3.connect(self.project.home / "airflow" / "airflow.db", timeout=60)) as database:
            for number in numbers or self.api.active_backfills(self.dag_id):
                now = "UPDATE backfill SET completed_at = CURRENT_TIMESTAMP WHERE id = ? AND completed_at IS NULL"
                database.execute(now, (number,))
                database.commit()

    def _starts(self) -> set[tuple[str, str]]:
        """Start and day of each run."""
        return {(str(run["start_date"]), str(run["logical_date"])[:10]) for run in self.runs()}

    def set_state(self, run_id: str, task: str, state: str) -> None:
        path = f"/dags/{self.dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task}"
        self.api.call("PATCH", path, {"new_state": state})

    def clear(self, run_id: str, *tasks: str, downstream: bool = False) -> list[str]:
        """Clears tasks of a run, all where none is named; returns which ran again, when the run has ended."""
        body: dict[str, Any] = {"dry_run": False, "dag_run_id": run_id, "only_failed": False}
        named = {"task_ids": list(tasks), "include_downstream": downstream} if tasks else {}
        cleared = self.api.call("POST", f"/dags/{self.dag_id}/clearTaskInstances", {**body, **named})["task_instances"]
        self.ended(run_id)
        return sorted(task["task_id"] for task in cleared)

    def set_slots(self, slots: int) -> None:
        """Of the pool in which trainings run."""
        self.api.call("PATCH", "/pools/gpu", {"pool": "gpu", "slots": slots, "include_deferred": False})

    def logs(self, run_id: str, task: str) -> list[str]:
        """The log of each try of a task."""
        folder = self.project.home / "airflow" / "logs" / f"dag_id={self.dag_id}" / f"run_id={run_id}"
        return [file.read_text() for file in sorted((folder / f"task_id={task}").rglob("attempt=*.log"))]

    def reason(self, run_id: str, task: str, attempt: int = -1) -> str:
        """The error at the end of a task's log, by default of its last try. It may come a moment after the state."""
        return awaited(lambda: "".join(self.reasons(run_id, task)[attempt:][:1]), said=lambda: f"{task} has no error")

    def reasons(self, run_id: str, task: str) -> list[str]:
        """The error at the end of the log of each try of a task; empty where there is none."""
        return [_error_in(log) for log in self.logs(run_id, task)]


def _error_in(log: str) -> str:
    """The error in the last whole lines of a log."""
    lines = [json.loads(line) for line in log[: log.rfind("\n")].splitlines()[-5:]]
    return "\n".join(str(line["error_detail"][0]["exc_value"]) for line in lines if line.get("error_detail"))
