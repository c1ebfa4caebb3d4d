"""A cache of the content of windows by key: most items of a request had the same a moment ago.

The content of a window changes when one of its key's rows enters or leaves it, whose moments are known
(`SetWindows.holds`), and when a row is added, which the store says (`OnlineStore.changed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.key_index import KeyIndex
from feature_jobs.online.store import keys_from_store
from feature_jobs.online.windows import Content, SetWindows
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Bools, Ints, Keys, union
from feature_jobs.windows.operations import Numbers
from feature_jobs.windows.rows import Summary

# Requests name these keys, so without a bound they could fill the memory.
_OTHERS = 1 << 16
"""Most keys that have no state in a cache."""
_FROM, _UNTIL, _NUM_TIMES = 0, 1, 2
"""The first columns of a cache: its row holds from one time until another."""


@dataclass(frozen=True)
class Places:
    """The place in a cache of each asking row's key, -1 for none, and the content of these places; and of the places
    whose windows are not known, each once, with a row that asks for it."""

    at_N: Ints
    held_NC: Ints
    stale: Ints
    rows: Ints


class WindowCache:
    """The summaries of windows by key: those of the state in their order, then others as they come. One thread at a
    time uses it.

    `index` finds the keys of the state; `wanted` are the windows with their operations, all of which make numbers.
    """

    def __init__(self, index: KeyIndex, layout: str, wanted: Mapping[Window, Wanted]) -> None:
        self._index, self._keys, self._layout = index, index.keys, bytes.fromhex(layout)
        # Keys that have no state, sorted, with their places.
        self._others, self._others_at = self._keys.part(slice(0, 0)), np.zeros(0, np.int64)
        self._columns = {
            (window, name, column): identity
            for window, one in wanted.items()
            for name, operation in one.operations.items()
            if isinstance(operation, Numbers)
            for column, identity in operation.identity.items()
        }
        self.forget_all()

    def has_room(self, keys: Keys) -> bool:
        """Says if it has a place for each of these keys, whatever they are."""
        return len(keys) <= _OTHERS

    def places(self, keys: Keys, known: Bools, time: int) -> Places:
        """The places of the keys of rows, for which it has room."""
        at_N = self._index.find(keys)
        if at_N.min(initial=0) < 0:
            others = np.flatnonzero((at_N < 0) & known)
            at_N[others] = self._places_of_others(keys.take(others))
        # A row without a key has the number of one, 0, which may be a key of the state.
        at_N[~known] = -1
        # -1 takes the last place, whatever it holds; such rows are left out below.
        held_NC = self._held.take(at_N, axis=0)  # in a third of the time of an index
        rows = np.flatnonzero((held_NC[:, _FROM] > time) | (held_NC[:, _UNTIL] <= time))
        if not len(rows):
            return Places(at_N, held_NC, rows, rows)
        rows = rows[at_N[rows] >= 0]
        stale, first_rows = np.unique(at_N[rows], return_index=True)
        return Places(at_N, held_NC, stale, rows[first_rows])

    def _places_of_others(self, keys: Keys) -> Ints:
        """The places of keys that have no state; new ones get one."""
        at = self._others.find(keys)
        if at.min(initial=0) < 0:
            new, _ = keys.take(np.flatnonzero(at < 0)).numbered()
            if len(self._others) + len(new) > _OTHERS:
                new, _ = keys.numbered()
                self._others, self._others_at = keys.part(slice(0, 0)), self._others_at[:0]
                self._held[len(self._keys) :] = 0
            first = len(self._keys) + len(self._others)
            self._others, older, newer = union(self._others, new)
            self._others_at = np.where(older >= 0, np.append(self._others_at, 0)[older], first + newer)
            at = self._others.find(keys)
        return self._others_at[at]

    def found(
        self, places: Places, windows: SetWindows, content: Content | None, time: int
    ) -> Iterable[tuple[Window, Mapping[str, Summary]]]:
        """The summaries of windows for the rows; `content` is that of the keys whose windows are not known."""
        held_NC = places.held_NC
        if content is not None:
            read = dict(windows.of(content, None, time))
            times = windows.holds(content.run, len(content.keys), time)
            values = [np.asarray(read[window][name][column]) for window, name, column in self._columns]
            self._held[places.stale] = np.stack([*times, *values], axis=1)
            held_NC = self._held[places.at_N]
        found: dict[Window, dict[str, Summary]] = {}
        none = None if (places.at_N >= 0).all() else places.at_N < 0
        for at, ((window, name, column), identity) in enumerate(self._columns.items(), _NUM_TIMES):
            # Indexing has copied the rows, so what is written here does not reach the cache.
            taken = held_NC[:, at]
            if none is not None:
                taken[none] = identity
            found.setdefault(window, {}).setdefault(name, {})[column] = taken
        return found.items()

    def forget(self, keys: Iterable[bytes]) -> None:
        """Rows were added to these keys of the store."""
        own = [key for key in keys if key.startswith(self._layout)]
        if own:
            changed = keys_from_store(own, two_words=self._keys.second is not None)
            at, others = self._index.find(changed), self._others.find(changed)
            self._held[at[at >= 0]] = 0
            self._held[self._others_at[others[others >= 0]]] = 0

    def forget_all(self) -> None:
        """Nothing is known."""
        # A row of a key, so that it lies together in memory. One of zeros holds at no time, and pages that nobody asks
        # for take no memory.
        self._held = np.zeros((len(self._keys) + _OTHERS, _NUM_TIMES + len(self._columns)), np.int64)
