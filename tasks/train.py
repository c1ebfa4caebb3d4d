"""Step `train`: yesterday's checkpoint scores the day, then learns it."""

from __future__ import annotations

from pathlib import Path

from tasks.contract import DayConfig, Input, Metrics, Resources, step


@step(
    reads={
        "samples": Input(),
        "validation": Input(),
        "parent": Input(of="checkpoint", days="previous"),
    },
    writes="checkpoint",
    config=("model", "features", "labels", "train"),
    resources=Resources(cpus=2, memory_gib=8),
    resumable=True,
)
def train(config: DayConfig, *, samples: Path, validation: Path, parent: Path | None, checkpoint: Path) -> Metrics:
    """Scores the day with its parent, learns it in one pass, and writes the next checkpoint of the chain.

    The last rows by event time are scored before they are learned: they judge the challenger. `validation` is read
    for its verdict alone: without it there is no day to train on.
    """
    from models.distributed_training import train_day_on_ranks
    from models.training import train_day

    scenario, ds = config.scenario, config.ds
    train_with = train_day_on_ranks if scenario.train.backend == "torchrec" else train_day
    return train_with(scenario, ds, samples, parent, checkpoint, resume=config.resume, progress=config.progress)
