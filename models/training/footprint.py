"""The rows and bytes that a day's training would begin with, computed before any of it is read or allocated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypedDict

import torch

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.transforms import Layout
from models.checkpoints import checkpoint as checkpoints
from models.ranking.networks import Network
from models.sparse.admission import SKETCH_CELLS
from models.sparse.id_map import ENTRY_BYTES, capacity_for
from models.sparse.optimizers import Optimizer
from models.sparse.tables import BOOKKEEPING_BYTES

FLOAT_BYTES = 4


class TableFootprint(TypedDict, total=False):
    """One table. `fate`: `restored`, `new` or `dropped` (then only `fate` and `rows` are given).

    `row_bytes`: of one row; `most_bytes`: of a full table, None without a capacity.
    """

    fate: str
    rows: int
    weight_bytes: int
    state_bytes: int
    bookkeeping_bytes: int
    row_bytes: int
    most_bytes: int | None
    settings: dict[str, Any]


class DenseFootprint(TypedDict):
    """The dense part: parameters, and the bytes of weights and two moments."""

    parameters: int
    bytes: int


class Footprint(TypedDict):
    """Rows and bytes of a model. `cached_rows`: None without `train.cache_rows`; `changes`: None without a parent."""

    tables: dict[str, TableFootprint]
    id_map_bytes: int
    sketch_bytes: int
    cached_rows: int | None
    dense: DenseFootprint
    changes: checkpoints.Restored | None


def footprint(scenario: Scenario, parent: Path | None) -> Footprint:
    """Computes rows and bytes of the scenario's model, restored from a parent's folder or new.

    Raises CorruptError for an unreadable parent.
    """
    train, names, dim = scenario.train, Layout.from_scenario(scenario).namespaces, scenario.model.embedding_dim
    network = _shapes_of(scenario)
    found = None
    if parent is not None:
        # Without its embeddings: a plan must not read gigabytes.
        found = checkpoints.changes(network, names, dim, train.embedding_optimizer, parent)
    kept: dict[str, int] = found["tables"]["restored"] if found else {}
    dropped: dict[str, int] = found["tables"]["dropped"] if found else {}
    # One sum a row for rowwise_adagrad, several values a weight for others: state can outweigh the weights.
    state_width = Optimizer(train.embedding_optimizer).state_width(dim)
    row_bytes = FLOAT_BYTES * (dim + state_width) + BOOKKEEPING_BYTES
    tables: dict[str, TableFootprint] = {}
    for name in names:
        settings, rows = scenario.embeddings.get(name), kept.get(name, 0)
        capacity = settings.capacity if settings else None
        tables[name] = {
            "fate": "restored" if name in kept else "new",
            "rows": rows,
            "weight_bytes": rows * FLOAT_BYTES * dim,
            "state_bytes": rows * FLOAT_BYTES * state_width,
            "bookkeeping_bytes": rows * BOOKKEEPING_BYTES,
            "row_bytes": row_bytes,
            "most_bytes": capacity * row_bytes if capacity else None,
            "settings": settings.model_dump(exclude_defaults=True) if settings else {},
        }
    for name, rows in dropped.items():
        # Shown, because a feature that was switched off by mistake loses all it has learned.
        tables[name] = {"fate": "dropped", "rows": rows}
    num_parameters, dense_bytes = _dense(network)
    # The sketch is allocated only where ids have to wait for their row.
    counted = any(settings.min_count > 1 for name, settings in scenario.embeddings.items() if name in names)
    return {
        "tables": tables,
        "id_map_bytes": ENTRY_BYTES * capacity_for(sum(kept.values())),
        "sketch_bytes": SKETCH_CELLS if counted else 0,
        "cached_rows": train.cache_rows,
        "dense": {"parameters": num_parameters, "bytes": dense_bytes},
        "changes": found,
    }


def refuse_too_large(scenario: Scenario, memory_bytes: int | None = None) -> None:
    """Raises BadInputError for a model whose dense part alone is larger than the memory (default: this machine's)."""
    memory = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    num_parameters, dense_bytes = _dense(_shapes_of(scenario))
    if dense_bytes > memory:
        raise BadInputError(
            f"{scenario.place_of('model')}: model: its {num_parameters:,} parameters take"
            f" {dense_bytes / 2**30:,.1f} GiB with their moments, this machine has {memory / 2**30:,.1f}"
            " GiB; lower the widths of model.bottom and model.tower, model.num_experts, or model.embedding_dim"
        )


def _shapes_of(scenario: Scenario) -> Network:
    """The network without its values: no memory is taken."""
    # Else a mistyped width would take the memory that this is about to refuse.
    with torch.device("meta"):
        return Network(Layout.from_scenario(scenario), scenario.tasks, scenario.model)


def _dense(network: Network) -> tuple[int, int]:
    """Parameters of the dense part, and the bytes of weights and two moments."""
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    # AdamW keeps two moments of each weight; gradients come and go with a batch.
    return num_parameters, 3 * FLOAT_BYTES * num_parameters
