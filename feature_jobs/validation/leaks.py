"""Leaks: one column that alone predicts a label almost perfectly, by its values or by where it is null.

A column that is filled only after the event (a scroll depth, present on clicked rows only) says the label even where
its values say nothing, so the null pattern is judged as a score of its own. The parts of a cross are judged too:
together they have too many values, and one null among known parts makes no null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from feature_jobs.schema import Scenario

WARNING_AUC = 0.9  # one feature alone rarely reaches this; a person should look
BLOCKING_AUC = 0.98
MIN_ROWS = 500
MIN_OF_EACH_CLASS = 20  # with fewer, high AUCs come by chance
MAX_ROWS = 200_000  # evenly taken from a larger day: a leak shows in far fewer
MAX_IDS = 50
NUM_BINS = 50
PART_SEPARATOR = chr(31)  # between the parts of a cross in the samples

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Leak:
    """A feature or column that alone predicts `label` with this AUC; `by` says what of it does, `part` which part of
    a cross."""

    feature: str
    label: str
    auc: float
    by: str
    enabled: bool = True
    part: str | None = None

    @property
    def way(self) -> str:
        """`by` in words."""
        if self.by == "nulls":
            return "where it is null" if self.part is None else f"where its part {self.part!r} is null"
        value = "its value" if self.part is None else f"the value of its part {self.part!r}"
        return f"{value} (50 bins)" if self.by == "bins" else value

    @property
    def severity(self) -> str:
        """`blocking` at an AUC of 0.98 where the model reads the feature, else `warning`."""
        return "blocking" if self.enabled and self.auc >= BLOCKING_AUC else "warning"

    def to_json(self) -> dict[str, str | float | bool | None]:
        """For verdict.json."""
        return asdict(self)


def find_leaks(frame: pd.DataFrame, scenario: Scenario) -> list[Leak]:
    """Each (feature, label) of the samples with an AUC of 0.9 or more; list features are judged by length."""
    # Rows from all of the day: they are in order of time, so the first ones would be of its first hours.
    step = max(1, -(-len(frame) // MAX_ROWS))
    rows = frame.iloc[::step]
    leaks = []
    for name, feature in scenario.features.items():
        column = name if name in rows.columns else f"{name}.length"
        parts = _split(rows[column], feature.of) if feature.kind == "cross" else {}
        for task in scenario.tasks:
            labels_N = rows[f"label.{task}"].to_numpy(np.float64, na_value=np.nan)
            whole = judge(name, task, rows[column], labels_N, is_id=feature.kind in ("id", "cross"))
            leak = worst([*judge_parts(name, task, parts, labels_N), *([whole] if whole else [])])
            if leak is not None:
                leaks.append(replace(leak, enabled=feature.enabled))
    return leaks


def worst(leaks: Sequence[Leak]) -> Leak | None:
    """The one of the highest AUC, the first of equal ones."""
    return max(leaks, key=lambda leak: leak.auc, default=None)


def judge_parts(name: str, label: str, parts: Mapping[str, pd.Series[Any]], labels_N: Floats) -> list[Leak]:
    """The leaks among the parts of the cross `name`. Whole numbers are judged by size too: an id can be a duration."""
    import pandas as pd

    found = [
        (part, judge(name, label, values, labels_N, is_id=not pd.api.types.is_numeric_dtype(values)))
        for part, values in parts.items()
    ]
    return [replace(leak, part=part) for part, leak in found if leak is not None]


def _split(values: pd.Series[Any], parts: Sequence[str]) -> dict[str, pd.Series[Any]]:
    """The parts of a cross as `join` writes it: a null part is empty, numbers are text, all null make null."""
    import pandas as pd

    texts = values.str.split(PART_SEPARATOR, n=len(parts) - 1, expand=True).reindex(columns=range(len(parts)))
    texts = texts.where(texts.notna() & (texts != ""))
    found = {}
    for i, part in enumerate(parts):
        numbers = pd.to_numeric(texts[i], errors="coerce")
        found[part] = numbers if (numbers.isna() == texts[i].isna()).all() else texts[i]
    return found


def judge(name: str, label: str, values: Any, labels_N: Floats, *, is_id: bool) -> Leak | None:
    """The leak that a column is for a label, or None."""
    scores = leak_scores(values, labels_N, is_id=is_id)
    if not scores:
        return None
    best = max(scores, key=lambda by: scores[by])
    if scores[best] < WARNING_AUC:
        return None
    # Values hold the null pattern too; where that alone says nearly as much, it is the better explanation.
    by = "nulls" if scores.get("nulls", 0) >= scores[best] - 0.01 else best
    return Leak(name, label, round(scores[best], 4), by)


def leak_score(values: Any, labels_N: Floats, *, is_id: bool) -> float | None:
    """The best AUC that one column of N rows reaches alone; None where there is too little to judge.

    `values`: a pandas Series, an array or a list of numbers, ids, text or lists, with None or NaN where null.
    `labels_N`: 0, 1, or NaN where the label is unknown. `is_id`: numbers are names, not amounts. Labels with fewer than
    500 known rows or 20 of either class are not judged.
    """
    scores = leak_scores(values, labels_N, is_id=is_id)
    return max(scores.values()) if scores else None


def leak_scores(values: Any, labels_N: Floats, *, is_id: bool) -> dict[str, float]:
    """AUC by way of reading the column: "nulls", "values" (as numbers, in either direction), "bins", "ids".

    Bins are 50 quantiles, and an id with up to 50 values is judged by value; their mean labels are learned on half of
    the rows and read on the other half.
    """
    import pandas as pd

    column = pd.Series(values).reset_index(drop=True)
    labels_N = np.asarray(labels_N, np.float64)
    known_N = ~np.isnan(labels_N)
    column, labels_N = column[known_N], labels_N[known_N]
    num_positive = int(labels_N.sum())
    if len(labels_N) < MIN_ROWS or min(num_positive, len(labels_N) - num_positive) < MIN_OF_EACH_CLASS:
        return {}
    null_N = column.isna().to_numpy()
    scores = {"nulls": _either_way(labels_N, null_N)} if null_N.any() else {}
    if not is_id:
        column = _numbers(column)
    if is_id or not pd.api.types.is_numeric_dtype(column):
        if column.nunique() <= MAX_IDS:
            bin_N, _ = pd.factorize(column, use_na_sentinel=False)
            scores["ids"] = rank_auc(labels_N, _crossed_means(bin_N, labels_N))
        return scores
    number_N = column.to_numpy(np.float64, na_value=np.nan)
    # Nulls below all numbers: one score then holds what values and nulls say together.
    number_N = np.where(np.isnan(number_N), -np.inf, number_N)
    scores["values"] = _either_way(labels_N, number_N)
    edges = np.unique(np.quantile(number_N, np.arange(1, NUM_BINS) / NUM_BINS, method="lower"))
    scores["bins"] = rank_auc(labels_N, _crossed_means(np.searchsorted(edges, number_N), labels_N))
    return scores


def _numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of lists as their lengths, Python numbers beside None as floats; text stays text."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return column
    known = column.dropna()
    first = known.iloc[0] if len(known) else None
    if isinstance(first, list | tuple | np.ndarray):
        return column.map(len, na_action="ignore")
    return pd.to_numeric(column) if isinstance(first, int | float | np.number) else column


def rank_auc(labels_N: Floats, scores_N: NDArray[Any]) -> float:
    """Probability that a positive scores above a negative, ties counted half (Mann and Whitney 1947).

    `models.metrics.auc` is the metric of a model; this room must not import that one.
    """
    _, run_N, rows_R = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_R = np.cumsum(rows_R) - (rows_R - 1) / 2
    num_positive = labels_N.sum()
    # Not a matrix product: BLAS would start threads for it, whose number changes the last bits.
    wins = (rank_R * np.bincount(run_N, labels_N)).sum() - num_positive * (num_positive + 1) / 2
    return float(wins / (num_positive * (len(labels_N) - num_positive)))


def _either_way(labels_N: Floats, scores_N: NDArray[Any]) -> float:
    auc = rank_auc(labels_N, scores_N)
    return max(auc, 1 - auc)


def _crossed_means(bin_N: NDArray[np.int64], labels_N: Floats) -> Floats:
    """Each row's bin's mean label over the other half of the rows, so that no row predicts itself.

    The halves are random (seeded): every other row would fail on a log where labels alternate.
    """
    score_N = np.empty(len(labels_N))
    half_N = np.random.default_rng(0).integers(0, 2, len(labels_N))
    size = int(bin_N.max()) + 1
    for half in (0, 1):
        learn = half_N != half
        positive_B = np.bincount(bin_N[learn], labels_N[learn], minlength=size)
        rows_B = np.bincount(bin_N[learn], minlength=size)
        mean_B = np.where(rows_B > 0, positive_B / np.maximum(rows_B, 1), labels_N.mean())
        score_N[~learn] = mean_B[bin_N[~learn]]
    return score_N
