"""A checkpoint: a folder of JSON and safetensors that knows nothing of pickle, processes or insertion order.

checkpoint.json        scenario, day, parent, tasks, architecture, layout, what was restored from the parent
dense.safetensors      parameters and running moments, by name
embeddings.safetensors keys [R] ascending, tables [R], weights [R, D]
optimizer.safetensors  AdamW moments by parameter name, row-wise Adagrad state [R]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feature_jobs.errors import CorruptError
from feature_jobs.schema import Model
from feature_jobs.transforms import Layout
from models.embeddings import initial_weights
from models.ranker import Ranker

CHECKPOINT, DENSE, EMBEDDINGS, OPTIMIZER = (
    "checkpoint.json",
    "dense.safetensors",
    "embeddings.safetensors",
    "optimizer.safetensors",
)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Equal documents give equal bytes."""
    file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Equal tensors give equal bytes: safetensors orders them by type and name."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    file.chmod(0o644)  # it makes them readable by their owner alone


def save(ranker: Ranker, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the ranker; `facts` go into checkpoint.json."""
    keys_R, weight_RD, state_R, table_R = ranker.arena.sorted()
    rows = {"keys": torch.from_numpy(keys_R), "tables": torch.from_numpy(table_R), "weights": weight_RD}
    write_tensors(folder / EMBEDDINGS, rows)
    write_tensors(folder / DENSE, _pieces(ranker.network, ranker.network.state_dict()))
    optimizer = {f"{name}/{moment}": tensor for moment in MOMENTS for name, tensor in _moment(ranker, moment).items()}
    write_tensors(folder / OPTIMIZER, {**optimizer, "embeddings": state_R})
    document = {
        "tasks": list(ranker.tasks),
        "architecture": ranker.model.model_dump(mode="json"),
        "layout": ranker.layout.to_json(),
        "steps": ranker.steps,
    }
    write_json(folder / CHECKPOINT, {**facts, **document})


def read_facts(folder: Path) -> dict[str, Any]:
    """checkpoint.json. Raises CorruptError where it is missing or not readable."""
    try:
        facts: dict[str, Any] = json.loads((folder / CHECKPOINT).read_text())
        return facts
    except (OSError, ValueError) as error:
        raise _unreadable(folder / CHECKPOINT, error) from None


def load(folder: Path) -> Ranker:
    """The ranker of a checkpoint, for scoring. Raises CorruptError where a file is not readable or does not fit."""
    facts = read_facts(folder)
    try:
        layout, model = Layout.from_json(facts["layout"]), Model(**facts["architecture"])
        ranker = Ranker(layout, tuple(facts["tasks"]), model)
        report = _fill(_pieces(ranker.network, ranker.network.state_dict()), _tensors(folder / DENSE))
        if report["new"] or report["resized"] or report["dropped"]:
            raise ValueError(f"{DENSE} is not of this architecture")
        rows = _tensors(folder / EMBEDDINGS)
        keys_R = rows["keys"].numpy()
        ranker.arena.load(keys_R, rows["weights"], torch.zeros(len(keys_R)), rows["tables"].numpy())
        ranker.steps = int(facts["steps"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(folder, error) from None
    return ranker


def restore(ranker: Ranker, folder: Path) -> dict[str, Any]:
    """Carries a fresh ranker on from a parent checkpoint; returns what was restored, new, resized and dropped.

    Dense parameters and their optimizer state are matched by name, tables by namespace. What the parent lacks starts
    anew, with first-layer weights of zero, so that a new feature changes no score before it is learned. A table whose
    dimension changed keeps its leading dimensions. Raises CorruptError where the parent is not readable.
    """
    facts = read_facts(folder)
    try:
        report = {
            "dense": _restore_dense(ranker, _tensors(folder / DENSE), _tensors(folder / OPTIMIZER)),
            "tables": _restore_tables(ranker, folder, Layout.from_json(facts["layout"])),
        }
        ranker.steps = int(facts["steps"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(folder, error) from None
    return report


def _restore_dense(ranker: Ranker, saved: dict[str, Tensor], moments: dict[str, Tensor]) -> dict[str, Any]:
    pieces = _pieces(ranker.network, ranker.network.state_dict())
    report = _fill(pieces, saved)
    for name in report["new"]:
        if ":" in name.rpartition(".")[2]:  # the weights of a new feature
            pieces[name].detach().zero_()
    for moment in MOMENTS:
        fit = {f"{name}/{moment}": piece for name, piece in _moment(ranker, moment).items()}
        _fill(fit, {name: tensor for name, tensor in moments.items() if name in fit})
    return {**report, "restored": len(report["restored"])}


def _pieces(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named like the network's own, those with named columns as one view for each block of them."""
    pieces = dict(tensors)
    for path, module in network.named_modules():
        tensor_name, widths = getattr(module, "columns", ("", {}))
        whole = pieces.pop(f"{path}.{tensor_name}", None)
        if whole is not None:
            views = torch.split(whole, list(widths.values()), dim=1)
            pieces |= {f"{path}.{tensor_name}:{block}": view for block, view in zip(widths, views, strict=True)}
    return pieces


def _moment(ranker: Ranker, moment: str) -> dict[str, Tensor]:
    """One of the optimizer's moments for each piece of the network; the step count is one for a whole parameter."""
    state = ranker.optimizer.state
    found = {name: state[p][moment] for name, p in ranker.network.named_parameters()}
    return found if moment == "step" else _pieces(ranker.network, found)


@torch.no_grad()
def _fill(pieces: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Copies what has the same name and shape; returns the names restored, new, resized and dropped."""
    fits = [name for name, piece in pieces.items() if name in saved and saved[name].shape == piece.shape]
    for name in fits:
        pieces[name].copy_(saved[name])
    return {
        "restored": sorted(fits),
        "new": sorted(pieces.keys() - saved.keys()),
        "resized": sorted(pieces.keys() & saved.keys() - set(fits)),
        "dropped": sorted(saved.keys() - pieces.keys()),
    }


def _restore_tables(ranker: Ranker, folder: Path, parent: Layout) -> dict[str, Any]:
    rows, state_R = _tensors(folder / EMBEDDINGS), _tensors(folder / OPTIMIZER)["embeddings"]
    keys_R, tables_R, weight_RD = rows["keys"].numpy(), rows["tables"].numpy(), rows["weights"]
    ours = {namespace: i for i, namespace in enumerate(ranker.layout.namespaces)}
    moved_to = np.array([ours.get(namespace, -1) for namespace in parent.namespaces] or [-1], np.int16)
    table_R = moved_to[tables_R]
    kept_K = np.flatnonzero(table_R >= 0)
    dim, parent_dim = ranker.arena.dim, weight_RD.shape[1]
    weight_KD = initial_weights(keys_R[kept_K], dim)
    weight_KD[:, :parent_dim] = weight_RD[torch.from_numpy(kept_K), :dim]
    ranker.arena.load(keys_R[kept_K], weight_KD, state_R[torch.from_numpy(kept_K)], table_R[kept_K])
    num_rows = np.bincount(tables_R, minlength=len(parent.namespaces))
    sizes = dict(zip(parent.namespaces, map(int, num_rows), strict=True))
    return {
        "restored": {name: rows for name, rows in sizes.items() if name in ours},
        "new": sorted(ours.keys() - sizes.keys()),
        "resized": {} if dim == parent_dim else {"from": parent_dim, "to": dim},
        "dropped": {name: rows for name, rows in sizes.items() if name not in ours},
    }


def digest_of(folder: Path) -> str:
    """SHA-256 over names, sizes and digests of a folder's files, its manifest aside: the digest the store gives it."""
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[file.relative_to(folder).as_posix()] = {"sha256": digest, "bytes": file.stat().st_size}
    return hashlib.sha256((json.dumps(files, indent=1, sort_keys=True) + "\n").encode()).hexdigest()


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = load_file(file)
        return loaded
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from None


def _unreadable(place: Path, error: Exception) -> CorruptError:
    return CorruptError(
        f"{place}: not a readable checkpoint ({type(error).__name__}: {error}); restore it from a backup, or rebuild"
        " with `recloop chain replay --from DAY`"
    )
