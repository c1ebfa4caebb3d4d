"""Learning and scoring on a device: rows of embeddings and the dense part there, ids looked up here.

A batch is one piece: gather and pool, forward and backward under the replica's type, fused updates. Its launches return
at once, so the next batch's ids are looked up and uploaded meanwhile; one question about loss and norm is waited for.
torch.compile and CUDA graphs were left out: numbers of distinct rows and of values change with each batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Train
from models.architectures.dropout import dropout_seed
from models.distributed.process_group import Group
from models.ranking.ranker import CPU, SCORE_ROWS, Prepared, Ranker, weighted_loss
from models.samplers.batches import Batch, Block, Floats
from models.sparse.cached import CachedRows
from models.sparse.device import DeviceRows
from models.sparse.device_lookup import DeviceLookup, upload
from models.sparse.optimizers import Optimizer
from models.sparse.records import Records

SHARE_OF_MEMORY = 0.5  # of what is free, for rows; the rest is for the batch and its activations


def choose_device(setting: str) -> torch.device:
    """The device that `train.device` names. Raises BadInputError for cuda where there is none."""
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise BadInputError(
            "train.device is cuda, but torch finds no CUDA device here: install torch's CUDA build and a driver, or set"
            " train.device to auto or cpu"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products ask for
    return torch.device("cuda")


def device_of_rank(group: Group, device: torch.device) -> torch.device:
    """The process's own of its machine's GPUs, from now on the current one. Raises BadInputError for too few."""
    if device.type != "cuda":
        return device
    if torch.cuda.device_count() < group.node_size:
        raise BadInputError(
            f"train.distributed.ranks: {group.node_size} on this machine, which has {torch.cuda.device_count()} GPUs;"
            " start one for each GPU, or set train.device to cpu"
        )
    torch.cuda.set_device(group.rank % group.node_size)
    return torch.device("cuda", torch.cuda.current_device())


def rows_on(device: torch.device, dim: int, optimizer: Optimizer, train: Train, records: Records) -> CachedRows:
    """A cache on the device of `train.cache_rows` rows, or as many as fit, before all rows in `records`."""
    num_places = train.cache_rows or records.num_rows
    if device.type == "cuda" and train.cache_rows is None:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        num_places = min(num_places, int(free_bytes * SHARE_OF_MEMORY) // (4 * records.width))
    return CachedRows(DeviceRows(dim, optimizer, num_places, device), num_places, records)


@dataclass(frozen=True)
class Uploaded(Prepared):
    """A batch on the device."""

    on_device: DeviceLookup


class DeviceRanker(Ranker):
    """A ranker whose `rows` are `DeviceRows`, or have them as their cache, and whose dense part is on their device."""

    def score(self, block: Block) -> Floats:
        """Probabilities [N, T], in float32."""
        self.network.eval()
        scores = [torch.empty(0, len(self.tasks), device=self.device)]
        with torch.no_grad():
            for batch in block.batches(SCORE_ROWS) if len(block) else ():
                lookup = DeviceLookup.of(self.tables.find(batch.ids), self.device)
                emb_BE = torch.zeros(len(batch), self.embedded_width, device=self.device)
                self.tables.rows.forward(lookup, 0, len(batch), emb_BE)
                scores.append(self.network(emb_BE, upload(batch.numbers_BK, self.device)).sigmoid())
        scores_NT: Floats = torch.cat(scores).cpu().numpy()
        return scores_NT

    def _prepare(self, batch: Batch | None, day: int) -> Uploaded | None:
        if batch is None:
            return None
        numbers_BK = upload(batch.numbers_BK, self.device)
        with torch.no_grad():
            self.network.standardize.observe(numbers_BK)
            numbers_BJ = self.network.standardize(numbers_BK)
        lookup = self.tables.lookup(batch.ids, day)
        labels_BT = upload(batch.labels_BT, self.device)
        return Uploaded(lookup, numbers_BJ, labels_BT, DeviceLookup.of(lookup, self.device))

    def _step(self, batch: Prepared, meanwhile: Callable[[], None]) -> float:
        assert isinstance(batch, Uploaded)  # noqa: S101 (as `_prepare` makes them)
        self.replica.reserve(1)
        unscale = 1 / self.scaler.scale
        launched: list[Tensor] = []

        def launch() -> None:
            launched.extend(self._gradients(batch, unscale))

        self.thread_pool.run([launch], first=meanwhile)
        gradient_BI, gradient, facts = launched
        loss, norm, total = facts.tolist()  # waits for the device
        finite = bool(np.isfinite([loss, norm, total]).all())
        if finite:
            step, rate_factor = self._begin_update(gradient, norm, unscale)
            self.tables.rows.update(batch.on_device, gradient_BI, step, 0, 1)
            self.optimizer.step(gradient, rate_factor)
            self.replica.refresh()
        self.scaler.update(finite)
        return float(loss)

    def _gradients(self, batch: Uploaded, unscale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the input (scaled) and the weights, and on the device still: loss, norm, a sum that tells of
        gradients not finite."""
        width = self.embedded_width + batch.numbers_BJ.shape[1]
        input_BI = torch.zeros(len(batch), width, dtype=self.replica.dtype, device=self.device)
        self.tables.rows.forward(batch.on_device, 0, len(batch), input_BI)
        input_BI[:, self.embedded_width :] = batch.numbers_BJ
        loss_of = partial(weighted_loss, labels_BT=batch.labels_BT, weight_T=self._weights(batch.labels_BT))
        with dropout_seed(self._seed()):
            loss, gradient_BI = self.replica.backward(0, input_BI, loss_of)
        gradient = self.replica.gradient(1, unscale)
        total = gradient_BI.sum(dtype=torch.float32)
        return gradient_BI, gradient, torch.stack([loss.float() * unscale, gradient.norm(), total])
