"""The rows of an entity that requests see: those of the state, and above them the rows that came since.

Features that read the columns of one entity alone are computed once for all its rows, and a request takes its items'
values of them. Rows that come since are few: they are kept apart, so that neither they nor their features cost a pass
over the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.vectors import vector
from feature_jobs.joins.entities import Newest
from feature_jobs.online.key_index import KeyIndex
from feature_jobs.online.request_kernels import taken, taken_lists
from feature_jobs.windows.keys import Bools, Ints, Keys
from feature_jobs.windows.rows import lists_of

_NUMBERS = (pa.int64(), pa.float64())
_ALL = np.zeros(0, np.bool_)
"""Says that all values are known."""
_MOST = 0.125
"""Rows that came since are merged with the others where they are more than this share of them."""
FeaturesOf = Callable[[Mapping[str, pa.Array], int], dict[str, pa.Array]]
"""Features of rows, from the columns of the entity by name and the number of rows."""


class EntityRows:
    """Rows of an entity by key; `changed` replace those of `rows` that have their keys."""

    def __init__(self, rows: _Rows, changed: _Rows | None = None) -> None:
        self._rows, self._changed = rows, changed

    @staticmethod
    def of(place: str, rows: Newest) -> EntityRows:
        """Rows without later ones. `place` is for messages."""
        return EntityRows(_Rows(place, rows))

    def then(self, newer: Newest) -> EntityRows:
        """With rows that came later, which have the same columns, and maybe more."""
        place, rows = self._rows.place, self._rows.rows
        newer = newer.of_columns(rows.rows.column_names)
        changed = newer if self._changed is None else self._changed.rows.then(newer)
        if len(changed) > _MOST * len(rows):
            return EntityRows.of(place, rows.then(changed))
        return EntityRows(self._rows, _Rows(place, changed))

    def find(self, keys: Keys, known: Bools) -> Ints:
        """The row of each key, those that came since after all others; -1 for a key without row, or not `known`."""
        at = self._rows.index.find(keys)
        if self._changed is not None:
            later = self._changed.index.find(keys)
            at = np.where(later >= 0, later + len(self._rows.rows), at)
        # An unknown key was looked up as 0, which may be a key.
        return at if known.all() else np.where(known, at, -1)

    def take(self, name: str, at_N: Ints) -> pa.Array:
        """A column at these rows, null at -1."""
        later = [] if self._changed is None else [self._changed.column(name)]
        return _taken([self._rows.column(name)], later, len(self._rows.rows), at_N)[0]

    def features(self, features_of: FeaturesOf, at_N: Ints) -> dict[str, pa.Array] | None:
        """The features at these rows, at -1 those of a row without values.

        None where a row's value can't be a feature, so that only a request for that row is refused.
        """
        same = self._rows.features(features_of)
        later = {} if self._changed is None else self._changed.features(features_of)
        if same is None or later is None:
            return None
        # The row without values is the last one of all.
        num = len(self._rows.rows)
        no_row = num + (0 if self._changed is None else len(self._changed.rows))
        at_N = np.where(at_N < 0, no_row, at_N)
        # Without later rows the row without values, at `num`, is still among the first ones.
        taken = _taken([*same.values()], [later[name] for name in same if later], num + (not later), at_N)
        return dict(zip(same, taken, strict=True))


class _Rows:
    """Rows with the columns and features that were asked for."""

    def __init__(self, place: str, rows: Newest) -> None:
        self.place, self.rows, self.index = place, rows, KeyIndex(rows.keys)
        self._columns: dict[str, _Column] = {}
        self._features: dict[str, _Column] | None = None
        self._is_computed = False

    def column(self, name: str) -> _Column:
        """A column, whole."""
        if name not in self._columns:
            if name not in self.rows.rows.column_names:
                raise BadInputError(f"{self.place}: the state has no column {name}; materialize the day again")
            self._columns[name] = _Column(self.rows.rows[name].combine_chunks())
        return self._columns[name]

    def features(self, features_of: FeaturesOf) -> dict[str, _Column] | None:
        """Columns of features, with a last row for a key without row; None where they can't be computed."""
        if not self._is_computed:
            columns = {name: self.column(name).array for name in self.rows.rows.column_names}
            columns = {name: pa.concat_arrays([c, pa.nulls(1, c.type)]) for name, c in columns.items()}
            with contextlib.suppress(BadInputError):
                found = features_of(columns, len(self.rows) + 1)
                self._features = {name: _Column(feature) for name, feature in found.items()}
            # Also where it failed: else each request would try again.
            self._is_computed = True
        return self._features


class _Column:
    """A column from which a request takes some rows: numbers, and lists of them, in a tenth of Arrow's time."""

    def __init__(self, array: pa.Array) -> None:
        lists = pa.types.is_list(array.type)
        numbers = array.values if lists else array
        self.array, self._numbers, self._offsets = array, None, None
        if numbers.type in _NUMBERS and len(numbers) and not (lists and (array.null_count or numbers.null_count)):
            values, known = vector(numbers)
            self._numbers = values, _ALL if known is np.True_ else known
            self._offsets = np.asarray(array.offsets) if lists else None

    def take(self, at_N: Ints) -> pa.Array:
        """The values at these rows; null at -1."""
        if self._numbers is None or (self._offsets is not None and at_N.min(initial=0) < 0):
            return self.array.take(pa.array(at_N, mask=at_N < 0))
        values, known = self._numbers
        if self._offsets is not None:
            offsets, values = taken_lists(self._offsets, values, at_N)
            found = pa.Array.from_buffers(self.array.type.value_type, len(values), [None, pa.py_buffer(values)])
            return lists_of(offsets, found, self.array.type)
        values, bits, num = taken(values, known, at_N)
        return pa.Array.from_buffers(
            self.array.type, len(at_N), [pa.py_buffer(bits) if num else None, pa.py_buffer(values)], num
        )


def _taken(firsts: Sequence[_Column], thens: Sequence[_Column], num: int, at_N: Ints) -> list[pa.Array]:
    """Values of the first columns, and from position `num` on of those that came since, if any; null at -1."""
    if len(at_N) == 1:  # a slice costs a tenth of what taking does
        at = int(at_N[0])
        if at < 0:
            return [pa.nulls(1, first.array.type) for first in firsts]
        columns, at = (thens, at - num) if thens and at >= num else (firsts, at)
        return [column.array[at : at + 1] for column in columns]
    if not thens or not (is_later := at_N >= num).any():
        return [first.take(at_N) for first in firsts]
    first_at = np.where(is_later, 0, at_N)
    then_at = np.where(is_later, at_N - num, 0)
    mask = pa.array(is_later)
    return [
        pc.if_else(mask, then.take(then_at), first.take(first_at)) for first, then in zip(firsts, thens, strict=True)
    ]
