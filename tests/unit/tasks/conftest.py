"""Fixtures of several files: a fresh MLflow database for a test, and a little recommender with two days.

Both are made once and copied for each test, because making them takes seconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.tracking import connection

if TYPE_CHECKING:
    from tests.unit.tasks.daily_loop import Loop


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connection.quiet_mlflow().MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def mlflow_uri(empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tracking goes to a database of this test's own."""
    shutil.copyfile(empty_mlflow, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("RECLOOP_MLFLOW_SERVER", raising=False)
    return uri


# These import torch when they are asked for: most tests of this folder need none.


@pytest.fixture(scope="session")
def two_days(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """The first day promoted (in the log alone), the second one ready to register."""
    from tests.unit.tasks.daily_loop import first_two_days

    return first_two_days(tmp_path_factory)


@pytest.fixture
def load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real answer of the fresh process, asked once for each model: it takes seconds."""
    from tests.unit.tasks.daily_loop import load_each_model_once

    load_each_model_once(monkeypatch)


@pytest.fixture
def loop(two_days: Loop, tmp_path: Path, mlflow_uri: str) -> Loop:
    """A copy that a test may change, the first day registered as version 1."""
    from tests.unit.tasks.daily_loop import copy_of_loop

    return copy_of_loop(two_days, tmp_path)
