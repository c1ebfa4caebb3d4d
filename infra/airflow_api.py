"""The few calls of Airflow's REST API that the demo needs."""

from __future__ import annotations

import time
from typing import Any, TypedDict
from urllib.parse import quote

import requests

from feature_jobs.errors import BadInputError, RetryLaterError

TIMEOUT_S = 120.0  # a busy machine with two cores answers late
PASSES_WITHIN_S = 60.0
AGAIN_S = 0.5
UNAUTHORIZED, SERVER_ERROR = 401, 500


class DagRun(TypedDict):
    """A run of a DAG, as far as it is used here."""

    dag_run_id: str
    logical_date: str
    state: str


class TaskInstance(TypedDict):
    """A task of a run, as far as it is used here."""

    task_id: str
    state: str | None
    try_number: int
    start_date: str | None
    end_date: str | None
    pool: str


class Pool(TypedDict):
    """A pool, as far as it is used here."""

    name: str
    slots: int
    open_slots: int


class AirflowApi:
    """A logged-in client. Calls raise RetryLaterError where Airflow does not answer or can't do it now, BadInputError
    where it refuses."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._token = ""
        self._credentials = {"username": user, "password": password}

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        """One call below /api/v2, made again for a minute while Airflow answers that it can't do it.

        Its SQLite is locked for a moment now and then, and some answers can't be written while a run is queued, as
        those of `/assets/events`. Such a call has changed nothing, except for `create_backfill`.
        """
        deadline = time.monotonic() + PASSES_WITHIN_S
        while (answer := self._answer(method, path, body, query)).status_code >= SERVER_ERROR:
            if time.monotonic() > deadline:
                break
            time.sleep(AGAIN_S)
        return _content(answer, method, path)

    @property
    def token(self) -> str:
        """The session's token: bearer of the API, and the cookie `_token` of the UI."""
        if not self._token:
            content = _content(self._send("POST", "/auth/token", self._credentials), "the", "login")
            self._token = str(content["access_token"])
        return self._token

    def has_dag(self, dag_id: str) -> bool:
        """Says if Airflow has parsed the DAG."""
        found = self.call("GET", "/dags", dag_id_pattern=dag_id, limit=100)
        return any(dag["dag_id"] == dag_id for dag in found["dags"])

    def import_errors(self) -> list[str]:
        """Stack traces of DAG files that could not be imported."""
        return [error["stack_trace"] for error in self.call("GET", "/importErrors")["import_errors"]]

    def unpause(self, dag_id: str) -> None:
        """Lets the DAG run."""
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def is_paused(self, dag_id: str) -> bool:
        """Says if the DAG's new tasks are held back."""
        return bool(self.call("GET", f"/dags/{dag_id}")["is_paused"])

    def scheduler_health(self) -> str:
        """`healthy`, or another status from Airflow."""
        return str(self.call("GET", "/monitor/health")["scheduler"]["status"])

    def pools(self) -> list[Pool]:
        """All pools."""
        found: list[Pool] = self.call("GET", "/pools", limit=100)["pools"]
        return found

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Creates the pool if it does not exist."""
        if all(pool["name"] != name for pool in self.pools()):
            self.call("POST", "/pools", {"name": name, "slots": slots, "description": description})

    def backfill(self, dag_id: str, first: str, last: str, conf: dict[str, Any], *, reprocess: str) -> None:
        """Runs days oldest first, one at a time. `first`, `last`: moments in ISO 8601. `reprocess`: existing runs to
        repeat: `none`, `failed` or `completed`."""
        body = {
            "dag_id": dag_id,
            "from_date": first,
            "to_date": last,
            "max_active_runs": 1,  # a day needs the checkpoint of the day before
            "reprocess_behavior": reprocess,
            "run_backwards": False,
            "dag_run_conf": conf,
        }
        self.create_backfill(body)

    def create_backfill(self, body: dict[str, Any]) -> int:
        """Creates a backfill and returns its id. It is not asked for again, because one that failed may stay active."""
        answer = self._answer("POST", "/backfills", body, {})
        return int(_content(answer, "POST", "/backfills")["id"])

    def active_backfills(self, dag_id: str) -> list[int]:
        """Ids of the DAG's backfills that are not completed."""
        found = self.call("GET", "/backfills", dag_id=dag_id, limit=100)["backfills"]
        return [backfill["id"] for backfill in found if backfill["completed_at"] is None]

    def runs(self, dag_id: str, first: str, last: str) -> list[DagRun]:
        """The DAG's runs with a logical date in the range, oldest first."""
        query: dict[str, Any] = {
            "logical_date_gte": first,
            "logical_date_lte": last,
            "limit": 100,  # the most that Airflow gives at once
            "order_by": "logical_date",
        }
        runs: list[DagRun] = self.call("GET", f"/dags/{dag_id}/dagRuns", **query)["dag_runs"]
        return runs

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Tasks of a run."""
        run = quote(run_id, safe="")
        found: list[TaskInstance] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run}/taskInstances", limit=100)[
            "task_instances"
        ]
        return found

    def _answer(self, method: str, path: str, body: dict[str, Any] | None, query: dict[str, Any]) -> requests.Response:
        """Sends one request; logs in when the token is missing or has expired."""
        answer = self._send(method, f"/api/v2{path}", body, query, self.token)
        if answer.status_code == UNAUTHORIZED:
            self._token = ""
            answer = self._send(method, f"/api/v2{path}", body, query, self.token)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        query: dict[str, Any] | None = None,
        token: str | None = None,
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            return requests.request(
                method, self.url + path, params=query, json=body, headers=headers, timeout=TIMEOUT_S
            )
        except requests.RequestException as error:
            raise RetryLaterError(f"Airflow does not answer at {self.url}: {error}") from None


def _content(answer: requests.Response, method: str, path: str) -> Any:
    """Content of an answer. Raises RetryLaterError or BadInputError where it is an error."""
    said = f"{answer.status_code} {answer.text[:500]}"
    if answer.status_code >= SERVER_ERROR:
        raise RetryLaterError(f"Airflow can't do {method} {path} now: {said}; see its log api-server.log")
    if not answer.ok:
        raise BadInputError(f"Airflow refused {method} {path}: {said}")
    return answer.json() if answer.content else None
