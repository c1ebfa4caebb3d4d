"""A fresh MLflow database for a test: made once, copied for each, because making its tables takes seconds."""

import shutil
from pathlib import Path

import pytest

from tasks.tracking import connection


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
