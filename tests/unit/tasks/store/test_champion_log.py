"""The champion log: one winner per place, fair comparators, rollbacks that are reported and can be finished."""

import json
import resource
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario
from tasks import tracking
from tasks.run.rollback import resume_promotions, rollback, status_facts
from tasks.store.champion_log import ChampionLog, ChampionMovedError, Entry
from tasks.store.scenario_store import ScenarioStore
from tests.paths import ROOT
from tests.unit.tasks.little import DAYS, commit, little_scenario


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return little_scenario(tmp_path / "scenario")


@pytest.fixture(autouse=True)
def every_version_loads(monkeypatch) -> list[str]:
    """These versions have no files; which of them a rollback loaded. Real ones are loaded in test_register_deploy."""
    asked: list[str] = []

    def check(model: str, version: str, files: dict, reference: Path) -> tracking.LoadCheck:
        asked.append(version)
        return tracking.LoadCheck("", 1, {"like": 0.0}, own_code=True)

    monkeypatch.setattr(tracking, "check_loads", check)
    return asked


def trained(store: ScenarioStore, ds: str, tmp_path: Path, version: str) -> Entry:
    """An entry whose checkpoint, export and registration are committed."""
    folder = tmp_path / "checkpoints" / f"{ds}-{version}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"{ds} {version}")
    made = commit(store, "train", ds, folder, parent=None)
    written = {"name": "little", "version": version, "model_uri": "", "checkpoint": "", "export": "", "files": {}}
    (folder / "version.json").write_text(json.dumps(written))
    for step in ("quantize", "register"):
        commit(store, step, ds, folder)
    return Entry("promotion", "little", version, ds, made.generation, made.digest)


def promoted(store: ScenarioStore, tmp_path: Path, num_versions: int) -> list[Entry]:
    """Version 1 of the first day, version 2 of the second, …"""
    log = ChampionLog(store)
    return [log.promote(n, trained(store, DAYS[n], tmp_path, str(n + 1))) for n in range(num_versions)]


def registered(num_versions: int) -> None:
    client = tracking.connection.client()
    client.create_registered_model("little")
    for _ in range(num_versions):
        client.create_model_version("little", source="file:///nowhere")


def test_of_two_promotions_after_the_same_record_one_wins(store, tmp_path):
    log = ChampionLog(store)
    first = log.promote(0, trained(store, DAYS[0], tmp_path, "1"))
    with pytest.raises(ChampionMovedError, match="another process wrote this record first"):
        log.promote(0, trained(store, DAYS[1], tmp_path, "2"))
    assert log.history() == [first]
    assert log.current() == first


def test_racing_promotions_all_find_a_place_of_their_own(store):
    entry = Entry("promotion", "little", "1", DAYS[0], 0, "c")
    wins: list[int] = []

    def promote(version: str) -> None:
        log = ChampionLog(store)
        while True:
            try:
                wins.append(log.promote(len(log.history()), replace(entry, version=version)).sequence)
                return
            except ChampionMovedError:
                continue

    threads = [threading.Thread(target=promote, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(1, 9))
    assert len({e.version for e in ChampionLog(store).history()}) == 8


def test_a_comparator_has_not_learned_from_the_day(store, tmp_path):
    one, two, _ = promoted(store, tmp_path, 3)
    log = ChampionLog(store)
    assert log.as_of(DAYS[0]) == (None, None)
    assert log.as_of(DAYS[1]) == (one, None)
    assert log.as_of(DAYS[2]) == (two, one)


def test_after_a_rollback_the_restored_version_is_compared_and_the_one_before_it_is_former(store, tmp_path):
    one, two, three = promoted(store, tmp_path, 3)
    log = ChampionLog(store)
    back = log.promote(3, replace(two, kind="rollback"))
    champion, former = log.as_of(DAYS[4])
    assert (champion, former) == (back, one)
    assert [e.version for e in log.rollback_targets(3)] == ["1", "3"]
    newest = log.promote(4, trained(store, DAYS[3], tmp_path, "4"))
    assert log.as_of(DAYS[4]) == (newest, back)
    assert three not in log.as_of(DAYS[4])


def test_champions_of_a_replaced_history_count_only_where_there_are_no_others(store, tmp_path):
    one, two, _ = promoted(store, tmp_path, 3)
    store.new_generation(DAYS[1], "corrected")
    log = ChampionLog(store)
    assert log.as_of(DAYS[3]) == (one, None)
    again = log.promote(3, trained(store, DAYS[1], tmp_path, "4"))
    assert again.generation == 1
    assert log.as_of(DAYS[2]) == (again, one)
    assert log.as_of(DAYS[2], generation=0) == (two, one)
    store.new_generation(DAYS[0], "all of it")
    assert log.as_of(DAYS[1])[0] == one


def test_a_replay_of_equal_content_has_the_comparators_of_the_first_time(store, tmp_path):
    one, two, three = promoted(store, tmp_path, 3)
    log = ChampionLog(store)
    store.new_generation(DAYS[0], "nothing changed")
    for number, entry in enumerate((one, two, three)):
        found = [e and (e.version, e.generation) for e in log.as_of(DAYS[number])]
        assert found == [("2", 1), ("1", 1)][2 - number :] + [None] * (2 - number)
        assert trained(store, entry.ds, tmp_path / "again", entry.version).checkpoint == entry.checkpoint
    # The version that serves is promoted again in its new generation: the one before it stays the former champion.
    log.promote(3, replace(three, generation=1))
    assert [e.version for e in log.as_of(DAYS[3])] == ["3", "2"]
    store.collect(store.find("train", DAYS[1]), "kept in the older generation")
    assert [e.generation for e in log.as_of(DAYS[3])] == [1, 0]


def test_an_entry_whose_checkpoint_is_gone_does_not_count(store, tmp_path):
    one, two = promoted(store, tmp_path, 2)
    shutil.rmtree(store.find("train", DAYS[1]).folder.parent)  # as dvc does before it runs a day again
    log = ChampionLog(store)
    assert log.as_of(DAYS[2]) == (one, None)
    assert not log.is_committed(two)


def test_rollback_goes_one_back_moves_the_alias_and_keeps_the_chain(scenario, store, tmp_path, mlflow_uri):
    promoted(store, tmp_path, 3)
    registered(3)
    tracking.set_alias("little", "champion", "3")
    facts = rollback(scenario, store)
    assert (facts.changed, facts.from_version, facts.to_version) == (True, "3", "2")
    assert tracking.aliases("little")["champion"] == "2"
    entry = ChampionLog(store).current()
    assert (entry.kind, entry.version, entry.ds, entry.replaces) == ("rollback", "2", DAYS[1], 3)
    assert entry.chain_head["ds"] == DAYS[2]  # the next day still learns from here
    assert "recloop chain replay -s " in facts.message and f" --from {DAYS[2]}" in facts.message
    assert rollback(scenario, store).to_version == "1"
    with pytest.raises(BadInputError, match="nothing to go back to; with --to it can go to 2, 3"):
        rollback(scenario, store)
    # MLflow itself agrees
    assert tracking.connection.client().get_model_version_by_alias("little", "champion").version == 1


def test_a_rollback_goes_only_to_versions_that_mlflow_has(scenario, store, tmp_path, mlflow_uri, every_version_loads):
    promoted(store, tmp_path, 4)
    registered(4)
    client = tracking.connection.client()
    client.delete_model_version("little", "3")
    facts = status_facts(scenario, store)
    assert (facts["rollback_targets"], facts["deleted"]) == (["2", "1"], ["3"])
    with pytest.raises(BadInputError, match="version 3 was deleted in MLflow, so it can't serve; one of: 2, 1"):
        rollback(scenario, store, "3")
    assert len(ChampionLog(store).history()) == 4
    assert rollback(scenario, store).to_version == "2"
    assert every_version_loads == ["2"]


def test_a_champion_that_was_deleted_in_mlflow_can_be_left(scenario, store, tmp_path, mlflow_uri):
    promoted(store, tmp_path, 2)
    registered(2)
    tracking.connection.client().delete_model_version("little", "2")
    facts = status_facts(scenario, store)
    assert (facts["champion"]["version"], facts["deleted"], facts["mlflow"]) == ("2", ["2"], "ok")
    assert rollback(scenario, store).to_version == "1"
    assert tracking.aliases("little")["champion"] == "1"


def test_a_rollback_to_a_version_that_does_not_load_changes_nothing(scenario, store, tmp_path, mlflow_uri, monkeypatch):
    promoted(store, tmp_path, 2)
    registered(2)
    monkeypatch.setattr(tracking, "check_loads", lambda *_: tracking.LoadCheck("ImportError: no such module"))
    with pytest.raises(
        BadInputError, match=r"version 1 can't serve: .*ImportError.*; choose another version with --to"
    ):
        rollback(scenario, store)
    shutil.rmtree(store.find("register", DAYS[0]).folder.parent)
    with pytest.raises(BadInputError, match=r"the registration of .* is not committed, so version 1 can't be proven"):
        rollback(scenario, store)
    assert len(ChampionLog(store).history()) == 2


def test_rollback_to_a_version(scenario, store, tmp_path, mlflow_uri):
    promoted(store, tmp_path, 5)
    registered(5)
    with pytest.raises(BadInputError, match=r"version 1 is not one of the last deploy.keep_versions = 3 .* 4, 3, 2"):
        rollback(scenario, store, "1")
    assert rollback(scenario, store, "2").to_version == "2"
    again = rollback(scenario, store, "2")
    assert again.changed is False
    assert "already" in again.message
    assert len(ChampionLog(store).history()) == 6


def test_rolled_back_versions_stay_choosable(scenario, store, tmp_path, mlflow_uri):
    promoted(store, tmp_path, 6)
    registered(6)
    rollback(scenario, store, "3")
    assert [e.version for e in ChampionLog(store).rollback_targets(3)] == ["2", "1", "6", "5", "4"]
    assert rollback(scenario, store, "5").to_version == "5"
    assert ChampionLog(store).as_of(DAYS[5])[0].version == "5"
    assert [e.version for e in ChampionLog(store).rollback_targets(3)] == ["3", "2", "1", "6", "4"]


def test_a_rollback_holds_promotions_until_they_are_resumed(scenario, store, tmp_path, mlflow_uri):
    promoted(store, tmp_path, 3)
    registered(3)
    log = ChampionLog(store)
    assert log.held_by() is None
    assert resume_promotions(scenario, store).changed is False
    change = rollback(scenario, store)
    assert "recloop resume-promotions -s little" in change.message
    assert log.held_by() == change.champion
    assert "held since the rollback to version 2" in status_facts(scenario, store)["promotions"]
    before = log.as_of(DAYS[4])
    resumed = resume_promotions(scenario, store)
    assert (resumed.changed, resumed.to_version, resumed.champion.kind) == (True, "2", "resumption")
    assert log.held_by() is None
    assert log.as_of(DAYS[4]) == before  # the serving version, and the one before, did not change
    assert log.current().version == tracking.aliases("little")["champion"] == "2"
    assert status_facts(scenario, store)["promotions"] == "allowed"
    assert rollback(scenario, store).to_version == "1"


def test_records_of_an_older_release_are_read(store):
    """Byte for byte equal to the records of 0.1."""
    folder = store.work / "champion"
    folder.mkdir(parents=True)
    (folder / "000001.json").write_text(
        '{"chain_head":null,"checkpoint":"ab","ds":"2024-01-01","generation":0,"kind":"promotion","model":"little",'
        '"replaces":null,"sequence":1,"version":"1"}'
    )
    (folder / "000002.json").write_text(
        '{"chain_head":{"checkpoint":"ab","ds":"2024-01-02","generation":0},"checkpoint":"ab","ds":"2024-01-01",'
        '"generation":0,"kind":"rollback","model":"little","replaces":1,"sequence":2,"version":"1"}'
    )
    log = ChampionLog(store)
    assert [e.kind for e in log.history()] == ["promotion", "rollback"]
    assert log.held_by().sequence == 2


@pytest.mark.parametrize("num_versions", [0, 1])
def test_nothing_to_go_back_to_is_said(scenario, store, tmp_path, mlflow_uri, num_versions):
    promoted(store, tmp_path, num_versions)
    registered(1)
    with pytest.raises(BadInputError, match="nothing to go back to"):
        rollback(scenario, store)


def test_a_rollback_cut_short_is_finished_and_not_repeated(scenario, store, tmp_path, mlflow_uri, monkeypatch):
    promoted(store, tmp_path, 3)
    registered(3)
    tracking.set_alias("little", "champion", "3")

    def away(*_: str) -> None:
        raise RetryLaterError("MLflow is away")

    with monkeypatch.context() as broken, pytest.raises(RetryLaterError):
        broken.setattr("tasks.tracking.champion_alias.set_alias", away)
        rollback(scenario, store)
    assert tracking.aliases("little")["champion"] == "3"
    facts = rollback(scenario, store)
    assert "finished" in facts.message
    assert tracking.aliases("little")["champion"] == "2"
    assert ChampionLog(store).current().version == "2"


def test_status_reports_and_repairs(scenario, store, tmp_path, mlflow_uri):
    assert status_facts(scenario, store)["champion"] is None
    promoted(store, tmp_path, 2)
    registered(2)
    facts = status_facts(scenario, store)
    assert facts["champion"]["version"] == "2"
    assert facts["rollback_targets"] == ["1"]
    assert [(v["version"], v["aliases"]) for v in facts["versions"]] == [("2", ["champion"]), ("1", [])]
    assert "moved" in facts["mlflow"]
    assert status_facts(scenario, store)["mlflow"] == "ok"


def test_status_without_mlflow_says_so(scenario, store, tmp_path, monkeypatch):
    promoted(store, tmp_path, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    facts = status_facts(scenario, store)
    assert facts["champion"]["version"] == "1"
    assert "does not answer" in facts["mlflow"]


def test_a_rollback_takes_seconds_and_loads_nothing_that_trains_joins_or_scores(scenario, store, tmp_path, mlflow_uri):
    """It needs MLflow's client, which costs most of its time, and no other heavy library.

    Processor time is bounded, because the clock also counts the waiting for other processes of the machine.
    """
    promoted(store, tmp_path, 2)
    registered(2)
    code = (
        "import sys\nfrom feature_jobs.schema import load_scenario\n"
        "from tasks.store.scenario_store import open_store\nfrom tasks.run.rollback import rollback\n"
        "from tasks import tracking\n"
        "tracking.check_loads = lambda *_: tracking.LoadCheck('', 1, {'like': 0.0}, own_code=True)\n"
        f"rollback(load_scenario({str(scenario.file)!r}), open_store({str(store.work.parent)!r}, 'little'))\n"
        "print(*{module.split('.')[0] for module in sys.modules})\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert not set(done.stdout.split()) & {"torch", "duckdb", "numba", "onnxruntime", "great_expectations", "optuna"}
    assert tracking.aliases("little")["champion"] == "1"
