"""The chain is read from the manifests: it belongs to whichever step declares a parent."""

from collections import Counter

import pytest

from feature_jobs.errors import CorruptError
from tasks.store.chain import head, log
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.store.verify import Proof, require_sound, verify
from tests.unit.tasks.little import DAYS, little_scenario


def _commit(store: ScenarioStore, step: str, ds: str, **facts) -> Commit:
    with store.scratch() as scratch:
        (scratch / "content").write_text(f"{step} {ds} {store.generation}")
        return store.commit(step, ds, scratch, facts)[0]


def test_a_link_is_what_names_a_parent_whatever_its_step_is_called(scenario, store):
    first = _commit(store, "fit", DAYS[0], parent=None)
    _commit(store, "report", DAYS[0])
    second = _commit(store, "fit", DAYS[1], parent=first.digest)
    assert [(link.ds, link.checkpoint, link.parent) for link in log(store)] == [
        (DAYS[0], first.digest, None),
        (DAYS[1], second.digest, first.digest),
    ]
    assert head(store) == log(store)[-1]
    size = sum(file["bytes"] for commit in store.commits() for file in commit.manifest["files"].values())
    assert verify(scenario, store) == Proof(3, size, [])


def test_a_parent_that_is_not_the_day_befores_is_a_problem(scenario, store):
    first = _commit(store, "fit", DAYS[0], parent=None)
    _commit(store, "fit", DAYS[1], parent="0" * 64)
    with pytest.raises(CorruptError, match=rf"fit of {DAYS[1]} .*learned from 000000000000, but {DAYS[0]} holds"):
        require_sound(scenario, store)
    store.new_generation(DAYS[0], "corrected data")
    _commit(store, "fit", DAYS[0], parent=None)
    _commit(store, "fit", DAYS[1], parent=first.digest)
    assert [link.current for link in log(store)] == [False, True, False, True]
    assert any("learned from" in problem for problem in verify(scenario, store).problems)


def test_a_chain_is_sound_whatever_days_the_scenario_has_by_now(scenario, store, tmp_path):
    parent = None
    for ds in DAYS[:4]:
        parent = _commit(store, "fit", ds, parent=parent).digest
    for change in ({"data.days.first": DAYS[2]}, {"data.days.skip": [DAYS[1], DAYS[3]]}):
        assert verify(little_scenario(tmp_path / "changed", **change), store).problems == []
    later = little_scenario(tmp_path / "changed", **{"data.days.first": DAYS[2]})
    store.new_generation(DAYS[2], "the days before are gone")
    _commit(store, "fit", DAYS[2], parent=None)
    assert verify(later, store).problems == []
    assert "but 2024-01-02 holds" in verify(scenario, store).problems[0]


def test_a_missing_day_is_a_problem_although_the_days_around_it_fit(scenario, store):
    first = _commit(store, "fit", DAYS[0], parent=None)
    _commit(store, "fit", DAYS[2], parent=first.digest)
    [problem] = verify(scenario, store).problems
    assert f"but {DAYS[1]} holds nothing" in problem


def test_an_output_is_found_by_its_digest_day_and_generation(store):
    commit = _commit(store, "fit", DAYS[0], parent=None)
    assert store.is_committed(commit.digest, DAYS[0], 0)
    assert not store.is_committed(commit.digest, DAYS[1], 0)
    assert not store.is_committed(commit.digest, DAYS[0], 1)


def test_a_damaged_manifest_is_one_problem_and_the_others_are_still_checked(scenario, store):
    commit = _commit(store, "report", DAYS[0])
    _commit(store, "fit", DAYS[0], parent="1" * 64)
    (commit.folder / "manifest.json").write_text("{")
    problems = verify(scenario, store).problems
    assert len(problems) == 2 and "manifest.json" in problems[0] and "names parent 111111111111" in problems[1]
    assert [link.ds for link in log(store)] == [DAYS[0]]


def test_verify_reads_each_record_once(scenario, store, monkeypatch):
    first = _commit(store, "fit", DAYS[0], parent=None)
    _commit(store, "fit", DAYS[1], parent=first.digest)
    ChampionLog(store).promote(0, Entry("promotion", "little", "1", DAYS[0], 0, first.digest))
    read, keys = store.objects.read, Counter()

    def counted(key, *given):
        keys[key] += 1
        return read(key, *given)

    monkeypatch.setattr(store.objects, "read", counted)
    require_sound(scenario, store)
    assert {"champion/000001.json", f"g0000/{DAYS[1]}/fit/commit.json"} < set(keys)
    assert set(keys.values()) == {1}
