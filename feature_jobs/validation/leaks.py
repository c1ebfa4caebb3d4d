"""Leaks: one column that alone predicts a label almost perfectly, by its values or by its nulls.

A column that is filled only after the event (a scroll depth, present on clicked rows only) says the label even where
its values say nothing, so the null pattern is judged as a score of its own. Numbers are judged by size and value by
value, in every kind of feature: an id can be a duration, and the parity of a number can be the answer. Lists
are judged by length and by element, and the parts of a cross alone too: one null among known parts makes no null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feature_jobs.validation.day_samples import drawn_rows

if TYPE_CHECKING:
    import pandas as pd

    from feature_jobs.schema import Scenario

WARNING_AUC = 0.9  # one feature alone rarely reaches this; a person should look
BLOCKING_AUC = 0.98
MIN_ROWS = 500
MIN_OF_EACH_CLASS = 20  # with fewer, high AUCs come by chance
MAX_ROWS = 200_000  # drawn from a larger day: a leak shows in far fewer
NUM_BINS = 50
NUM_FOLDS = 4
PART_SEPARATOR = chr(31)  # between the parts of a cross in the samples

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Leak:
    """A feature or column that alone predicts `label` with this AUC; `by` names its reading that does (nulls, values,
    bins, ids or elements), `part` the part of a cross."""

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
        what = "elements" if self.by == "elements" else "value"
        value = f"its {what}" if self.part is None else f"the value of its part {self.part!r}"
        return f"{value} (50 bins)" if self.by == "bins" else value

    @property
    def severity(self) -> str:
        """`blocking` at an AUC of 0.98 where the model reads the feature, else `warning`."""
        return "blocking" if self.enabled and self.auc >= BLOCKING_AUC else "warning"

    def to_json(self) -> dict[str, str | float | bool | None]:
        """For verdict.json."""
        return asdict(self)


def find_leaks(frame: pd.DataFrame, scenario: Scenario, lists: Mapping[str, Any]) -> list[Leak]:
    """Each (feature, label) of the samples with an AUC of 0.9 or more.

    `lists`: the columns of list features, in the frame's order; a list that is not there is judged by its length.
    """
    # Rows from all of the day: they are in order of time, so the first ones would be of its first hours.
    chosen_S = drawn_rows(len(frame), MAX_ROWS)
    rows = frame.iloc[chosen_S]
    labels = {task: rows[f"label.{task}"].to_numpy(np.float64, na_value=np.nan) for task in scenario.tasks}
    leaks = []
    for name, feature in scenario.features.items():
        values = (
            lists[name].take(chosen_S) if name in lists else rows[name if name in rows.columns else f"{name}.length"]
        )
        parts = _split(values, feature.of) if feature.kind == "cross" else {}
        leaks += [replace(leak, enabled=feature.enabled) for leak in judge(name, values, labels, parts)]
    return leaks


def _split(values: pd.Series[Any], parts: Sequence[str]) -> dict[str, pd.Series[Any]]:
    """The parts of a cross as `join` writes it: a null part is empty, numbers are text, all null make null."""
    import pandas as pd

    # n: a part that is text may hold the separator itself, and then stays in the last part.
    texts = values.str.split(PART_SEPARATOR, n=len(parts) - 1, expand=True).reindex(columns=range(len(parts)))
    texts = texts.where(texts.notna() & (texts != ""))
    found = {}
    for i, part in enumerate(parts):
        numbers = pd.to_numeric(texts[i], errors="coerce")
        found[part] = numbers if (numbers.isna() == texts[i].isna()).all() else texts[i]
    return found


def judge(
    name: str,
    values: Any,
    labels: Mapping[str, Floats],
    parts: Mapping[str, Any] | None = None,
    least: float = WARNING_AUC,
) -> list[Leak]:
    """The worst leak for each label: of the column `name`, or of one of the `parts` that it is made of.

    A leak has an AUC of `least` or more. Columns are pandas Series, arrays or lists of N numbers, texts or lists, with
    None or NaN where null; no column where `values` is None. Labels are 0, 1, or NaN where unknown; those with fewer
    than 500 known rows or 20 of either class are not judged.
    """
    read: dict[str | None, _Column] = {part: _Column.of(column) for part, column in (parts or {}).items()}
    if values is not None:
        read = {None: _Column.of(values), **read}
    leaks = []
    for label, labels_N in labels.items():
        known_N = ~np.isnan(labels_N)
        num, num_positive = int(known_N.sum()), int(np.nansum(labels_N))
        if num < MIN_ROWS or min(num_positive, num - num_positive) < MIN_OF_EACH_CLASS:
            continue
        found = [_leak(name, label, part, column.scores(labels_N, known_N)) for part, column in read.items()]
        # The worst alone: a cross and both its parts would be three lines about one mistake.
        leaks += sorted((leak for leak in found if leak.auc >= least), key=lambda leak: -leak.auc)[:1]
    return leaks


def _leak(name: str, label: str, part: str | None, scores: Mapping[str, float]) -> Leak:
    best = max(scores, key=lambda by: scores[by])
    # Values hold the null pattern too; where that alone says nearly as much, it is the better explanation.
    by = "nulls" if scores.get("nulls", 0) >= scores[best] - 0.01 else best
    return Leak(name, label, round(scores[best], 4), by, part=part)


@dataclass(frozen=True)
class _Column:
    """One column of N rows, read once for all labels. `code_E` numbers the values (in order of size, of numbers) or the
    elements of lists, of which `row_E` are the rows; `bin_N` are 50 quantiles of numbers or lengths, `size_N` ranks."""

    null_N: NDArray[np.bool_]
    code_E: Codes
    row_E: Codes | None = None
    size_N: Codes | None = None
    bin_N: Codes | None = None

    @classmethod
    def of(cls, values: Any) -> _Column:
        import pandas as pd
        import pyarrow as pa

        if isinstance(values, pa.ChunkedArray | pa.Array):
            return cls._of_lists(values)
        column = pd.Series(values).reset_index(drop=True)
        null_N = column.isna().to_numpy()
        known = column[~null_N]
        first = known.iloc[0] if len(known) else None
        if isinstance(first, list | tuple | np.ndarray):
            return cls._of_lists(pa.array(column.where(~null_N, None).tolist()))
        if isinstance(first, int | float | np.number | np.bool_):
            size_N, bin_N = _by_size(pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan))
            return cls(null_N, size_N, None, size_N, bin_N)
        return cls(null_N, pd.factorize(column, use_na_sentinel=False)[0])

    @classmethod
    def _of_lists(cls, lists: Any) -> _Column:
        import pyarrow.compute as pc

        flat, row_E = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
        encoded = flat.combine_chunks() if hasattr(flat, "combine_chunks") else flat
        code_E = encoded.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        length_N = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.float64)
        is_element = ~np.isnan(code_E.astype(np.float64))
        size_N, bin_N = _by_size(length_N)
        return cls(np.isnan(length_N), code_E[is_element].astype(np.int64), row_E[is_element], size_N, bin_N)

    def scores(self, labels_N: Floats, known_N: NDArray[np.bool_]) -> dict[str, float]:
        """AUC by way of reading the column: "nulls", "values" (as numbers, in either direction), "bins", "ids" or
        "elements". Of the last three the mean labels are learned on other rows than they are read on."""
        truth_N = labels_N[known_N]
        folds_N = np.random.default_rng(0).integers(0, NUM_FOLDS, len(labels_N))  # every fourth row may be a pattern
        null_N = self.null_N[known_N]
        scores = {"nulls": _either_way(truth_N, null_N)} if null_N.any() else {}
        if self.size_N is not None and self.bin_N is not None:
            scores["values"] = _either_way(truth_N, self.size_N[known_N])
            means_N = _crossed_means(self.bin_N[known_N], truth_N, folds_N[known_N])
            scores["bins"] = rank_auc(truth_N, means_N)
        if self.row_E is None:
            means_N = _crossed_means(self.code_E[known_N], truth_N, folds_N[known_N])
            return scores | {"ids": rank_auc(truth_N, means_N)}
        known_E = known_N[self.row_E]
        code_E, row_E = self.code_E[known_E], self.row_E[known_E]
        means_E = _crossed_means(code_E, labels_N[row_E], folds_N[row_E])
        for extreme in (np.maximum, np.minimum):  # one element may say yes, or no
            # A row without an element says nothing, so it gets the mean.
            means_N = np.full(len(labels_N), truth_N.mean())
            rows, starts = np.unique(row_E, return_index=True)
            means_N[rows] = extreme.reduceat(means_E, starts) if len(rows) else []
            auc = rank_auc(truth_N, means_N[known_N])
            scores["elements"] = max(auc, scores.get("elements", 0.0))
        return scores


def _by_size(numbers_N: Floats) -> tuple[Codes, Codes]:
    """Ranks of the values, null first, and their bins."""
    # Null is a value of its own, below all others: that a value is missing can be what gives the label away.
    numbers_N = np.where(np.isnan(numbers_N), -np.inf, numbers_N)
    size_N = np.unique(numbers_N, return_inverse=True)[1]
    # Quantiles of ranks: one huge value must not put all others into one bin.
    edges = np.unique(np.quantile(size_N, np.arange(1, NUM_BINS) / NUM_BINS, method="lower")) if len(size_N) else size_N
    return size_N, np.searchsorted(edges, size_N)


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


def _crossed_means(code_N: Codes, labels_N: Floats, fold_N: Codes) -> Floats:
    """Each row's value's mean label over the other folds, so that no row predicts itself; drawn to the overall mean by
    one row, so that a value seen once does not outweigh one seen often."""
    size = int(code_N.max(initial=0)) + 1
    positive_C, rows_C = (np.bincount(code_N * NUM_FOLDS + fold_N, w, size * NUM_FOLDS) for w in (labels_N, None))
    positive_BF, rows_BF = positive_C.reshape(-1, NUM_FOLDS), rows_C.reshape(-1, NUM_FOLDS)
    others_BF = positive_BF.sum(1, keepdims=True) - positive_BF + (labels_N.mean() if len(labels_N) else 0)
    means_BF: Floats = others_BF / (rows_BF.sum(1, keepdims=True) - rows_BF + 1)
    return means_BF[code_N, fold_N]
