"""Tiles: summaries of 2^j whole days, one for each key and operation, sorted by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from feature_jobs.windows.keys import Keys, union
from feature_jobs.windows.operations import Operation
from feature_jobs.windows.rows import Column, Summary, concat_columns
from feature_jobs.windows.runs import FIRST, SECOND, Run, column_of, key_columns, keys_from
from feature_jobs.windows.stretches import stretches

Operations = Mapping[str, Operation]


@dataclass(frozen=True)
class Tile:
    """Sorted, distinct keys, and by the name of an operation its summary of each key's rows."""

    keys: Keys
    summaries: Mapping[str, Summary]

    def between(self, keys: Keys) -> Tile:
        """The summaries of the keys that lie between the first and the last of `keys`, in the same memory."""
        found = self.keys.between(keys)
        return Tile(
            self.keys.part(found),
            {name: {of: column[found] for of, column in one.items()} for name, one in self.summaries.items()},
        )


def tile_of(run: Run, operations: Operations) -> Tile:
    """The tile of one day."""
    # Some keys at a time: operations compute a few numbers of each row on the way.
    # Unique: a key with more rows than go at once, which is never cut, is found by several of the steps.
    begins = np.unique(np.searchsorted(run.offsets, [begin for begin, _ in stretches(int(run.offsets[-1]))]))
    parts = [run.part(slice(*ends)) for ends in pairwise([*begins.tolist(), len(run.keys)])]
    return Tile(run.keys, {name: _summarized(operation, parts) for name, operation in operations.items()})


def _summarized(operation: Operation, parts: Sequence[Run]) -> Summary:
    """The summaries of the keys of all parts."""
    found = [operation.of_ranges(run.rows, run.offsets[:-1], run.offsets[1:]) for run in parts]
    return {name: concat_columns([one[name] for one in found]) for name in found[0]}


def merge(older: Tile, newer: Tile, operations: Operations) -> Tile:
    """The tile of the days of both; all days of `older` lie before those of `newer`."""
    keys, in_older, in_newer = union(older.keys, newer.keys)
    summaries = {
        name: op.combine([(older.summaries[name], in_older), (newer.summaries[name], in_newer)])
        for name, op in operations.items()
    }
    return Tile(keys, summaries)


def tile_table(tile: Tile) -> pa.Table:
    """The tile as a table, for a file."""
    return pa.table({**key_columns(tile.keys), **summary_columns(tile.summaries)})


def summary_columns(summaries: Mapping[str, Summary]) -> dict[str, Column]:
    """Columns of a table that hold summaries: they are named OPERATION.COLUMN."""
    return {f"{name}.{column}": _narrow(values) for name, s in summaries.items() for column, values in s.items()}


def summaries_from(table: pa.Table) -> dict[str, Summary]:
    """The summaries of such a table, by the name of their operation."""
    summaries: dict[str, Summary] = {}
    for place in table.column_names:
        if place not in (FIRST, SECOND):
            name, column = split_name(place)
            summaries.setdefault(name, {})[column] = column_of(table, place)
    return summaries


def split_name(place: str) -> tuple[str, str]:
    """Operation and column of OPERATION.COLUMN. The column may have points too, as that of an entity."""
    # The names that operations of features have end with a parenthesis, and no column holds one before a point.
    name, bracket, column = place.rpartition(").")
    if bracket:
        return f"{name})", column
    name, _, column = place.partition(".")
    return name, column


def _narrow(values: Column) -> Column:
    """Whole numbers in the fewest bytes that hold all of them: most are small counts."""
    if not isinstance(values, np.ndarray) or values.dtype != np.int64 or not len(values):
        return values
    low, high = int(values.min()), int(values.max())
    kinds = (kind for kind in (np.int8, np.int16, np.int32) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return values.astype(next(kinds, np.int64))


def tile_from(table: pa.Table) -> Tile:
    """The tile of a table that `tile_table` made."""
    return Tile(keys_from(table), summaries_from(table))
