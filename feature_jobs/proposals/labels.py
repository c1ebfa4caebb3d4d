"""Guesses what to predict, and which columns would give the answer away."""

from __future__ import annotations

import re
from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from feature_jobs.expressions.compiler import to_sql
from feature_jobs.proposals.profiles import Profile
from feature_jobs.proposals.roles import Log, words
from feature_jobs.sources.casts import quote

Floats = npt.NDArray[np.float64]

MAX_LABELS = 4
MIN_POSITIVES = 50
LEAK_AUC = 0.95
_ACTIONS = set(
    words(
        "click clicked clk view viewed watch watched like liked love favorite fav share shared follow followed comment "
        "commented buy bought purchase purchased order ordered cart convert converted conversion install installed "
        "label target forward save saved subscribe subscribed download play played skip skipped complete completed "
        "finish finished enter hate hated dislike book booked reply response open opened transaction return returned "
        "churn sale y"
    )
)
_AFTERWARDS = set(
    words(
        "play played watch watched stay dwell spent elapsed listen listened revenue gmv paid payment quantity qty "
        "amount consumed completion progress sale"
    )
)
_RATINGS = {"rating", "ratings", "score", "stars", "star", "grade", "rate", "review"}
_EVENT_TYPE = {"event", "type", "action", "behavior", "behaviour", "activity", "interaction"}
_NEGATIVE = {"hate", "hated", "dislike", "skip", "skipped", "return", "returned", "churn"}


@dataclass(frozen=True)
class Label:
    """A proposed label: expression, share of rows for which it holds, why."""

    name: str
    expression: str
    column: str
    mean: float
    why: str


@dataclass(frozen=True)
class Guessed:
    """Labels, and columns that are outcomes, with the reason for each."""

    labels: list[Label]
    outcomes: dict[str, str]


def guess_labels(connection: duckdb.DuckDBPyConnection, log: Log) -> Guessed:
    """Labels with most positives first, at most four; behaviours left over and leaks become outcomes."""
    columns = [c for c in log.table.columns.values() if c not in (log.time, log.user, log.item)]
    found = [label for column in columns for label in _of_column(column)]
    found = [label for label in (_measured(connection, log, label) for label in found) if label is not None]
    if not found:
        found = [
            label
            for c in columns
            if c.is_number and c.words & _AFTERWARDS
            for label in _above_usual(connection, log, c)
        ]
    labels, outcomes = _chosen(log, found), {}
    for label in found:
        if label not in labels:
            outcomes[label.column] = "a behaviour too, but not predicted"
    used = {label.column for label in labels}
    for column in columns:
        if column.name not in used and column.is_number and column.words & _AFTERWARDS and not is_flag(column):
            outcomes[column.name] = "known only afterwards, by its name"
    for column in columns:
        if column.name not in used and column.name not in outcomes:
            for label in labels:
                score = predictive_auc(connection, log, column, label)
                if score is not None and score > LEAK_AUC:
                    outcomes[column.name] = (
                        f"predicts {label.name} alone with an AUC of {score:.3f}: it knows the answer"
                    )
                    break
    return Guessed(labels, {name: why for name, why in outcomes.items() if name not in used})


def is_flag(column: Profile) -> bool:
    """Whether the column is yes or no."""
    return column.type == "bool" or (
        column.is_number and column.distinct == 2 and set(column.top) <= {"0", "1", "0.0", "1.0"}
    )


def _of_column(column: Profile) -> list[Label]:
    is_action = bool(column.words & _ACTIONS)
    name = _label_name(column.name)
    if is_flag(column) and is_action and not column.words & {"rand", "test", "new", "auto"}:
        expression = column.name if column.type == "bool" else f"{column.name} == 1"
        return [Label(name, expression, column.name, 0.0, "a behaviour")]
    if column.is_number and column.words & _RATINGS and 2 < column.distinct <= 101 and column.high is not None:
        return _of_rating(column, column.high)
    if column.type == "string" and column.words & _EVENT_TYPE and 2 <= column.distinct <= 12:
        actions = [value for value in column.top if set(re.findall(r"[a-z]+", value.lower())) & _ACTIONS]
        passive = [value for value in column.top if value.lower() in ("view", "impression", "show", "exposure", "pv")]
        return [
            Label(_label_name(value), f"{column.name} == {value!r}", column.name, 0.0, f"a value of {column.name}")
            for value in actions
            if value not in passive or len(actions) == 1
        ]
    return []


def _of_rating(column: Profile, high: float) -> list[Label]:
    """`like` from four fifths of the scale on, `love` at its top."""
    scale = next((top for top in (1, 5, 10, 100) if high <= top), high)
    threshold = 0.8 * scale
    shown, top = (int(v) if float(v).is_integer() else v for v in (threshold, scale))
    labels = [Label("like", f"{column.name} >= {shown}", column.name, 0.0, f"a rating, scale up to {top}")]
    if column.distinct > 3:
        labels.append(Label("love", f"{column.name} >= {top}", column.name, 0.0, "the highest rating"))
    return labels


def _above_usual(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> list[Label]:
    sql = f"SELECT median({quote(column.name)}) FROM {log.table.relation}"
    usual = float(connection.execute(sql).fetchall()[0][0] or 0)
    shown = int(usual) if usual.is_integer() else round(usual, 3)
    label = Label(f"high_{_label_name(column.name)}", f"{column.name} > {shown}", column.name, 0.0, "more than usual")
    measured = _measured(connection, log, label)
    return [measured] if measured else []


def _label_name(name: str) -> str:
    text = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")
    return text if text[:1].isalpha() else f"label_{text}"


def _measured(connection: duckdb.DuckDBPyConnection, log: Log, label: Label) -> Label | None:
    """The label with its share of positives, or None where it has too few of either kind."""
    sql = to_sql(label.expression, quote)
    num, positives = connection.execute(
        f"SELECT count({sql}), count(*) FILTER ({sql}) FROM {log.table.relation}"
    ).fetchall()[0]
    enough = min(MIN_POSITIVES, max(2, log.table.num_sampled // 20))
    if num < 0.5 * log.table.num_sampled or not enough <= positives <= num - enough:
        return None
    return Label(label.name, label.expression, label.column, positives / num, label.why)


def _chosen(log: Log, found: list[Label]) -> list[Label]:
    """At most four labels: wanted behaviours before unwanted, often before seldom; never a weak one beside others."""

    def order(label: Label) -> tuple[bool, float]:
        return bool(log.table.columns[label.column].words & _NEGATIVE), -min(label.mean, 0.5)

    unique = {label.name: label for label in sorted(found, key=order, reverse=True)}
    ranked = sorted(unique.values(), key=order)
    often = [label for label in ranked if label.mean >= 0.005] or ranked[:1]
    return often[:MAX_LABELS]


def predictive_auc(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile, label: Label) -> float | None:
    """The best AUC for a label that one column of N rows reaches alone; None where there is too little to judge.

    A number is judged as a score in either direction, another column (of up to 200 values) by the label's mean of each
    value, counted on every other row and read on the rest. A missing value is a value too.
    """
    if column.type.startswith("list") or (not column.is_number and column.distinct > 200):
        return None
    name, relation = quote(column.name), log.table.relation
    value = f"coalesce(CAST({name} AS DOUBLE), -1e300)" if column.is_number else f"dense_rank() OVER (ORDER BY {name})"
    rows = connection.execute(
        f"SELECT CAST({value} AS DOUBLE) AS v, CAST({to_sql(label.expression, quote)} AS DOUBLE) AS y FROM {relation}"
    ).fetchnumpy()
    values_N, labels_N = np.ma.filled(rows["v"], np.nan), np.ma.filled(rows["y"], np.nan)
    known = np.isfinite(labels_N) & np.isfinite(values_N)
    values_N, labels_N = values_N[known], labels_N[known]
    num_positive = int(labels_N.sum())
    if len(labels_N) < 200 or min(num_positive, len(labels_N) - num_positive) < 20:
        return None
    best = 0.0
    if column.is_number:
        straight = _auc(labels_N, values_N)
        best = max(straight, 1 - straight)
    if column.distinct <= 200:
        _, codes = np.unique(values_N, return_inverse=True)
        sums, nums = (np.bincount(codes[::2], weights, codes.max() + 1) for weights in (labels_N[::2], None))
        means = (sums + labels_N.mean()) / (nums + 1)
        best = max(best, _auc(labels_N[1::2], means[codes[1::2]]))
    return best


def _auc(labels_N: Floats, scores_N: Floats) -> float:
    """Area under the ROC curve by ranks (Mann and Whitney 1947), ties shared."""
    _, codes, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[codes]
    positive = labels_N > 0
    num_1, num_0 = int(positive.sum()), int((~positive).sum())
    if not num_1 or not num_0:
        return 0.5
    return float((ranks_N[positive].sum() - num_1 * (num_1 + 1) / 2) / (num_1 * num_0))
