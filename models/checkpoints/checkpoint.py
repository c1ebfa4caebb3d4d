"""A checkpoint is a folder of JSON and safetensors, without pickle.

Its bytes do not depend on the number of processes that wrote it, or on the order in which ids came.

checkpoint.json        scenario, day, parent, tasks, architecture, layout, steps, loss scaler, restored parts
dense.safetensors      parameters and running moments, by name
embeddings.safetensors keys [R] ascending, their tables [R], weights [R, D]; default rows [T, D]
optimizer.safetensors  dense: AdamW moments by parameter name, and the residual of a compressed gradient ("/rest");
                       embeddings: optimizer state [R, K], the last day and the count of each row [R], state of
                       default rows [T, K], the sketch of rare ids
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from feature_jobs.control_records import read_record_file
from feature_jobs.errors import CorruptError
from feature_jobs.schema import Model
from feature_jobs.transforms import Layout
from models.checkpoints.files import CHECKPOINT_FILE
from models.checkpoints.tensor_files import Rows, read_rows, read_shapes, read_tensors, read_types, write_tensors
from models.distributed.process_group import lost_the_others
from models.ranking.networks import Network
from models.ranking.precision import LossScaler
from models.ranking.ranker import Ranker

FILES = CHECKPOINT, DENSE, EMBEDDINGS, OPTIMIZER = (
    CHECKPOINT_FILE,
    "dense.safetensors",
    "embeddings.safetensors",
    "optimizer.safetensors",
)


class DenseChanges(TypedDict):
    """Dense tensors: number of restored ones, and names of those that are new, of another shape or dropped."""

    restored: int
    new: list[str]
    resized: list[str]
    dropped: list[str]


class TableChanges(TypedDict):
    """Tables by name, with their rows in the parent. `resized`: the embedding dimension, `optimizer`: its name, each as
    {"from", "to"} if it changed, else empty."""

    restored: dict[str, int]
    new: list[str]
    resized: dict[str, int]
    dropped: dict[str, int]
    optimizer: dict[str, str]


class Restored(TypedDict, total=False):
    """The parts restored from a parent's checkpoint; empty without a parent."""

    dense: DenseChanges
    tables: TableChanges


REMEDY = "restore it from a backup, or rebuild in a new generation (recloop chain replay)"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # as torch's AdamW names them
ERRORS = (LookupError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError)


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Writes JSON. Equal documents give equal bytes."""
    file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def save(ranker: Ranker, folder: Path | None, facts: Mapping[str, Any]) -> None:
    """Writes the ranker; `facts` go into checkpoint.json.

    In a group all processes must call it, because reading sharded rows is collective. Rank 0 has a folder.
    """
    # The other ranks take part in the collective reads, and their bytes go nowhere.
    files = {name: folder / name if folder else Path(os.devnull) for name in FILES}
    tables = ranker.tables
    # By ascending key: the order of rows in memory depends on the history, the file must not.
    keys_R, rows_R = tables.items()
    defaults, default_states = tables.storage.read(tables.default_rows)
    width = tables.optimizer.state_width(tables.dim)
    write_tensors(
        files[EMBEDDINGS],
        {
            "keys": keys_R,
            "tables": tables.table_R[rows_R],
            # Rows are read in chunks: a table on disk or on other ranks does not fit in memory at once.
            "weights": Rows((len(rows_R), tables.dim), np.float32, lambda a, b: tables.storage.read(rows_R[a:b])[0]),
            "defaults": defaults,
        },
    )
    write_tensors(files[DENSE], _pieces(ranker.network, ranker.network.state_dict()))
    moments = {f"{name}/{moment}": tensor for moment in MOMENTS for name, tensor in _moment(ranker, moment).items()}
    sparse: dict[str, Any] = {
        "embeddings/state": Rows((len(rows_R), width), np.float32, lambda a, b: tables.storage.read(rows_R[a:b])[1]),
        "embeddings/defaults": default_states,
        "embeddings/days": tables.day_R[rows_R],
        "embeddings/counts": tables.count_R[rows_R],
    }
    if tables.sketch is not None:
        sparse["embeddings/sketch"] = tables.sketch.counts
    write_tensors(files[OPTIMIZER], {**moments, **_residual(ranker), **sparse})
    document = {
        "tasks": list(ranker.tasks),
        "architecture": ranker.model.model_dump(mode="json"),
        "layout": ranker.layout.to_json(),
        "steps": ranker.steps,
        "loss_scaler": asdict(ranker.scaler),
        "embedding_optimizer": tables.optimizer.name,
        "table_rows": {name: int(rows) for name, rows in zip(tables.names, tables.rows_T, strict=True)},
    }
    write_json(files[CHECKPOINT], {**facts, **document})


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads checkpoint.json, whose content depends on the architecture and the release that wrote it.

    Raises CorruptError if it is missing or not readable.
    """
    try:
        return read_record_file(folder / CHECKPOINT, dict[str, Any], REMEDY)
    except OSError as error:
        raise _unreadable(folder / CHECKPOINT, error) from None


def load(folder: Path) -> Ranker:
    """The ranker of a checkpoint, for scoring. Raises CorruptError if a file is not readable or does not fit."""
    facts = read_facts(folder)
    try:
        layout = Layout.from_json(facts["layout"], str(folder / CHECKPOINT))
        model = Model(**facts["architecture"])
        ranker = Ranker(layout, tuple(facts["tasks"]), model)
        # A model that serves must be whole: unlike `restore`, nothing may be new or left over.
        report = _fill(_pieces(ranker.network, ranker.network.state_dict()), read_tensors(folder / DENSE))
        if report["new"] or report["resized"] or report["dropped"]:
            raise ValueError(f"{DENSE} has another architecture than {CHECKPOINT} names")
        _restore_tables(ranker, folder, facts)
        ranker.steps = int(facts["steps"])
    except ERRORS as error:
        raise _unreadable(folder, error) from None
    return ranker


def restore(ranker: Ranker, folder: Path) -> Restored:
    """Restores a new ranker from a parent checkpoint.

    Dense parameters and their optimizer state are matched by name, tables by namespace. Parts missing in the parent
    keep their initial values, but the first-layer weights of a new feature are zero, so that it changes no score before
    it is learned. If the embedding dimension changed, the first columns are kept. Raises CorruptError if the parent is
    not readable.
    """
    facts = read_facts(folder)
    try:
        report: Restored = {
            "dense": _restore_dense(ranker, read_tensors(folder / DENSE), folder / OPTIMIZER),
            "tables": _restore_tables(ranker, folder, facts),
        }
        ranker.steps = int(facts["steps"])
        # Another precision starts with its own scale: float16's would be meaningless for it.
        if ranker.scaler.dynamic == facts["loss_scaler"]["dynamic"]:
            ranker.scaler = LossScaler(**facts["loss_scaler"])
    except ERRORS as error:
        if lost_the_others(error):  # a lost connection is a RuntimeError too, but says nothing of the parent
            raise
        raise _unreadable(folder, error) from None
    return report


def changes(network: Network, names: Sequence[str], dim: int, optimizer: str, folder: Path) -> Restored:
    """Returns the same as `restore` for a new ranker with tables `names`, this dimension and optimizer.

    Reads only names and shapes. Raises CorruptError if the parent is not readable.
    """
    facts = read_facts(folder)
    try:
        pieces = _pieces(network, network.state_dict())
        dense = _compared(_shapes(pieces), read_shapes(folder / DENSE))
        tables = _table_changes(names, dim, optimizer, facts)
    except ERRORS as error:
        raise _unreadable(folder, error) from None
    return {"dense": _counted(dense), "tables": tables}


def _restore_dense(ranker: Ranker, saved: dict[str, Tensor], optimizer: Path) -> DenseChanges:
    pieces = _pieces(ranker.network, ranker.network.state_dict())
    report = _fill(pieces, saved)
    known = {_whole(name) for name in saved if _whole(name) != name}
    for name in report["new"]:
        if _whole(name) in known:  # the weights of a new feature
            pieces[name].detach().zero_()
    for moment in MOMENTS:
        # By piece, like the weights: the moments of a new feature are zero, those of the others go on.
        fit = {f"{name}/{moment}": piece for name, piece in _moment(ranker, moment).items()}
        _fill(fit, read_tensors(optimizer, fit))
    # The residual is one sum over all ranks: with it on each rank it would be added once per rank.
    if (residual := _residual(ranker)) and ranker.group is not None and ranker.group.is_leader:
        _fill(residual, read_tensors(optimizer, residual))
    return _counted(report)


def _pieces(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the network's names. One with named blocks becomes a view per block: `weight:ROWS:COLUMNS`."""
    pieces = dict(tensors)
    for path, module in network.named_modules():
        for tensor_name, named in getattr(module, "blocks", {}).items():
            whole = pieces.pop(f"{path}.{tensor_name}", None)
            views = {} if whole is None else {f"{path}.{tensor_name}": whole}
            for dim, widths in named.items():
                views = {
                    f"{name}:{block}": view
                    for name, tensor in views.items()
                    for block, view in zip(widths, torch.split(tensor, list(widths.values()), dim), strict=True)
                }
            pieces |= views
    return pieces


def _whole(piece: str) -> str:
    """The name of the tensor that a piece is a block of; a whole tensor's own name."""
    path, dot, name = piece.rpartition(".")
    return path + dot + name.partition(":")[0]


def _moment(ranker: Ranker, moment: str) -> dict[str, Tensor]:
    """One of the optimizer's moments for each piece of the network; the step count for each whole parameter."""
    state = ranker.optimizer.state
    found = {name: state[p][moment] for name, p in ranker.network.named_parameters()}
    return found if moment == "step" else _pieces(ranker.network, found)


def _residual(ranker: Ranker) -> dict[str, Tensor]:
    """The residual of the compressed gradient (see `compression`), for each piece of the network."""
    if ranker.exchange is None or ranker.exchange.residual_N is None:
        return {}
    parts = ranker.optimizer.split(ranker.exchange.residual_N)
    named = {name: part for (name, _), part in zip(ranker.network.named_parameters(), parts, strict=True)}
    return {f"{name}/rest": piece for name, piece in _pieces(ranker.network, named).items()}


@torch.no_grad()
def _fill(pieces: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Copies tensors of equal name and shape. Returns the names that are restored, new, resized and dropped."""
    report = _compared(_shapes(pieces), _shapes(saved))
    for name in report["restored"]:
        pieces[name].copy_(saved[name])
    return report


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _compared(pieces: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, list[str]]:
    fits = [name for name, shape in pieces.items() if saved.get(name) == shape]
    return {
        "restored": sorted(fits),
        "new": sorted(pieces.keys() - saved.keys()),
        "resized": sorted(pieces.keys() & saved.keys() - set(fits)),
        "dropped": sorted(saved.keys() - pieces.keys()),
    }


def _counted(names: Mapping[str, list[str]]) -> DenseChanges:
    return {
        "restored": len(names["restored"]),
        "new": names["new"],
        "resized": names["resized"],
        "dropped": names["dropped"],
    }


def _restore_tables(ranker: Ranker, folder: Path, facts: Mapping[str, Any]) -> TableChanges:
    """Loads the rows of those saved tables that the ranker has. Returns the changes of each table."""
    tables, names = ranker.tables, Layout.from_json(facts["layout"], str(folder / CHECKPOINT)).namespaces
    _check_tables(folder, len(names))
    ours = {name: table for table, name in enumerate(tables.names)}
    # Tables are matched by name: their numbers change.
    moved_to = np.array([ours.get(name, -1) for name in names] or [-1], np.int16)
    index = read_tensors(folder / EMBEDDINGS, ("keys", "tables", "defaults"))
    history = read_tensors(
        folder / OPTIMIZER, tuple(f"embeddings/{n}" for n in ("days", "counts", "defaults", "sketch"))
    )
    table_R = moved_to[index["tables"]]
    kept_R = table_R >= 0
    # Ids first, then weights in chunks: keys of all rows fit in memory, their weights may not.
    rows_K = tables.load(
        index["keys"].numpy()[kept_R],
        table_R[kept_R],
        history["embeddings/days"].numpy()[kept_R],
        history["embeddings/counts"].numpy()[kept_R],
    )
    rows_R = np.full(len(kept_R), -1, np.int32)
    rows_R[kept_R] = rows_K
    same_optimizer = facts["embedding_optimizer"] == tables.optimizer.name  # the state of another means something else
    parts = zip(
        read_rows(folder / EMBEDDINGS, "weights"), read_rows(folder / OPTIMIZER, "embeddings/state"), strict=True
    )
    for (begin, weight_RD), (_, state_RK) in parts:
        rows = rows_R[begin : begin + len(weight_RD)]
        kept = rows >= 0
        _write_leading(ranker, rows[kept], weight_RD[kept], state_RK[kept] if same_optimizer else None)
    old_T = np.flatnonzero(moved_to[: len(names)] >= 0)
    states = history["embeddings/defaults"].numpy()[old_T]
    defaults = index["defaults"].numpy()
    _write_leading(ranker, moved_to[old_T].astype(np.int32), defaults[old_T], states if same_optimizer else None)
    if tables.sketch is not None and "embeddings/sketch" in history:
        tables.sketch.counts[:] = history["embeddings/sketch"].numpy()
    return _table_changes(tables.names, tables.dim, tables.optimizer.name, facts)


def _check_tables(folder: Path, num_tables: int) -> None:
    """Raises ValueError where tensors of the tables do not fit each other: kernels read and write them unchecked."""
    found = {**read_types(folder / EMBEDDINGS), **read_types(folder / OPTIMIZER)}
    num_rows, dim = found["weights"][1]
    width = found["embeddings/state"][1][1]
    wanted = {
        "keys": ("I64", (num_rows,)),
        "tables": ("I16", (num_rows,)),
        "weights": ("F32", (num_rows, dim)),
        "defaults": ("F32", (num_tables, dim)),
        "embeddings/state": ("F32", (num_rows, width)),
        "embeddings/defaults": ("F32", (num_tables, width)),
        "embeddings/days": ("I32", (num_rows,)),
        "embeddings/counts": ("I32", (num_rows,)),
    }
    for name, fits in wanted.items():
        if found[name] != fits:
            raise ValueError(f"{name} is {found[name]}, not {fits}")


def _table_changes(names: Sequence[str], dim: int, optimizer: str, facts: Mapping[str, Any]) -> TableChanges:
    sizes, parent_dim = facts["table_rows"], facts["architecture"]["embedding_dim"]
    parent_optimizer = facts["embedding_optimizer"]
    return {
        "restored": {name: rows for name, rows in sizes.items() if name in names},
        "new": sorted(set(names) - sizes.keys()),
        "resized": {} if dim == parent_dim else {"from": parent_dim, "to": dim},
        "dropped": {name: rows for name, rows in sizes.items() if name not in names},
        "optimizer": {} if optimizer == parent_optimizer else {"from": parent_optimizer, "to": optimizer},
    }


def _write_leading(ranker: Ranker, rows_N: Any, weight_ND: Any, state_NK: Any | None) -> None:
    """Writes rows. If the dimension changed, as many first columns as fit; without a state, it stays initial."""
    rows, dim = ranker.tables.storage, weight_ND.shape[1]
    # Without reading first: the usual restore of a large table writes each row once.
    if dim == rows.dim and state_NK is not None:
        rows.write(rows_N, weight_ND, state_NK)
        return
    width = min(dim, rows.dim)
    ours_ND, ours_NK = rows.read(rows_N)
    ours_ND[:, :width] = weight_ND[:, :width]
    if state_NK is not None and state_NK.shape[1] == ours_NK.shape[1]:
        ours_NK = state_NK
    elif state_NK is not None:  # a state with moments of `dim` columns each, one value per weight
        # Adam has two of them side by side; each is cut or kept by itself.
        moments = state_NK.shape[1] // dim
        ours = ours_NK.reshape(len(rows_N), moments, rows.dim)
        ours[:, :, :width] = state_NK.reshape(len(rows_N), moments, dim)[:, :, :width]
    rows.write(rows_N, ours_ND, ours_NK)


def digest_of(folder: Path) -> str:
    """SHA-256 over names, sizes and digests of a folder's files except its manifest, as the store computes it."""
    # The store's own formula, written here again because models can't import tasks.
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[file.relative_to(folder).as_posix()] = {"sha256": digest, "bytes": file.stat().st_size}
    return hashlib.sha256((json.dumps(files, indent=1, sort_keys=True) + "\n").encode()).hexdigest()


def _unreadable(place: Path, error: Exception) -> CorruptError:
    return CorruptError(f"{place}: not a readable checkpoint ({type(error).__name__}: {error}); {REMEDY}")
