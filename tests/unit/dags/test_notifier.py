"""Alerts reach a webhook on the loopback; a webhook that is down changes nothing."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

import tests.airflow_home  # noqa: F401 (before the first import of Airflow)


def _context() -> dict[str, Any]:
    instance = SimpleNamespace(dag_id="d", run_id="r", task_id="train", try_number=2, log_url="http://log")
    return {"ti": instance, "logical_date": "2022-04-25", "exception": ValueError("no parent")}


def _notify() -> None:
    from dags.notifier import FailureNotifier

    FailureNotifier().notify(_context())


def test_the_alert_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setenv("RECLOOP_ALERT_URL", f"http://127.0.0.1:{server.server_port}/hook")
    _notify()
    server.server_close()
    assert received == [
        {
            "event": "step_failed",
            "dag_id": "d",
            "run_id": "r",
            "task_id": "train",
            "try_number": 2,
            "logical_date": "2022-04-25",
            "error": "no parent",
            "log_url": "http://log",
        }
    ]


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/", "file:///etc/passwd", "nonsense"])
def test_no_webhook_or_a_bad_one_raises_nothing(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RECLOOP_ALERT_URL", url)
    _notify()
