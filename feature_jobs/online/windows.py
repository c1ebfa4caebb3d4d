"""All windows of a key set for the keys of one request, with the operations of the daily join.

A window of a request holds rows before its whole days, these, and rows after them. The operations take many ranges of
rows in one call, so a request asks once for all windows of an operation, where the join asks once for all events of a
day. Shapes: U keys, W windows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.state import StateReader, chosen_rows, window_name
from feature_jobs.windows.days import Pieces, TileId, Window
from feature_jobs.windows.keys import Groups, Ints, Keys
from feature_jobs.windows.operations import Numbers, Operation
from feature_jobs.windows.query import Asked, Question, aggregate
from feature_jobs.windows.rows import Rows, Summary, concat_columns, prefix_sums, take_columns
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Tile

_OLD, _NEW, _DAYS = 0, 1, 2
"""The parts of a window: rows before its whole days, rows after them, and these."""
_WHOLE = TileId(0, 0)
"""The whole days as one tile."""


@dataclass(frozen=True)
class Content:
    """The content of the store for U keys: their rows, of the state and those since; and for each span of whole days
    the summaries of the keys that have a state. `state_U`: the position of a key among these, -1 for none."""

    keys: Keys
    run: Run
    spans: list[Tile]
    state_U: Ints


@dataclass(frozen=True)
class _Batch:
    """An operation with the windows that want it, which are computed in one call."""

    name: str
    operation: Operation
    stored: str
    windows: list[int]


class SetWindows:
    """The windows that features want of a key set. `wanted` are its windows with their operations."""

    def __init__(self, reader: StateReader, wanted: Mapping[Window, Wanted]) -> None:
        self.windows = list(wanted)
        self._wanted = wanted
        self._places = [reader.facts["windows"][window_name(window)] for window in wanted]
        spans = np.array([reader.spans[place] for place in self._places], np.int64).reshape(-1, 2)
        self._begin_W, self._end_W = spans[:, :1], spans[:, 1:]
        self._width_W = np.array([[window.width_us] for window in wanted], np.int64)
        self._age_W = np.array([[window.least_age_us] for window in wanted], np.int64)
        batches: dict[str, _Batch] = {}
        self._others: dict[Window, list[str]] = defaultdict(list)
        for at, (window, found) in enumerate(wanted.items()):
            for name, operation in found.operations.items():
                if type(operation).of_windows is not Operation.of_windows:
                    self._others[window].append(name)
                    continue
                # Lists of several windows would have to be cut apart again.
                batch = name if isinstance(operation, Numbers) else f"{at} {name}"
                batches.setdefault(batch, _Batch(name, operation, found.stored[name], [])).windows.append(at)
        self._batches = list(batches.values())

    def of(self, content: Content, codes_N: Ints | None, time: int) -> Iterator[tuple[Window, dict[str, Summary]]]:
        """For each window the summaries by operation, for the rows that ask: `codes_N` has the position of each among
        the U keys, -1 for a row without key; None: row u asks with key u."""
        found: list[dict[str, Summary]] = [{} for _ in self.windows]
        num_keys = len(content.keys)
        num_rows = num_keys if codes_N is None else len(codes_N)
        edges = self._edges(content.run, num_keys, time)
        for batch in self._batches:
            summary = self._summary(batch, content, edges, codes_N)
            if len(batch.windows) == 1:
                found[batch.windows[0]][batch.name] = summary
                continue
            for number, at in enumerate(batch.windows):
                own = slice(number * num_rows, (number + 1) * num_rows)
                found[at][batch.name] = {name: column[own] for name, column in summary.items()}
        if self._others:
            asking = np.arange(num_keys) if codes_N is None else codes_N
            asked = Asked(_groups(content.keys, asking), np.full(len(asking), time))
            for at, window in enumerate(self.windows):
                found[at] |= self._other(asked, content, at, window)
        return zip(self.windows, found, strict=True)

    def holds(self, run: Run, num_keys: int, time: int) -> tuple[Ints, Ints]:
        """The times [from, until) at which the windows of each of U keys hold the same rows as at `time`."""
        begin_U, end_U, times = run.offsets[:-1], run.offsets[1:], np.append(run.rows.times, 0)
        low, high = self._searched(run, num_keys, time - self._width_W, time - self._age_W + 1)
        never = np.iinfo(np.int64).max

        def moments(first: Ints, after: Ints, *, is_older: bool) -> Ints:
            """The moment at which the row before `first`, or that at it, passes an end of the window."""
            here, at = (first > begin_U, first - 1) if is_older else (first < end_U, first)
            return np.where(here, times[np.where(here, at, -1)] + after, -never if is_older else never)

        older = np.maximum(
            moments(low, self._width_W + 1, is_older=True).max(axis=0, initial=-never),
            moments(high, self._age_W, is_older=True).max(axis=0, initial=-never),
        )
        newer = np.minimum(
            moments(low, self._width_W + 1, is_older=False).min(axis=0, initial=never),
            moments(high, self._age_W, is_older=False).min(axis=0, initial=never),
        )
        return older, newer

    def _edges(self, run: Run, num_keys: int, time: int) -> tuple[Ints, Ints]:
        """The ranges [low, high) of each window and key, [2, W, U]: the rows before its whole days, and after them."""
        low_W, high_W = time - self._width_W, time - self._age_W + 1
        low = np.concatenate([low_W, np.maximum(low_W, self._end_W)])
        high = np.concatenate([np.minimum(high_W, self._begin_W), high_W])
        lows, highs = self._searched(run, num_keys, low, high)
        shape = (2, len(self.windows), num_keys)
        return lows.reshape(shape), np.maximum(lows, highs).reshape(shape)

    def _searched(self, run: Run, num_keys: int, *times: Ints) -> list[Ints]:
        """For each time (a column of them) and key the first row from that time on."""
        found = run.first_from(np.arange(num_keys), np.concatenate(times))
        return np.split(found, len(times))

    def _summary(self, batch: _Batch, content: Content, edges: tuple[Ints, Ints], codes_N: Ints | None) -> Summary:
        """The summaries of an operation, those of one window after the other, for the rows that ask."""
        lows, highs = (edge[:, batch.windows] for edge in edges)
        num_keys, num_windows = len(content.keys), len(batch.windows)
        places = np.arange(num_windows * num_keys)
        if codes_N is not None:
            first_W = num_keys * np.arange(num_windows)[:, None]
            places = np.where(codes_N >= 0, codes_N + first_W, -1).ravel()
        # Most keys have rows on one side of their whole days alone, or on none.
        sides = [side for side in (_OLD, _NEW) if (highs[side] > lows[side]).any()]
        parts: dict[int, tuple[Summary, Ints]] = {}
        if sides:
            rows = batch.operation.of_ranges(content.run.rows, lows[sides].ravel(), highs[sides].ravel())
            later = places + num_windows * num_keys
            parts[sides[0]] = rows, places
            if len(sides) > 1:
                parts[_NEW] = rows, later if codes_N is None else np.where(places >= 0, later, -1)
        tiles = [self._tile(content, batch, at) for at in batch.windows]
        if any(tile is not None for tile in tiles):
            whole, begins = _joined(tiles)
            state_N = content.state_U if codes_N is None else _at(content.state_U, codes_N)
            parts[_DAYS] = whole, np.where((state_N >= 0) & (begins >= 0), state_N + begins, -1).ravel()
        if not parts:
            parts[_NEW] = batch.operation.of_ranges(content.run.rows, lows[_NEW].ravel(), highs[_NEW].ravel()), places
        ordered = [parts[part] for part in (_OLD, _DAYS, _NEW) if part in parts]
        return ordered[0][0] if len(ordered) == 1 and sides and codes_N is None else batch.operation.combine(ordered)

    def _tile(self, content: Content, batch: _Batch, at: int) -> Summary | None:
        """The summaries of the whole days in a window, None where it holds none."""
        return content.spans[self._places[at]].summaries.get(batch.stored)

    def _other(self, asked: Asked, content: Content, at: int, window: Window) -> dict[str, Summary]:
        """The summaries of operations that need a window whole."""
        names = self._others.get(window)
        if not names:
            return {}
        begin, end = int(self._begin_W[at, 0]), int(self._end_W[at, 0])
        times = content.run.rows.times
        runs = {
            _OLD: chosen_rows(content.run, times < begin),
            _NEW: chosen_rows(content.run, times >= end),
        }
        tiles = {} if begin == end else {_WHOLE: content.spans[self._places[at]]}
        wanted = self._wanted[window]
        operations = {name: wanted.operations[name] for name in names}
        pieces = Pieces((_OLD,), (*tiles,), (_NEW,))
        return aggregate(asked, Question(window, pieces, runs, tiles, operations, wanted.stored))


def _at(values_U: Ints, codes_N: Ints) -> Ints:
    """The values at these positions, -1 at -1."""
    return np.append(values_U, -1)[codes_N]


def _joined(tiles: list[Summary | None]) -> tuple[Summary, Ints]:
    """Summaries one after the other, and where each begins, as a column: -1 for none."""
    begins, held, before = [], [], 0
    for tile in tiles:
        begins.append([-1 if tile is None else before])
        if tile is not None:
            held.append(tile)
            before += len(next(iter(tile.values())))
    if len(held) == 1:
        return held[0], np.array(begins)
    return {name: concat_columns([tile[name] for tile in held]) for name in held[0]}, np.array(begins)


def _groups(keys: Keys, codes_N: Ints) -> Groups:
    """The rows by the position of their key."""
    rows = np.flatnonzero(codes_N >= 0)
    order = rows[np.argsort(codes_N[rows], kind="stable")]
    num_U = np.bincount(codes_N[rows], minlength=len(keys))
    return Groups(keys, order, prefix_sums(num_U))


def rows_by_key(keys: Keys, parts: list[tuple[Ints, Rows]]) -> Run:
    """A run of U keys from parts that have the number of rows of each key and these rows, the older part first."""
    some = [part for part in parts if len(part[1].times)] or parts[:1]
    num_U = np.sum([num for num, _ in some], axis=0)
    rows = some[0][1]
    if len(some) > 1:
        columns = {name: concat_columns([part.columns[name] for _, part in some]) for name in rows.columns}
        rows = Rows(np.concatenate([part.times for _, part in some]), columns)
        if len(keys) > 1:
            codes = np.concatenate([np.repeat(np.arange(len(keys)), num) for num, _ in some])
            order = np.argsort(codes, kind="stable")
            rows = Rows(rows.times[order], take_columns(rows.columns, order))
    return Run(keys, prefix_sums(num_U), rows)
