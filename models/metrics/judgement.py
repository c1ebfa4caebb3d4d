"""What an interval is worth: better, not worse, worse, or unknown because too little was compared.

A bootstrap draws from the rows that came. On a few rows, or a few positives, its interval is narrow by accident (0 … 0
on 34 rows) and says nothing about the rows that did not come. Such a comparison is unknown, never "equal".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from models.metrics.bootstrap import Interval

Verdict = Literal["better", "not_worse", "worse", "unknown"]
WORDS: dict[Verdict, str] = {"better": "better", "not_worse": "not worse", "worse": "worse", "unknown": "unknown"}


@dataclass(frozen=True)
class Evidence:
    """How much a comparison needs before it is judged: rows with a known label, and rows of each class.

    The defaults are those of `deploy.min_rows` and `deploy.min_positives`.
    """

    min_rows: int = 200
    min_positives: int = 30

    def lacks(self, rows: int, positives: int) -> str | None:
        """What is missing, with both numbers; None where there is enough."""
        if rows < self.min_rows:
            return f"{rows} rows where {self.min_rows} are needed"
        for count, name in ((positives, "positives"), (rows - positives, "negatives")):
            if count < self.min_positives:
                return f"{count} {name} where {self.min_positives} are needed"
        return None


@dataclass(frozen=True)
class Judgement:
    """The verdict on one comparison, and the numbers behind it in words."""

    verdict: Verdict
    reason: str


def judge_difference(
    interval: Interval, *, rows: int, positives: int, needs: Evidence, max_drop: float = 0.0, draws_left_out: int = 0
) -> Judgement:
    """Judges a difference of AUCs, new minus old.

    Worse: the AUC fell by more than `max_drop`, and the interval lies below zero. Better: the interval lies above zero.
    Unknown: fewer rows or positives or negatives than `needs`, an interval that is undefined or without width, or
    draws of the bootstrap that held one class only (`draws_left_out`, see `counted_bootstrap`).
    """
    gap = _unknown(interval, rows, positives, needs, draws_left_out)
    if gap:
        return Judgement("unknown", gap)
    shown = f"AUC {interval.difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    if interval.difference < -max_drop and interval.high < 0:
        return Judgement("worse", f"{shown} where at most {-max_drop:.4f} is allowed")
    return Judgement("better" if interval.low > 0 else "not_worse", shown)


def judge_calibration(
    value: float, low: float, high: float, *, rows: int, positives: int, needs: Evidence, max_error: float
) -> Judgement:
    """Judges mean score / mean label with its interval: worse where the interval lies outside of 1 ± `max_error`.

    Unknown, besides too few rows or positives: an interval without an upper end, which means that the positives came
    from too few groups (users).
    """
    shown = describe_calibration(value, low, high)
    gap = needs.lacks(rows, positives)
    if gap is None and not all(math.isfinite(number) for number in (value, low, high)):
        gap = "the positives came from too few users"
    if gap:
        return Judgement("unknown", f"{shown}: {gap}")
    if low > 1 + max_error or high < 1 - max_error:
        return Judgement("worse", f"{shown} where 1 ± {max_error:g} is allowed")
    return Judgement("not_worse", shown)


def _unknown(interval: Interval, rows: int, positives: int, needs: Evidence, draws_left_out: int) -> str | None:
    if lacking := needs.lacks(rows, positives):
        return lacking
    if not all(math.isfinite(number) for number in interval):
        return "the interval is undefined: one class only, or a score that is not a number"
    if draws_left_out:
        return f"{draws_left_out} draws of the bootstrap held one class only"
    if interval.low == interval.high:
        return f"the interval {interval.low:+.4f} … {interval.high:+.4f} has no width: every draw gave the same"
    return None


def describe_calibration(value: float, low: float, high: float) -> str:
    """A calibration with its interval: calibration 1.02 [0.95, 1.10]."""
    shown = ["∞" if n == math.inf else "–" if math.isnan(n) else f"{n:.2f}" for n in (value, low, high)]
    return f"calibration {shown[0]} [{shown[1]}, {shown[2]}]"
