"""Settings that TorchRec cannot compute: reported by `recloop check` before a run, and by the ranks themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from feature_jobs.schema.training import Train

NOT_SHARDED = "TorchRec's tables have no `weighted` and no `pooling: sum` here"
OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd")

Mistake = tuple[tuple[str, ...], Any, str, str]
"""Location, value, problem, remedy."""


def sharding_problems(train: Train, dim: int, names: Sequence[str]) -> Iterator[Mistake]:
    """Problems of tables `names` of a dimension that `train.distributed` is to shard."""
    settings, place = train.distributed, ("train", "distributed")
    if not names:
        yield ("train", "backend"), train.backend, "no feature has an embedding to shard", "set native"
    for field, wanted in (("plan", settings.plan), ("capacity", settings.capacity)):
        for name in wanted:
            if name not in names:
                yield (*place, field, name), name, "no such table", f"there are: {', '.join(names)}"
    native = "or set train.backend: native"
    if train.embedding_optimizer not in OPTIMIZERS:
        what = "FBGEMM has no such update on CPUs"
        yield ("train", "embedding_optimizer"), train.embedding_optimizer, what, f"one of {OPTIMIZERS}, {native}"
    if train.clip_norm is not None:
        what = "FBGEMM's updates can't shorten a row's gradient"
        yield ("train", "clip_norm"), train.clip_norm, what, f"leave it out, {native}"
    if train.cache_rows is not None:
        yield ("train", "cache_rows"), train.cache_rows, "TorchRec's tables have no cache", f"leave it out, {native}"
    split = [name for name in names if not settings.planner and settings.plan.get(name, settings.kind) == "column_wise"]
    if split and train.embedding_optimizer == "rowwise_adagrad":
        what = f"{split[0]} is column_wise, where rowwise_adagrad would keep another sum for each part of a row"
        yield place, None, what, "set row_wise, or train.embedding_optimizer: adagrad"
    if dim % (4 * settings.ranks if split else 4):
        what = f"FBGEMM needs a multiple of 4{f' for each of {settings.ranks} ranks' if split else ''}"
        yield ("model", "embedding_dim"), dim, what, f"set another, {native}"
