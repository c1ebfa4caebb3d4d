"""The address of MLflow, and its client.

`MLFLOW_TRACKING_URI` names the place (default: SQLite in .recloop below the working folder). `RECLOOP_MLFLOW_SERVER`
may name a server in front of the same database: while it answers, the client talks to it, which saves opening the
database. MLflow is imported inside functions, because that alone costs 1.5 s (docs/decisions/0009-mlflow-client.md).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.imports import quick_imports

if TYPE_CHECKING:
    from mlflow import MlflowClient

Result = TypeVar("Result")
PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # MLflow waits for a locked database itself, 20 s each time
HEALTH_TIMEOUT_S = 2.0
BUSY_SIGNS = ("database is locked", "database table is locked", "out-of-date database schema", "no such table")
AWAY_SIGNS = (
    "Max retries exceeded",
    "Connection refused",
    "ConnectionError",
    "Read timed out",
    "failed with exception",
)
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # else from the object store itself, which steps can't reach
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default, seven, waits four minutes for a server that is down
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class RefusedError(BadInputError):
    """MLflow refused a call; `code` is its error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"MLflow refused: {code}: {message}")
        self.code = code


def tracking_uri() -> str:
    """Returns the address at which MLflow keeps runs and versions."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{Path.cwd() / '.recloop' / 'mlflow.db'}"


def client_uri() -> str:
    """Returns the address for the client: the tracking URI, or a server in front of it that answers."""
    server = os.environ.get("RECLOOP_MLFLOW_SERVER", "").rstrip("/")
    # The server spares each step the import of MLflow's code for databases.
    if server and not tracking_uri().startswith(("http://", "https://")) and _answers(server):
        return server
    return tracking_uri()


@functools.cache
def _answers(server: str) -> bool:
    import requests

    try:
        # Asked once: a server that dies later is an error like another.
        return requests.get(f"{server}/health", timeout=HEALTH_TIMEOUT_S).ok
    except requests.RequestException:
        return False


def artifact_root(experiment: str) -> str | None:
    """Returns the URI for an experiment's files, beside the database for every process; None where a server decides."""
    file = _sqlite_file(tracking_uri())
    return (file.resolve().parent / "mlartifacts" / experiment).as_uri() if file else None


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def quiet_mlflow() -> Any:
    """Imports MLflow, without telemetry, progress bars and messages about migrations."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with quick_imports():
        import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a locked database is tried again
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return mlflow


def client(uri: str | None = None) -> MlflowClient:
    """MLflow's client, by default for the place where runs and versions are. A new database gets its tables here."""
    return retrying(lambda: _client(uri or client_uri()))


@functools.lru_cache(maxsize=4)
def _client(uri: str) -> MlflowClient:
    mlflow = quiet_mlflow()
    file = _sqlite_file(uri)
    lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if file is not None:
        from filelock import FileLock

        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.lock")  # MLflow creates the tables of a new SQLite file without a lock of its own
    with lock, quick_imports():  # of MLflow's code for databases
        client: MlflowClient = mlflow.MlflowClient(uri, uri)
    return client


def call(function: Callable[[], Result]) -> Result:
    """Calls MLflow's client. Raises RefusedError for an error that MLflow answers, RetryLaterError where it does not
    answer or stays busy."""
    from mlflow.exceptions import MlflowException

    try:
        return retrying(function)
    except MlflowException as error:
        raise RefusedError(str(error.error_code), _first_line(error)) from None


def retrying(function: Callable[[], Result]) -> Result:
    """Calls the function, again while the database is busy. Raises RetryLaterError where it stays busy or is away."""
    quiet_mlflow()
    problem: Exception | None = None
    for pause_s in (*PAUSES_S, None):  # None: the last try has no pause after it
        try:
            return function()
        except _library_errors() as error:
            if any(sign in str(error) for sign in AWAY_SIGNS):
                raise RetryLaterError(
                    f"MLflow at {_without_password(client_uri())} does not answer: {_first_line(error)};"
                    " try again later"
                ) from None
            if not _is_busy(error):
                raise
            problem = error
        if pause_s is not None:
            time.sleep(pause_s)
    raise RetryLaterError(
        f"MLflow at {_without_password(client_uri())} stays busy: {_first_line(problem)}; try again later"
    )


def _library_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of MLflow's client; SQLAlchemy is not installed where no database is (a step's image)."""
    from mlflow.exceptions import MlflowException

    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (MlflowException,)
    return (MlflowException, SQLAlchemyError)


def _is_busy(error: Exception) -> bool:
    """Another process writes, or creates the tables just now."""
    text = str(error)
    return any(sign in text for sign in BUSY_SIGNS) or ("table" in text and "already exists" in text)


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)  # a URI may hold a user and a password


def _first_line(error: Exception | None) -> str:
    return _without_password((str(error).strip().splitlines() or ["?"])[0])
