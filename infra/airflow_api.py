"""The few calls of Airflow's REST API that the demo needs."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from feature_jobs.errors import BadInputError, RetryLaterError

TIMEOUT_S = 30.0
UNAUTHORIZED, UNAVAILABLE = 401, 503


class AirflowApi:
    """A logged-in client. Calls raise RetryLaterError where Airflow does not answer, BadInputError where it refuses."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._token = ""
        self._credentials = {"username": user, "password": password}

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        """One call below /api/v2; logs in when the token is missing or has run out."""
        for attempt in range(2):
            try:
                return self._send(method, f"/api/v2{path}?{urllib.parse.urlencode(query)}", body, self.token)
            except urllib.error.HTTPError as error:
                if error.code == UNAUTHORIZED and attempt == 0:
                    self._token = ""
                    continue
                if error.code == UNAVAILABLE:  # Airflow's SQLite was locked, for a moment
                    raise RetryLaterError(f"Airflow can't do {method} {path} now") from None
                detail = error.read().decode(errors="replace")[:500]
                raise BadInputError(f"Airflow refused {method} {path}: {error.code} {detail}") from None
        raise AssertionError("unreachable")

    @property
    def token(self) -> str:
        """What a login gives: the bearer token of the API, and the cookie `_token` of the UI."""
        if not self._token:
            self._token = self._send("POST", "/auth/token", self._credentials)["access_token"]
        return self._token

    def has_dag(self, dag_id: str) -> bool:
        """Whether Airflow has parsed the DAG."""
        found = self.call("GET", "/dags", dag_id_pattern=dag_id, limit=100)
        return any(dag["dag_id"] == dag_id for dag in found["dags"])

    def import_errors(self) -> list[str]:
        """What is wrong with DAG files."""
        return [error["stack_trace"] for error in self.call("GET", "/importErrors")["import_errors"]]

    def unpause(self, dag_id: str) -> None:
        """Lets the DAG run."""
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def ensure_pool(self, name: str, slots: int, description: str) -> None:
        """Makes the pool if it is not there."""
        pools = self.call("GET", "/pools", limit=100)["pools"]
        if all(pool["name"] != name for pool in pools):
            self.call("POST", "/pools", {"name": name, "slots": slots, "description": description})

    def backfill(self, dag_id: str, first: str, last: str, conf: dict[str, Any], *, reprocess: str) -> None:
        """Runs days oldest first, one at a time. `first`, `last`: moments in ISO 8601. `reprocess`: which runs to do
        again: none, failed or completed ones."""
        body = {
            "dag_id": dag_id,
            "from_date": first,
            "to_date": last,
            "max_active_runs": 1,
            "reprocess_behavior": reprocess,
            "run_backwards": False,
            "dag_run_conf": conf,
        }
        self.call("POST", "/backfills", body)

    def active_backfills(self, dag_id: str) -> list[int]:
        """Ids of the DAG's backfills that are not completed."""
        found = self.call("GET", "/backfills", dag_id=dag_id, limit=100)["backfills"]
        return [backfill["id"] for backfill in found if backfill["completed_at"] is None]

    def runs(self, dag_id: str, first: str, last: str) -> list[dict[str, Any]]:
        """The DAG's runs with a logical date in the range, oldest first."""
        query: dict[str, Any] = {
            "logical_date_gte": first,
            "logical_date_lte": last,
            "limit": 100,
            "order_by": "logical_date",
        }
        runs: list[dict[str, Any]] = self.call("GET", f"/dags/{dag_id}/dagRuns", **query)["dag_runs"]
        return runs

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Tasks of a run: task_id, state, try_number, start_date, end_date."""
        run = urllib.parse.quote(run_id, safe="")
        found: list[dict[str, Any]] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run}/taskInstances", limit=100)[
            "task_instances"
        ]
        return found

    def _send(self, method: str, path: str, body: dict[str, Any] | None, token: str | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310 (our own address)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, OSError) as error:
            raise RetryLaterError(f"Airflow does not answer at {self.url}: {error}") from None
