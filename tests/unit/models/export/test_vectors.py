"""Vectors on their way through training, the export and the scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_jobs.errors import BadInputError
from models.training.day import score
from serving.scorer import Scorer
from tests.unit.models.days import DAYS, day_table
from tests.unit.models.export.learned import learned

FEATURES: dict[str, Any] = {"user": {"kind": "id"}, "picture": {"kind": "vector", "width": 3}}


def _day(ds: str, num_rows: int) -> pa.Table:
    """Clicks follow the second value of the vector alone."""
    rng = np.random.default_rng(int(ds.replace("-", "")))
    vectors = rng.normal(size=(num_rows, 3))
    lists = [[] if row % 10 == 0 else vector.tolist() for row, vector in enumerate(vectors)]
    table = day_table(ds, num_rows).append_column("picture", pa.array(lists, pa.list_(pa.float64())))
    place = table.column_names.index("label.click")
    return table.set_column(place, "label.click", pa.array((vectors[:, 1] > 0).astype(np.int8)))


def test_a_model_learns_from_a_vector_and_serves_it(tmp_path: Path) -> None:
    learned(tmp_path, FEATURES, _day(DAYS[0], 2000))
    rows, scorer = _day(DAYS[1], 500), Scorer.load(tmp_path / "export")
    wanted, found = score(tmp_path / "checkpoint", rows)["click"], scorer.score(rows)["click"]
    assert np.corrcoef(found, wanted)[0, 1] > 0.995  # the export holds 8 bits
    known = np.array([len(vector) > 0 for vector in rows["picture"].to_pylist()])
    labels = rows["label.click"].to_numpy() == 1
    assert found[known & labels].mean() > found[known & ~labels].mean() + 0.3
    # As a request may write them: numpy, fixed widths, integers, null.
    frame = rows.to_pandas()
    assert scorer.score(frame)["click"].tolist() == found.tolist()
    fixed = rows.filter(pa.array(known))
    wide = pa.FixedSizeListArray.from_arrays(fixed["picture"].combine_chunks().flatten(), 3)
    of_fixed = scorer.score({"user": fixed["user"], "picture": wide})["click"]
    assert of_fixed.tolist() == found[known].tolist()
    of_null = scorer.score({"user": [1], "picture": [None]})["click"]
    assert of_null.tolist() == scorer.score({"user": [1], "picture": [[]]})["click"].tolist()
    for bad in ([1.0, 2.0], [1.0, 2.0, None], [1.0, 2.0, float("inf")], [1.0, 2.0, 3.0, 4.0]):
        with pytest.raises(BadInputError, match=r"'picture', row 1: \[.*\] is not a vector of 3 finite numbers"):
            scorer.score(pd.DataFrame({"user": [1, 2], "picture": [[1.0, 2.0, 3.0], bad]}))
