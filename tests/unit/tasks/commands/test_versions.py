"""`recloop rollback` and `recloop resume-promotions`, as a person calls them."""

import itertools
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tasks.commands.cli import main
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import open_store
from tests.object_store import ObjectServer, proxy_of
from tests.small import DAILY
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


def test_a_version_whose_manifest_is_damaged_is_not_offered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    [manifest] = (root / "store").glob(f"little/g0000/{DAYS[2]}/train/*/manifest.json")
    manifest.write_bytes(manifest.read_bytes().replace(b"null", b"true"))
    open_store(root / "store", "little").new_generation(DAYS[2], "to compute that day again")
    shown = recloop(root, "status").output
    assert "damaged in the store, can't serve: 2" in shown
    assert "rollback: no earlier version" in shown


@pytest.mark.slow
def test_status_and_log_ask_an_object_store_for_many_records_at_once(
    tmp_path: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for the metrics of a checkpoint only, not for its weights."""
    days = DAYS[:5]
    little_scenario(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("RECLOOP_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "output"
    output.mkdir()
    (output / "metrics.json").write_text('{"progressive": {"like": {"auc": 0.75}}}')
    (output / "weights").write_text("many")
    log, parent = ChampionLog(open_store(tmp_path / "store", "little")), None
    for day, step in itertools.product(days, DAILY):
        made = commit(log.store, step, day, output, **({"parent": parent} if step == "train" else {}))
        if step == "train":
            parent = made.digest
            number = days.index(day)
            log.promote(number, Entry("promotion", "little", str(number + 1), day, 0, parent))
    num_commits = len(days) * len(DAILY)
    url = object_server.filled(tmp_path / "store")
    with proxy_of(object_server) as proxy:
        for name, value in object_server.environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        for command, most in ((["chain", "log"], 3 * num_commits), (["status"], 6 * num_commits)):
            proxy.gather(9)
            words = [*command, "-s", str(tmp_path / "little.yaml"), "--store", url]
            done = CliRunner().invoke(main, words)
            assert done.exit_code == 0, done.output
            assert all(day in done.output for day in days)
            assert proxy.most_at_once >= 9
            assert 2 * num_commits < len(proxy.seen) < most
            assert not [path for _, path in proxy.seen if path.endswith("weights")]
    assert done.output.count("0.75") == len(days)
