"""The verdict on an interval: better, not worse, worse, or unknown because too little was compared.

A bootstrap draws from the rows that came. On a few rows, or a few positives, its interval is narrow by accident (0 … 0
on 34 rows) and says nothing about the rows that did not come. Such a comparison is unknown, never "equal".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from models.metrics.bootstrap import Interval

Verdict = Literal["better", "not_worse", "worse", "unknown"]
WORDS: dict[Verdict, str] = {"better": "better", "not_worse": "not worse", "worse": "worse", "unknown": "unknown"}


@dataclass(frozen=True)
class Evidence:
    """The least data of a comparison that is judged: rows with a known label, and rows of each class.

    The defaults are those of `deploy.min_rows` and `deploy.min_positives`.
    """

    min_rows: int = 200
    min_positives: int = 30

    def lacks(self, rows: int, positives: int) -> str | None:
        """Describes the missing rows, with both numbers; None where there are enough."""
        if rows < self.min_rows:
            return _lacking(rows, "row", self.min_rows)
        # Both classes: an AUC compares pairs, so a few negatives are as little evidence as a few positives.
        for count, name in ((positives, "positive"), (rows - positives, "negative")):
            if count < self.min_positives:
                return _lacking(count, name, self.min_positives)
        return None


@dataclass(frozen=True)
class Judgement:
    """The verdict on one comparison, and the numbers behind it in words."""

    verdict: Verdict
    reason: str


def judge_difference(
    interval: Interval, *, rows: int, positives: int, needs: Evidence, max_drop: float = 0.0
) -> Judgement:
    """Judges a difference of AUCs, new minus old.

    Worse: the AUC fell by more than `max_drop`, and the interval lies below zero. Better: the interval lies above zero.
    Unknown: fewer rows or positives or negatives than `needs`, an interval that is undefined or without width, or
    draws of the bootstrap that held one class only.
    """
    gap = _unknown(interval, rows, positives, needs)
    if gap:
        return Judgement("unknown", gap)
    found = f"AUC {describe_difference(*interval[:3])}"
    # Both: a small drop is allowed even where it is certain, and a large one is not evidence where it may be chance.
    if interval.difference < -max_drop and interval.high < 0:
        return Judgement("worse", f"{found} where at most {-max_drop:.4f} is allowed")
    return Judgement("better" if interval.low > 0 else "not_worse", found)


def judge_calibration(
    value: float, low: float, high: float, *, rows: int, positives: int, needs: Evidence, max_error: float
) -> Judgement:
    """Judges mean score / mean label with its interval: worse where the interval lies outside of 1 ± `max_error`.

    An interval that lies outside is evidence however few positives there are, because `calibration_interval` is wide
    enough for few positives. Unknown: the interval holds an allowed value, and there are too few rows or positives, or
    it has no upper end, which means that the positives came from too few groups (users).
    """
    found = describe_calibration(value, low, high)
    # Before the count of rows: an interval that excludes all allowed values needs no more of them.
    if low > 1 + max_error or high < 1 - max_error:
        direction = describe_direction(value, low, high)
        return Judgement("worse", f"{found} where 1 ± {max_error:g} is allowed: {direction}")
    gap = needs.lacks(rows, positives)
    if gap is None and not all(math.isfinite(number) for number in (value, low, high)):
        # Only the upper end can be infinite here, and only for this reason.
        gap = "the positives came from too few users"
    if gap:
        return Judgement("unknown", f"{found} not judged: {gap}")
    return Judgement("not_worse", found)


def _unknown(interval: Interval, rows: int, positives: int, needs: Evidence) -> str | None:
    if lacking := needs.lacks(rows, positives):
        return lacking
    if not all(math.isfinite(number) for number in interval):
        return "the interval is undefined: one class only, or a score that is not a number"
    # Draws without a positive were left out: what is left is of the luckier draws, and so too narrow.
    if interval.draws_left_out:
        return f"{counted(interval.draws_left_out, 'draw')} of the bootstrap held one class only"
    # Two equal models, or so few rows that no draw changes the order: the interval does not say which.
    if interval.low == interval.high:
        return f"the interval {interval.low:+.4f} … {interval.high:+.4f} has no width: every draw gave the same"
    return None


def _lacking(count: int, name: str, needed: int) -> str:
    return f"{counted(count, name)} where {needed:,} {'is' if needed == 1 else 'are'} needed"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 row, 2 rows."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shown(value: float | None, form: str = "{:.4f}") -> str:
    """A metric for people: – where it is undefined (NaN, or null in JSON), ∞ where it has no upper end."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if value == math.inf else form.format(value)


def describe_difference(difference: float, low: float, high: float) -> str:
    """A difference of AUCs: +0.0100 [-0.0020, +0.0220]. Without an interval where that is undefined."""
    form = "{:+.4f}"
    if math.isnan(low) or math.isnan(high):
        return shown(difference, form)
    return f"{shown(difference, form)} [{shown(low, form)}, {shown(high, form)}]"


def calibration_numbers(value: float | None, interval: Sequence[float | None]) -> tuple[float, float, float]:
    """(calibration, low, high), also where they were read from JSON, which has null for NaN and for infinity."""
    low, high = interval
    if low is None:
        return _nan(value), math.nan, math.nan
    return _nan(value), low, math.inf if high is None else high


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def describe_calibration(value: float, low: float, high: float) -> str:
    """A calibration with its interval: calibration 1.02 [0.95, 1.10]."""
    return f"calibration {shown(value, '{:.2f}')} {calibration_interval_text(value, low, high)}".rstrip()


def calibration_interval_text(value: float, low: float, high: float) -> str:
    """[0.95, 1.10]; nothing where the calibration or its interval is undefined."""
    if math.isnan(value) or math.isnan(low):
        return ""
    return f"[{shown(low, '{:.2f}')}, {shown(high, '{:.2f}')}]"


def describe_direction(value: float, low: float, high: float) -> str:
    """Says if scores are too high or too low, and by how much; at least that much where the interval excludes 1."""
    if low > 1:
        # The interval's nearer end, not the value: it is what the data prove.
        return f"scores are at least {_factor(low)} too high"
    if high < 1:
        return f"scores are at least {_factor(1 / high if high > 0 else math.inf)} too low"
    if math.isnan(value):
        return "it is unknown if scores are too high or too low"
    if value >= 1:
        return f"scores are {_factor(value)} too high, which may be chance"
    return f"scores are {_factor(1 / value if value > 0 else math.inf)} too low, which may be chance"


def _factor(ratio: float) -> str:
    return f"{shown(ratio, '{:,.1f}')} times" if ratio >= 2 else f"{100 * (ratio - 1):.0f} %"
