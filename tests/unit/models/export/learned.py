"""A day learned from a table of samples, and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.schema import Quantize
from models.export.export import export
from models.training.day import train_day
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, shop


def learned(root: Path, features: dict[str, Any], samples: pa.Table) -> None:
    """Writes the folders `samples`, `checkpoint` and `export`."""
    scenario = shop(root, features=features, train__batch_size=32, train__learning_rate=0.03)
    for name in ("samples", "checkpoint", "export"):
        (root / name).mkdir()
    pq.write_table(samples, root / "samples/samples.parquet")
    train_day(TrainJob(scenario, DAYS[0], root / "samples", None, root / "checkpoint"))
    loose = Quantize(max_auc_loss=0.05, max_calibration_shift=0.1)
    export(root / "checkpoint", root / "samples", root / "export", loose)
