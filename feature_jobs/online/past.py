"""The past of a request: of each key that it asks for, the state at the end of a day and the rows that came since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_jobs.joins.aggregations import KeySet
from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.cache import Places, SingleCache, WindowCache
from feature_jobs.online.packed import KeyTable, Packed, positions_of
from feature_jobs.online.state import StateReader, removed
from feature_jobs.online.store import Reading, store_keys
from feature_jobs.online.windows import Content, SetWindows, rows_by_key
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Bools, Ints, Keys
from feature_jobs.windows.rows import Rows, Summary, take_columns


@dataclass(frozen=True)
class SetPlan:
    """A key set that features of a request read: how its values are read, and the windows of these features.

    `table` has its values where they are not in the store. `cache` knows what the windows of its keys hold, where all
    are numbers, and `single` of a key that is asked for alone.
    """

    reader: StateReader
    windows: SetWindows
    single: SingleCache
    table: KeyTable | None = None
    cache: WindowCache | None = None


class PastOfRequest:
    """The past of the rows of one request: all keys of the store are read in one call.

    `asked` has by key set the keys of the rows that ask, and which rows have one; `time` is that of the request;
    `begin` the one from which rows are no part of the state.
    """

    def __init__(
        self,
        plans: Mapping[str, SetPlan],
        reading: Reading,
        asked: Mapping[str, tuple[Keys, Bools]],
        *,
        time: int,
        begin: int,
    ) -> None:
        self._asked = asked
        self._found: dict[str, Iterable[tuple[Window, Mapping[str, Summary]]]] = {}
        codes: dict[str, Ints | None] = {}
        places: dict[str, Places] = {}
        read: dict[str, Keys] = {}
        caches = {name: plans[name].cache for name in asked}
        for name, (keys, known) in asked.items():
            # More keys than the cache has room for would push each other out while they are looked up.
            if (cache := caches[name]) is None or not cache.has_room(keys):
                caches[name] = None
                if len(keys) == 1 and known[0] and (held := plans[name].single.found(keys, time)) is not None:
                    self._found[name] = held
                else:
                    read[name], codes[name] = _distinct(keys, known)
            else:
                places[name] = cache.places(keys, known, time)
                if len(places[name].rows):
                    read[name] = keys.take(places[name].rows)
        contents = _contents(plans, reading, read, begin)
        for name in asked.keys() - self._found.keys():
            windows, cache = plans[name].windows, caches[name]
            if cache is None:
                found = self._found[name] = [*windows.of(contents[name], codes[name], time)]
                if codes[name] is None:
                    plans[name].single.keep(read[name], windows.holds(contents[name].run, time), found)
            else:
                self._found[name] = cache.found(places[name], contents.get(name), time)

    def found(
        self, one: KeySet, wanted: Mapping[Window, Wanted]
    ) -> tuple[Bools, Iterable[tuple[Window, Mapping[str, Summary]]]]:
        """The summaries of a key set for the rows of the request."""
        return self._asked[one.name][1], self._found[one.name]


def _contents(
    plans: Mapping[str, SetPlan], reading: Reading, read: Mapping[str, Keys], begin: int
) -> dict[str, Content]:
    """The content of the store for these keys of each set."""
    wanted = {name: store_keys(plans[name].reader.facts, keys) for name, keys in read.items()}
    stored = [key for name, keys in wanted.items() if plans[name].table is None for key in keys]
    values = reading.state(stored) if stored else []
    # Also of mapped sets, whose file has no row of today.
    added = reading.added([key for keys in wanted.values() for key in keys]) if any(wanted.values()) else []
    found = {}
    for name, keys in read.items():
        reader, table, num = plans[name].reader, plans[name].table, len(keys)
        since, added = _since(reader, keys, added[:num], begin), added[num:]
        if table is None:
            own, values = values[:num], values[num:]
            state_U = positions_of([value is not None for value in own])
            packed = Packed.of([value for value in own if value is not None])
        else:
            state_U, packed = table.find(keys)
        found[name] = _content(reader, keys, state_U, packed, since)
    return found


def _distinct(keys: Keys, known: Bools) -> tuple[Keys, Ints | None]:
    """The distinct keys, sorted, and for each row the position of its key, -1 for none; None: one row, which has it."""
    if len(keys) == 1 and known[0]:
        return keys, None
    rows = np.flatnonzero(known)
    distinct, codes = (keys if len(rows) == len(known) else keys.take(rows)).numbered()
    codes_N = np.full(len(known), -1)
    codes_N[rows] = codes
    return distinct, codes_N


def _content(reader: StateReader, keys: Keys, state_U: Ints, packed: Packed, since: list[tuple[Ints, Rows]]) -> Content:
    """The content of the store for these keys."""
    numbers_KN, lists = reader.shape.unpack(packed)
    run = reader.rows_of(keys, lists)
    if since or packed.num_keys < len(keys):
        # A run has a range for each key, and keys without a state have no list that gives one.
        num_U = np.where(state_U >= 0, np.append(np.diff(run.offsets), 0)[state_U], 0)
        run = rows_by_key(keys, [(num_U, run.rows), *since])
    return Content(keys, run, numbers_KN, lists, state_U)


def _since(reader: StateReader, keys: Keys, added: Sequence[bytes | None], begin: int) -> list[tuple[Ints, Rows]]:
    """The number of rows that came since of each key, and these rows from `begin` on, in the order of their times; a
    row that came again replaces the former. Nothing where none came."""
    here = [at for at, value in enumerate(added) if value]
    if not here:
        return []
    codes, rows, run = reader.added_rows([value for value in added if value], keys)
    times = run.rows.times
    codes = np.array(here)[codes]
    # A row that came again with another key is under the former one with the number of a removed row.
    is_removed = rows < 0
    order = _last_ones(codes, times, np.where(is_removed, removed(rows), rows))
    order = order[(times[order] >= begin) & ~is_removed[order]]
    num_U = np.bincount(codes[order], minlength=len(keys))
    return [(num_U, Rows(times[order], take_columns(run.rows.columns, order)))]


def _last_ones(codes: Ints, times: Ints, rows: Ints) -> Ints:
    """The order of rows by key, time and number, with the last one alone of those in which all three are equal."""
    # As Python's integers: the product below must not wrap before it is compared.
    oldest, newest = int(times.min()), int(times.max())
    span = newest - oldest + 1
    if (int(codes.max()) + 1) * span < 2**63:
        # Key and time as one number, which sorts in a fraction of the time; mostly no two rows of a key have one time.
        places = codes * span + (times - oldest)
        order: Ints = np.argsort(places)
        if (np.diff(places[order]) > 0).all():
            return order
    order = np.lexsort((rows, times, codes))  # stable: of equal rows the last one is the newest
    ordered = np.stack([codes[order], times[order], rows[order]])
    last: Ints = order[np.append((ordered[:, 1:] != ordered[:, :-1]).any(axis=0), True)]
    return last
