"""Metrics against scikit-learn and against their definitions, on random rows with many ties."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss, roc_auc_score

from models.metrics import bootstrap, comparison
from models.metrics import scores as metrics


@st.composite
def rows(draw, min_size=2):
    """Labels with both classes, scores with ties, integer weights, a few groups."""
    size = draw(st.integers(min_size, 60))
    labels = draw(hnp.arrays(np.int8, size, elements=st.integers(0, 1)))
    labels[0], labels[1] = 0, 1
    scores = draw(hnp.arrays(np.float32, size, elements=st.sampled_from(np.linspace(0.01, 0.99, 13, dtype=np.float32))))
    weights = draw(hnp.arrays(np.int64, size, elements=st.integers(1, 4)))
    groups = draw(hnp.arrays(np.int64, size, elements=st.integers(-2, 3)))
    return labels, scores, weights, groups


@given(rows())
def test_auc_is_scikit_learns(case):
    labels, scores, weights, _ = case
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.auc(labels, scores, weights) == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))


@given(rows())
def test_gauc_is_the_groups_aucs_averaged_by_rows(case):
    labels, scores, _, groups = case
    parts = [(groups == g) for g in np.unique(groups) if len(set(labels[groups == g])) == 2]
    if not parts:
        assert np.isnan(metrics.gauc(groups, labels, scores))
        return
    expected = np.average([roc_auc_score(labels[p], scores[p]) for p in parts], weights=[p.sum() for p in parts])
    assert metrics.gauc(groups, labels, scores) == pytest.approx(expected)
    assert metrics.gauc(groups.astype(str).astype(object), labels, scores) == pytest.approx(expected)


@given(rows())
def test_unknown_users_are_left_out_of_gauc_counted_and_no_one_giant_user(case):
    labels, scores, weights, groups = case
    known = groups > -2
    users = np.where(known, groups, np.nan)
    expected = metrics.gauc(groups[known], labels[known], scores[known], weights[known])
    assert metrics.gauc(users, labels, scores, weights) == pytest.approx(expected, nan_ok=True)
    # For the interval of the calibration each of them is a user of its own.
    alone = np.where(known, groups, 100 + np.arange(len(groups)))
    found = metrics.calibration_interval(users, labels, scores, confidence=0.95)
    assert found == pytest.approx(metrics.calibration_interval(alone, labels, scores, confidence=0.95))
    quality = comparison.judge(labels.astype(float), scores, comparison.Groups(users), confidence=0.95)
    assert quality.get("anonymous", 0) == (~known).sum()


@given(rows())
def test_entropy_and_calibration_by_definition(case):
    labels, scores, weights, _ = case
    wide = scores.astype(np.float64)
    for weight in (None, weights):
        rate = np.average(labels, weights=weight)
        base = log_loss(labels, np.full(len(labels), rate), sample_weight=weight)
        expected = log_loss(labels, wide, sample_weight=weight) / base
        assert metrics.normalized_entropy(labels, scores, weight) == pytest.approx(expected)
        ratio = np.average(wide, weights=weight) / rate
        assert metrics.calibration(labels, scores, weight) == pytest.approx(ratio)


@given(rows())
def test_a_weight_is_a_repeated_row(case):
    labels, scores, weights, groups = case
    again = [np.repeat(column, weights) for column in (groups, labels, scores)]
    assert metrics.gauc(groups, labels, scores, weights) == pytest.approx(metrics.gauc(*again), nan_ok=True)
    for metric in (metrics.auc, metrics.normalized_entropy, metrics.calibration):
        assert metric(labels, scores, weights) == pytest.approx(metric(*again[1:]))


@given(rows())
def test_calibration_curve_keeps_every_row_and_the_means(case):
    labels, scores, _, _ = case
    curve = metrics.calibration_curve(labels, scores, num_bins=5)
    assert curve.rows.sum() == len(labels)
    assert np.average(curve.scores, weights=curve.rows) == pytest.approx(scores.mean(dtype=np.float64))
    assert np.average(curve.labels, weights=curve.rows) == pytest.approx(labels.mean())
    assert (np.diff(curve.scores) > 0).all()


def test_calibration_interval_covers_as_often_as_it_says_when_users_differ():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        users = rng.integers(0, 40, 400)
        taste = rng.normal(0, 0.15, 40)[users]  # rows of a user are alike
        labels = rng.random(400) < np.clip(0.4 + taste, 0, 1)
        low, high = metrics.calibration_interval(users, labels, np.full(400, 0.4), confidence=0.9)
        covered += low <= 1 <= high
    assert 165 <= covered <= 195


def test_calibration_interval_of_one_user_or_no_positive_knows_nothing():
    labels, scores = np.array([0, 0, 1, 0]), np.full(4, 0.5)
    assert metrics.calibration_interval(np.zeros(4), labels, scores, confidence=0.95) == (0.0, float("inf"))
    low, high = metrics.calibration_interval(np.arange(100), np.zeros(100), np.full(100, 0.5), confidence=0.95)
    assert low > 1.25  # a hundred promises of a half, and nothing came
    assert high == float("inf")


@pytest.mark.parametrize("rate", [0.001, 0.004])
def test_calibration_interval_covers_as_often_as_it_says_with_few_positives(rate):
    rng, covered = np.random.default_rng(5), 0
    for _ in range(400):  # two, or eight, positives are expected
        labels = rng.random(2000) < rate
        low, high = metrics.calibration_interval(np.arange(2000), labels, np.full(2000, rate), confidence=0.95)
        covered += low <= 1 <= high
    assert covered >= 0.95 * 400


def test_positives_of_one_user_are_weaker_evidence_than_those_of_many():
    labels, scores, users = np.arange(300) < 4, np.full(300, 0.5), np.arange(300)
    low, _ = metrics.calibration_interval(users, labels, scores, confidence=0.95)
    assert low == pytest.approx(150 / 10.24, rel=0.01)  # the exact upper limit of a count of four
    one_user, _ = metrics.calibration_interval(np.maximum(users, 3), labels, scores, confidence=0.95)
    assert one_user == pytest.approx(150 / 4 / 5.57, rel=0.01)  # of a count of one


def test_expected_calibration_error_of_a_known_case():
    scores = np.array([0.1, 0.1, 0.9, 0.9])
    assert metrics.expected_calibration_error(np.array([0, 0, 1, 1]), scores, num_bins=10) == pytest.approx(0.1)
    assert metrics.expected_calibration_error(np.array([1, 1, 0, 0]), scores, num_bins=10) == pytest.approx(0.9)


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0]])
def test_undefined_is_nan_not_an_exception(labels):
    labels, scores = np.array(labels, np.int8), np.full(len(labels), 0.5)
    assert np.isnan(metrics.auc(labels, scores))
    assert np.isnan(metrics.gauc(labels, labels, scores))
    assert np.isnan(metrics.normalized_entropy(labels, scores))
    if not labels.any():
        assert np.isnan(metrics.calibration(labels, scores))
    interval = metrics.paired_bootstrap(labels, scores, scores, resamples=5, confidence=0.9, seed=1)
    assert np.isnan(interval.difference)
    assert np.isnan(interval.low)


def test_a_score_that_is_not_a_number_makes_every_metric_undefined():
    labels, scores = np.array([0, 1, 1]), np.array([0.1, np.nan, 0.3])
    for metric in (metrics.auc, metrics.normalized_entropy, metrics.calibration, metrics.expected_calibration_error):
        assert np.isnan(metric(labels, scores)), metric.__name__
    assert np.isnan(metrics.paired_bootstrap(labels, scores, scores, resamples=5, confidence=0.9, seed=1).difference)


def judge(rng, num_rows, champion_noise, challenger_noise, **how):
    labels = rng.random(num_rows) < 0.3
    champion, challenger = (labels + rng.normal(0, noise, num_rows) for noise in (champion_noise, challenger_noise))
    how = {"resamples": 100, "confidence": 0.95, "seed": 1} | how
    return labels, champion, challenger, metrics.paired_bootstrap(labels, champion, challenger, **how)


@settings(max_examples=25)
@given(rows())
def test_bootstrap_difference_is_the_difference_of_aucs(case):
    labels, scores, weights, _ = case
    interval = metrics.paired_bootstrap(labels, weights, scores, resamples=20, confidence=0.9, seed=3)
    assert interval.difference == pytest.approx(metrics.auc(labels, scores) - metrics.auc(labels, weights))
    assert not interval.low > interval.high


def test_bootstrap_draws_are_weighted_aucs():
    rng = np.random.default_rng(5)
    labels, scores = rng.random(300) < 0.4, rng.integers(0, 20, 300)
    ranking = bootstrap._Ranking(labels, scores)
    for _ in range(20):
        drawn = np.bincount(rng.integers(0, 300, 300), minlength=300)
        assert ranking.auc(drawn) == pytest.approx(roc_auc_score(labels, scores, sample_weight=drawn))


def test_bootstrap_sees_a_better_model_and_not_an_equal_one():
    rng = np.random.default_rng(0)
    *_, better = judge(rng, 4000, 2.0, 1.0)
    assert better.low > 0
    *_, worse = judge(rng, 4000, 1.0, 2.0)
    assert worse.high < 0
    labels, champion, _, _ = judge(rng, 4000, 1.0, 1.0)
    same = metrics.paired_bootstrap(labels, champion, champion, resamples=50, confidence=0.95, seed=1)
    assert same == (0.0, 0.0, 0.0, 0)


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(11)
    true_difference = 0.0  # both models are the label plus noise of one size
    covered = 0
    for _ in range(100):
        *_, interval = judge(rng, 400, 1.0, 1.0, confidence=0.9)
        covered += interval.low <= true_difference <= interval.high
    assert 80 <= covered <= 98


def test_bootstrap_is_seeded():
    cases = [judge(np.random.default_rng(2), 500, 1.0, 1.1, seed=seed)[-1] for seed in (1, 1, 2)]
    assert cases[0] == cases[1] != cases[2]


def test_bootstrap_beyond_the_cap_has_the_width_of_all_rows(monkeypatch):
    full = judge(np.random.default_rng(2), 20_000, 1.0, 1.1)[-1]
    monkeypatch.setattr(bootstrap, "MAX_ROWS", 4_000)
    capped = judge(np.random.default_rng(2), 20_000, 1.0, 1.1)[-1]
    assert capped.difference == full.difference
    assert capped.high - capped.low == pytest.approx(full.high - full.low, rel=0.35)


def test_bootstrap_of_a_hundred_thousand_rows_takes_seconds():
    begin = time.perf_counter()
    judge(np.random.default_rng(3), 100_000, 1.0, 1.1, resamples=200)
    assert time.perf_counter() - begin < 8  # about 1 s on two free cores
