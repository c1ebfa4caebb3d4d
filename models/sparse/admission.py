"""Admission of ids to rows (counted in a sketch), and eviction of rows (by time and frequency)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from feature_jobs.schema import Embedding
from models.sparse.id_map import Flags, Ints, Rows

SKETCH_CELLS = 1 << 24  # bytes: one for each cell
KEEP_SHARE = 0.9  # of the capacity is kept: an eviction sweeps all keys, so it should be rare


class Sketch:
    """Counts ids that have no row yet, in two saturating bytes per key, in fixed memory.

    Count-min with conservative update (Estan and Varghese, 2002). It never underestimates: an id may be admitted early,
    never late.
    """

    def __init__(self, num_cells: int = SKETCH_CELLS) -> None:
        self.counts: npt.NDArray[np.uint8] = np.zeros(num_cells, np.uint8)


def leaving(settings: Embedding, keys_R: Ints, count_R: Rows, day_R: Rows, keep_R: Flags, *, over: int | None) -> Flags:
    """Flags [R] of the rows of a table to evict.

    First, if day `over` has ended, those not seen for more than `ttl_days`. Then, if more than `capacity` are left, the
    least often seen (ties: the longest unseen, then by key), down to nine tenths of the capacity. Rows `keep_R` stay.
    """
    gone_R: Flags = np.zeros(len(keys_R), np.bool_)
    if settings.ttl_days is not None and over is not None:
        gone_R |= (day_R < over - settings.ttl_days) & ~keep_R
    num_left = len(keys_R) - int(gone_R.sum())
    if settings.capacity is not None and num_left > settings.capacity:
        surplus = num_left - int(settings.capacity * KEEP_SHARE)
        order = np.lexsort((keys_R, day_R, count_R))
        gone_R[order[~(gone_R | keep_R)[order]][:surplus]] = True
    return gone_R
