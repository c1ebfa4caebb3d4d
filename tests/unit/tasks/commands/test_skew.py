"""`recloop skew` as its user sees it, and what a killed one leaves behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result

from feature_jobs.online import replay
from tasks.commands.cli import main
from tests.small import days, write_small

FIRST, SECOND = days(2)


def recloop(shop: Path, command: str, *arguments: str) -> Result:
    place = ["-s", str(shop), "--store", str(shop.parent / "store"), "--no-track"]
    return CliRunner().invoke(main, [command, *place, *arguments])


def _killed_in_the_middle(shop: Path) -> None:
    def replay_day(*_arguments: object, **_named: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(replay, "replay_day", replay_day):
        recloop(shop, "skew", "--ds", SECOND)


def test_what_a_killed_skew_leaves_is_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    (elsewhere := tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    shop = write_small(tmp_path, 2, rows=40)
    shop.write_text(f"{shop.read_text()}online: {{store: online}}\n")
    done = recloop(shop, "run", "--to", SECOND, "--until", "join")
    assert done.exit_code == 0, done.output
    done = recloop(shop, "materialize", "--ds", FIRST)
    assert done.exit_code == 0, done.output
    process = multiprocessing.get_context("spawn").Process(target=_killed_in_the_middle, args=(shop,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = (folder for folder in tmp_path.glob("store/**/.scratch/*") if folder.is_dir())
    assert list(left.rglob("*.sst"))
    done = recloop(shop, "skew", "--ds", SECOND)
    assert done.exit_code == 0 and "40 rows compared, 8 of 8 features equal" in done.output, done.output
    assert not list(tmp_path.glob("store/**/.scratch/*"))
    assert not list(elsewhere.glob("**/*.sst"))
    # A load writes a damaged name again: it is the remedy that the message of a damaged one gives.
    name = (current := tmp_path / "online" / "shop" / "current").read_text()
    current.write_text("garbage")
    done = recloop(shop, "materialize", "--ds", FIRST)
    assert done.exit_code == 0, done.output
    assert current.read_text() == name
