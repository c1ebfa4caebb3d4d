"""The aggregates of a day's asking rows: rows of the edge days, and tiles of the whole days between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from feature_jobs.windows.days import Pieces, TileId, Window
from feature_jobs.windows.keys import Groups, Ints
from feature_jobs.windows.rows import Cut, Edge, Summary
from feature_jobs.windows.runs import Run
from feature_jobs.windows.stretches import ROWS_AT_ONCE
from feature_jobs.windows.tiles import Operations, Tile


@dataclass(frozen=True)
class Question:
    """A window with its pieces, the runs and tiles that they name, and the operations asked for, by name.

    `stored`: the name that tiles have for what an operation reads, where it is not the operation's own name.
    """

    window: Window
    pieces: Pieces
    runs: Mapping[int, Run]
    tiles: Mapping[TileId, Tile]
    operations: Operations
    stored: Mapping[str, str] = field(default_factory=dict)

    @property
    def read(self) -> Operations:
        """The operations whose summaries it reads in tiles, by their name there."""
        return {self.place_of(name): operation.stored for name, operation in self.operations.items()}

    def place_of(self, name: str) -> str:
        """The name that tiles have for what an operation reads."""
        return self.stored.get(name, name)


class Asked:
    """A day's asking rows: their times in the order of the log, and by key those that have one."""

    def __init__(self, groups: Groups, times_N: Ints) -> None:
        self.groups, self.keys = groups, groups.keys
        # By key and time, so that searches walk through memory instead of jumping: several times as fast.
        self.codes = groups.codes
        self.times = times_N[groups.order]
        # For each row of the log its place by key and time, and its key: -1 for a row without key.
        self.places_N, self.codes_N = np.full((2, len(times_N)), -1)
        self.places_N[groups.order] = np.arange(len(groups.order))
        self.codes_N[groups.order] = self.codes


class Answers(Protocol):
    """Answers questions of the same asking rows, in their order."""

    @property
    def rows_at_once(self) -> int:
        """The number of asking rows that it is best asked for together."""

    def __call__(self, asked: Asked, questions: Sequence[Question]) -> Iterable[dict[str, Summary]]:
        """For each question the summaries of its operations, a value for each row of the log."""


@dataclass(frozen=True)
class InThisProcess:
    """Computes the answers, one after the other when each is taken."""

    rows_at_once: int = ROWS_AT_ONCE

    def __call__(self, asked: Asked, questions: Sequence[Question]) -> Iterator[dict[str, Summary]]:
        for one in questions:
            yield aggregate(asked, one)


answers = InThisProcess()


def aggregate(asked: Asked, question: Question) -> dict[str, Summary]:
    """For each asking row and operation the summary of the rows in its window.

    KeyError where a run or tile is missing that the pieces name.
    """
    window, pieces, runs, tiles = question.window, question.pieces, question.runs, question.tiles
    low, high = window.low(asked.times), window.high(asked.times)

    def edge(run: Run) -> Edge:
        found = run.keys.find(asked.keys)
        # The other way round: the position among the asked keys of each key of the run.
        asked_U = np.full(len(run.keys), -1)
        asked_U[found[found >= 0]] = np.flatnonzero(found >= 0)
        return Edge(run.rows, *run.ranges(found[asked.codes], low, high), asked_U, run.offsets)

    old, new = ([edge(runs[day]) for day in days] for days in (pieces.old, pieces.new))
    # By key: a key's many rows see the same whole days.
    whole = _whole_days(asked, question.read, [tiles[tile] for tile in pieces.tiles]) if pieces.tiles else {}
    return {
        name: operation.of_windows(
            Cut(
                window,
                num_keys=len(asked.keys),
                keys_A=asked.codes,
                times_A=asked.times,
                places_N=asked.places_N,
                keys_N=asked.codes_N,
                old=old,
                whole=whole.get(question.place_of(name)),
                new=new,
            )
        )
        for name, operation in question.operations.items()
    }


def _whole_days(asked: Asked, operations: Operations, tiles: list[Tile]) -> dict[str, Summary]:
    """The summaries of all tiles, oldest first, for each asking key."""
    positions = [tile.keys.find(asked.keys) for tile in tiles]
    return {
        name: operation.combine([(tile.summaries[name], found) for tile, found in zip(tiles, positions, strict=True)])
        for name, operation in operations.items()
    }
