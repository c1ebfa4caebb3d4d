"""The same days under `dvc repro`: same digests, nothing to do twice, experiments, metrics, plots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import inherited
from tests.paths import ROOT
from tests.plain_days import Digests, digests_of
from tests.small import write_small

pytestmark = pytest.mark.slow


def _run(*command: str, cwd: Path, check: bool = True) -> str:
    environment = {
        **inherited("GIT_"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(cwd),
        "RECLOOP_NO_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own: this code, the small shop's scenario, two days, `dvc repro` done and committed."""
    folder = tmp_path_factory.mktemp("project")
    for room in ("feature_jobs", "models", "tasks", "serving"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "scenarios").mkdir()
    write_small(folder / "scenarios", num_days=2)
    shutil.copy(ROOT / ".dvcignore", folder)
    (folder / ".gitignore").write_text(".recloop/\n__pycache__/\n")
    for command in (
        ("git", "init", "-q"),
        ("git", "config", "user.email", "someone@example.com"),
        ("git", "config", "user.name", "Someone"),
        (sys.executable, "-m", "dvc", "init", "-q"),
        (sys.executable, "-m", "tasks", "dvc-render", "-s", "scenarios/shop.yaml"),
        (sys.executable, "-m", "dvc", "repro", "-q"),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "two days"),
    ):
        _run(*command, cwd=folder)
    return folder


def test_digests_equal_those_of_a_plain_run(project: Path, plain_days: Digests) -> None:
    found = digests_of(str(project / ".recloop" / "dvc"), project / "scenarios" / "shop.yaml")
    # dvc.yaml has the search too.
    assert {place: digest for place, digest in found.items() if not place[1].startswith("tune")} == plain_days


def test_a_second_run_does_nothing(project: Path) -> None:
    printed = _run(sys.executable, "-m", "dvc", "repro", cwd=project)
    assert "Running stage" not in printed
    assert "up to date" in printed


def test_an_experiment_changes_the_metrics_and_the_diff_shows_it(project: Path) -> None:
    setting = "scenarios/shop.yaml:train.batch_size=32"
    _run(sys.executable, "-m", "dvc", "exp", "run", "-q", "-S", setting, "report", cwd=project)
    diff = json.loads(_run(sys.executable, "-m", "dvc", "metrics", "diff", "--json", cwd=project))
    changes = diff[".recloop/dvc/report/metrics.json"]
    assert any(key.endswith("progressive.buy.auc") and abs(change["diff"]) > 0 for key, change in changes.items())
    page = _run(sys.executable, "-m", "dvc", "plots", "show", "--out", "plots", cwd=project)
    assert "index.html" in page
    assert "Progressive AUC" in (project / "plots" / "index.html").read_text()
