"""Two models on the same rows: their metrics side by side, and a test if the difference is more than chance.

N rows. Labels are float with NaN where unknown; such rows count for neither model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from models.metrics import scores as metrics
from models.metrics.bootstrap import paired_bootstrap
from models.metrics.judgement import Evidence, Verdict, judge_difference
from models.metrics.requests import RequestQuality, judge_requests

Floats = NDArray[np.floating[Any]]


class Quality(TypedDict):
    """Metrics of one model's scores; NaN where a metric is undefined."""

    auc: float
    gauc: float
    normalized_entropy: float
    calibration: float
    calibration_interval: list[float]
    calibration_error: float
    per_request: NotRequired[RequestQuality]
    anonymous: NotRequired[int]  # rows without a user, which GAUC leaves out


class Difference(TypedDict):
    """AUC of the challenger minus AUC of the champion, and its confidence interval."""

    auc: float
    low: float
    high: float


class Judged(TypedDict):
    """A models.metrics.judgement.Judgement as JSON."""

    verdict: Verdict
    reason: str


class Comparison(TypedDict):
    """Both models on the rows whose label is known. Without a champion the last three are None."""

    rows: int
    positives: int
    challenger: Quality
    champion: Quality | None
    difference: Difference | None
    judgement: Judged | None


@dataclass(frozen=True)
class Groups:
    """The user of each row, and its request where the log names requests (`data.request`), as numbers. [N]"""

    users_N: NDArray[Any]
    requests_N: NDArray[Any] | None = None
    """A negative number is a row in no request."""

    def take(self, rows: NDArray[np.bool_]) -> Groups:
        """The groups of these rows."""
        return Groups(self.users_N[rows], None if self.requests_N is None else self.requests_N[rows])


def judge(labels_N: Floats, scores_N: Floats, groups: Groups, *, confidence: float, ndcg_k: int = 10) -> Quality:
    """AUC, GAUC by user, normalized entropy, calibration with its interval, expected calibration error of one model;
    and AUC, NDCG@k and MRR per request, where rows have requests."""
    users_N = groups.users_N
    found: Quality = {
        "auc": metrics.auc(labels_N, scores_N),
        "gauc": metrics.gauc(users_N, labels_N, scores_N),
        "normalized_entropy": metrics.normalized_entropy(labels_N, scores_N),
        "calibration": metrics.calibration(labels_N, scores_N),
        "calibration_interval": list(metrics.calibration_interval(users_N, labels_N, scores_N, confidence=confidence)),
        "calibration_error": metrics.expected_calibration_error(labels_N, scores_N),
    }
    if num_anonymous := int(np.isnan(users_N).sum()):
        found["anonymous"] = num_anonymous
    if groups.requests_N is not None:
        found["per_request"] = judge_requests(groups.requests_N, labels_N, scores_N, k=ndcg_k)
    return found


def compare(
    labels_N: Floats,
    champion_N: Floats | None,
    challenger_N: Floats,
    groups: Groups,
    *,
    resamples: int,
    confidence: float,
    ndcg_k: int = 10,
    seed: int,
    needs: Evidence | None = None,
    max_drop: float = 0.0,
) -> Comparison:
    """Judges the challenger against the champion on the rows whose label is known.

    The judgement follows from `needs`, the least data, and `max_drop`, the largest fall of the AUC that is allowed.
    """
    # Before anything else, so that both models are judged on exactly the same rows.
    known_N = ~np.isnan(labels_N)
    labels_N, challenger_N, groups = labels_N[known_N], challenger_N[known_N], groups.take(known_N)
    facts: Comparison = {
        "rows": len(labels_N),
        "positives": int(labels_N.sum()),
        "challenger": judge(labels_N, challenger_N, groups, confidence=confidence, ndcg_k=ndcg_k),
        "champion": None,
        "difference": None,
        "judgement": None,
    }
    if champion_N is not None:
        champion_N = champion_N[known_N]
        interval = paired_bootstrap(
            labels_N, champion_N, challenger_N, resamples=resamples, confidence=confidence, seed=seed
        )
        judgement = judge_difference(
            interval,
            rows=facts["rows"],
            positives=facts["positives"],
            needs=needs or Evidence(),
            max_drop=max_drop,
        )
        # On these rows: the metrics of its own day were on other ones.
        facts["champion"] = judge(labels_N, champion_N, groups, confidence=confidence, ndcg_k=ndcg_k)
        facts["difference"] = {"auc": interval.difference, "low": interval.low, "high": interval.high}
        facts["judgement"] = {"verdict": judgement.verdict, "reason": judgement.reason}
    return facts
