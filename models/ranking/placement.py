"""Makes the ranker that a scenario asks for, with its device and its storage of embedding rows.

Read from `train.device`, `train.cache_rows`, `train.rows_folder` and, in a group of processes, `train.distributed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from feature_jobs.schema import Embedding, Model, Train
from feature_jobs.transforms import Layout
from models.distributed.process_group import Group
from models.ranking.device_ranker import DeviceRanker, choose_device, device_of_rank, rows_on
from models.ranking.precision import choose_precision
from models.ranking.ranker import CPU, Ranker
from models.sparse.cached import CachedRows
from models.sparse.optimizers import Optimizer
from models.sparse.records import FileRecords, MemoryRecords
from models.sparse.rows import HostRows
from models.sparse.sharded import ShardedRows
from models.sparse.tables import RESERVED_ROWS


def make_ranker(
    layout: Layout,
    tasks: tuple[str, ...],
    model: Model,
    train: Train,
    embeddings: Mapping[str, Embedding],
    *,
    scratch: Path,
    group: Group | None = None,
) -> Ranker:
    """A new ranker; `train.precision: auto` is replaced by the precision it stands for.

    `scratch`: a folder for a file of embedding rows, which is deleted with the process.
    """
    device = choose_device(train.device)
    if group is not None:
        device = device_of_rank(group, device)
    # TorchRec's backend computes the dense part on the processor, wherever its tables are.
    computes_on = device if group is None else CPU
    train = train.model_copy(update={"precision": choose_precision(train.precision, computes_on, group)})
    if group is not None:
        sharded = ShardedRows(
            model.embedding_dim, train, layout.namespaces, layout.feature_tables, group, device=device
        )
        ranker = Ranker(layout, tasks, model, train, embeddings, storage=sharded, group=group)
        sharded.bind(ranker.tables)
        return ranker
    optimizer, dim = Optimizer(train.embedding_optimizer, train.embedding_epsilon), model.embedding_dim
    folder = Path(train.rows_folder) if train.rows_folder else scratch
    width = dim + optimizer.state_width(dim)
    if device.type != "cpu":
        in_file = train.rows_folder is not None
        records = FileRecords(RESERVED_ROWS, width, folder) if in_file else MemoryRecords(RESERVED_ROWS, width)
        storage = rows_on(device, dim, optimizer, train, records)
        return DeviceRanker(layout, tasks, model, train, embeddings, storage=storage, device=device)
    if train.cache_rows is None:
        return Ranker(layout, tasks, model, train, embeddings)
    cache = HostRows(dim, optimizer, train.cache_rows)
    storage = CachedRows(cache, train.cache_rows, FileRecords(RESERVED_ROWS, width, folder))
    return Ranker(layout, tasks, model, train, embeddings, storage=storage)
