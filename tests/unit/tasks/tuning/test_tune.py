"""tune with the real Optuna and the real training, on days of a few hundred rows."""

import contextlib
import errno
import json
import os
import re

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from models.training.day import train_day
from models.training.job import TrainJob
from tasks.commands.text_table import lines_of
from tasks.contract import DayConfig
from tasks.tune import tune
from tasks.tuning.proposal import proposal_table
from tests.unit.tasks.tuning.tiny import DAYS, SCENARIO, TUNE, proposal_of, run

MANIFEST = {"step": "train", "ds": "2024-01-01", "digest": "d", "files": {}, "inputs": {}}


def test_trial_zero_has_the_scenarios_values_and_the_best_is_proposed(undisturbed):
    proposal = proposal_of(undisturbed / "proposal")
    trials = proposal["trials"]
    assert [t["number"] for t in trials] == list(range(5))
    assert trials[0]["state"] == "complete" and trials[0]["params"] == {
        "train.learning_rate": 0.00001,
        "model.bottom": [8],
        "features.item.enabled": True,
        "features.age.enabled": True,
        "features.recent.enabled": True,
    }
    assert proposal["champion_value"] == trials[0]["value"]
    assert proposal["better"] and proposal["value"] > proposal["champion_value"]
    assert proposal["replayed"] == DAYS[1:] and proposal["from_checkpoint"] == DAYS[0]
    assert proposal["changes"]["train.learning_rate"]["old"] == 0.00001
    evidence = proposal["evidence"]["like"]
    assert evidence["difference"] > 0 and evidence["low"] < evidence["difference"] < evidence["high"]
    assert proposal["certain"] and evidence["low"] > 0 and evidence["verdict"] == "better"
    assert all(set(t["intermediate"]) <= {"1", "2"} for t in trials)
    assert not (undisturbed / "tuning" / DAYS[2] / proposal["study"] / "trial-0").exists()


def test_a_trial_is_judged_on_rows_it_has_not_learned(chain, undisturbed, tmp_path):
    """Trial 0 again by hand: the first day's holdout, then the whole second day scored by the first day's model."""
    trial = proposal_of(undisturbed / "proposal")["trials"][0]
    scenario, parent = load_scenario(undisturbed / "tiny.yaml"), chain / "checkpoint"
    values = []
    for ds, rows in ((DAYS[1], "holdout"), (DAYS[2], "progressive")):
        (tmp_path / ds).mkdir()
        judged = train_day(TrainJob(scenario, ds, chain / "samples" / ds, parent, tmp_path / ds))
        values.append(judged[rows]["like"]["auc"])
        parent = tmp_path / ds
    assert trial["days"] == {ds: {"like": value} for ds, value in zip(DAYS[1:], values, strict=True)}
    assert trial["value"] == pytest.approx(sum(values) / 2, abs=1e-6)
    assert trial["intermediate"]["1"] == pytest.approx(values[0], abs=1e-6)


def test_running_it_again_changes_nothing_and_a_fresh_study_gives_the_same_bytes(chain, undisturbed, tmp_path):
    before = (undisturbed / "proposal/proposal.json").read_bytes()
    run(undisturbed, chain)
    assert (undisturbed / "proposal/proposal.json").read_bytes() == before
    run(tmp_path, chain)
    assert (tmp_path / "proposal/proposal.json").read_bytes() == before


def test_no_values_are_tried_twice_and_a_small_space_ends_the_study(chain, tmp_path):
    """Three values, one of them the scenario's own, where five trials are allowed."""
    space = "tune: {trials: 5, replay_days: 1, space: {train.batch_size: {choices: [32, 128]}}}"
    _, output = run(tmp_path, chain, space)
    tried = [trial["params"]["train.batch_size"] for trial in proposal_of(output)["trials"]]
    assert tried[0] == 64 and sorted(tried) == [32, 64, 128]


def test_a_small_space_is_tried_whole(chain, tmp_path, capsys):
    """Six pairs. Optuna's own sampler draws the best known pair again and again after its first three trials."""
    space = "train.batch_size: {choices: [32, 64]}, model.embedding_dim: {choices: [2, 4, 8]}"
    _, output = run(tmp_path, chain, f"tune: {{trials: 7, replay_days: 1, space: {{{space}}}}}")
    tried = {tuple(trial["params"].values()) for trial in proposal_of(output)["trials"]}
    assert len(tried) == 6
    err = capsys.readouterr().err
    assert "6 of 7 trials" in err
    # Its repeated draws have no place in the report, and do not count in the numbers that a person sees.
    shown = re.findall(r"trial (\d+): auc ([\d.]+)", err)
    assert shown == [(str(t["number"]), f"{t['value']:.6f}") for t in proposal_of(output)["trials"] if t["value"]]
    space = "train.batch_size: {choices: [32, 64]}"
    run(tmp_path / "full", chain, f"tune: {{trials: 2, replay_days: 1, space: {{{space}}}}}")
    assert "of 2 trials" not in capsys.readouterr().err  # nothing is missing


def test_hopeless_trials_are_pruned_after_their_first_day(chain, tmp_path):
    section = """
tune: {trials: 12, space: {features.item.enabled: {choices: [true, false]}, train.seed: {low: 1, high: 99}}}
"""
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("0.00001", "0.03") + section)
    _, output = run(tmp_path, chain)
    trials = proposal_of(output)["trials"]
    pruned = [t for t in trials if t["state"] == "pruned"]
    assert pruned and all(list(t["intermediate"]) == ["1"] and t["value"] is None for t in pruned)
    assert any(not t["params"]["features.item.enabled"] for t in pruned)
    assert proposal_of(output)["best"]["features.item.enabled"]
    assert isinstance(trials[1]["params"]["train.seed"], int)


def test_the_first_day_has_nothing_to_replay(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO + TUNE)
    config = DayConfig(load_scenario(tmp_path / "tiny.yaml"), DAYS[0])
    with pytest.raises(BadInputError, match="no checkpoint of an earlier day"):
        tune(
            config,
            samples=tmp_path,
            history={},
            checkpoints={},
            champion=None,
            events=None,
            past_events={},
            proposal=tmp_path,
        )


def test_trial_zero_has_the_values_that_serve_and_trial_one_the_scenarios_own(chain, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    settings = {"train": {"learning_rate": 0.03}, "model": {"bottom": [8]}, "features": {}}
    (served / "manifest.json").write_text(json.dumps({**MANIFEST, "settings": settings}))
    section = "\ntune: {trials: 3, space: {train.learning_rate: {low: 0.0001, high: 0.1, log: true}}}\n"
    _, output = run(tmp_path, chain, section, champion=served)
    proposal = proposal_of(output)
    assert [t["params"]["train.learning_rate"] for t in proposal["trials"][:2]] == [0.03, 0.00001]
    assert proposal["champion_value"] == proposal["trials"][0]["value"] > proposal["trials"][1]["value"]
    if not proposal["better"]:
        assert proposal["changes"] == {}  # the scenario differs from the serving one, but nothing better was found
    else:
        assert proposal["changes"]["train.learning_rate"]["old"] == 0.00001


def test_settings_that_are_not_searched_are_the_champions_in_trial_zero_too(chain, undisturbed, tmp_path):
    """The scenario was edited after the champion was trained: trial 0 is judged with the champion's settings."""
    served = tmp_path / "served"
    served.mkdir()
    scenario = load_scenario(undisturbed / "tiny.yaml").model_dump(mode="json", by_alias=True)
    settings = {key: scenario[key] for key in ("model", "train", "features")}
    (served / "manifest.json").write_text(json.dumps({**MANIFEST, "settings": settings}))
    section = "\ntune: {trials: 2, space: {model.embedding_dim: {choices: [4]}}}\n"
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("0.00001", "0.03") + section)
    _, output = run(tmp_path, chain, champion=served)
    trials = proposal_of(output)["trials"]
    expected = proposal_of(undisturbed / "proposal")["trials"][0]["value"]  # all settings equal to the champion's
    assert trials[0]["value"] == expected and trials[1]["value"] > expected
    assert trials[0]["params"] == trials[1]["params"] == {"model.embedding_dim": 4}


def test_a_trial_that_raises_counts_as_failed_and_the_study_goes_on(chain, tmp_path, monkeypatch):
    from models.training import day as training

    plain, section = training.train_day, "\ntune: {trials: 4, space: {model.bottom: {choices: [[8], [9], [10]]}}}\n"

    def breaks_on_nine(job):
        if job.scenario.model.bottom == (9,):
            raise RuntimeError("nine units are too many\nfor a test")
        return plain(job)

    monkeypatch.setattr(training, "train_day", breaks_on_nine)
    metrics, output = run(tmp_path, chain, section)
    proposal = proposal_of(output)
    failed = [t for t in proposal["trials"] if t["state"] == "failed"]
    assert len(proposal["trials"]) == 3 and len(failed) == metrics["trials"]["failed"] == 1
    assert {t["error"] for t in failed} == {"RuntimeError: nine units are too many"}
    assert proposal["best"] in ({"model.bottom": [8]}, {"model.bottom": [10]})
    shown = f"trial {failed[0]['number']} failed: RuntimeError: nine units are too many"
    assert shown in lines_of(proposal_table(output, "-s tiny"))
    before = (output / "proposal.json").read_bytes()
    run(tmp_path, chain, section)  # done: a failed trial is not tried again
    assert (output / "proposal.json").read_bytes() == before


def test_values_that_need_too_much_memory_fail_their_trial_alone(chain, tmp_path):
    wide = [16_384] * 50
    run(tmp_path, chain, f"\ntune: {{trials: 2, space: {{model.bottom: {{choices: [[8], {wide}]}}}}}}\n")
    trials = proposal_of(tmp_path / "proposal")["trials"]
    assert sorted(trial["state"] for trial in trials) == ["complete", "failed"]
    [failed] = [trial for trial in trials if trial["state"] == "failed"]
    assert failed["params"]["model.bottom"] == wide and "GiB with their moments" in failed["error"]


@pytest.mark.parametrize(("number", "stops"), [(errno.ENOMEM, False), (errno.ENOSPC, True)])
def test_a_full_disk_stops_the_study_and_missing_memory_does_not(chain, tmp_path, monkeypatch, number, stops):
    from models.training import day as training

    plain, section = training.train_day, "\ntune: {trials: 3, space: {model.bottom: {choices: [[8], [9]]}}}\n"

    def breaks_on_nine(job):
        if job.scenario.model.bottom == (9,):
            raise OSError(number, os.strerror(number))
        return plain(job)

    monkeypatch.setattr(training, "train_day", breaks_on_nine)
    with pytest.raises(OSError, match="No space left") if stops else contextlib.nullcontext():
        run(tmp_path, chain, section)
