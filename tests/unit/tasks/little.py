"""A very small recommender whose days are made here: real samples, real training, seconds in all."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.schema import Scenario, load_scenario
from tasks.store.scenario_store import Commit, ScenarioStore

SCENARIO = """
name: little
description: Will this user like this film?
data:
  path: data
  events:
    path: events.csv
    format: csv
    time: {column: t, unit: s}
    columns:
      user: {type: int, required: true}
      item: {type: int, required: true}
      t: {type: int, required: true}
      rating: {type: float, required: true}
      city: {type: string}
      zip: {type: int}
  user: user
  item: item
  days: {first: 2024-01-01, last: 2024-01-09}
labels: {like: rating >= 4, love: rating == 5}
features:
  user: {kind: id}
  item: {kind: id}
  zip: {kind: id}
  city: {kind: id}
  seen: {kind: count, by: [user]}
  liked: {kind: sequence, of: item, by: user, where: rating >= 4, length: 5, table: item}
model: {embedding_dim: 4, bottom: [16], tower: [8]}
train: {batch_size: 64, holdout_share: 0.4, threads: 1}
evaluate: {segments: {north: city == 'north', rare: city == 'rare'}, bootstrap: 50}
quantize: {calibration_rows: 1024, max_auc_loss: 0.05, max_calibration_shift: 0.2}
deploy: {min_segment_rows: 50, max_calibration_error: 3}
"""
DAYS = [f"2024-01-0{n}" for n in range(1, 10)]
NUM_USERS, NUM_ITEMS = 40, 25


def little_scenario(folder: Path, **overrides) -> Scenario:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "little.yaml").write_text(SCENARIO)
    return load_scenario(folder / "little.yaml", overrides=overrides)


def write_samples(folder: Path, ds: str, num_rows: int = 600, flip: float = 0.0) -> None:
    """A day whose labels follow how generous a user and how good an item is; `flip` turns that share of them around."""
    folder.mkdir(parents=True, exist_ok=True)
    of_user, of_item = np.random.default_rng(0).normal(size=NUM_USERS), np.random.default_rng(1).normal(size=NUM_ITEMS)
    rng = np.random.default_rng(int(ds.replace("-", "")))
    user, item = rng.integers(0, NUM_USERS, num_rows), rng.integers(0, NUM_ITEMS, num_rows)
    appeal = of_user[user] + of_item[item] + 0.5 * rng.normal(size=num_rows)
    appeal = np.where(rng.random(num_rows) < flip, -appeal, appeal)
    city = pa.array(np.where(user % 3 == 0, "north", "south"), mask=rng.random(num_rows) < 0.1)
    liked = [[int(i) for i in rng.integers(0, NUM_ITEMS, n)] if n else None for n in rng.integers(0, 5, num_rows)]
    midnight = int(np.datetime64(ds, "us").astype(int))
    table = pa.table(
        {
            "key.event_time": midnight + np.sort(rng.integers(0, 86_400_000_000, num_rows)),
            "key.event_row": np.arange(num_rows),
            "key.user": user,
            "key.item": item,
            "user": user,
            "item": item,
            "zip": pa.array(user * 2**40, mask=rng.random(num_rows) < 0.2),
            "city": city,
            "seen": pa.array(rng.integers(0, 9, num_rows).astype(float), mask=rng.random(num_rows) < 0.1),
            "liked": pa.array(liked, pa.list_(pa.int64())),
            "label.like": pa.array((appeal > 0).astype(np.int8), mask=rng.random(num_rows) < 0.02),
            "label.love": (appeal > 1).astype(np.int8),
            "segment.north": user % 3 == 0,
            "segment.rare": user == 1,
        }
    )
    pq.write_table(table, folder / "samples.parquet")


def write_validation(folder: Path, ok: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drift = {"city": {"psi": 0.02, "limit": 0.25, "ok": True}, "seen": {"psi": 0.31, "limit": 0.25, "ok": False}}
    (folder / "verdict.json").write_text(json.dumps({"ok": ok, "failures": [], "warnings": [], "drift": drift}))


def commit(store: ScenarioStore, step: str, ds: str, folder: Path, **facts) -> Commit:
    """Commits a finished folder as the runner would."""
    import shutil

    with store.scratch() as scratch:
        shutil.copytree(folder, scratch / "output")
        return store.commit(step, ds, scratch / "output", {"inputs": {}, "code": "c0de", "gate": None, **facts})[0]
