"""Features that know the answer: one column that alone predicts a label almost perfectly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feature_jobs.schema import Scenario

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MIN_AUC = 0.98
MIN_ROWS = 500
MIN_OF_EACH_CLASS = 20
MAX_ROWS = 200_000  # evenly taken from a larger day: a leak shows in far fewer
MAX_IDS = 50
NUM_BINS = 50


def find_leaks(frame: pd.DataFrame, scenario: Scenario) -> list[dict[str, Any]]:
    """One entry for each (feature, label) with an AUC of 0.98 or more: {"feature", "label", "auc", "enabled"}.

    A column is judged as a score in either direction, and by the label's mean in 50 quantile bins (or for each value
    of an id with up to 50, with null as a value), learned on every other row and read on the rest. Labels with fewer
    than 500 known rows or 20 of either class are not judged.
    """
    step = max(1, -(-len(frame) // MAX_ROWS))
    rows = frame.iloc[::step]
    leaks = []
    for name, feature in scenario.features.items():
        column = name if name in rows.columns else f"{name}.length"
        values = rows[column]
        is_id = feature.kind in ("id", "cross")
        if is_id and values.nunique() > MAX_IDS:
            continue
        for task in scenario.tasks:
            score = predictive_auc(values, rows[f"label.{task}"], is_id=is_id)
            if score is not None and score >= MIN_AUC:
                leaks.append({"feature": name, "label": task, "auc": round(score, 4), "enabled": feature.enabled})
    return leaks


def predictive_auc(values: pd.Series[Any], labels: pd.Series[Any], *, is_id: bool) -> float | None:
    """The best AUC that one column of R rows reaches alone; None where there is too little to judge."""
    import numpy as np
    import pandas as pd

    from models.metrics.scores import auc

    known = labels.notna().to_numpy()
    label_N = labels.to_numpy(np.float64, na_value=np.nan)[known]
    values = values[known]
    num_positive = int(label_N.sum())
    if len(label_N) < MIN_ROWS or min(num_positive, len(label_N) - num_positive) < MIN_OF_EACH_CLASS:
        return None
    if is_id:
        bin_N, _ = pd.factorize(values, use_na_sentinel=False)
        return auc(label_N, _crossed_means(bin_N, label_N))
    number_N = values.to_numpy(np.float64, na_value=np.nan)
    number_N = np.where(np.isnan(number_N), -np.inf, number_N)
    direct = auc(label_N, number_N)
    edges = np.unique(np.quantile(number_N, np.arange(1, NUM_BINS) / NUM_BINS, method="lower"))
    binned = auc(label_N, _crossed_means(np.searchsorted(edges, number_N), label_N))
    return max(direct, 1 - direct, binned)


def _crossed_means(bin_N: NDArray[np.int64], label_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's bin's mean label over the rows of the other parity, so that no row predicts itself."""
    import numpy as np

    score_N = np.empty(len(label_N))
    parity_N = np.arange(len(label_N)) % 2
    size = int(bin_N.max()) + 1
    for parity in (0, 1):
        learn = parity_N != parity
        positive_B = np.bincount(bin_N[learn], label_N[learn], minlength=size)
        rows_B = np.bincount(bin_N[learn], minlength=size)
        mean_B = np.where(rows_B > 0, positive_B / np.maximum(rows_B, 1), label_N.mean())
        score_N[~learn] = mean_B[bin_N[~learn]]
    return score_N
