"""The client of Airflow's API, beside a server that answers as Airflow does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from feature_jobs.errors import BadInputError, RetryLaterError
from infra import airflow_api
from infra.airflow_api import AirflowApi


class Airflow(ThreadingHTTPServer):
    """Answers calls with these statuses, then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.seen: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        airflow = self.server
        assert isinstance(airflow, Airflow)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = 200
        if self.path != "/auth/token":
            airflow.seen.append(f"{self.command} {self.path}")
            status = airflow.statuses.pop(0) if airflow.statuses else 200
        self.send_response(status)
        content = json.dumps({"access_token": "t", "id": 7, "detail": f"answer {status}"}).encode()
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


for method in ("GET", "POST"):
    setattr(Handler, f"do_{method}", Handler.answer)


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    monkeypatch.setattr(airflow_api, "AGAIN_S", 0.0)
    with Airflow() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def api(airflow: Airflow) -> AirflowApi:
    return AirflowApi(f"http://127.0.0.1:{airflow.server_port}", "admin", "secret")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_airflow_cannot_do_for_a_moment_is_asked_for_again(airflow: Airflow, api: AirflowApi, method: str) -> None:
    airflow.statuses = [500, 503, 401, 502]
    assert api.call(method, "/assets/events")["id"] == 7
    assert airflow.seen == [f"{method} /api/v2/assets/events"] * 5


def test_what_it_cannot_do_for_long_is_an_error_with_its_answer(
    airflow: Airflow, api: AirflowApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow_api, "PASSES_WITHIN_S", -1.0)
    airflow.statuses = [500]
    with pytest.raises(RetryLaterError, match=r"can't do GET /pools now: 500 .*answer 500.*api-server\.log"):
        api.call("GET", "/pools")


def test_what_it_refuses_is_asked_for_once(airflow: Airflow, api: AirflowApi) -> None:
    airflow.statuses = [409]
    with pytest.raises(BadInputError, match=r"refused POST /pools: 409 .*answer 409"):
        api.call("POST", "/pools", {})
    assert len(airflow.seen) == 1


def test_a_backfill_is_asked_for_once(airflow: Airflow, api: AirflowApi) -> None:
    """One that failed may stay active, and the next one would be refused."""
    airflow.statuses = [503]
    with pytest.raises(RetryLaterError):
        api.create_backfill({})
    assert airflow.seen == ["POST /api/v2/backfills"]
    assert api.create_backfill({}) == 7
