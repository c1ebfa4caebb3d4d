"""All windows of a key set for the keys of one request, with the operations of the daily join.

A window of a request holds rows before its whole days, these, and rows after them. The operations take many ranges of
rows in one call, so a request asks once for all windows of an operation, where the join asks once for all events of a
day. Shapes: U keys, W windows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.numbers import WindowNumbers
from feature_jobs.online.packed import Lists
from feature_jobs.online.request_kernels import edges, holds
from feature_jobs.online.state import StateReader, chosen_rows, window_name
from feature_jobs.windows.days import Pieces, TileId, Window
from feature_jobs.windows.keys import Groups, Ints, Keys
from feature_jobs.windows.operations import Listed, Numbers, Operation
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
    """The content of the store for U keys: their rows, of the state and those since; and the summaries of whole days of
    the K keys that have a state, as they were unpacked. `state_U`: the position of a key among these, -1 for none."""

    keys: Keys
    run: Run
    numbers_KN: Ints
    lists: Mapping[str, Lists]
    state_U: Ints


class SetWindows:
    """The windows that features want of a key set. `wanted` are its windows with their operations."""

    def __init__(self, reader: StateReader, wanted: Mapping[Window, Wanted]) -> None:
        self.windows = list(wanted)
        self._wanted, self._reader = wanted, reader
        self._places = [reader.facts["windows"][window_name(window)] for window in wanted]
        spans = np.array([reader.spans[place] for place in self._places], np.int64).reshape(-1, 2)
        self._begin_W, self._end_W = spans[:, :1], spans[:, 1:]
        self._width_W = np.array([window.width_us for window in wanted], np.int64).reshape(-1, 1)
        self._age_W = np.array([window.least_age_us for window in wanted], np.int64).reshape(-1, 1)
        # For each of the four edges of a window its age, and the times between which it lies.
        self._age_E = np.concatenate([self._width_W, self._width_W, self._age_W - 1, self._age_W - 1]).ravel()
        bounds = np.iinfo(np.int64)
        least, most = (np.full_like(self._width_W, bound) for bound in (bounds.min, bounds.max))
        self._least_E = np.concatenate([least, self._end_W, least, least]).ravel()
        self._most_E = np.concatenate([most, most, self._begin_W, most]).ravel()
        self._lists: list[tuple[int, str, Operation]] = []
        self._others: dict[Window, list[str]] = defaultdict(list)
        for at, (window, found) in enumerate(wanted.items()):
            for name, operation in found.operations.items():
                # Without a method of its own for windows, an operation is the combination of its parts.
                if isinstance(operation, Numbers):
                    continue
                if type(operation).of_windows is Operation.of_windows:
                    self._lists.append((at, name, operation))
                else:
                    self._others[window].append(name)
        self.numbers = WindowNumbers(reader, wanted)

    def of(self, content: Content, codes_N: Ints | None, time: int) -> Iterator[tuple[Window, dict[str, Summary]]]:
        """For each window the summaries by operation, for the rows that ask: `codes_N` has the position of each among
        the U keys, -1 for a row without key; None: row u asks with key u."""
        num_keys = len(content.keys)
        edges_EU = self._edges(content.run, time)
        found = self.by_window(self._numbers(content, edges_EU, codes_N))
        low_high = edges_EU.reshape(2, 2, len(self.windows), num_keys)
        for at, name, operation in self._lists:
            columns = operation.of if isinstance(operation, Listed) and operation.untimed else None
            whole = self._whole(content, at, self._wanted[self.windows[at]].stored[name], columns)
            found[at][name] = _combined(operation, content, whole, low_high[:, :, at], codes_N)
        if self._others:
            asking = np.arange(num_keys) if codes_N is None else codes_N
            asked = Asked(_groups(content.keys, asking), np.full(len(asking), time))
            for at, window in enumerate(self.windows):
                found[at] |= self._other(asked, content, at, window)
        return zip(self.windows, found, strict=True)

    def values(self, content: Content, time: int) -> Ints:
        """The numbers that the windows of each of U keys hold, [V, U]."""
        return self._numbers(content, self._edges(content.run, time), None)

    def by_window(self, values_VN: Ints) -> list[dict[str, Summary]]:
        """For each window the summaries of operations that make numbers, of which these are the values."""
        found: list[dict[str, Summary]] = [{} for _ in self.windows]
        for (at, name, column), values_N in zip(self.numbers.values, values_VN, strict=True):
            found[at].setdefault(name, {})[column] = values_N
        return found

    def _edges(self, run: Run, time: int) -> Ints:
        found: Ints = edges(run.rows.times, run.offsets, time, self._age_E, self._least_E, self._most_E)
        return found

    def _numbers(self, content: Content, edges_EU: Ints, codes_N: Ints | None) -> Ints:
        return self.numbers.of(content.run.rows, edges_EU, content.numbers_KN, content.state_U, codes_N)

    def holds(self, run: Run, time: int) -> Ints:
        """The times [from, until) at which the windows of each of U keys hold the same rows as at `time`. [2, U]"""
        found: Ints = holds(run.rows.times, run.offsets, time, self._width_W.ravel(), self._age_W.ravel())
        return found

    def _whole(self, content: Content, at: int, stored: str, columns: Sequence[str] | None = None) -> Summary | None:
        """The summaries of the whole days in a window, None where it holds none; with `columns` these of them."""
        return self._reader.summary(self._places[at], stored, content.numbers_KN, content.lists, columns)

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
        wanted = self._wanted[window]
        operations = {name: wanted.operations[name] for name in names}
        tiles = {}
        if begin != end:
            held = {wanted.stored[name] for name in names}
            summaries = {stored: self._whole(content, at, stored) or {} for stored in held}
            # In the order of the keys, as the values were unpacked; a key without a state has no summary.
            known = content.keys.take(np.flatnonzero(content.state_U >= 0))
            tiles[_WHOLE] = Tile(known, summaries)
        pieces = Pieces((_OLD,), (*tiles,), (_NEW,))
        return aggregate(asked, Question(window, pieces, runs, tiles, operations, wanted.stored))


def _combined(
    operation: Operation, content: Content, whole: Summary | None, edges: Ints, codes_N: Ints | None
) -> Summary:
    """The summaries of an operation in a window, for the rows that ask; `whole` are those of its whole days."""
    low, high = edges
    # A window that lies wholly on one side of its span would have a range that runs backwards on the other.
    high = np.maximum(low, high)
    num_keys = len(content.keys)
    places = np.arange(num_keys) if codes_N is None else codes_N
    parts: dict[int, tuple[Summary, Ints]] = {}
    if whole is not None:
        parts[_DAYS] = whole, content.state_U if codes_N is None else _at(content.state_U, codes_N)
    # Most keys have rows on one side of their whole days alone, or on none.
    sides = [side for side in (_OLD, _NEW) if (high[side] > low[side]).any()]
    if sides or not parts:
        # Something must give the summary its columns, even without a row.
        sides = sides or [_NEW]
        rows = operation.of_ranges(content.run.rows, low[sides].ravel(), high[sides].ravel())
        parts[sides[0]] = rows, places
        if len(sides) > 1:
            # Both sides came from one call: the new one lies behind the old one.
            parts[_NEW] = rows, np.where(places >= 0, places + num_keys, -1)
    return operation.combine([parts[part] for part in (_OLD, _DAYS, _NEW) if part in parts])


def _at(values_U: Ints, codes_N: Ints) -> Ints:
    """The values at these positions, -1 at -1."""
    return np.append(values_U, -1)[codes_N]


def _groups(keys: Keys, codes_N: Ints) -> Groups:
    """The rows by the position of their key."""
    rows = np.flatnonzero(codes_N >= 0)
    order = rows[np.argsort(codes_N[rows], kind="stable")]
    num_U = np.bincount(codes_N[rows], minlength=len(keys))
    return Groups(keys, order, prefix_sums(num_U))


def rows_by_key(keys: Keys, parts: list[tuple[Ints, Rows]]) -> Run:
    """A run of U keys from parts that have the number of rows of each key and these rows, the older part first."""
    # One part stays, though without rows: it gives the columns their types.
    some = [part for part in parts if len(part[1].times)] or parts[:1]
    num_U = np.sum([num for num, _ in some], axis=0)
    rows = some[0][1]
    if len(some) > 1:
        columns = {name: concat_columns([part.columns[name] for _, part in some]) for name in rows.columns}
        rows = Rows(np.concatenate([part.times for _, part in some]), columns)
        # The rows of one key are in order as they are, the older part first.
        if len(keys) > 1:
            codes = np.concatenate([np.repeat(np.arange(len(keys)), num) for num, _ in some])
            order = np.argsort(codes, kind="stable")
            rows = Rows(rows.times[order], take_columns(rows.columns, order))
    return Run(keys, prefix_sums(num_U), rows)
