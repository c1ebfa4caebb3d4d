"""`recloop rollback` and `recloop resume-promotions`, as a person calls them."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tasks.commands.cli import main
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import open_store
from tests.unit.tasks.little import DAYS, commit, little_scenario


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store in which the versions 1 and 2 were promoted, and 2 was rolled back; MLflow is not needed to resume."""
    little_scenario(tmp_path)
    log = ChampionLog(open_store(tmp_path / "store", "little"))
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "weights").write_text(str(number))
        made = commit(log.store, "train", DAYS[number], tmp_path / str(number), parent=None)
        log.promote(number - 1, Entry("promotion", "little", str(number), DAYS[number], 0, made.digest))
    first = log.history()[0]
    log.promote(2, Entry("rollback", "little", "1", first.ds, 0, first.checkpoint))
    return tmp_path


def recloop(root: Path, *arguments: str) -> Result:
    common = ["-s", str(root / "little.yaml"), "--store", str(root / "store")]
    return CliRunner().invoke(main, [arguments[0], *common, *arguments[1:]])


def test_promotions_are_resumed_once(root):
    done = recloop(root, "resume-promotions")
    assert done.exit_code == 0, done.output
    assert "promotions are allowed again; version 1 serves" in done.output
    again = json.loads(recloop(root, "resume-promotions", "--json").output)
    assert (again["changed"], again["to"]) == (False, "1")
    assert len(ChampionLog(open_store(root / "store", "little")).history()) == 4


def test_the_status_says_what_holds_promotions(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    held = recloop(root, "status")
    assert "promotions: held since the rollback to version 1" in held.output
    assert re.search(r"recloop resume-promotions -s \S*little\S* --store \S+", held.output)  # runs when it is copied
    assert "rollback can go to: 2" in held.output
