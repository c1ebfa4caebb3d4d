"""Weights of ids on their way through training, the fp32 graph, the export and the scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_jobs.transforms import encode, hash_ids, numbered_shares
from models.checkpoints import checkpoint as checkpoints
from models.export.quantization import write_onnx
from models.runtime.frozen_tables import FrozenTable
from models.runtime.onnx_model import OnnxModel
from models.sparse.lookup import Ids
from models.training.day import score
from serving.scorer import Scorer
from tests.unit.models.days import DAYS, day_table
from tests.unit.models.export.learned import learned


def _day(ds: str, num_rows: int) -> pa.Table:
    """All rows have the same two ids; clicks follow their weights alone."""
    rng = np.random.default_rng(int(ds.replace("-", "")))
    first, second = rng.integers(1, 100, (2, num_rows))
    lists = [[f"a:{p}", f"b:{q}"] if row % 10 else [] for row, (p, q) in enumerate(zip(first, second, strict=True))]
    table = day_table(ds, num_rows).append_column("kv", pa.array(lists, pa.list_(pa.string())))
    place = table.column_names.index("label.click")
    return table.set_column(place, "label.click", pa.array((first > second).astype(np.int8)))


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_a_model_learns_from_weights_and_serves_them(pooling: str, tmp_path: Path) -> None:
    features: dict[str, Any] = {"user": {"kind": "id"}, "kv": {"kind": "ids", "weighted": True, "pooling": pooling}}
    learned(tmp_path, features, _day(DAYS[0], 2000))

    rows, scorer = _day(DAYS[1], 500), Scorer.load(tmp_path / "export")
    wanted, found = score(tmp_path / "checkpoint", rows)["click"], scorer.score(rows)["click"]
    labels, known = rows["label.click"].to_numpy() == 1, np.arange(500) % 10 > 0
    assert wanted[known & labels].mean() > wanted[known & ~labels].mean() + 0.3
    assert np.corrcoef(found, wanted)[0, 1] > 0.99  # the export holds 8 bits
    frame = rows.to_pandas()  # as a request may have them
    assert scorer.score(frame)["click"].tolist() == found.tolist()

    ranker = checkpoints.load(tmp_path / "checkpoint")
    tables = ranker.tables
    keys_R, rows_R = tables.items()
    weight_RD = tables.storage.read(rows_R)[0]
    table = FrozenTable.of(keys_R, weight_RD, tables.storage.read(tables.default_rows)[0])
    write_onnx(ranker, tmp_path / "fp32.onnx")
    graph = OnnxModel(tmp_path / "fp32.onnx", ranker.layout, ranker.tasks, table)
    assert graph.score(rows)[:, 0] == pytest.approx(wanted, abs=1e-6)

    # By hand: of the training's tables, and of those that are served.
    one = pa.table({"user": [1], "kv": [["a:3", "b:1"]]})
    a, b = (weight_RD[keys_R == hash_ids(pa.array([name]), "kv")][0] for name in "ab")
    by_hand = 0.75 * a + 0.25 * b if pooling == "mean" else 3 * a + b
    encoded, input_BI = encode(one, ranker.layout), np.empty((1, 8), np.float32)
    ids = Ids(encoded.slots, list(encoded.bags.values()), numbered_shares(encoded))
    tables.forward(tables.find(ids), 0, 1, input_BI)
    assert input_BI[0, 4:] == pytest.approx(by_hand, rel=1e-6)
    assert graph.embed(encoded)[0, 1] == pytest.approx(by_hand, rel=1e-6)
