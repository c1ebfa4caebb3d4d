"""Judgements of a difference, known and unknown."""

import json
import math

import numpy as np
import pytest

from models.metrics.bootstrap import Interval, paired_bootstrap
from models.metrics.comparison import Groups, compare
from models.metrics.judgement import (
    Evidence,
    Judgement,
    calibration_numbers,
    describe_calibration,
    describe_difference,
    describe_direction,
    judge_calibration,
    judge_difference,
)
from tasks.store.output_files import canonical_json, finite

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
    interval = paired_bootstrap(labels, champion, challenger, **how)
    assert 5 < interval.draws_left_out < 60  # (1 - 2/40)^40 = 13 % of the draws
    found = judge_difference(interval, rows=40, positives=2, needs=Evidence(1, 1))
    assert found.verdict == "unknown" and "one class only" in found.reason


def test_one_class_only_is_unknown_in_a_comparison() -> None:
    scores = np.random.default_rng(0).random(300)
    how = {"resamples": 20, "confidence": 0.9, "seed": 1}
    facts = compare(np.zeros(300), scores, scores[::-1], Groups(np.arange(300)), **how, needs=Evidence(1, 1))
    assert facts["judgement"] == {"verdict": "unknown", "reason": "0 positives where 1 is needed"}
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


def few_positives(*numbers: float, positives: int = 2) -> Judgement:
    return judge_calibration(*numbers, rows=3000, positives=positives, needs=Evidence(), max_error=0.25)


def test_the_calibration_of_few_positives_is_unknown_while_its_interval_holds_an_allowed_value() -> None:
    found = few_positives(2.0, 0.55, 16.5)
    assert found.verdict == "unknown"
    assert found.reason == "calibration 2.00 [0.55, 16.50] not judged: 2 positives where 30 are needed"
    assert few_positives(2.0, 0.55, 16.5, positives=1).reason.endswith("not judged: 1 positive where 30 are needed")


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (
            (97.61, 40.69, math.inf),
            "calibration 97.61 [40.69, ∞] where 1 ± 0.25 is allowed: scores are at least 40.7 times too high",
        ),
        (
            (0.05, 0.01, 0.2),
            "calibration 0.05 [0.01, 0.20] where 1 ± 0.25 is allowed: scores are at least 5.0 times too low",
        ),
        # No positive came: the ratio and its upper end are undefined, the lower end is known.
        ((NAN, 40.69, math.inf), "calibration – where 1 ± 0.25 is allowed: scores are at least 40.7 times too high"),
    ],
)
def test_a_calibration_far_outside_is_worse_even_with_few_positives(numbers: tuple[float, ...], reason: str) -> None:
    assert few_positives(*numbers) == Judgement("worse", reason)


@pytest.mark.parametrize(
    ("numbers", "direction"),
    [
        ((1.6, 1.3, 2.0), "scores are at least 30 % too high"),
        ((1.2, 0.8, 2.0), "scores are 20 % too high, which may be chance"),
        ((0.25, 0.1, 2.0), "scores are 4.0 times too low, which may be chance"),
        ((NAN, 0.2, math.inf), "it is unknown if scores are too high or too low"),
    ],
)
def test_a_direction_says_how_far_scores_are_off(numbers: tuple[float, float, float], direction: str) -> None:
    assert describe_direction(*numbers) == direction


def test_numbers_read_back_from_json_are_shown_as_before() -> None:
    for numbers in ((NAN, NAN, NAN), (NAN, 3.0, math.inf), (97.61, 40.69, math.inf), (1.02, 0.95, 1.1)):
        value, low, high = json.loads(canonical_json(finite(numbers)))
        assert describe_calibration(*calibration_numbers(value, [low, high])) == describe_calibration(*numbers)
    assert describe_calibration(NAN, NAN, NAN) == "calibration –"
    assert describe_difference(0.01, NAN, NAN) == "+0.0100"
