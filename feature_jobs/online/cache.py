"""A cache of the content of windows by key: most items of a request had the same a moment ago.

The content of a window changes when one of its key's rows enters or leaves it, whose moments are known
(`SetWindows.holds`), and when a row is added, which the store says (`OnlineStore.changed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from feature_jobs.joins.trailing import Wanted
from feature_jobs.online.store import keys_from_store
from feature_jobs.online.windows import Content, SetWindows
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Bools, Ints, Keys
from feature_jobs.windows.operations import Numbers
from feature_jobs.windows.rows import Summary

_NEVER = np.iinfo(np.int64).min


_OTHERS = 1 << 16
"""Most keys that have no state in a cache."""


@dataclass(frozen=True)
class Places:
    """The place in a cache of each asking row's key, -1 for none; and of the places whose windows are not known, each
    once, with a row that asks for it."""

    at_N: Ints
    stale: Ints
    rows: Ints


class WindowCache:
    """The summaries of windows by key: in the order of `keys`, then others as they come. One thread at a time uses it.

    `wanted` are the windows with their operations, all of which make numbers.
    """

    def __init__(self, keys: Keys, layout: str, wanted: Mapping[Window, Wanted]) -> None:
        self._keys, self._layout = keys, bytes.fromhex(layout)
        self._others: dict[tuple[int, ...], int] = {}
        num = len(keys) + _OTHERS
        self._from = np.zeros(num, np.int64)
        self._until = np.full(num, _NEVER)
        self._columns = {
            # Pages that nobody asks for take no memory.
            (window, name, column): (np.empty(num, np.int64), identity)
            for window, one in wanted.items()
            for name, operation in one.operations.items()
            if isinstance(operation, Numbers)
            for column, identity in operation.identity.items()
        }

    def has_room(self, keys: Keys) -> bool:
        """Says if it has a place for each of these keys, whatever they are."""
        return len(keys) <= _OTHERS

    def places(self, keys: Keys, known: Bools, time: int) -> Places:
        """The places of the keys of rows, for which it has room."""
        at_N = self._keys.find(keys)
        if (at_N < 0).any():
            others = np.flatnonzero(known & (at_N < 0))
            if len(self._others) + len(others) > _OTHERS:
                self._others = {}
                self._until[len(self._keys) :] = _NEVER
            first = len(self._keys)
            at_N[others] = [self._others.setdefault(key, first + len(self._others)) for key in _tuples(keys, others)]
            at_N[~known] = -1
        is_stale = (self._from[at_N] > time) | (self._until[at_N] <= time)
        is_stale[at_N < 0] = False
        rows = np.flatnonzero(is_stale)
        stale, first_rows = np.unique(at_N[rows], return_index=True) if len(rows) else (rows, rows)
        return Places(at_N, stale, rows[first_rows])

    def found(
        self, places: Places, windows: SetWindows, content: Content | None, time: int
    ) -> Iterable[tuple[Window, Mapping[str, Summary]]]:
        """The summaries of windows for the rows; `content` is that of the keys whose windows are not known."""
        if content is not None:
            read = dict(windows.of(content, None, time))
            for (window, name, column), (values, _) in self._columns.items():
                values[places.stale] = read[window][name][column]
            self._from[places.stale], self._until[places.stale] = windows.holds(content.run, len(content.keys), time)
        found: dict[Window, dict[str, Summary]] = {}
        none = None if (places.at_N >= 0).all() else places.at_N < 0
        for (window, name, column), (values, identity) in self._columns.items():
            taken = values[places.at_N]
            if none is not None:
                taken[none] = identity
            found.setdefault(window, {}).setdefault(name, {})[column] = taken
        return found.items()

    def forget(self, keys: Iterable[bytes]) -> None:
        """Rows were added to these keys of the store."""
        own = [key for key in keys if key.startswith(self._layout)]
        if own:
            changed = keys_from_store(own, two_words=self._keys.second is not None)
            at = self._keys.find(changed)
            self._until[at[at >= 0]] = _NEVER
            others = _tuples(changed, np.flatnonzero(at < 0))
            self._until[[self._others[key] for key in others if key in self._others]] = _NEVER

    def forget_all(self) -> None:
        """Nothing is known."""
        self._until[:] = _NEVER


def _tuples(keys: Keys, rows: Ints) -> list[tuple[int, ...]]:
    words = [keys.first, *([] if keys.second is None else [keys.second])]
    return list(zip(*(word[rows].tolist() for word in words), strict=True))
