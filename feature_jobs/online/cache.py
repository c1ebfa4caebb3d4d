"""Caches of the content of windows by key: most items of a request, and the user of a session, had it a moment ago.

The content of a window changes when one of its key's rows enters or leaves it, whose moments are known
(`SetWindows.holds`), and when a row is added, which the store says (`OnlineStore.changed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_jobs.online.key_index import KeyIndex
from feature_jobs.online.request_kernels import find_others, held_at
from feature_jobs.online.store import keys_from_store
from feature_jobs.online.windows import Content, SetWindows
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Bools, Ints, Keys, union
from feature_jobs.windows.rows import Summary

# Requests name these keys, so without a bound they could fill the memory.
_OTHERS = 1 << 16
"""Most keys that have no state in a cache."""
_SINGLES = 1 << 13
"""Most keys that a cache of single keys holds; a user with a sequence and a dozen windows takes some kilobytes."""
_WORD = 8
_NONE = np.zeros(0, np.int64)
_NUM_TIMES = 2
"""The first columns of a cache: the times from and until which its row holds."""


@dataclass(frozen=True)
class Places:
    """The place in a cache of each asking row's key, -1 for none, and the content of these places; and of the places
    whose windows are not known, each once, with a row that asks for it."""

    at_N: Ints
    values_VN: Ints
    stale: Ints
    rows: Ints


class WindowCache:
    """The summaries of windows by key: those of the state in their order, then others as they come. One thread at a
    time uses it.

    `index` finds the keys of the state; all operations of its `windows` make numbers.
    """

    def __init__(self, index: KeyIndex, layout: str, windows: SetWindows) -> None:
        self._index, self._keys, self._layout = index, index.keys, bytes.fromhex(layout)
        # Keys that have no state, sorted, with their places.
        self._others, self._others_at = self._keys.part(slice(0, 0)), np.zeros(0, np.int64)
        self._windows = windows
        self.forget_all()

    def has_room(self, keys: Keys) -> bool:
        """Says if it has a place for each of these keys, whatever they are."""
        return len(keys) <= _OTHERS

    def places(self, keys: Keys, known: Bools, time: int) -> Places:
        """The places of the keys of rows, for which it has room."""
        at_N = self._index.find(keys)
        while len(new := self._find_others(at_N, keys, known)):
            if not self._add_others(keys.take(new).numbered()[0]):
                at_N = self._index.find(keys)
        values_VN, rows = held_at(self._held, at_N, self._windows.numbers.identity_V, time, _NUM_TIMES)
        if not len(rows):
            return Places(at_N, values_VN, rows, rows)
        stale, first_rows = np.unique(at_N[rows], return_index=True)
        return Places(at_N, values_VN, stale, rows[first_rows])

    def _find_others(self, at_N: Ints, keys: Keys, known: Bools) -> Ints:
        """Writes the places of keys that have no state, and returns the rows whose keys have no place. A row without a
        key has the number of one, 0, which may be a key of the state."""
        own, others = (_halves(one) for one in (keys, self._others))
        missing: Ints = find_others(at_N, known, *own, *others, self._others_at)
        return missing

    def _add_others(self, new: Keys) -> bool:
        """Gives places to keys that have none. Without room for them all others lose theirs."""
        first = len(self._keys) + len(self._others)
        if has_room := len(self._others) + len(new) <= _OTHERS:
            self._others, older, newer = union(self._others, new)
            self._others_at = np.where(older >= 0, np.append(self._others_at, 0)[older], first + newer)
        else:
            self._others, self._others_at = new.part(slice(0, 0)), self._others_at[:0]
            self._held[len(self._keys) :] = 0
        return has_room

    def found(
        self, places: Places, content: Content | None, time: int
    ) -> Iterable[tuple[Window, Mapping[str, Summary]]]:
        """The summaries of windows for the rows; `content` is that of the keys whose windows are not known."""
        windows, values_VN = self._windows, places.values_VN
        if content is not None:
            times = windows.holds(content.run, time)
            self._held[places.stale] = np.concatenate([times, windows.values(content, time)]).T
            values_VN, _ = held_at(self._held, places.at_N, windows.numbers.identity_V, time, _NUM_TIMES)
        return zip(windows.windows, windows.by_window(values_VN), strict=True)

    def times(self, keys: Keys) -> Ints:
        """The times [from, until) at which the windows of keys hold, as they were found last. [2, N]"""
        at_N = self._index.find(keys)
        if len(others := np.flatnonzero(at_N < 0)):
            at_N[others] = self._places_of_others(keys.take(others))
        found: Ints = self._held[at_N, :_NUM_TIMES].T
        return found

    def forget(self, keys: Iterable[bytes]) -> None:
        """Rows were added to these keys of the store."""
        if changed := keys_of_set(keys, self._layout):
            at, others = self._index.find(changed), self._others.find(changed)
            self._held[at[at >= 0]] = 0
            self._held[self._others_at[others[others >= 0]]] = 0

    def forget_all(self) -> None:
        """Nothing is known."""
        # A row of a key, so that it lies together in memory. One of zeros holds at no time, and pages that nobody asks
        # for take no memory.
        self._held = np.zeros((len(self._keys) + _OTHERS, _NUM_TIMES + len(self._windows.numbers.values)), np.int64)


Found = Sequence[tuple[Window, Mapping[str, Summary]]]
"""For each window the summaries of its operations by name."""


class SingleCache:
    """The content of the windows of keys that are asked for alone, as users are: a session asks for its user again and
    again. One thread at a time uses it."""

    def __init__(self, layout: str) -> None:
        self._layout = bytes.fromhex(layout)
        self._held: dict[tuple[int, ...], tuple[int, int, Found]] = {}

    def found(self, key: Keys, time: int) -> Found | None:
        """The summaries of windows, None where they are not known."""
        begin, end, found = self._held.get(_names(key)[0], (0, 0, ()))
        return found if begin <= time < end else None

    def keep(self, key: Keys, held_at: Ints, found: Found) -> None:
        """Keeps the summaries for the times [from, until) of `held_at`, [2, 1]."""
        name = _names(key)[0]
        self._held.pop(name, None)
        if len(self._held) == _SINGLES:
            del self._held[next(iter(self._held))]  # the oldest one
        self._held[name] = int(held_at[0, 0]), int(held_at[1, 0]), found

    def forget(self, keys: Iterable[bytes]) -> None:
        """Rows were added to these keys of the store."""
        for name in _names(changed) if (changed := keys_of_set(keys, self._layout)) else ():
            self._held.pop(name, None)

    def forget_all(self) -> None:
        """Nothing is known."""
        self._held = {}


def keys_of_set(keys: Iterable[bytes], layout: bytes) -> Keys | None:
    """The keys of the store that are of a key set; None where there are none."""
    own = [key for key in keys if key.startswith(layout)]
    return keys_from_store(own, two_words=len(own[0]) > len(layout) + _WORD) if own else None


def _halves(keys: Keys) -> tuple[Ints, Ints]:
    """Both halves of keys for a kernel."""
    return keys.first, _NONE if keys.second is None else keys.second


def _names(keys: Keys) -> list[tuple[int, ...]]:
    """Keys for a dictionary."""
    halves = (keys.first,) if keys.second is None else (keys.first, keys.second)
    return list(zip(*(half.tolist() for half in halves), strict=True))
