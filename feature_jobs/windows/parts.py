"""Parts of a day's asking rows, each with all that its windows hold, so that another process can answer for it.

The asking rows are in the order of key and time, and are cut anywhere, so that a busy key is shared by several parts. A
part gets of each day only the rows between the oldest and the newest time that its windows see, and of a tile only its
keys. All summaries are of integers: the answers of parts, one after the other, have the bytes of the answer to all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from feature_jobs.windows.blocks import block_table
from feature_jobs.windows.days import TileId
from feature_jobs.windows.keys import Groups, Ints
from feature_jobs.windows.operations import Operation
from feature_jobs.windows.query import Asked, Question, aggregate
from feature_jobs.windows.rows import Column, Rows, Summary, concat_columns, expanded, prefix_sums, take_columns
from feature_jobs.windows.runs import Run, run_from
from feature_jobs.windows.tiles import Tile, summaries_from, summary_columns, tile_from

_ASKED = "asked"


@dataclass(frozen=True)
class _Need:
    """The columns of a run that some questions read, and these questions, whose windows bound its rows."""

    columns: frozenset[str]
    questions: tuple[Question, ...]


def cut(asked: Asked, questions: Sequence[Question], num_parts: int) -> Iterator[dict[str, pa.Table]]:
    """The blocks of each part, by name, for `answer`; `num_parts` of about the same size, at least one."""
    runs = {day: run for one in questions for day, run in one.runs.items()}
    tiles = {tile: found for one in questions for tile, found in one.tiles.items()}
    of_runs = {day: _need(day, questions) for day in runs}
    of_tiles = {tile: {name for one in questions if tile in one.tiles for name in one.read} for tile in tiles}
    num_asked = len(asked.times)
    edges = np.linspace(0, num_asked, max(min(num_parts, num_asked), 1) + 1).astype(np.int64)
    for begin, end in pairwise(edges.tolist()):
        part = _asked(asked, begin, end)
        blocks: dict[str, pa.Table] = {_ASKED: block_table(part)}
        for day, run in runs.items():
            blocks[f"run {day}"] = block_table(_seen(run, part, of_runs[day]))
        for tile, whole in tiles.items():
            blocks[f"tile {tile.level} {tile.first}"] = block_table(_of_keys(whole, part, of_tiles[tile]))
        yield blocks


def without_content(questions: Sequence[Question]) -> list[Question]:
    """The questions without runs and tiles, which `answer` finds in the blocks of a part."""
    return [replace(one, runs={}, tiles={}) for one in questions]


def answer(blocks: Mapping[str, pa.Table], questions: Sequence[Question]) -> Iterator[pa.Table]:
    """The answers to questions from the blocks of a part: a table each, with a row for each asking row and a last
    one for a row without key."""
    part = run_from(blocks[_ASKED])
    runs, tiles = dict[int, Run](), dict[TileId, Tile]()
    for name, table in blocks.items():
        match name.split():
            case ["run", day]:
                runs[int(day)] = run_from(table)
            case ["tile", level, first]:
                tiles[TileId(int(level), int(first))] = tile_from(table)
    num = len(part.rows.times)
    # The last row asks without a key: only the operations know what their answer to it is.
    asked = Asked(Groups(part.keys, np.arange(num), part.offsets), np.append(part.rows.times, 0))
    for one in questions:
        yield pa.table(summary_columns(aggregate(asked, replace(one, runs=runs, tiles=tiles))))


def joined(asked: Asked, tables: Sequence[pa.Table]) -> dict[str, Summary]:
    """The answer to a question from those of all parts, in their order."""
    parts = [summaries_from(table) for table in tables]
    # A row of the log without a key takes the last one, which is of no key.
    places = np.where(asked.places_N < 0, len(asked.times), asked.places_N)
    return {
        name: {column: _joined([part[name][column] for part in parts], places) for column in summary}
        for name, summary in parts[0].items()
    }


def _asked(asked: Asked, begin: int, end: int) -> Run:
    """Asking rows as a run without columns."""
    part = asked.groups.part(begin, end)
    return Run(part.keys, part.offsets, Rows(asked.times[begin:end], {}))


def _need(day: int, questions: Sequence[Question]) -> _Need:
    found = tuple(one for one in questions if day in one.runs)
    columns = {name for one in found for operation in one.operations.values() for name in _columns_of(operation)}
    return _Need(frozenset(columns), found)


def _columns_of(operation: Operation) -> Iterator[str]:
    """Names of the columns of rows that an operation looks at."""
    settings: Mapping[str, Any] = vars(operation)
    of = settings.get("of", ())
    yield from (of,) if isinstance(of, str) else of
    if operation.where is not None:
        yield operation.where


def _seen(run: Run, part: Run, need: _Need) -> Run:
    """The rows of a run that some window of the part may see."""
    times, offsets = part.rows.times, part.offsets
    # Rows of one request ask at its first row's time, so that a key's last row need not be the newest.
    oldest, newest = (of.reduceat(times, offsets[:-1]) for of in (np.minimum, np.maximum))
    windows = [one.window for one in need.questions]
    low = reduce(np.minimum, (window.low(oldest) for window in windows))
    high = reduce(np.maximum, (window.high(newest) for window in windows))
    begin, end = run.ranges(run.keys.find(part.keys), low, high)
    some = np.flatnonzero(end > begin)
    num = (end - begin)[some]
    rows = expanded(begin[some], num)
    columns = {name: run.rows.columns[name] for name in need.columns}
    return Run(part.keys.take(some), prefix_sums(num), Rows(run.rows.times[rows], take_columns(columns, rows)))


def _of_keys(tile: Tile, part: Run, names: set[str]) -> Tile:
    """The summaries of a tile for the keys of a part."""
    found = tile.keys.find(part.keys)
    rows = found[found >= 0]
    # Sorted: a set has another order in each process, and blocks would have other bytes.
    return Tile(tile.keys.take(rows), {name: take_columns(tile.summaries[name], rows) for name in sorted(names)})


def _joined(columns: Sequence[Column], places_N: Ints) -> Column:
    """A column of all parts at these places, without the last row of each part but the last."""
    pieces = [*(column[:-1] for column in columns), columns[-1][-1:]]
    whole = concat_columns(pieces)
    # A table has the narrowest type that holds whole numbers.
    return whole.astype(np.int64)[places_N] if isinstance(whole, np.ndarray) else whole.take(pa.array(places_N))
