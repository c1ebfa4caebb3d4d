"""The aggregates of a day's asking rows: rows of the edge days, and tiles of the whole days between them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np

from feature_jobs.windows.days import Pieces, TileId, Window
from feature_jobs.windows.keys import Groups, Ints
from feature_jobs.windows.operations import Operation, Summary
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Operations, Tile


class Asked:
    """A day's asking rows: their times in the order of the log, and by key those that have one."""

    def __init__(self, groups: Groups, times_N: Ints) -> None:
        self.keys = groups.keys
        # By key and time, so that searches walk through memory instead of jumping: several times as fast.
        self.codes = groups.codes
        self.times = times_N[groups.order]
        self._place = np.full(len(times_N), -1)
        self._place[groups.order] = np.arange(len(groups.order))

    def in_order(self, operation: Operation, summary: Summary) -> Summary:
        """A summary of the rows by key as one of all rows in the order of the log; the identity for those without."""
        return operation.take(summary, self._place)


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
    found: dict[str, list[Summary]] = {name: [] for name in operations}

    def add_run(run: Run) -> None:
        ranges = run.ranges(run.keys.find(asked.keys)[asked.codes], low, high)
        for name, operation in operations.items():
            found[name].append(operation.of_ranges(run.rows, *ranges))

    for day in pieces.old:
        add_run(runs[day])
    if pieces.tiles:
        # By key first: a key's many rows see the same whole days.
        whole = _whole_days(asked, operations, [tiles[tile] for tile in pieces.tiles])
        for name, operation in operations.items():
            found[name].append(operation.take(whole[name], asked.codes))
    for day in pieces.new:
        add_run(runs[day])
    return {name: asked.in_order(op, reduce(op.combine, found[name])) for name, op in operations.items()}


def _whole_days(asked: Asked, operations: Operations, tiles: list[Tile]) -> dict[str, Summary]:
    """The summaries of all tiles, oldest first, for each asking key."""
    places = [tile.keys.find(asked.keys) for tile in tiles]
    return {
        name: reduce(
            operation.combine,
            (operation.take(tile.summaries[name], place) for tile, place in zip(tiles, places, strict=True)),
        )
        for name, operation in operations.items()
    }
