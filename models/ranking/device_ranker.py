"""Learns and scores on a device: embedding rows and the dense part are there, ids are looked up on the host.

A batch is one piece: gather and pool, forward and backward in the replica's type, fused updates. CUDA launches return
at once, so the next batch's ids are looked up and uploaded at the same time. The only wait in a step is for loss and
gradient norm. torch.compile and CUDA graphs are not used: the numbers of distinct rows and values change every batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

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

SHARE_OF_MEMORY = 0.5  # of the free memory is for embedding rows; the batch and its activations need the other half


def choose_device(setting: str) -> torch.device:
    """The device that `train.device` names. Raises BadInputError for cuda if torch finds no CUDA device."""
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise BadInputError(
            "train.device is cuda, but torch finds no CUDA device here: install torch's CUDA build and a driver, or set"
            " train.device to auto or cpu"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products in cuBLAS need it
    return torch.device("cuda")


def device_of_rank(group: Group, device: torch.device) -> torch.device:
    """Makes one of the node's GPUs the current device of this process. Raises BadInputError if there are too few."""
    if device.type != "cuda":
        return device
    if torch.cuda.device_count() < group.node_size:
        raise BadInputError(
            f"train.distributed.ranks: {group.node_size} on this node, which has {torch.cuda.device_count()} GPUs;"
            " start one for each GPU, or set train.device to cpu"
        )
    torch.cuda.set_device(group.rank % group.node_size)
    return torch.device("cuda", torch.cuda.current_device())


def rows_on(device: torch.device, dim: int, optimizer: Optimizer, train: Train, records: Records) -> CachedRows:
    """A cache on the device, of `train.cache_rows` rows or as many as fit, in front of all rows in `records`."""
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
    """A ranker whose storage is on a device (`DeviceRows`, or a cache of them), with the dense part there too."""

    def score(self, block: Block) -> Floats:
        """Probabilities [N, T], in float32."""
        self.network.eval()
        scores = [torch.empty(0, len(self.tasks), device=self.device)]
        with torch.no_grad():
            for batch in block.batches(SCORE_ROWS) if len(block) else ():
                lookup = DeviceLookup.of(self.tables.find(batch.ids), self.device)
                emb_BE = torch.zeros(len(batch), self.embedded_width, device=self.device)
                self.tables.storage.forward(lookup, 0, len(batch), emb_BE)
                scores.append(self.network(emb_BE, upload(batch.numbers_BK, self.device)).sigmoid())
        scores_NT: Floats = torch.cat(scores).cpu().numpy()
        return scores_NT

    def _prepare(self, batch: Batch | None, day: int) -> Uploaded | None:
        if batch is None:
            return None
        numbers_BK = upload(batch.numbers_BK, self.device)
        with torch.no_grad():
            self.network.standardize.observe(numbers_BK)
            # After `observe`, so that a number of the first batch is standardized too.
            numbers_BJ = self.network.standardize(numbers_BK)
        lookup = self.tables.lookup(batch.ids, day)
        labels_BT = upload(batch.labels_BT, self.device)
        return Uploaded(lookup, numbers_BJ, labels_BT, DeviceLookup.of(lookup, self.device))

    def _step(self, batch: Prepared, meanwhile: Callable[[], None]) -> float:
        batch = cast(Uploaded, batch)  # made by `_prepare`
        self.replica.reserve(1)
        unscale = 1 / self.scaler.scale
        launched: list[Tensor] = []

        def launch() -> None:
            launched.extend(self._gradients(batch, unscale))

        # The next batch is looked up on the CPU while the device computes this one.
        self.thread_pool.run([launch], first=meanwhile)
        gradient_BI, gradient, facts = launched
        loss, norm, total = facts.tolist()  # waits for the device
        finite = bool(np.isfinite([loss, norm, total]).all())
        if finite:
            step, rate_factor = self._begin_update(gradient, norm, unscale)
            self.tables.storage.update(batch.on_device, gradient_BI, step, 0, 1)
            self.optimizer.step(gradient, rate_factor)
            self.replica.refresh()
        self.scaler.update(finite)
        return float(loss)

    def _gradients(self, batch: Uploaded, unscale: float) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled gradient of the input, the gradient of the weights, and a tensor of loss, norm and a sum.

        The sum is not finite if any gradient of the input is not. Nothing here waits for the device.
        """
        width = self.embedded_width + batch.numbers_BJ.shape[1]
        input_BI = torch.zeros(len(batch), width, dtype=self.replica.dtype, device=self.device)
        self.tables.storage.forward(batch.on_device, 0, len(batch), input_BI)
        input_BI[:, self.embedded_width :] = batch.numbers_BJ
        loss_of = partial(weighted_loss, labels_BT=batch.labels_BT, weight_T=self._weights(batch.labels_BT))
        with dropout_seed(self._seed()):
            loss, gradient_BI = self.replica.backward(0, input_BI, loss_of)
        gradient = self.replica.gradient(1, unscale)
        total = gradient_BI.sum(dtype=torch.float32)
        return gradient_BI, gradient, torch.stack([loss.float() * unscale, gradient.norm(), total])
