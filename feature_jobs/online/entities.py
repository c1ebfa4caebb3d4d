"""The rows of an entity that requests see: those of the state, and above them the rows that came since.

Features that read the columns of one entity alone are computed once for all its rows, and a request takes its items'
values of them. Rows that come since are few: they are kept apart, so that neither they nor their features cost a pass
over the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.joins.entities import Newest
from feature_jobs.windows.keys import Bools, Ints, Keys

_MOST = 0.125
"""Rows that came since are merged with the others where they are more than this share of them."""
FeaturesOf = Callable[[Mapping[str, pa.Array], int], dict[str, pa.Array]]
"""Features of rows, from the columns of the entity by name and the number of rows."""


class EntityRows:
    """Rows of an entity by key; `changed` replace rows of `rows` that have their keys. `place` is for messages."""

    def __init__(self, place: str, rows: Newest, changed: Newest | None = None, same: _Features | None = None) -> None:
        self._place, self._rows, self._changed, self._same = place, rows, changed, same
        self._columns: dict[str, pa.Array] = {}
        self._of_changed: _Features | None = None

    def then(self, newer: Newest) -> EntityRows:
        """With rows that came later."""
        changed = newer if self._changed is None else self._changed.then(newer)
        if len(changed) > _MOST * len(self._rows):
            return EntityRows(self._place, self._rows.then(changed))
        found = EntityRows(self._place, self._rows, changed, self._same)
        found._columns = self._columns
        return found

    def find(self, keys: Keys, known: Bools) -> Ints:
        """The row of each key, those that came since after all others; -1 for a key without row, or not `known`."""
        at = self._rows.keys.find(keys)
        if self._changed is not None:
            later = self._changed.keys.find(keys)
            at = np.where(later >= 0, later + len(self._rows), at)
        return at if known.all() else np.where(known, at, -1)

    def take(self, name: str, at_N: Ints) -> pa.Array:
        """A column at these rows, null at -1."""
        if name not in self._columns:
            self._columns[name] = self._column(self._rows, name)
        later = None if self._changed is None else self._column(self._changed, name)
        return _taken(self._columns[name], later, len(self._rows), at_N)

    def features(self, features_of: FeaturesOf, at_N: Ints) -> dict[str, pa.Array] | None:
        """The features at these rows, at -1 those of a row without values.

        None where a row's value can't be a feature, so that only a request for that row is refused.
        """
        if self._same is None:
            self._same = self._computed(features_of, self._rows)
        if self._changed is not None and self._of_changed is None:
            self._of_changed = self._computed(features_of, self._changed)
        same, later = self._same.columns, self._of_changed.columns if self._of_changed else {}
        if same is None or later is None:
            return None
        # The row without values is the last one of all.
        num, no_row = len(self._rows), len(self._rows) + (len(self._changed) if self._changed else 0)
        at_N = np.where(at_N < 0, no_row, at_N)
        return {name: _taken(column, later.get(name), num + (not later), at_N) for name, column in same.items()}

    def _computed(self, features_of: FeaturesOf, rows: Newest) -> _Features:
        nothing = {name: pa.nulls(1, rows.rows.schema.field(name).type) for name in rows.rows.column_names}
        columns = {name: pa.concat_arrays([self._column(rows, name), null]) for name, null in nothing.items()}
        try:
            return _Features(features_of(columns, len(rows) + 1))
        except BadInputError:
            return _Features(None)

    def _column(self, rows: Newest, name: str) -> pa.Array:
        if name not in rows.rows.column_names:
            raise BadInputError(f"{self._place}: the state has no column {name}; materialize the day again")
        return rows.rows[name].combine_chunks()


class _Features:
    """Columns of features, with a last row for a key without row; None where they can't be computed."""

    def __init__(self, columns: dict[str, pa.Array] | None) -> None:
        self.columns = columns


def _taken(first: pa.Array, then: pa.Array | None, num: int, at_N: Ints) -> pa.Array:
    """Values of `first`, and from position `num` on of `then`; null at -1."""
    if len(at_N) == 1:  # a slice costs a tenth of what taking does
        at = int(at_N[0])
        if at < 0:
            return pa.nulls(1, first.type)
        return first[at : at + 1] if at < num or then is None else then[at - num : at - num + 1]
    is_later = at_N >= num
    if then is None or not is_later.any():
        return first.take(pa.array(at_N) if (at_N >= 0).all() else pa.array(at_N, mask=at_N < 0))
    later = then.take(pa.array(at_N - num, mask=~is_later))
    earlier = first.take(pa.array(at_N, mask=is_later | (at_N < 0)))
    return pc.if_else(pa.array(is_later), later, earlier)
