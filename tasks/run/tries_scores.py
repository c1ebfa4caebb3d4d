"""Two things that scored the same days, side by side: the committed chain, a generation, a day, a try.

A row is judged only by a score that was given before the row was learned: on most days the parent's score of the whole
day; on the first day of a try the score of the holdout, because the try's own model has learned nothing before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_jobs.schema import Scenario
from models.checkpoints.files import PREDICTIONS_FILE

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

WHOLE_DAY, HOLDOUT = "progressive", "gate"
"""Column prefixes of the two scores in predictions.parquet."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: folders with predictions.parquet by day. `first`: the day that its holdout judges."""

    name: str
    days: Mapping[str, Path]
    first: str | None = None


@dataclass(frozen=True)
class Quality:
    """Metrics of one side on its judged rows; None where a metric is undefined (labels of one class only)."""

    rows: int
    positives: int
    auc: float | None
    gauc: float | None
    normalized_entropy: float | None
    calibration: float | None
    request_auc: float | None = None
    """With NDCG@k and MRR: means over requests, of scenarios with `data.request`."""
    ndcg: float | None = None
    mrr: float | None = None


class Judged(NamedTuple):
    """Rows whose label is known and that have a score; users and requests are numbers, -1 a row in no request. [N]"""

    labels_N: NDArray[np.floating[Any]]
    users_N: NDArray[Any]
    requests_N: NDArray[Any]
    scores_N: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Difference:
    """AUC of the second side minus AUC of the first. `low` and `high` are None where the rows are not the same."""

    auc: float | None
    low: float | None
    high: float | None
    verdict: str

    @classmethod
    def of(
        cls, auc: float | None, low: float | None = None, high: float | None = None, lacks: str | None = None
    ) -> Difference:
        """With the interval's verdict: better, worse, within chance, equal; or unknown: without an interval, or if it
        `lacks` something to be judged. A bootstrap of few rows or positives is narrow by accident."""
        if low is None or high is None:
            return cls(auc, None, None, "unknown")
        if low == high == 0:
            return cls(auc, low, high, "equal")
        if lacks:
            return cls(auc, low, high, f"unknown: {lacks}")
        return cls(auc, low, high, "better" if low > 0 else "worse" if high < 0 else "within chance")


@dataclass(frozen=True)
class TaskComparison:
    """One task of both sides."""

    first: Quality
    second: Quality
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """Both sides on the days that they share, or each on its own days where the rows are not the same.

    `not_paired` is the reason why the interval is missing. `holdout_days` are judged on their holdout only.
    `without_scores`: the sides that scored no row before it was learned.
    """

    first: str
    second: str
    days: tuple[str, ...]
    holdout_days: tuple[str, ...]
    not_paired: str | None
    confidence: float
    tasks: Mapping[str, TaskComparison] = field(default_factory=dict)
    without_scores: tuple[str, ...] = ()


def compare_sides(scenario: Scenario, first: Side, second: Side) -> Comparison:
    """Compares on the common days, paired where each of them has the same rows and labels on both sides."""
    # Days that only one side has would compare different weeks, not different models.
    common = tuple(sorted(first.days.keys() & second.days.keys()))
    holdout = tuple(ds for ds in common if ds in (first.first, second.first))
    tasks = scenario.tasks
    if not common:
        not_paired: str | None = f"{first.name} and {second.name} have no day in common: their rows are not the same"
        # Without common days each side shows its own metrics: a reader sees them, but no interval may be given.
        left, right = (_rows(side, tuple(sorted(side.days)), (side.first or "",), tasks) for side in (first, second))
    else:
        left, right = (_rows(side, common, holdout, tasks) for side in (first, second))
        not_paired = _other_rows(left, right, tasks)
    found = {task: _compare_task(scenario, task, left, right, paired=not_paired is None) for task in tasks}
    scored = ((first.name, left), (second.name, right))
    without_scores = tuple(name for name, rows in scored if not any(len(_judged(rows, t).labels_N) for t in tasks))
    return Comparison(
        first.name, second.name, common, holdout, not_paired, scenario.evaluate.confidence,
        {task: comparison for task, comparison in found.items() if comparison},
        without_scores,
    )  # fmt: skip


def day_qualities(scenario: Scenario, side: Side) -> dict[str, dict[str, Quality]]:
    """{day: {task: Quality}}: the curve of a side over its days."""
    found: dict[str, dict[str, Quality]] = {}
    for ds in sorted(side.days):
        rows = _rows(side, (ds,), (side.first or "",), scenario.tasks)
        found[ds] = {task: quality for task in scenario.tasks if (quality := _quality(scenario, rows, task)).rows}
    return found


def _rows(side: Side, days: Sequence[str], holdout: Sequence[str], tasks: Sequence[str]) -> pa.Table:
    """Rows of all days in order: `key.ds`, `key.event_row`, `key.user`, `request`, `label.TASK`, `score.TASK`.

    `request` is a number; -1 is a row in no request.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts, num_requests = [], 0
    for ds in days:
        kind = HOLDOUT if ds in holdout else WHOLE_DAY
        names = ["key.event_row", "key.user", *(f"label.{t}" for t in tasks), *(f"{kind}.{t}" for t in tasks)]
        file = side.days[ds] / PREDICTIONS_FILE
        names += [name for name in ("key.request",) if name in pq.read_schema(file).names]
        # Sorted by row number, so that both sides have the same row at the same place.
        table = pq.read_table(file, columns=names).sort_by("key.event_row")
        table = table.rename_columns([name.replace(f"{kind}.", "score.") for name in names])
        table, num_requests = _with_requests(table, num_requests)
        # Row numbers begin at 0 on each day, so only day and number together name a row.
        parts.append(table.append_column("key.ds", pa.array([ds] * len(table), pa.string())))
    return pa.concat_tables(parts)


def _with_requests(table: pa.Table, num_before: int) -> tuple[pa.Table, int]:
    """The rows of a day with their requests as numbers from `num_before` on, and the first number of the next day."""
    import numpy as np
    import pyarrow as pa

    from tasks.evaluation.scored_day import groups_of

    found_N = groups_of(table).requests_N
    if found_N is None:
        return table.append_column("request", pa.array(np.full(len(table), -1))), num_before
    # A request that goes on after midnight is one on each day.
    numbers_N = np.where(found_N < 0, -1, found_N + num_before)
    without = table.drop_columns("key.request")
    return without.append_column("request", pa.array(numbers_N)), max(num_before, int(numbers_N.max(initial=-1)) + 1)


def _other_rows(left: pa.Table, right: pa.Table, tasks: Sequence[str]) -> str | None:
    """Returns the reason why rows of common days cannot be paired; None where they can."""
    # By row number and label: a corrected day of a new generation can have as many rows, and other ones.
    if len(left) != len(right) or not left["key.event_row"].equals(right["key.event_row"]):
        return f"the rows of the common days are not the same ({len(left):,} and {len(right):,})"
    changed = [task for task in tasks if not left[f"label.{task}"].equals(right[f"label.{task}"])]
    return f"the labels of {', '.join(changed)} are not the same on both sides" if changed else None


def _compare_task(
    scenario: Scenario, task: str, left: pa.Table, right: pa.Table, *, paired: bool
) -> TaskComparison | None:
    from models.metrics.bootstrap import paired_bootstrap
    from models.metrics.judgement import Evidence

    if paired:  # rows that one side has not scored count for neither
        known = left[f"score.{task}"].is_valid().to_numpy() & right[f"score.{task}"].is_valid().to_numpy()
        left, right = left.filter(known), right.filter(known)
    first, second = (_quality(scenario, side, task) for side in (left, right))
    if not first.rows or not second.rows:
        return None
    if not paired:
        return TaskComparison(first, second, Difference.of(_minus(second.auc, first.auc)))
    rules = scenario.evaluate
    # The same least data as the gate of a promotion, so that a try never promises what the gate calls unknown.
    needs = Evidence(scenario.deploy.min_rows, scenario.deploy.min_positives)
    ours = _judged(left, task)
    interval = paired_bootstrap(
        ours.labels_N, ours.scores_N, _judged(right, task).scores_N,
        resamples=rules.bootstrap, confidence=rules.confidence, seed=scenario.train.seed,
    )  # fmt: skip
    values = (_number(interval.difference), _number(interval.low), _number(interval.high))
    return TaskComparison(first, second, Difference.of(*values, needs.lacks(second.rows, second.positives)))


def _quality(scenario: Scenario, table: pa.Table, task: str) -> Quality:
    from models.metrics import scores as metrics
    from models.metrics.requests import judge_requests

    labels_N, users_N, requests_N, scores_N = _judged(table, task)
    if not len(labels_N):
        return Quality(0, 0, None, None, None, None)
    of_request = judge_requests(requests_N, labels_N, scores_N, k=scenario.evaluate.ndcg_k)
    return Quality(
        rows=len(labels_N),
        positives=int(labels_N.sum()),
        auc=_number(metrics.auc(labels_N, scores_N)),
        gauc=_number(metrics.gauc(users_N, labels_N, scores_N)),
        normalized_entropy=_number(metrics.normalized_entropy(labels_N, scores_N)),
        calibration=_number(metrics.calibration(labels_N, scores_N)),
        request_auc=_number(of_request["auc"]),
        ndcg=_number(of_request["ndcg"]),
        mrr=_number(of_request["mrr"]),
    )


def _judged(table: pa.Table, task: str) -> Judged:
    import pyarrow as pa

    kept = table.filter(table[f"label.{task}"].is_valid().to_numpy() & table[f"score.{task}"].is_valid().to_numpy())
    # Numbers instead of values: users may be text, and only their identity counts for GAUC.
    users = kept["key.user"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    labels, scores = (kept[f"{kind}.{task}"].cast(pa.float32()).to_numpy() for kind in ("label", "score"))
    return Judged(labels, users, kept["request"].to_numpy(), scores)


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else round(left - right, 6)
