"""The rows of a day that an evaluation judges: labels, users, segments, and the scores of each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema.files import SAMPLES_FILE
from models.checkpoints.files import PREDICTIONS_FILE

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from feature_jobs.schema import Scenario
    from models.metrics.comparison import Groups

    Scores = Mapping[str, NDArray[np.floating[Any]]]  # task → [N]


@dataclass(frozen=True)
class ScoredDay:
    """The N rows of a day in event order: labels (NaN: unknown), users and requests as numbers, segments, and scores.

    `progressive` are the parent's scores of rows that it has not learned; `gate` are the challenger's, which are NaN
    outside of the holdout.
    """

    labels: Scores
    groups: Groups
    segments: dict[str, NDArray[np.bool_]]
    progressive: Scores | None
    gate: Scores
    holdout_N: NDArray[np.bool_]


def read_day(scenario: Scenario, samples: Path, checkpoint: Path) -> ScoredDay:
    """Reads predictions.parquet, and the segments from samples.parquet. Raises BadInputError where the two files do
    not hold the same rows."""
    import numpy as np
    import pyarrow.parquet as pq

    predictions = pq.read_table(checkpoint / PREDICTIONS_FILE).sort_by("key.event_row")
    segments = [f"segment.{name}" for name in scenario.evaluate.segments]
    rows = pq.read_table(samples / SAMPLES_FILE, columns=["key.event_row", *segments]).sort_by("key.event_row")
    if not rows["key.event_row"].equals(predictions["key.event_row"]):
        raise BadInputError(
            f"{checkpoint / PREDICTIONS_FILE}: {len(predictions):,} rows, which are not the {len(rows):,} of"
            f" {samples / SAMPLES_FILE}; train this day again"
        )
    gate = {task: _floats(predictions[f"gate.{task}"]) for task in scenario.tasks}
    progressive = {task: _floats(predictions[f"progressive.{task}"]) for task in scenario.tasks}
    return ScoredDay(
        labels={task: _floats(predictions[f"label.{task}"]) for task in scenario.tasks},
        groups=groups_of(predictions),
        segments={
            name: rows[f"segment.{name}"].fill_null(False).to_numpy(zero_copy_only=False)
            for name in scenario.evaluate.segments
        },
        # A day without a parent, such as the first, has no scores of one.
        progressive=None if all(np.isnan(scores).all() for scores in progressive.values()) else progressive,
        gate=gate,
        holdout_N=np.logical_or.reduce([~np.isnan(scores) for scores in gate.values()]),
    )


def groups_of(keys: pa.Table) -> Groups:
    """The users and requests of rows as numbers, from the columns `key.user` and, where there is one, `key.request`.

    A request is named by both, as in the join; -1 is a row without one.
    """
    import numpy as np

    from models.metrics.comparison import Groups

    users_N = _codes(keys["key.user"])
    if "key.request" not in keys.column_names:
        return Groups(users_N)
    names_N = np.nan_to_num(_codes(keys["key.request"]), nan=-1).astype(np.int64)
    user_N = np.nan_to_num(users_N, nan=-1).astype(np.int64) + 1
    return Groups(users_N, np.where(names_N >= 0, user_N * (names_N.max(initial=0) + 1) + names_N, -1))


def _codes(column: pa.ChunkedArray) -> NDArray[Any]:
    """Each distinct value as a number; null is NaN."""
    codes: NDArray[Any] = column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return codes


def _floats(column: pa.ChunkedArray) -> NDArray[np.floating[Any]]:
    """Null becomes NaN."""
    import pyarrow as pa

    floats: NDArray[np.floating[Any]] = column.cast(pa.float32()).to_numpy()
    return floats
