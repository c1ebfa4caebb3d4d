"""Step `train`: yesterday's checkpoint scores the day, then learns it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources.user_ids import Found, Users
from tasks.contract import DayConfig, Forgetting, Input, Metrics, Resources, step


def _find(_: Scenario, checkpoint: Path, users: Users) -> Found:
    from models.checkpoints.users import ids_with_rows

    rows = ids_with_rows(checkpoint, users.ids, [*users.tables, *users.others])
    known = {user for table in users.tables for user, has_row in zip(users.ids, rows[table], strict=True) if has_row}
    elsewhere = Counter(
        {column: int(rows[table].sum()) for table, columns in users.others.items() for column in columns}
    )
    return Found(sum(int(rows[table].sum()) for table in users.tables), frozenset(known), +elsewhere)


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
    forgetting=Forgetting(_find),
    shared=True,
)
def train(config: DayConfig, *, samples: Path, validation: Path, parent: Path | None, checkpoint: Path) -> Metrics:
    """Scores the day with its parent, then learns it. One pass over the day gives the next checkpoint of the chain.

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
