"""Two models on the same rows: their metrics side by side, and whether the difference is more than chance.

N rows. Labels are float with NaN where unknown; such rows count for neither model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import scores as metrics
from models.metrics.bootstrap import paired_bootstrap

Floats = NDArray[np.floating[Any]]


def judge(
    labels_N: Floats, scores_N: Floats, users_N: NDArray[Any], *, confidence: float
) -> dict[str, float | list[float]]:
    """AUC, GAUC by user, normalized entropy, calibration with its interval, expected calibration error of one model;
    NaN where undefined."""
    return {
        "auc": metrics.auc(labels_N, scores_N),
        "gauc": metrics.gauc(users_N, labels_N, scores_N),
        "normalized_entropy": metrics.normalized_entropy(labels_N, scores_N),
        "calibration": metrics.calibration(labels_N, scores_N),
        "calibration_interval": list(metrics.calibration_interval(users_N, labels_N, scores_N, confidence=confidence)),
        "calibration_error": metrics.expected_calibration_error(labels_N, scores_N),
    }


def compare(
    labels_N: Floats,
    champion_N: Floats | None,
    challenger_N: Floats,
    users_N: NDArray[Any],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """{"rows", "positives", "challenger": metrics, "champion": metrics | None, "difference": interval | None}.

    `difference` is challenger minus champion AUC: {"auc", "low", "high"}.
    """
    known_N = ~np.isnan(labels_N)
    labels_N, challenger_N, users_N = labels_N[known_N], challenger_N[known_N], users_N[known_N]
    facts: dict[str, Any] = {
        "rows": len(labels_N),
        "positives": int(labels_N.sum()),
        "challenger": judge(labels_N, challenger_N, users_N, confidence=confidence),
        "champion": None,
        "difference": None,
    }
    if champion_N is not None:
        champion_N = champion_N[known_N]
        interval = paired_bootstrap(
            labels_N, champion_N, challenger_N, resamples=resamples, confidence=confidence, seed=seed
        )
        facts["champion"] = judge(labels_N, champion_N, users_N, confidence=confidence)
        facts["difference"] = {"auc": interval.difference, "low": interval.low, "high": interval.high}
    return facts


def is_worse(difference: dict[str, float] | None, max_drop: float) -> bool:
    """Whether an AUC fell by more than is allowed, and by more than chance explains. Undefined is not worse."""
    return difference is not None and difference["auc"] < -max_drop and difference["high"] < 0
