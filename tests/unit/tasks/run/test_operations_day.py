"""Days of a shop whose features use every operation: joined, and learned by the model in the form that each has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check_scenario
from feature_jobs.schema import load_scenario
from feature_jobs.transforms import Layout, encode
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store
from tests.small import days, write_small

FEATURES = """features:
  spent: {kind: sum, of: product.price, by: [shopper], where: bought == 1, windows: [12h, 2d], buckets: 2}
  rating: {kind: average, of: rated, by: [product], scale: none}
  cheapest: {kind: min, of: product.price, by: [shopper], where: bought == 1}
  dearest: {kind: max, of: product.price, by: [shopper]}
  spread: {kind: variance, of: product.price, by: [shopper]}
  deviation: {kind: stddev, of: rated, by: [product]}
  median: {kind: percentile, of: product.price, percent: 50, by: [shopper]}
  products: {kind: unique_count, of: product, by: [shopper], buckets: 1}
  first_product: {kind: first, of: product, by: [shopper], table: product}
  last_buyer: {kind: last, of: shopper, by: [product], where: bought == 1}
  favourites: {kind: top_k, of: product, by: [shopper], where: bought == 1, k: 2, table: product}
  looked: {kind: sequence, of: product, by: shopper, length: 4, sides: {result: bought, ago: seconds_ago}}
  thirds: {kind: count, by: [shopper], of: product % 3, values: [0, 1, 2]}
"""


@pytest.mark.slow
def test_every_operation_is_learned(tmp_path: Path) -> None:
    file = write_small(tmp_path, num_days=2)
    file.write_text(file.read_text().replace("features:\n", FEATURES, 1))
    scenario, store = load_scenario(file), open_store(tmp_path / "store", "shop")
    assert check_scenario(scenario) == []
    for ds in days(2):
        for step in ("ingest", "summarize", "join", "validate", "train"):
            run_step(step, scenario, ds, store, track=False)
    joined, trained = store.find("join", days(2)[1]), store.find("train", days(2)[1])
    assert joined is not None and trained is not None
    layout = Layout.from_scenario(scenario)
    samples = pq.read_table(joined.folder / "samples.parquet")
    encoded = encode(samples, layout)
    numbers = {number.name: encoded.numbers_NK[:, k] for k, number in enumerate(layout.numbers)}
    operations = ["spent_12h", "spent_2d", "rating", "cheapest", "dearest", "spread", "deviation", "median", "products"]
    for name in [*operations, "thirds_0", "thirds_1", "thirds_2"]:
        known = numbers[name][~np.isnan(numbers[name])]
        assert len(known) > 200 and len(np.unique(known)) > 5, name
    assert {"first_product", "last_buyer", "spent_12h:bucket", "products:bucket"} <= {s.name for s in layout.slots}
    for name in ("favourites", "looked", "looked_result", "looked_ago"):
        keys, offsets = encoded.bags[name]
        assert len(keys) > 400 and offsets[-1] == len(keys), name
