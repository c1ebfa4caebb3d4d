"""A log of several days, the state that the windows carry over it, and what they must return by looking at each row."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from feature_jobs.windows.blocks import Place, block_table, read_run, read_tile, write_blocks
from feature_jobs.windows.days import Partitions, TileId, Window, completed
from feature_jobs.windows.frequent import Frequent
from feature_jobs.windows.keys import Groups, group_rows, keys_of
from feature_jobs.windows.operations import NEVER, Count, Least, Listed, Most, Newest, Operation, Squares, Sum
from feature_jobs.windows.query import Answers, Asked, Question, answers
from feature_jobs.windows.runs import Run, run_of
from feature_jobs.windows.tallies import Distinct, Quantile, middles_of, steps_of
from feature_jobs.windows.tiles import Tile, merge, tile_of

Part = TypeVar("Part", Run, Tile)
MAX_LEVEL = 6
OPERATIONS: dict[str, Operation] = {
    "count": Count(),
    "held": Count(where="held"),
    "sum": Sum(of="value", where="held"),
    "squares": Squares(of="value"),
    "least": Least(of="wide", where="held"),
    "most": Most(of="wide"),
    "newest": Newest(where="held"),
    "last": Listed(of=("value", "text"), length=3, where="held"),
    "first": Listed(of=("text",), length=2, oldest=True),
    "frequent": Frequent(of=("text",), length=5, k=2, where="held"),
    "distinct": Distinct(of="wide", where="held", limit=10**6),
    "sample": Distinct(of="value", limit=4),
    "middle": Quantile(of="step", where="held", share=50_000),
    "upper": Quantile(of="step", share=90_000),
}


@dataclass(frozen=True)
class Row:
    """One event; `key` has one value for each key column, None where it is unknown."""

    time: int
    key: tuple[int | str | None, ...]
    value: int
    wide: int
    held: bool
    text: str


@dataclass(frozen=True)
class Day:
    """A partition with its rows in time order."""

    ordinal: int
    begin: int
    end: int
    rows: Sequence[Row]


def expected(rows: Sequence[Row], asking: Row, window: Window) -> dict[str, object]:
    """The aggregates of one asking row, by looking at all rows, which are in time order."""
    newest = asking.time - window.delay_us if window.delay_us else asking.time - 1
    seen = [r for r in rows if r.key == asking.key and asking.time - window.width_us <= r.time <= newest]
    if None in asking.key:
        seen = []
    held = [r for r in seen if r.held]
    last, first = held[::-1][:3], seen[:2]
    return {
        "count.num": len(seen),
        "held.num": len(held),
        "sum.sum": sum(r.value for r in held),
        "squares.high": 0,
        "squares.low": sum(r.value**2 for r in seen),
        "least.num": len(held),
        "least.value": min((r.wide for r in held), default=2**63 - 1),
        "most.num": len(seen),
        "most.value": max((r.wide for r in seen), default=-(2**63)),
        "newest.time": max((r.time for r in held), default=NEVER),
        "last.time": [r.time for r in last],
        "last.value": [r.value for r in last],
        "last.text": [r.text for r in last],
        "first.time": [r.time for r in first],
        "first.text": [r.text for r in first],
        "frequent.text": [text for text, _ in Counter(r.text for r in held[::-1][:5]).most_common(2)],
        "distinct.num": len({r.wide for r in held}),
        "distinct.below": 2**63 - 1,
        **_quantile("middle", held, 50_000),
        **_quantile("upper", seen, 90_000),
        "sample": {r.value for r in seen},
    }


def _quantile(name: str, rows: Sequence[Row], share: int) -> dict[str, object]:
    ordered = sorted(middles_of(steps_of(np.array([r.wide for r in rows], np.int64))).tolist())
    rank = max(-(-len(ordered) * share // 100_000), 1)
    return {f"{name}.num": len(ordered), f"{name}.value": ordered[rank - 1] if ordered else None}


def groups_of(rows: Sequence[Row], key_types: Sequence[pa.DataType]) -> Groups:
    columns = [pa.array([r.key[i] for r in rows], kind) for i, kind in enumerate(key_types)]
    return group_rows(*keys_of(columns))


def times_of(rows: Sequence[Row]) -> np.ndarray:
    return np.array([r.time for r in rows], np.int64)


class Carried:
    """The state that goes from day to day; everything in it has been a file. `how` answers questions."""

    def __init__(self, key_types: Sequence[pa.DataType], genesis: int, how: Answers = answers) -> None:
        self.key_types, self.how = key_types, how
        self.genesis = genesis
        self.runs: dict[int, Run] = {}
        self.tiles: dict[TileId, Tile] = {}
        self._previous = genesis - 1
        self._partitions: list[Day] = []

    def add(self, day: Day) -> None:
        columns = {
            "value": np.array([r.value for r in day.rows], np.int64),
            "wide": np.array([r.wide for r in day.rows], np.int64),
            "held": np.array([r.held for r in day.rows], bool),
            "text": pa.array([r.text for r in day.rows], pa.string()),
            "step": steps_of(np.array([r.wide for r in day.rows], np.int64)),
        }
        run = run_of(groups_of(day.rows, self.key_types), times_of(day.rows), columns)
        self.runs[day.ordinal] = self._through_a_file(run, read_run)
        nothing = groups_of([], self.key_types)
        empty = run_of(nothing, times_of([]), {name: column[:0] for name, column in columns.items()})
        for tile in completed(self._previous, day.ordinal, self.genesis, MAX_LEVEL):
            if tile.level == 0:
                made = tile_of(self.runs[day.ordinal] if tile.first == day.ordinal else empty, OPERATIONS)
            else:
                made = merge(*(self.tiles[half] for half in tile.halves()), OPERATIONS)
            self.tiles[tile] = self._through_a_file(made, read_tile)
        self._previous = day.ordinal
        self._partitions.append(day)

    def _through_a_file(self, made: Part, read: Callable[[Path, Place], Part]) -> Part:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "blocks"
            table = block_table(made)
            return read(file, write_blocks([("other", table), ("one", table)], file)["one"])  # stays mapped

    def ask(self, rows: Sequence[Row], window: Window) -> list[dict[str, object]]:
        """The aggregates of rows of the newest day, from nothing but the runs and tiles that the window names."""
        days = self._partitions
        partitions = Partitions(*(np.array([getattr(d, f) for d in days]) for f in ("ordinal", "begin", "end")))
        pieces = window.pieces(partitions, days[-1].ordinal, MAX_LEVEL)
        question = Question(
            window,
            pieces,
            runs={day: self.runs[day] for day in (*pieces.old, *pieces.new)},
            tiles={tile: self.tiles[tile] for tile in pieces.tiles},
            operations=OPERATIONS,
        )
        (found,) = self.how(Asked(groups_of(rows, self.key_types), times_of(rows)), [question])
        columns = {
            f"{name}.{column}": values.to_pylist() if isinstance(values, pa.Array) else values.tolist()
            for name, summary in found.items()
            for column, values in summary.items()
        }
        found = [{name: values[i] for name, values in columns.items()} for i in range(len(rows))]
        for row in found:
            for name in ("middle", "upper"):
                row[f"{name}.value"] = row[f"{name}.value"] if row[f"{name}.num"] else None
        return found
