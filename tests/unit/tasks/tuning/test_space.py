"""The space of a search: any config path, with the scenario's own values in it."""

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from tasks.tuning.space import joins_again, read_space, with_values
from tests.unit.tasks.tuning.tiny import SCENARIO, run


def test_any_config_path_can_be_searched(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO)
    scenario = load_scenario(tmp_path / "tiny.yaml")
    changed = with_values(
        scenario,
        {
            "train.learning_rate": 0.5,
            "model.bottom": [3, 2],
            "model.architecture": "mmoe",
            "features.age.enabled": False,
            "features.age.buckets": 7,
            "train.task_weights": {"like": 2.0},
        },
    )
    assert (
        changed.train.learning_rate == 0.5 and changed.model.bottom == (3, 2) and changed.model.architecture == "mmoe"
    )
    assert not changed.features["age"].enabled and changed.features["age"].buckets == 7
    assert changed.train.task_weights == {"like": 2.0} and changed.file == scenario.file
    assert scenario.train.learning_rate == 0.00001


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("features.recent.window_days: {low: 1, high: 9}", "needs the events of 2022-04-02, which are not committed"),
        ("features.*.kind: {choices: [id]}", "tune.space: features.age.kind = 'id'"),
        ("quantize.embedding_bits: {choices: [4]}", "has no part in training"),
        ("evaluate.bootstrap: {low: 1, high: 9}", "selects the rows that judge a trial"),
        ("train.holdout_share: {low: 0.1, high: 0.3}", "selects the rows that judge a trial"),
        ("train.learning_rat: {low: 0.1, high: 0.3}", "did you mean train.learning_rate?"),
        ("features.aeg.enabled: {choices: [true]}", "no such config path"),
        ("train.batch_size: {low: -5, high: 8}", "tune.space: train.batch_size = -5"),
        ("train.dropout: {low: 0, high: 1}", "no such config path"),
        ("model.bottom: {low: 1, high: 2}", "give choices instead"),
        ("train.learning_rate: {low: 0, high: 1, log: true}", "has no logarithm"),
        ("model.embedding_dim: {low: 3, high: 9, step: 2}", "is not low + n·step"),
        ("train.learning_rate: {}", "has no range"),
    ],
)
def test_a_space_that_no_trial_can_try_is_refused(chain, tmp_path, space, message):
    with pytest.raises(BadInputError) as caught:
        run(tmp_path, chain, f'\ntune: {{space: {{"{space.split(": ")[0]}": {space.split(": ", 1)[1]}}}}}\n')
    assert message in str(caught.value) and "tiny.yaml" in str(caught.value)


def test_an_end_of_a_range_is_refused_in_the_words_of_the_scenarios_own_errors(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO + "\ntune: {space: {model.dropout: {low: 0.0, high: 1.0}}}\n")
    with pytest.raises(BadInputError, match=r"dropout = 1\.0: .*must be a number .*below 1; change the range"):
        read_space(load_scenario(tmp_path / "tiny.yaml"))
    with pytest.raises(BadInputError, match=r"keys of tune.space hold dots themselves; write tune.space="):
        load_scenario(tmp_path / "tiny.yaml", overrides={"tune.space.model.dropout.low": 0.1})


def test_the_scenarios_own_values_are_always_in_the_space(tmp_path):
    section = (
        "\ntune: {space: {model.embedding_dim: {choices: [8, 16]}, train.learning_rate: {low: 0.01, high: 0.1}}}\n"
    )
    (tmp_path / "tiny.yaml").write_text(SCENARIO + section)
    dim, rate = read_space(load_scenario(tmp_path / "tiny.yaml"))
    assert dim.choices == ("4", "8", "16") and (rate.low, rate.high) == (0.00001, 0.1)
    assert rate.decode(0.0123456) == 0.01235 and rate.decode(rate.encode(rate.champion)) == 0.00001


@pytest.mark.parametrize(
    ("path", "joins"),
    [
        ("train.learning_rate", False),
        ("features.item.enabled", False),
        ("features.item.embedding.min_count", False),
        ("features.item.embedding.capacity", False),
        ("features.recent.window_days", True),
        ("features.recent.by", True),
        ("join.lookback_days", True),
    ],
)
def test_only_what_is_in_the_samples_joins_again(path, joins):
    assert joins_again(path) == joins
