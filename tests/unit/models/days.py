"""Small days of samples with a feature of every kind, and the scenario that names them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.schema import Scenario, load_scenario

SCENARIO = """
name: shop
data:
  path: nowhere
  events:
    path: events.parquet
    format: parquet
    time: {column: t}
    columns: {user: {type: int}, item: {type: int}, t: {type: int}, buys: {type: int}}
  user: user
  item: item
  days: {first: 2024-01-01, last: 2024-01-09}
labels: {click: buys > 0, buy: buys > 1}
features:
  user: {kind: id}
  item: {kind: id}
  city: {kind: id}
  user_city: {kind: cross, of: [user, city]}
  tags: {kind: ids}
  price: {kind: number, buckets: 2}
  seen: {kind: count, by: [user]}
  click_rate: {kind: rate, by: [user], of: buys > 0, buckets: 3}
  last_seen: {kind: recency, by: [user]}
  clicked: {kind: sequence, of: item, by: user, length: 4, table: item}
model: {embedding_dim: 4, bottom: [16, 8], tower: [8]}
train: {batch_size: 64, threads: 1, learning_rate: 0.01}
"""
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
NUM_USERS, NUM_ITEMS = 50, 30


def shop(folder: Path, **overrides: Any) -> Scenario:
    """The scenario; `model__embedding_dim=8` overrides a path."""
    (folder / "shop.yaml").write_text(SCENARIO)
    return load_scenario(folder / "shop.yaml", overrides={k.replace("__", "."): v for k, v in overrides.items()})


def day_table(ds: str, num_rows: int = 500) -> pa.Table:
    """Clicks follow user and item; some of everything is null."""
    rng = np.random.default_rng(int(ds.replace("-", "")))
    taste, charm = (np.random.default_rng(s).normal(size=n) for s, n in ((0, NUM_USERS), (1, NUM_ITEMS)))
    user, item = rng.integers(0, NUM_USERS, num_rows), rng.integers(0, NUM_ITEMS, num_rows)
    appeal = taste[user] + charm[item] + 0.5 * rng.normal(size=num_rows)
    city = np.array(["Rome", "Łódź", "a"])[user % 3]

    def some_null(values: Any) -> pa.Array:
        return pa.array(values, mask=rng.random(num_rows) < 0.1)

    def lists(values: Any, longest: int) -> list[Any]:
        return [
            None if n == longest + 1 else [values(k) for k in range(n)] for n in rng.integers(0, longest + 2, num_rows)
        ]

    return pa.table(
        {
            "key.event_time": np.sort(rng.integers(0, 86_400_000_000, num_rows)),
            "key.event_row": np.arange(num_rows),
            "key.user": user,
            "key.item": item,
            "user": user,
            "item": item,
            "city": some_null(city),
            "user_city": [f"{u}{chr(31)}{c}" for u, c in zip(user, city, strict=True)],
            "tags": pa.array(lists(lambda _: f"tag{rng.integers(0, 5)}", 3), pa.list_(pa.string())),
            "price": some_null(rng.lognormal(2, 1, num_rows)),
            "seen": rng.integers(0, 100, num_rows).astype(float),
            "click_rate": some_null(rng.random(num_rows)),
            "last_seen": some_null(rng.exponential(3600, num_rows)),
            "clicked": pa.array(lists(lambda _: int(rng.integers(0, NUM_ITEMS)), 4), pa.list_(pa.int64())),
            "label.click": pa.array((appeal > 0).astype(np.int8), mask=rng.random(num_rows) < 0.05),
            "label.buy": (appeal > 1).astype(np.int8),
        }
    )


def write_day(folder: Path, ds: str, num_rows: int = 500, **options: Any) -> Path:
    """The samples folder of a day."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(day_table(ds, num_rows), folder / "samples.parquet", **options)
    return folder
