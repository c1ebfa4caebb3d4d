"""Where a ranker computes and its rows live, as `train.device`, `train.cache_rows`, `train.rows_folder` and, in a group
of processes, `train.distributed` say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from feature_jobs.schema import Embedding, Model, Train
from feature_jobs.transforms import Layout
from models.group import Group
from models.ranker import Ranker
from models.sparse.cached import CachedRows
from models.sparse.optimizers import Optimizer
from models.sparse.records import FileRecords
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
    """A fresh ranker. `scratch`: a folder where rows may lie in a file without a name."""
    if group is not None:
        namespaces = layout.namespaces
        table_F = [namespaces.index(name) for name in layout.feature_namespaces]
        sharded = ShardedRows(model.embedding_dim, train, namespaces, table_F, group)
        ranker = Ranker(layout, tasks, model, train, embeddings, rows=sharded, group=group)
        sharded.bind(ranker.tables)
        return ranker
    if train.cache_rows is None:
        return Ranker(layout, tasks, model, train, embeddings)
    optimizer, dim = Optimizer(train.embedding_optimizer, train.embedding_epsilon), model.embedding_dim
    folder = Path(train.rows_folder) if train.rows_folder else scratch
    records = FileRecords(RESERVED_ROWS, dim + optimizer.state_width(dim), folder)
    rows = CachedRows(HostRows(dim, optimizer, train.cache_rows), train.cache_rows, records)
    return Ranker(layout, tasks, model, train, embeddings, rows=rows)
