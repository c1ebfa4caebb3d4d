"""The aggregates of a day's asking rows: rows of the edge days, and tiles of the whole days between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from feature_jobs.windows.days import Pieces, TileId, Window
from feature_jobs.windows.keys import Groups, Ints
from feature_jobs.windows.operations import Summary
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Operations, Tile


class Asked:
    """A day's asking rows: their times in the order of the log, and by key those that have one."""

    def __init__(self, groups: Groups, times_N: Ints) -> None:
        self.keys = groups.keys
        # By key and time, so that searches walk through memory instead of jumping: several times as fast.
        self.codes = groups.codes
        self.times = times_N[groups.order]
        # For each row of the log its place by key and time, and its key: -1 for a row without key.
        self.places_N, self.codes_N = np.full((2, len(times_N)), -1)
        self.places_N[groups.order] = np.arange(len(groups.order))
        self.codes_N[groups.order] = self.codes


def aggregate(
    asked: Asked,
    window: Window,
    pieces: Pieces,
    *,
    operations: Operations,
    runs: Mapping[int, Run],
    tiles: Mapping[TileId, Tile],
) -> dict[str, Summary]:
    """For each asking row and operation the summary of the rows in its window.

    `pieces` say which `runs` and `tiles` are read; KeyError where one of them is missing.
    """
    low, high = window.low(asked.times), window.high(asked.times)
    parts: dict[str, list[tuple[Summary, Ints]]] = {name: [] for name in operations}

    def add_run(run: Run) -> None:
        ranges = run.ranges(run.keys.find(asked.keys)[asked.codes], low, high)
        for name, operation in operations.items():
            parts[name].append((operation.of_ranges(run.rows, *ranges), asked.places_N))

    for day in pieces.old:
        add_run(runs[day])
    if pieces.tiles:
        # By key first: a key's many rows see the same whole days.
        for name, whole in _whole_days(asked, operations, [tiles[tile] for tile in pieces.tiles]).items():
            parts[name].append((whole, asked.codes_N))
    for day in pieces.new:
        add_run(runs[day])
    return {name: operation.combine(parts[name]) for name, operation in operations.items()}


def _whole_days(asked: Asked, operations: Operations, tiles: list[Tile]) -> dict[str, Summary]:
    """The summaries of all tiles, oldest first, for each asking key."""
    positions = [tile.keys.find(asked.keys) for tile in tiles]
    return {
        name: operation.combine([(tile.summaries[name], found) for tile, found in zip(tiles, positions, strict=True)])
        for name, operation in operations.items()
    }
