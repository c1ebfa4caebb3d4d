"""Days to replay, and a finished study."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.schema import load_scenario
from models.training.day import train_day
from models.training.job import TrainJob
from tests.unit.tasks.tuning.tiny import DAYS, SCENARIO, run


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """Three days of samples, and the checkpoint of the first."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "tiny.yaml").write_text(SCENARIO)
    scenario = load_scenario(folder / "tiny.yaml")
    for number, ds in enumerate(DAYS):
        rng = np.random.default_rng(number)
        num_rows = 1000
        item, age = rng.integers(0, 20, num_rows), rng.normal(40, 10, num_rows)
        likes = 0.5 + np.where(item % 2, 0.15, -0.15) + np.where(age > 40, 0.3, -0.3)
        table = {
            "key.event_time": np.arange(num_rows, dtype=np.int64),
            "key.event_row": np.arange(num_rows, dtype=np.int64),
            "key.user": rng.integers(0, 30, num_rows),
            "key.item": item,
            "item": item,
            "age": age,
            "recent": rng.integers(0, 9, num_rows).astype(float),
            "label.like": (rng.random(num_rows) < likes).astype(np.int8),
        }
        (folder / "samples" / ds).mkdir(parents=True)
        pq.write_table(pa.table(table), folder / "samples" / ds / "samples.parquet")
    (folder / "checkpoint").mkdir()
    train_day(TrainJob(scenario, DAYS[0], folder / "samples" / DAYS[0], None, folder / "checkpoint"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(chain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, chain)
    return folder
