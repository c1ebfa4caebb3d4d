"""Step `train`: yesterday's checkpoint scores the day, then learns it."""

from __future__ import annotations

from pathlib import Path

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from tasks.contract import DayConfig, Forgetting, Input, Metrics, Resources, Users, step


def _rows_of(scenario: Scenario, checkpoint: Path, users: Users) -> int:
    from models.checkpoints.users import num_user_rows

    return num_user_rows(scenario, checkpoint, users)


@step(
    reads={
        "samples": Input(),
        "validation": Input(),
        "parent": Input(of="checkpoint", days="previous", is_parent=True),
    },
    writes="checkpoint",
    asset="checkpoint",
    config=("model", "features", "labels", "train"),
    resources=Resources(cpus=2, memory_gib=8),
    imports=("models.training.day",),
    headline={
        "progressive/*/auc": "auc/*",
        "progressive/*/gauc": "gauc/*",
        "progressive/*/normalized_entropy": "normalized_entropy/*",
        "progressive/*/calibration": "calibration/*",
        "num_rows": "rows",
    },
    resumable=True,
    forgetting=Forgetting(_rows_of),
    shared=True,
)
def train(config: DayConfig, *, samples: Path, validation: Path, parent: Path | None, checkpoint: Path) -> Metrics:
    """Scores the day with its parent, learns it in one pass, and writes the next checkpoint of the chain.

    The last rows by event time are scored before they are learned: they judge the challenger. `validation` is read
    for its verdict alone: a day that failed validation is not trained on.
    """
    from models.distributed.nodes import Nodes
    from models.training.day import train_day
    from models.training.job import TrainJob
    from models.training.ranks import train_day_on_ranks

    scenario, ds = config.scenario, config.ds
    train_with = train_day_on_ranks if scenario.train.backend == "torchrec" else train_day
    num_machines = Nodes.from_environment().size
    if num_machines > 1 and train_with is train_day:
        raise BadInputError(
            f"train.backend: {scenario.train.backend}: trains on one machine, so that PET_NNODES={num_machines} would"
            " compute the same day as often; set train.backend: torchrec, or start one"
        )
    return dict(train_with(TrainJob(scenario, ds, samples, parent, checkpoint, config.resume, config.progress)))
