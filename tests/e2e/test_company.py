"""The logs of a company, as they are in real life, go through the whole loop with the gates that a scenario has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT, SCENARIOS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _recloop(folder: Path, *words: str) -> str:
    environment = {**os.environ, "RECLOOP_NO_TRACK": "1", "PYTHONPATH": str(ROOT)}
    options = ["-s", str(SCENARIOS / "company.yaml"), "--set", f"online.store={folder}/online"]
    options += ["--data", str(folder / "data")] if words[0] in ("fetch", "run") else []
    command = [sys.executable, "-m", "tasks", words[0], *words[1:2], *options, *words[2:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_its_days_are_promoted(tmp_path: Path) -> None:
    _recloop(tmp_path, "fetch")
    _recloop(tmp_path, "run", "--to=2024-03-05")
    shown = json.loads(_recloop(tmp_path, "status", "--json"))
    promoted = [record["ds"] for record in shown["log"]]
    # The first day has no parent, and its scores are too high by far; after it each day is better than the last.
    assert promoted == [f"2024-03-0{day}" for day in range(2, 6)]
    assert shown["auc"]["2024-03-03"]["order"] is None
    assert shown["auc"]["2024-03-05"]["order"] > 0.65  # by a checkpoint that has learned the orders of one day
    assert "every digest is right" in _recloop(tmp_path, "chain", "verify")
    replayed = json.loads(_recloop(tmp_path, "skew", "--ds=2024-03-05", "--most=120", "--json"))
    assert replayed["rows"] > 500  # in requests of five or more items
    assert {one["equal"] for one in replayed["features"]} == {replayed["rows"]}
