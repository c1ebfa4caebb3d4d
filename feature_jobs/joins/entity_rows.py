"""The rows of an entity that the events of a day may see, by key, and with time by key and time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.joins.values import joint_key
from feature_jobs.windows.keys import Ints, distinct

VALID_FROM = "key.valid_from"


class EntityRows:
    """E rows, in the order of their keys `on`, and of their times where they have one. What a search needs is made once
    for all events of a day.

    `folder` is that of the entities of `ds`; `names` are the columns that are read, plain or as ENTITY.COLUMN; `place`
    is that of the key in the scenario.
    """

    def __init__(
        self, folder: Path, name: str, on: Sequence[str], names: Collection[str], *, ds: str, place: str
    ) -> None:
        file = folder / f"{name}.parquet"
        present = pq.read_schema(file).names
        wanted = [n for n in present if n in names or f"{name}.{n}" in names or n == VALID_FROM]
        self._rows = pq.read_table(file, columns=wanted).combine_chunks()
        self._name, self._on, self._ds, self._place = name, on, ds, place

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._rows.column_names)

    def column(self, name: str) -> pa.Array:
        """A column. [E]"""
        found = self._rows[name]
        # combine_chunks copies, also where there is one chunk.
        return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()

    @cached_property
    def valid_from(self) -> Ints:
        """The time from which each row holds. [E]"""
        return np.asarray(self.column(VALID_FROM))

    def find(self, wanted: list[pa.Array]) -> Ints:
        """For each of N keys, a column for each part, its position among the distinct ones, -1 where it is not there.
        Without time that is its row."""
        return _codes(joint_key(wanted, self._place), self._distinct)

    def newest_before(self, codes_N: Ints, times_N: Ints) -> Ints:
        """The row of each key, by the position that `find` gives it, that is the newest strictly before a time; -1 for
        none. Raises BadInputError where rows are out of order."""
        moments, places_E = self._moments, self._places
        start = codes_N * (len(moments) + 1)
        end = np.searchsorted(places_E, start + np.searchsorted(moments, times_N))
        # The second condition: the row before `end` is this key's own, not the one's before it.
        seen = (codes_N >= 0) & (end > np.searchsorted(places_E, start))
        return np.where(seen, end - 1, -1)

    @cached_property
    def _keys(self) -> pa.Array:
        return joint_key([self.column(name) for name in self._on], self._place)

    @cached_property
    def _distinct(self) -> pa.Array:
        return self._keys.unique()  # in the order of the rows

    @cached_property
    def _moments(self) -> Ints:
        return distinct(self.valid_from)

    @cached_property
    def _places(self) -> Ints:
        """Key and rank of a time as one sorted number, so that one search finds the newest before a time."""
        # One more than there are times: the rank of a later one is their number.
        size = len(self._moments) + 1
        places = _codes(self._keys, self._distinct) * size + np.searchsorted(self._moments, self.valid_from)
        if (np.diff(places) < 0).any():
            raise BadInputError(f"entities/{self._name}.parquet of {self._ds}: rows are not in order; run ingest again")
        return places


def _codes(values: pa.Array, unique: pa.Array) -> Ints:
    """Position of each value in `unique`, -1 where it is null or not there."""
    # skip_nulls: otherwise a null key of an event would find the null key of a table.
    found = pc.index_in(values, value_set=unique, skip_nulls=True)
    codes: Ints = np.asarray(found.fill_null(-1)).astype(np.int64)
    return codes
