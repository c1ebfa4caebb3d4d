"""gc deletes only files that nothing needs: the kept ones are proven, the deleted ones are named."""

from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from tasks.run.collect import collect, garbage, leftovers
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import ScenarioStore, open_store
from tasks.store.verify import require_sound
from tests.unit.tasks.little import DAYS, little_scenario

STEPS = ("ingest", "summarize", "join", "train", "quantize")


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return little_scenario(tmp_path, deploy={"keep_versions": 1}, join={"lookback_days": 1}, tune={"replay_days": 1})


@pytest.fixture
def store(tmp_path: Path) -> ScenarioStore:
    """Seven days of a chain; version N learned from day N, and each was promoted but the newest two."""
    store = open_store(tmp_path / "store", "little")
    for ds in DAYS[:7]:
        _day(store, ds)
    log = ChampionLog(store)
    for number, ds in enumerate(DAYS[:5]):
        checkpoint = store.find("train", ds).digest
        log.promote(number, Entry("promotion", "little", str(number + 1), ds, 0, checkpoint))
    return store


def _day(store: ScenarioStore, ds: str) -> None:
    for step in STEPS:
        parent = {"parent": _parent(store, ds)} if step == "train" else {}
        with store.scratch() as scratch:
            (scratch / "content").write_text(f"{step} {ds} {store.generation}")
            store.commit(step, ds, scratch, parent)


def _parent(store: ScenarioStore, ds: str) -> str | None:
    found = store.find("train", DAYS[DAYS.index(ds) - 1]) if ds != DAYS[0] else None
    return found.digest if found else None


def _kept(store: ScenarioStore) -> set[tuple[str, int, str]]:
    """Commits of the store that still have files."""
    return {(c.ds, c.generation, c.step) for c in store.commits() if (store.work / c.key / "content").is_file()}


def _collect(scenario: Scenario, store: ScenarioStore, days: int) -> None:
    collect(store, garbage(scenario, store, days), leftovers(store), "test")


def test_what_is_kept_is_what_is_needed(scenario, store):
    expected = {(ds, 0, step) for ds in DAYS[5:7] for step in STEPS}  # the last two days
    expected |= {(ds, 0, step) for ds in DAYS[3:5] for step in ("train", "quantize")}  # champion, rollback target
    expected |= {(DAYS[4], 0, "join")}  # replayed by a search on the day
    expected |= {(ds, 0, step) for ds in DAYS[3:5] for step in ("ingest", "summarize")}  # windows
    assert garbage(scenario, store, 2).by_step()["join"][0] == 4
    _collect(scenario, store, 2)
    assert _kept(store) == expected
    require_sound(scenario, store)
    assert garbage(scenario, store, 2).commits == ()
    assert store.find("join", DAYS[0]) is not None  # the day still counts as done


def test_the_head_of_an_older_generation_is_kept(scenario, store):
    store.new_generation(DAYS[1], "corrected")
    for ds in DAYS[1:7]:
        _day(store, ds)
    _collect(scenario, store, 1)
    assert (DAYS[6], 0, "train") in _kept(store)
    assert (DAYS[6], 0, "join") not in _kept(store)
    assert (DAYS[6], 1, "join") in _kept(store)
    require_sound(scenario, store)


def test_a_step_that_needs_deleted_files_names_the_reason(scenario, store):
    _collect(scenario, store, 2)
    with pytest.raises(BadInputError, match=r"deleted as no longer needed \(test\).*recloop chain replay"):
        store.verify(store.find("join", DAYS[0]))


def test_a_changed_file_is_found_beside_deleted_ones(scenario, store):
    _collect(scenario, store, 2)
    (store.find("train", DAYS[6]).folder / "content").write_text("changed")
    with pytest.raises(BadInputError, match="content: 7 bytes, but 18 were committed"):
        require_sound(scenario, store)


def test_the_head_shows_a_record_that_excuses_missing_files(scenario, store):
    head = require_sound(scenario, store).head
    commit = store.find("join", DAYS[0])
    store.collect(commit, "by somebody else")
    assert require_sound(scenario, store).head != head


def test_nothing_goes_without_a_number_of_days(scenario, store):
    assert garbage(scenario, store, None).commits == ()


def test_leftovers_go_once_their_day_is_committed(scenario, store):
    for ds in (DAYS[0], DAYS[8]):
        leftover = store.work / "g0000" / ds / "join" / ("a" * 16)
        leftover.mkdir(parents=True)
        (leftover / "content").write_text("of a killed run")
    resume = store.work / ".resume"
    (resume / f"{DAYS[0]}.train" / "key").mkdir(parents=True)
    (resume / f"{DAYS[1]}.train.lock").touch()  # of a run that was killed between its folder's end and the lock's
    _collect(scenario, store, 7)
    assert not (store.work / "g0000" / DAYS[0] / "join" / ("a" * 16)).exists()
    assert (store.work / "g0000" / DAYS[8] / "join" / ("a" * 16)).exists()  # a run may be about to commit it
    assert list(resume.iterdir()) == []


def test_leftovers_of_a_replaced_generation_go_after_a_day(store):
    """A run that stands still between its last look at the generation and its record may still commit."""
    leftover = store.work / "g0000" / DAYS[8] / "join" / ("a" * 16)
    leftover.mkdir(parents=True)
    (leftover / "content").write_text("of a killed run")
    assert leftovers(store, idle_s=0) == []
    store.new_generation(DAYS[8], "corrected")
    assert leftovers(store) == []
    assert leftovers(store, idle_s=0) == [f"g0000/{DAYS[8]}/join/{'a' * 16}"]
