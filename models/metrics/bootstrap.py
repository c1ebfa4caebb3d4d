"""Is one model's AUC better than another's on the same rows? The paired bootstrap answers with an interval.

Efron 1979; rows are drawn with replacement, and both models are judged on the same draw, so the effect of a draw that
is easy for both cancels out. Shapes: N rows, R runs of rows with equal score.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 200_000  # beyond it a seeded sample of rows gives the width, scaled to all rows


class Interval(NamedTuple):
    """A difference of AUCs, challenger minus champion, with its confidence interval. NaN where it is undefined.

    The interval alone does not say if enough rows were compared: see models.metrics.judgement. `draws_left_out`:
    resamples that held one class only.
    """

    difference: float
    low: float
    high: float
    draws_left_out: int = 0


def paired_bootstrap(
    labels: NDArray[Any],
    champion: NDArray[Any],
    challenger: NDArray[Any],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """AUC of `challenger` minus AUC of `champion` with its percentile interval; all arrays of shape N.

    Above 200 000 rows the resamples are drawn from a seeded subset of M rows and their deviations shrunk by √(M/N)
    (Politis and Romano 1994). Equal seeds give equal intervals.
    """
    labels, scores = np.asarray(labels).astype(bool), (np.asarray(champion), np.asarray(challenger))
    num_rows = len(labels)
    if labels.all() or not labels.any() or any(np.isnan(s).any() for s in scores):
        return Interval(float("nan"), float("nan"), float("nan"))
    everything = np.ones(num_rows, np.int32)
    # On all rows, also where the width comes from a sample of them.
    difference = _difference([_Ranking(labels, s) for s in scores], everything)
    rng = np.random.default_rng(seed)
    if num_rows > MAX_ROWS:
        # Sorted, so that labels and scores are read in the order of memory.
        kept = np.sort(rng.choice(num_rows, MAX_ROWS, replace=False))
        labels, scores = labels[kept], (scores[0][kept], scores[1][kept])
    rankings = [_Ranking(labels, s) for s in scores]
    centre, size = _difference(rankings, everything[: len(labels)]), len(labels)
    draws = np.array(
        # Counts of how often each row is drawn, not copies of rows: a draw needs no new sort.
        [_difference(rankings, np.bincount(rng.integers(0, size, size), minlength=size)) for _ in range(resamples)]
    )
    deviations = (draws[~np.isnan(draws)] - centre) * np.sqrt(size / num_rows)
    left_out = resamples - len(deviations)
    if not len(deviations):
        return Interval(difference, float("nan"), float("nan"), left_out)
    # Around the difference on all rows: the centre of a sample would shift the interval by chance.
    low, high = difference + np.quantile(deviations, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(difference, float(low), float(high), left_out)


def _difference(rankings: list[_Ranking], times_drawn_N: NDArray[Any]) -> float:
    champion, challenger = rankings
    return challenger.auc(times_drawn_N) - champion.auc(times_drawn_N)


class _Ranking:
    """One model's rows sorted once; every draw is then two gathers and a cumulative sum."""

    def __init__(self, labels: NDArray[Any], scores: NDArray[Any]) -> None:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        run_N = np.cumsum(np.r_[True, ordered[1:] != ordered[:-1]]) - 1
        positive = labels[order]
        self.positives, self.negatives = order[positive], order[~positive]
        # A positive beats the negatives of lower runs, and half of those in its own.
        run_of_negative, runs_of_positive = run_N[~positive], run_N[positive]
        self.below = np.searchsorted(run_of_negative, runs_of_positive, side="left")
        self.up_to = np.searchsorted(run_of_negative, runs_of_positive, side="right")

    def auc(self, times_drawn_N: NDArray[Any]) -> float:
        """Weighted AUC; NaN where the draw holds one class only."""
        positive, negative = times_drawn_N[self.positives], times_drawn_N[self.negatives]
        cumulative = np.concatenate(([0], np.cumsum(negative, dtype=np.int64)))
        pairs = int(positive.sum(dtype=np.int64)) * int(cumulative[-1])
        # In integers, twice the wins because of the halves: exact, in any order of summation.
        wins_twice = int(np.dot(positive.astype(np.int64), cumulative[self.below] + cumulative[self.up_to]))
        return wins_twice / (2 * pairs) if pairs else float("nan")
