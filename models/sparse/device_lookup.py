"""The lookup of a batch on a device, and the code that the plain and the fused row updates share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.sparse.rows import Step

if TYPE_CHECKING:
    from models.sparse.lookup import Lookup

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copies the array to the device; to CUDA through pinned memory, without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class DeviceLookup:
    """A `Lookup` whose arrays are tensors on a device."""

    num_features: int
    places_BS: Tensor
    bags: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # places_V, offsets, scale_B, share_V (empty if all are 1)
    places_U: Tensor
    offsets_U: Tensor
    segments_N: Tensor
    scale_S: Tensor
    share_N: Tensor
    weight_PD: Tensor | None

    @classmethod
    def of(cls, lookup: Lookup, device: torch.device) -> DeviceLookup:
        """Copies a lookup to the device."""
        bags = [
            (
                upload(places_V, device),
                upload(offsets.astype(np.int32), device),
                upload(scale_B, device),
                upload(share_V, device),
            )
            for places_V, offsets, scale_B, share_V in lookup.bags
        ]
        return cls(
            lookup.num_features,
            upload(lookup.places_BS, device),
            bags,
            upload(lookup.places_U, device),
            upload(lookup.offsets_U, device),
            upload(lookup.segments_N, device),
            upload(lookup.scale_S, device),
            upload(lookup.share_N, device),
            None if lookup.weight_PD is None else upload(lookup.weight_PD, device),
        )


def adam_corrections(step: Step) -> tuple[float, float]:
    """The rate for the first moment and the scale of the second, with Adam's bias correction."""
    return step.rate / (1 - FIRST_DECAY**step.number), 1 / (1 - SECOND_DECAY**step.number)
