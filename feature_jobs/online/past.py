"""The past of a request: of each key that it asks for, the state at the end of a day and the rows that came since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_jobs.joins.aggregations import KeySet
from feature_jobs.online.packed import Packed
from feature_jobs.online.state import StateReader, chosen_rows, merged, window_name
from feature_jobs.online.store import Reading, store_keys
from feature_jobs.windows.days import Pieces, TileId, Window
from feature_jobs.windows.keys import Bools, Groups, Ints, Keys, group_rows
from feature_jobs.windows.query import Asked
from feature_jobs.windows.rows import Rows, expanded, prefix_sums, take_columns
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Tile

_OLD, _NEW, _WHOLE = 0, 1, TileId(0, 0)
"""Names of the parts of a window: all rows before its whole days, all after them, and the whole days as one tile."""


@dataclass(frozen=True)
class _Found:
    """The content of the store for the keys of a set that ask: rows of the state, its spans, and the rows since."""

    reader: StateReader
    rows: Run
    since: Run
    spans: list[Tile]


@dataclass(frozen=True)
class KeyTable:
    """All keys of a set, sorted, with their values in memory, which may be a mapped file."""

    keys: Keys
    values: Packed

    def find(self, keys: Keys) -> tuple[Keys, Packed]:
        """Those of the keys that have a value, and these values."""
        at = self.keys.find(keys)
        here = np.flatnonzero(at >= 0)
        begin, end = (self.values.offsets_K[at[here] + after] for after in (0, 1))
        num = end - begin
        return keys.take(here), Packed(self.values.words[expanded(begin, num)], prefix_sums(num))


class PastOfRequest:
    """The past of the rows of one request: all keys of the store are read in one call, those of `mapped` in place.

    `asked` has by key set the keys of the rows that ask, and which rows have one; `times_N` their times; `begin` is the
    time from which rows are no part of the state.
    """

    def __init__(
        self,
        readers: Mapping[str, StateReader],
        mapped: Mapping[str, KeyTable],
        reading: Reading,
        asked: Mapping[str, tuple[Keys, Bools]],
        *,
        times_N: Ints,
        begin: int,
    ) -> None:
        self._asked: dict[str, Asked] = {}
        self._found: dict[str, _Found] = {}
        groups: dict[str, Groups] = {name: group_rows(*keys) for name, keys in asked.items()}
        wanted = {name: store_keys(readers[name].facts, one.keys) for name, one in groups.items()}
        stored = [key for name, keys in wanted.items() if name not in mapped for key in keys]
        values, added = reading.state(stored), reading.added([key for keys in wanted.values() for key in keys])
        of_state = of_added = 0
        for name, one in groups.items():
            num = len(wanted[name])
            since = added[of_added : of_added + num]
            of_added += num
            if name in mapped:
                known, packed = mapped[name].find(one.keys)
            else:
                known, packed = _packed(one.keys, values[of_state : of_state + num])
                of_state += num
            self._asked[name] = Asked(one, times_N)
            self._found[name] = _read(readers[name], known, packed, _since(readers[name], one.keys, since, begin))

    def asked(self, one: KeySet) -> Asked:
        """The rows that ask, by key."""
        return self._asked[one.name]

    def parts(self, one: KeySet, window: Window) -> tuple[Pieces, Mapping[int, Run], Mapping[TileId, Tile]]:
        """The content of a window: rows before its whole days, these, and rows after them."""
        found = self._found[one.name]
        place = found.reader.facts["windows"][window_name(window)]
        begin, end = found.reader.spans[place]
        times = found.rows.rows.times
        old, new = chosen_rows(found.rows, times < begin), chosen_rows(found.rows, times >= end)
        if len(found.since.rows.times):
            new = merged([new, found.since]) if len(new.rows.times) else found.since
        # Each part costs a search and a few sums for every operation, and most requests have rows in one of them.
        runs = {name: run for name, run in ((_OLD, old), (_NEW, new)) if len(run.rows.times)}
        tiles = {} if begin == end else {_WHOLE: found.spans[place]}
        if not runs and not tiles:
            runs = {_NEW: new}
        pieces = Pieces((_OLD,) if _OLD in runs else (), (*tiles,), (_NEW,) if _NEW in runs else ())
        return pieces, runs, tiles


def _packed(keys: Keys, values: Sequence[bytes | None]) -> tuple[Keys, Packed]:
    """The keys that have a value, and these values."""
    here = [at for at, value in enumerate(values) if value is not None]
    known = keys if len(here) == len(keys) else keys.take(np.array(here, np.int64))
    return known, Packed.of([value for value in values if value is not None])


def _read(reader: StateReader, known: Keys, packed: Packed, since: Run) -> _Found:
    numbers, lists = reader.shape.unpack(packed)
    spans = [reader.whole_days(place, known, numbers, lists) for place in range(len(reader.spans))]
    return _Found(reader, reader.rows_of(known, lists), since, spans)


def _since(reader: StateReader, keys: Keys, added: Sequence[bytes | None], begin: int) -> Run:
    """The rows that came since, of each key in the order of their times; a row that came again replaces the former."""
    here = [at for at, value in enumerate(added) if value]
    if not here:
        nothing = np.zeros(0, np.int64)
        return Run(keys.take(nothing), np.zeros(1, np.int64), reader.no_rows)
    codes, rows, run = reader.added_rows([value for value in added if value], keys)
    times = run.rows.times
    codes = np.array(here)[codes]
    order = np.lexsort((rows, times, codes))  # stable: of equal rows the last one is the newest
    ordered = np.stack([codes[order], times[order], rows[order]])
    is_last = np.append((ordered[:, 1:] != ordered[:, :-1]).any(axis=0), True)
    order = order[is_last & (ordered[1] >= begin)]
    num_K = np.bincount(codes[order], minlength=len(keys))
    some = np.flatnonzero(num_K)
    return Run(keys.take(some), prefix_sums(num_K[some]), Rows(times[order], take_columns(run.rows.columns, order)))
