"""Judgements: what is known of a difference, and when nothing is."""

import math

import numpy as np
import pytest

from models.metrics.bootstrap import Interval, counted_bootstrap, paired_bootstrap
from models.metrics.comparison import compare
from models.metrics.judgement import Evidence, judge_calibration, judge_difference

ENOUGH = {"rows": 1000, "positives": 300, "needs": Evidence()}
NAN = float("nan")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(-0.02, -0.03, -0.01), "worse"),
        (Interval(-0.02, -0.05, 0.01), "not_worse"),  # may be chance
        (Interval(-0.005, -0.006, -0.004), "not_worse"),  # surely worse, but by less than is allowed
        (Interval(0.02, 0.01, 0.03), "better"),
        (Interval(NAN, NAN, NAN), "unknown"),
        (Interval(0.01, NAN, NAN), "unknown"),
        (Interval(0.0, 0.0, 0.0), "unknown"),  # every draw gave the same
    ],
)
def test_an_interval_is_judged(interval: Interval, verdict: str) -> None:
    assert judge_difference(interval, **ENOUGH, max_drop=0.01).verdict == verdict


@pytest.mark.parametrize(
    ("rows", "positives", "reason"),
    [
        (34, 12, "34 rows where 200 are needed"),
        (1000, 5, "5 positives where 30 are needed"),
        (1000, 990, "10 negatives where 30 are needed"),
        (0, 0, "0 rows where 200 are needed"),
    ],
)
def test_too_little_is_unknown_with_both_numbers(rows: int, positives: int, reason: str) -> None:
    found = judge_difference(Interval(-0.2, -0.3, -0.1), rows=rows, positives=positives, needs=Evidence())
    assert (found.verdict, found.reason) == ("unknown", reason)


def test_the_demands_are_the_callers() -> None:
    small = judge_difference(
        Interval(0.2, 0.1, 0.3), rows=34, positives=12, needs=Evidence(min_rows=30, min_positives=10)
    )
    assert small.verdict == "better"


def test_draws_without_a_class_are_counted_and_make_it_unknown() -> None:
    rng = np.random.default_rng(0)
    labels, champion, challenger = np.arange(40) < 2, rng.random(40), rng.random(40)
    how = {"resamples": 200, "confidence": 0.95, "seed": 1}
    interval, left_out = counted_bootstrap(labels, champion, challenger, **how)
    assert 5 < left_out < 60  # (1 - 2/40)^40 = 13 % of the draws
    assert interval == paired_bootstrap(labels, champion, challenger, **how)
    found = judge_difference(interval, rows=40, positives=2, needs=Evidence(1, 1), draws_left_out=left_out)
    assert found.verdict == "unknown" and "one class only" in found.reason


def test_one_class_only_is_unknown_in_a_comparison() -> None:
    scores = np.random.default_rng(0).random(300)
    how = {"resamples": 20, "confidence": 0.9, "seed": 1}
    facts = compare(np.zeros(300), scores, scores[::-1], np.arange(300), **how, needs=Evidence(1, 1))
    assert facts["judgement"] == {"verdict": "unknown", "reason": "0 positives where 1 are needed"}
    assert math.isnan(facts["challenger"]["auc"])


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (1.1, 0.9, 1.2, "not_worse"),
        (1.68, 1.3, 2.1, "worse"),
        (0.5, 0.4, 0.7, "worse"),
        (1.68, 1.2, 2.1, "not_worse"),  # may be chance
        (0.8, 0.0, math.inf, "unknown"),
    ],
)
def test_a_calibration_is_judged_with_its_interval(value: float, low: float, high: float, verdict: str) -> None:
    assert judge_calibration(value, low, high, **ENOUGH, max_error=0.25).verdict == verdict


def test_the_calibration_of_few_positives_is_unknown() -> None:
    found = judge_calibration(6.0, 4.0, 9.0, rows=3000, positives=5, needs=Evidence(), max_error=0.25)
    assert found.verdict == "unknown"
    assert found.reason == "calibration 6.00 [4.00, 9.00]: 5 positives where 30 are needed"
