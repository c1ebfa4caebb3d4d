"""An MLflow server of a test's own, on the loopback, which hands artifacts on itself; with the platform's passwords, if
wanted."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.docker import mlflow_user
from infra.platform import prepare
from infra.servers import HOST, free_ports
from tests.waiting import awaited

START_WITHIN_S = 120.0
ADMIN, STEPS_USER = "admin", "recloop"


@contextmanager
def mlflow_server(folder: Path, *options: str, **environment: str) -> Iterator[str]:
    """Yields the server's address; `options` and `environment` are added to its own. All it writes is in `folder`."""
    folder.mkdir()
    [port] = free_ports(0)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), *options]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    settings = {**os.environ, **quiet, **environment}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=settings, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://{HOST}:{port}"
        awaited(lambda: _answers(uri) or server.poll() is not None, START_WITHIN_S, (folder / "log").read_text)
        assert server.poll() is None, (folder / "log").read_text()
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@dataclass
class Server:
    """An MLflow with passwords, and the platform's folder of secrets."""

    uri: str
    secrets: Path

    def make_user(self) -> int:
        files = ["--auth", str(self.secrets / "mlflow-auth")]
        files += ["--password-file", str(self.secrets / "mlflow-recloop-password")]
        return mlflow_user.main(["--server", self.uri, "--name", STEPS_USER, *files])

    def password(self, user: str) -> str:
        return (self.secrets / {STEPS_USER: "mlflow-recloop-password", ADMIN: "mlflow-password"}[user]).read_text()

    def ask(self, path: str, user: str = "", method: str = "GET", **body: Any) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        if user:
            login = base64.b64encode(f"{user}:{self.password(user)}".encode()).decode()
            headers["Authorization"] = f"Basic {login}"
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self.uri}/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def server_with_passwords(folder: Path) -> Iterator[Server]:
    """Yields a server with the platform's own settings and secrets, its users in SQLite, and the user of steps made."""
    prepare(folder, folder / "data", "recloop", "0.1.0")
    auth = folder / "secrets" / "mlflow-auth"
    auth.write_text(re.sub(r"postgresql\S+", f"sqlite:///{folder}/users.db", auth.read_text()))
    options = ["--app-name", "basic-auth", "--serve-artifacts", "--default-artifact-root", "mlflow-artifacts:/"]
    settings = {"MLFLOW_AUTH_CONFIG_PATH": str(auth), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test"}
    with mlflow_server(folder / "mlflow", *options, **settings) as uri:
        found = Server(uri, folder / "secrets")
        assert found.make_user() == 0
        yield found


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
