"""A proposal: what is certain in it, its table, and its way into the scenario file."""

import shutil

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from tasks.commands.text_table import lines_of
from tasks.tuning.proposal import apply, apply_certain, doubt, proposal_table
from tasks.tuning.space import read_space
from tests.unit.tasks.tuning.tiny import DAYS, SCENARIO, TUNE, proposal_of, run


def test_applying_a_proposal_keeps_comments_and_touches_nothing_else(tmp_path):
    file = tmp_path / "tiny.yaml"
    space = TUNE + "    model.dropout: {choices: [0.1]}\n    quantize.max_auc_loss: {low: 0.001, high: 0.01}\n"
    file.write_text(SCENARIO + space)
    changes = {
        "train.learning_rate": {"old": 0.00001, "new": 0.0123},
        "features.age.enabled": {"old": True, "new": False},
        "model.dropout": {"old": 0.0, "new": 0.1},
        "quantize.max_auc_loss": {"old": 0.002, "new": 0.003},
    }
    apply(load_scenario(file), changes, DAYS[2])
    expected = (SCENARIO + space).replace("learning_rate: 0.00001}", "learning_rate: 0.0123}")
    expected = expected.replace("age: {kind: number}", "age: {kind: number, enabled: false}")
    expected = expected.replace("  tower: [4]\n", "  tower: [4]\n  dropout: 0.1\n")
    edited = file.read_text().replace("}   # far", "}  # far")  # a comment keeps its column
    assert edited == expected + "quantize:\n  max_auc_loss: 0.003\n"
    scenario = load_scenario(file)
    assert scenario.train.learning_rate == 0.0123 and not scenario.features["age"].enabled
    with pytest.raises(BadInputError, match=r"tiny.yaml:\d+: .*the proposal started from"):
        apply(load_scenario(file), changes, DAYS[2])


@pytest.mark.parametrize(
    ("path", "new", "reason"),
    [
        ("data.path", "/etc", "tune.space does not name data.path"),
        ("deploy.max_calibration_error", 1e9, "tune.space does not name deploy.max_calibration_error"),
        ("features.age.kind", "id", "tune.space does not name features.age.kind"),
        ("features.x.y.z", 1, "tune.space does not name features.x.y.z"),
        ("train.learning_rate", "fast", "train.learning_rate = 'fast'"),
        ("train.learning_rate", {"a": []}, "train.learning_rate = {'a': \\[\\]}"),
    ],
)
def test_a_proposal_changes_only_what_the_space_names_to_what_the_scenario_allows(tmp_path, path, new, reason):
    file = tmp_path / "tiny.yaml"
    file.write_text(SCENARIO + TUNE)
    with pytest.raises(BadInputError, match=reason):
        apply(load_scenario(file), {path: {"old": 0.00001, "new": new}}, DAYS[2])
    assert file.read_text() == SCENARIO + TUNE


def test_the_shipped_scenarios_survive_a_round_trip_and_have_a_space(tmp_path):
    from tests.paths import SCENARIOS

    for name in ("movielens", "kuairand"):
        shutil.copy(SCENARIOS / f"{name}.yaml", tmp_path)
        file = tmp_path / f"{name}.yaml"
        before = file.read_text()
        old = load_scenario(file).train.learning_rate
        apply(load_scenario(file), {"train.learning_rate": {"old": old, "new": 0.5}}, DAYS[2])
        changed = [line for line in file.read_text().splitlines() if line not in before.splitlines()]
        assert len(changed) <= 2 and any("learning_rate: 0.5" in line for line in changed)
        assert len(read_space(load_scenario(SCENARIOS / f"{name}.yaml"))) >= 4


def test_a_difference_within_chance_is_not_certain_and_not_applied_by_itself(chain, tmp_path):
    section = "\ntune: {trials: 3, apply: auto, space: {train.seed: {low: 1, high: 99}}}\n"
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("0.00001", "0.03") + section)
    _, output = run(tmp_path, chain)
    proposal = proposal_of(output)
    assert not proposal["certain"] and proposal["evidence"].get("like", {"low": -1})["low"] < 0
    apply_certain(load_scenario(tmp_path / "tiny.yaml"), output)
    assert load_scenario(tmp_path / "tiny.yaml").train.seed == 7
    assert sorted(p.name for p in output.iterdir()) == ["proposal.json"]


def test_a_gain_on_too_few_rows_is_unknown_and_not_applied_by_itself(chain, tmp_path):
    section = TUNE.replace("trials: 5", "trials: 3\n  apply: auto") + "\ndeploy: {min_rows: 50000}\n"
    _, output = run(tmp_path, chain, section)
    proposal = proposal_of(output)
    facts = proposal["evidence"]["like"]
    assert proposal["better"] and facts["low"] > 0  # the interval alone would call it better
    assert facts["verdict"] == "unknown" and not proposal["certain"]
    assert "rows where 50,000 are needed" in facts["reason"]
    (evidence,) = [line for line in lines_of(proposal_table(output, "-s tiny")) if line.startswith("like: AUC")]
    assert evidence.endswith(": unknown against trial 0")
    assert doubt(proposal) == f"the gain is unknown: like: {facts['reason']}"
    apply_certain(load_scenario(tmp_path / "tiny.yaml"), output)
    assert load_scenario(tmp_path / "tiny.yaml").train.learning_rate == 0.00001


def test_auto_applies_the_winner_by_itself_when_the_proposal_is_committed(chain, tmp_path):
    section = TUNE.replace("trials: 5", "trials: 3\n  apply: auto")
    _, output = run(tmp_path, chain, section)
    file = tmp_path / "tiny.yaml"
    assert load_scenario(file).train.learning_rate == 0.00001  # the step itself writes its output alone
    apply_certain(load_scenario(file), output)
    proposal = proposal_of(output)
    assert proposal["better"]
    assert load_scenario(file).train.learning_rate == proposal["best"]["train.learning_rate"] != 0.00001
    written = file.read_text()
    apply_certain(load_scenario(file), output)  # the step is run again
    assert file.read_text() == written


def test_the_table_shows_the_best_trial_first_and_the_command_that_takes_it_over(undisturbed):
    proposal = proposal_of(undisturbed / "proposal")
    lines = lines_of(proposal_table(undisturbed / "proposal", "-s tiny"))
    assert lines[0].split()[:3] == ["trial", "auc", "state"]
    assert lines[1].startswith(str(proposal["best_trial"])) and f"{proposal['value']:.4f}" in lines[1]
    assert sum("(serves)" in line for line in lines) == 1
    assert lines[-1] == f"to take it over: recloop accept -s tiny --ds {DAYS[2]}"
