"""Where MLflow is, and how to reach it: the library over a database, or its REST API where a server answers.

`MLFLOW_TRACKING_URI` says where (default: sqlite in .recloop below the working folder). `RECLOOP_MLFLOW_SERVER` may
name a server in front of the same database; while it answers, it is the faster way.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feature_jobs.errors import BadInputError, RetryLaterError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = TypeVar("Result")
TIMEOUT_S = 30.0
PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # MLflow waits for a locked database itself, 20 s each time


def tracking_uri() -> str:
    """Where MLflow keeps runs and versions."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    return f"sqlite:///{Path.cwd() / '.recloop' / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a `sqlite:///…` URI."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def server_url() -> str | None:
    """A server to talk to over REST, or None where only the library will do."""
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/")
    server = os.environ.get("RECLOOP_MLFLOW_SERVER", "").rstrip("/")
    return server if server and _answers(server) else None


@functools.cache
def _answers(server: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server}/health", timeout=2):  # noqa: S310 (the user's own server)
            return True
    except OSError:
        return False


def library_uri() -> str:
    """What the library is pointed at: a server that answers spares it from opening the database."""
    return server_url() or tracking_uri()


def artifact_root(uri: str, experiment: str) -> str | None:
    """Where an experiment's files go: beside the database, the same for every process; a server decides itself."""
    file = sqlite_file(uri)
    return (file.resolve().parent / "mlartifacts" / experiment).as_uri() if file else None


SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # else from the object store itself, which steps can't reach
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its seven take four minutes to say that nobody is there
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def quiet_mlflow() -> Any:
    """Imports MLflow without telemetry, progress bars and its chatter about migrations."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a locked database is tried again
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow


@functools.lru_cache(maxsize=4)
def _client(uri: str) -> MlflowClient:
    mlflow = quiet_mlflow()
    with _alone_while_new(sqlite_file(uri)):
        client: MlflowClient = mlflow.MlflowClient(uri, uri)
    return client


@contextlib.contextmanager
def _alone_while_new(file: Path | None) -> Iterator[None]:
    """MLflow makes the tables of a new SQLite file without a lock: the first process to come holds one of ours."""
    mark = file.with_name(f".{file.name}.made") if file else None
    if file is None or mark is None or (file.exists() and mark.exists() and mark.stat().st_size):
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with mark.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        lock.write("made\n")


def client() -> MlflowClient:
    """MLflow's own client; opening a new database makes its tables."""
    return retrying(lambda: _client(library_uri()))


def retrying(call: Callable[[], Result]) -> Result:
    """Calls MLflow's library, again while its database is busy. Raises RetryLaterError where it stays so."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    problem: Exception | None = None
    for pause_s in (*PAUSES_S, None):
        try:
            return call()
        except (MlflowException, SQLAlchemyError) as error:
            if not _is_busy(error):
                raise
            problem = error
        if pause_s is not None:
            time.sleep(pause_s)
    raise RetryLaterError(f"MLflow at {_shown(tracking_uri())} stays busy: {_first_line(problem)}; try again later")


def _is_busy(error: Exception) -> bool:
    """Another process writes, or makes the tables just now."""
    text = str(error)
    signs = ("database is locked", "database table is locked", "out-of-date database schema", "no such table")
    return any(sign in text for sign in signs) or ("table" in text and "already exists" in text)


class RefusedError(BadInputError):
    """MLflow's answer was no; `code` is its error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"MLflow said no: {code}: {message}")
        self.code = code


def rest(server: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One call of MLflow's REST API 2.0; `path` such as `runs/create`.

    Raises RefusedError for a no, RetryLaterError where the server does not answer.
    """
    url = f"{server}/api/2.0/mlflow/{path}"
    if method == "GET" and body:
        url += "?" + urllib.parse.urlencode(body)
    data = None if method == "GET" else json.dumps(body or {}).encode()
    answer = send(url, method, data, "application/json")
    parsed: dict[str, Any] = json.loads(answer or b"{}")
    return parsed


def send(url: str, method: str, data: bytes | None, content_type: str) -> bytes:
    """One HTTP request with the user's MLflow credentials, repeated while the server is not up."""
    request = urllib.request.Request(url, data, {"Content-Type": content_type, **_credentials()}, method=method)  # noqa: S310
    problem: Exception | None = None
    for pause_s in (*PAUSES_S[:5], None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 (the user's own server)
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            text = error.read()
            if error.code < 500 or b"locked" not in text:
                raise _refused(error.code, text) from None
            problem = error
        except OSError as error:
            problem = error
        if pause_s is not None:
            time.sleep(pause_s)
    raise RetryLaterError(f"MLflow at {_shown(url)} does not answer: {_first_line(problem)}; try again later")


def _refused(status: int, text: bytes) -> RefusedError:
    try:
        said = json.loads(text)
        return RefusedError(said["error_code"], said.get("message", ""))
    except (ValueError, KeyError, TypeError):
        return RefusedError(str(status), text[:200].decode(errors="replace"))


def _credentials() -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    if not user:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def _shown(uri: str) -> str:
    """The URI without a password."""
    parts = urllib.parse.urlsplit(uri)
    return uri.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2]) if "@" in parts.netloc else uri


def _first_line(error: Exception | None) -> str:
    return (str(error).strip().splitlines() or ["?"])[0]
