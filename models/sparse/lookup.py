"""The ids of a batch, and the rows and places that they were resolved to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.sparse.id_map import Ints, Rows

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ids:
    """Keys of a batch: one array [B] for each slot, then for each bag its keys [V] and offsets [B + 1].

    `shares`: by the number of a bag, the factor [V] of each value in the pooled embedding; of others it is the mean.
    """

    slots: Sequence[Ints]
    bags: Sequence[tuple[Ints, Ints]] = ()
    shares: Mapping[int, Floats] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """The number of samples B."""
        if self.slots:
            return len(self.slots[0])
        return len(self.bags[0][1]) - 1 if self.bags else 0


@dataclass(frozen=True)
class Lookup:
    """The rows of a batch; shapes as in `row_kernels`. `places`: where the storage holds the rows."""

    num_features: int
    places_BS: Rows
    bags: list[tuple[Rows, Ints, Floats, Floats]]  # places_V, offsets, scale_B, share_V (empty if all are 1)
    rows_U: Rows
    places_U: Rows
    offsets_U: Rows  # [U + 1]
    segments_N: Rows
    scale_S: Floats  # empty without bags
    share_N: Floats  # empty without shares; else those of segments_N, and takes the place of scale_S
    weight_PD: Floats | None = None  # for scoring: the weights that places index, if not those of the storage

    def part(self, number: int, parts: int) -> tuple[int, int]:
        """The distinct rows [begin, end) of a part. All parts have about as many occurrences of ids."""
        cuts = [len(self.segments_N) * n // parts for n in range(parts + 1)]
        begin, end = np.searchsorted(self.offsets_U[:-1], (cuts[number], cuts[number + 1]))
        return int(begin), int(end) if number < parts - 1 else len(self.rows_U)
