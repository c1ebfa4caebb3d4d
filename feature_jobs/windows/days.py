"""Days of a window: those read row by row, those read as summaries, and the summaries that each day adds.

A day is known by its ordinal. A tile of level j covers the 2^j days from `first` on, and `first` is a multiple of 2^j:
so any range of n days is covered by at most 2 log2(n) + 1 tiles, and every tile has two halves of the level below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from feature_jobs.windows.keys import Ints


class TileId(NamedTuple):
    """The 2^level days from `first` on."""

    level: int
    first: int

    @property
    def last(self) -> int:
        """Its last day."""
        return self.first + (1 << self.level) - 1

    def halves(self) -> tuple[TileId, TileId]:
        """The two tiles of the level below, the older first."""
        return TileId(self.level - 1, self.first), TileId(self.level - 1, self.first + (1 << (self.level - 1)))


def cover(first: int, last: int, max_level: int) -> list[TileId]:
    """The fewest tiles, of levels up to `max_level`, that hold the days from `first` to `last`, oldest first."""
    tiles = []
    while first <= last:
        # The longest tile that may begin here (by the zeros at the end of the ordinal) and does not end too late.
        level = min(max_level, (last - first + 1).bit_length() - 1)
        # 0 has no lowest bit: a tile of any level may begin there.
        if first:
            level = min(level, (first & -first).bit_length() - 1)
        tiles.append(TileId(level, first))
        first += 1 << level
    return tiles


def completed(previous: int, day: int, genesis: int, max_level: int) -> list[TileId]:
    """The tiles that a day adds, after those of the day `previous`: the halves of a tile come before it.

    Days between the two have no rows, yet their tiles exist, so that a missing tile is always an error. No tile begins
    before `genesis`, the first day of all; for that one `previous` is `genesis - 1`.
    """
    found = []
    for last in range(previous + 1, day + 1):
        for level in range(max_level + 1):
            first = last - (1 << level) + 1
            # Where a tile does not end, none that is twice as long does.
            if first % (1 << level) or first < genesis:
                break
            found.append(TileId(level, first))
    return found


@dataclass(frozen=True)
class Partitions:
    """Days that have rows, oldest first: day `days[i]` holds the times [begins[i], ends[i]) in microseconds.

    Their lengths may differ (change of the clock, a warm-up), and days may be missing.
    """

    days: Ints
    begins: Ints
    ends: Ints


@dataclass(frozen=True)
class Pieces:
    """The parts of all windows of one day, oldest first: rows of `old` days, `tiles`, rows of `new` days.

    A short window holds no day whole: then all its days are in `old`.
    """

    old: tuple[int, ...]
    tiles: tuple[TileId, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """The earlier rows that count: strictly before the asking row, at most `width_us` and at least `delay_us` old."""

    width_us: int
    delay_us: int = 0

    def __post_init__(self) -> None:
        if self.width_us < 1 or self.delay_us < 0:
            raise ValueError(f"a window of {self.width_us} µs with a delay of {self.delay_us} µs does not exist")

    @property
    def least_age_us(self) -> int:
        """Strictly before means at least a microsecond old."""
        return max(self.delay_us, 1)

    def low(self, times: Ints) -> Ints:
        """The oldest time that counts for each asking time."""
        return times - self.width_us

    def high(self, times: Ints) -> Ints:
        """The first time that no longer counts."""
        return times - self.least_age_us + 1

    def pieces(self, partitions: Partitions, day: int, max_level: int) -> Pieces:
        """The runs and tiles that this window needs on the last of `partitions`; tiles exist up to `max_level`."""
        days, begins, ends = partitions.days, partitions.begins, partitions.ends
        if days[-1] != day:
            raise ValueError(f"the last partition is {days[-1]}, not the day {day}")
        start, end = int(begins[-1]), int(ends[-1])
        read = np.flatnonzero((ends > start - self.width_us) & (begins <= end - 1 - self.least_age_us))
        # Whole for each time of the day: for its last one at the old side, for its first one at the new side.
        whole = (begins[read] >= end - 1 - self.width_us) & (ends[read] <= start - self.least_age_us + 1)
        inside = read[whole]
        if not len(inside):
            # With a delay longer than the past there is nothing to read: the day itself gives the columns their types.
            return Pieces(tuple(days[read].tolist()) or (day,), (), ())
        old, new = days[read[read < inside[0]]], days[read[read > inside[-1]]]
        tiles = cover(int(days[inside[0]]), int(days[inside[-1]]), max_level)
        return Pieces(tuple(old.tolist()), tuple(tiles), tuple(new.tolist()))
