"""Metrics of scores: AUC, GAUC, normalized entropy, calibration.

Shapes: N rows, B bins. Labels are 0/1 (bool or number), scores are probabilities (AUC and GAUC take any number),
weights are ≥ 0. The caller leaves out rows whose label is unknown. Every metric is NaN where it is undefined: no
rows, one class only, or a score that is not a number.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.metrics.bootstrap import Interval, paired_bootstrap

__all__ = [
    "CalibrationCurve",
    "Interval",
    "auc",
    "calibration",
    "calibration_curve",
    "calibration_interval",
    "expected_calibration_error",
    "gauc",
    "group_aucs",
    "normalized_entropy",
    "paired_bootstrap",
]

Array = NDArray[np.generic]
Floats = NDArray[np.float64]

FEW_POSITIVES = 30  # below, sums of labels are not near a normal distribution: the interval is widened
SMALLEST_PROBABILITY = 1e-7  # a float32 sigmoid saturates near here; log(0) would drown every other row


def auc(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Probability that a positive scores above a negative, ties counted half (Mann and Whitney 1947)."""
    # One implementation for both: the whole day is a group of its own.
    return gauc(np.zeros(len(labels), np.int8), labels, scores, weights)


def gauc(groups: Array, labels: Array, scores: Array, weights: Array | None = None) -> float:
    """AUC inside each group (a user), averaged by the groups' weight over groups that hold both classes.

    `groups` (N) are numbers or text; rows of the group NaN, an unknown user, are left out. Zhu et al. 2017, "Optimized
    Cost per Click in Taobao Display Advertising".
    """
    auc_G, weight_G = group_aucs(groups, labels, scores, weights)
    return float(np.average(auc_G, weights=weight_G)) if len(auc_G) else float("nan")


def group_aucs(groups: Array, labels: Array, scores: Array, weights: Array | None = None) -> tuple[Floats, Floats]:
    """AUC and weight of each group that holds both classes; none where a score is not a number."""
    groups, labels, scores = np.asarray(groups), _floats(labels), _floats(scores)
    if not len(labels) or np.isnan(scores).any():
        return np.empty(0), np.empty(0)
    if groups.dtype.kind == "f" and np.isnan(groups).any():
        known_N = ~np.isnan(groups)
        kept = None if weights is None else weights[known_N]
        return group_aucs(groups[known_N], labels[known_N], scores[known_N], kept)
    group_N = groups if groups.dtype.kind in "iub" else np.unique(groups, return_inverse=True)[1]
    # One sort for all groups, instead of a loop over users.
    order = np.lexsort((scores, group_N))
    group_N, scores = group_N[order], scores[order]
    weight_N = np.ones(len(order)) if weights is None else _floats(weights)[order]
    positive_N = weight_N * labels[order]
    # Runs of equal score inside one group share their rank; R runs, G groups.
    new_group = np.r_[True, group_N[1:] != group_N[:-1]]
    new_run = new_group | np.r_[True, scores[1:] != scores[:-1]]
    run_starts, group_starts = np.flatnonzero(new_run), np.flatnonzero(new_group)
    positive_R = np.add.reduceat(positive_N, run_starts)
    negative_R = np.add.reduceat(weight_N - positive_N, run_starts)
    first_run_G = (np.cumsum(new_run) - 1)[group_starts]
    below_R = np.cumsum(negative_R) - negative_R / 2
    before_G = (np.cumsum(negative_R) - negative_R)[first_run_G]
    positive_G, negative_G = np.add.reduceat(positive_R, first_run_G), np.add.reduceat(negative_R, first_run_G)
    wins_G = np.add.reduceat(positive_R * below_R, first_run_G) - positive_G * before_G
    both_G = (positive_G > 0) & (negative_G > 0)
    # A user with one class only has no pair to order, and says nothing about the ranking.
    auc_G = wins_G[both_G] / (positive_G[both_G] * negative_G[both_G])
    return auc_G, (positive_G + negative_G)[both_G]


def normalized_entropy(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Log loss divided by the log loss of scoring every row with the base rate; below 1 is better than that.

    He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook".
    """
    labels, scores, weight_N = _floats(labels), _floats(scores), _weights(weights, len(labels))
    if not weight_N.sum() > 0:
        return float("nan")
    base_rate = float(np.average(labels, weights=weight_N))
    if not 0 < base_rate < 1:
        return float("nan")
    p = np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    loss_N = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    entropy = -(base_rate * np.log(base_rate) + (1 - base_rate) * np.log1p(-base_rate))
    return float(np.average(loss_N, weights=weight_N) / entropy)


def calibration(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Mean score divided by mean label: 1 is right, at 1.2 the scores are a fifth too high."""
    weight_N = _weights(weights, len(labels))
    positives = float((weight_N * _floats(labels)).sum())
    return float((weight_N * _floats(scores)).sum() / positives) if positives > 0 else float("nan")


def calibration_interval(groups: Array, labels: Array, scores: Array, *, confidence: float) -> tuple[float, float]:
    """(low, high) of the calibration when whole groups (users) are drawn; high is infinite for very few positives.

    Rows of one user resemble each other, so single rows would give an interval that is too narrow. Fieller 1954,
    "Some Problems in Interval Estimation": the ratios c for which sum(scores) - c sum(labels) may be zero by chance.
    Below 30 positives the interval also holds the limits of a Poisson count, so that it may be trusted there too.
    """
    labels, scores = _floats(labels), _floats(scores)
    if not len(labels) or not np.isfinite(scores).all():
        # Any score that is not finite makes the sums undefined; such a model must not pass as calibrated.
        return float("nan"), float("nan")
    # Each row of an unknown user (NaN) is a group of its own.
    group_N = np.unique(np.asarray(groups), return_inverse=True, equal_nan=False)[1]
    label_G, score_G = np.bincount(group_N, labels), np.bincount(group_N, scores)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    z2 = z**2
    # The interval's ends solve a c² - 2 b c + d = 0.
    # Sums of squares around zero, not around the mean: groups are drawn, so their number is random too.
    a = label_G.sum() ** 2 - z2 * (label_G**2).sum()
    b = label_G.sum() * score_G.sum() - z2 * (label_G * score_G).sum()
    d = score_G.sum() ** 2 - z2 * (score_G**2).sum()
    root = np.sqrt(max(b * b - a * d, 0.0))
    # The smaller end as d / (b + root): b - root would cancel digits, and may stand over an a of zero.
    low = 0.0 if d <= 0 else float(d / (b + root)) if b + root > 0 else float("inf")
    # Where a is not positive, even a sum of labels of zero may be chance: the ratio has no upper end.
    high = float((b + root) / a) if a > 0 else float("inf")
    positives = float(label_G.sum())
    if positives >= FEW_POSITIVES:
        return low, high
    # Positives of one user come together: they count as one event of this mean size (the design effect of a sample).
    size = float((label_G**2).sum()) / positives if positives else 1.0
    fewest, most = _poisson_limits(positives / size, z)
    promised = float(score_G.sum()) / size
    return min(low, promised / most), max(high, promised / fewest if fewest > 0 else float("inf"))


def _poisson_limits(count: float, z: float) -> tuple[float, float]:
    """The smallest and the largest mean under which a Poisson count may be seen, without a table of chi-squared.

    Byar's approximation of the exact limits (Garwood 1936), from Breslow and Day 1987, "Statistical Methods in Cancer
    Research II", section 2.3: within 1 % for the upper one, and lower (on the safe side) for the lower one.
    """
    more = count + 1
    most = more * (1 - 1 / (9 * more) + z / (3 * more**0.5)) ** 3
    if count <= 0:
        return 0.0, most
    return count * max(0.0, 1 - 1 / (9 * count) - z / (3 * count**0.5)) ** 3, most


def expected_calibration_error(labels: Array, scores: Array, *, num_bins: int = 15) -> float:
    """Mean |mean score - mean label| over bins of equal width, weighted by rows (Guo et al. 2017)."""
    labels, scores = _floats(labels), _floats(scores)
    if not len(labels) or np.isnan(scores).any():
        return float("nan")
    # A score of exactly 1 belongs to the last bin.
    bin_N = np.clip((scores * num_bins).astype(np.int64), 0, num_bins - 1)
    gap_B = np.bincount(bin_N, scores - labels, minlength=num_bins)
    return float(np.abs(gap_B).sum() / len(labels))


class CalibrationCurve(NamedTuple):
    """Bins of about equally many rows, in order of score: mean score, mean label, rows; each of shape B."""

    scores: Floats
    labels: Floats
    rows: NDArray[np.int64]


def calibration_curve(labels: Array, scores: Array, *, num_bins: int = 10) -> CalibrationCurve:
    """Mean score against mean label, by quantile of score; rows of equal score share a bin."""
    labels, scores = _floats(labels), _floats(scores)
    known = ~np.isnan(scores)
    labels, scores = labels[known], scores[known]
    if not len(labels):
        return CalibrationCurve(np.empty(0), np.empty(0), np.empty(0, np.int64))
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, num_bins + 1)[1:-1], method="lower"))
    bin_N = np.searchsorted(edges, scores, side="left")
    rows_B = np.bincount(bin_N)
    filled = rows_B > 0
    mean_score, mean_label = (np.bincount(bin_N, v)[filled] / rows_B[filled] for v in (scores, labels))
    return CalibrationCurve(mean_score, mean_label, rows_B[filled])


def _floats(values: Array) -> Floats:
    return np.asarray(values).astype(np.float64, copy=False)


def _weights(weights: Array | None, num_rows: int) -> Floats:
    return np.ones(num_rows) if weights is None else _floats(weights)
