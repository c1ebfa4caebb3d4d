"""The quick-start notebook runs as it is: from a folder of CSVs to a champion that scores."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.paths import ROOT


@pytest.mark.slow
def test_the_notebook_runs_from_csvs_to_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RECLOOP_MLFLOW_SERVER", raising=False)
    notebook = nbformat.read(ROOT / "docs" / "quick-start.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs before a commit"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "mean score of rows with the label" in printed
