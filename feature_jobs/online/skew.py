"""Skew: the features that a server computed beside those that the daily join computed, row by row.

Chronon reports the same of logged requests (its online-offline consistency job): per feature how many rows are equal,
missing, extra or different.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.exact_columns import plain

_MOST_EXAMPLES = 3
_NAMING = {"key.event_time", "key.request"}
"""Key columns of which at least one is needed: a user alone has many rows."""
_SINGLE = [(pa.float32(), pa.float64()), (pa.list_(pa.float32()), pa.list_(pa.float64()))]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureSkew:
    """A feature over the rows that both have: `missing` where only the join has a value, `extra` where only the server
    has one, `different` where the values differ, `largest` by how much (numbers only). `rows` are the first rows that
    are not equal, by their keys."""

    feature: str
    equal: int
    missing: int
    extra: int
    different: int
    largest: float | None
    rows: tuple[str, ...]

    @property
    def unequal(self) -> int:
        """Number of rows that are not equal."""
        return self.missing + self.extra + self.different


@dataclass(frozen=True)
class Skew:
    """All features; `only_online` and `only_offline` are rows that the other side does not have, `alike` those that
    share their keys with others, so that another of them may be meant."""

    features: tuple[FeatureSkew, ...]
    rows: int
    only_online: int
    only_offline: int
    alike: int

    @property
    def unequal(self) -> list[FeatureSkew]:
        """Features that are not equal on all rows, the worst first."""
        return sorted((one for one in self.features if one.unequal), key=lambda one: -one.unequal)


def skew(online: pa.Table, offline: pa.Table, features: Sequence[str], place: str) -> Skew:
    """Compares both tables on the rows whose key columns (`key.…`) they share. `place` is where `online` comes from.

    Of rows with equal keys the first ones of both belong together, then the second ones. NaN is null, and a number that
    was logged as float32 is compared as one. Raises BadInputError where the tables share no key column that names a
    moment or a request, or one has another type, and where a feature is missing.
    """
    keys = [name for name in offline.column_names if name.startswith("key.") and name in online.column_names]
    if double := [name for name in keys if online.column_names.count(name) > 1]:
        raise BadInputError(f"{place}: has several columns {double[0]}; log each once")
    if not _NAMING & set(keys):
        known = ", ".join(name for name in offline.column_names if name.startswith("key."))
        has = ", ".join(keys) or "none"
        raise BadInputError(
            f"{place}: of the key columns {known} it has {has}, which do not name a row; log key.event_time with the"
            f" features"
        )
    for name in features:
        if online.column_names.count(name) != 1:
            has = "has several columns" if name in online.column_names else "has no column"
            raise BadInputError(f"{place}: {has} {name}; log all features of the scenario, each once")
    online, offline = online.combine_chunks(), offline.combine_chunks()
    for name in keys:
        column = _usual(online[name].combine_chunks())
        online = online.set_column(online.column_names.index(name), name, column)
    at_online, at_offline, alike = _matched(online, offline, keys, place)
    pairs = online.take(at_online), offline.take(at_offline)
    found = []
    for name in features:
        values = [_usual(table[name].combine_chunks()) for table in pairs]
        found.append(_of_feature(name, values[0], values[1], pairs[1].select(keys)))
    num = len(at_online)
    return Skew(tuple(found), num, online.num_rows - num, offline.num_rows - num, alike)


def _usual(values: pa.Array) -> pa.Array:
    """Lists and texts as the samples have them: what wrote a log may have its own, such as with offsets of 64 bits.

    float32 stays, so that the value of the join is rounded to it too, see `_of_feature`.
    """
    values = plain(values)
    if pa.types.is_large_list(values.type):
        return values.cast(pa.list_(values.type.value_type))
    return values.cast(pa.string()) if pa.types.is_large_string(values.type) else values


def _matched(online: pa.Table, offline: pa.Table, keys: list[str], place: str) -> tuple[pa.Array, pa.Array, int]:
    """Positions of the rows that both have, and the number of those of `online` that are not alone with their keys."""
    for name in keys:
        if online.schema.field(name).type != offline.schema.field(name).type:
            raise BadInputError(
                f"{place}: {name} is {online.schema.field(name).type}, but {offline.schema.field(name).type} in the"
                " samples; log it in the type of the log"
            )
    sides = [_numbered(online, keys), _numbered(offline, keys)]
    names = [name for name in sides[0].column_names if name != "at"]
    # A join's rows come in no order; in that of the samples the first unequal ones are the same every time.
    joined = sides[0].join(sides[1].rename_columns([*names, "other"]), names, join_type="inner").sort_by("other")
    num_of_key = sides[0].group_by(names[:-1], use_threads=False).aggregate([("at", "count")])["at_count"]
    alike = pc.sum(num_of_key.filter(pc.greater(num_of_key, 1))).as_py() or 0
    return joined["at"].combine_chunks(), joined["other"].combine_chunks(), alike


def _numbered(table: pa.Table, keys: list[str]) -> pa.Table:
    """The keys of all rows, without nulls; `number` counts the rows of a key, `at` is the position of the row."""
    columns: dict[str, pa.Array] = {}
    for number, name in enumerate(keys):
        column = table[name].combine_chunks()
        # Null is a key like others here: a row without a user is still a row.
        # Arrow's join never matches two nulls, so what is null stands in a column of its own.
        columns[f"n{number}"] = column.is_null().cast(pa.int8())
        columns[f"k{number}"] = column.fill_null("" if pa.types.is_string(column.type) else 0)
    rows = pa.table({**columns, "at": pa.array(np.arange(table.num_rows))})
    # With threads the rows of a list may come in another order each time.
    grouped = rows.group_by([*columns], use_threads=False).aggregate([("at", "list")]).combine_chunks()
    lists = grouped["at_list"].combine_chunks()
    begin = np.asarray(lists.offsets)
    parents = np.asarray(pc.list_parent_indices(lists))
    of_key = np.arange(len(parents)) - (begin[:-1] - begin[0])[parents]
    found = grouped.drop_columns("at_list").take(pa.array(parents))
    return found.append_column("number", pa.array(of_key)).append_column("at", lists.flatten())


def _of_feature(name: str, online: pa.Array, offline: pa.Array, keys: pa.Table) -> FeatureSkew:
    if (online.type, offline.type) in _SINGLE:  # the network's own type
        offline = offline.cast(online.type, safe=False)
    online, offline = (_without_nan(values) for values in (online, offline))
    has, had = (np.asarray(_is_known(values)) for values in (online, offline))
    same, distance = _compared(online, offline)
    both = has & had
    different = both & ~same
    missing, extra = ~has & had, has & ~had
    unequal = np.flatnonzero(missing | extra | different)[:_MOST_EXAMPLES]
    rows = tuple(
        ", ".join(f"{key.removeprefix('key.')} {value}" for key, value in row.items())
        for row in keys.take(pa.array(unequal)).to_pylist()
    )
    largest = float(distance[different].max()) if distance is not None and different.any() else None
    counts = {"missing": int(missing.sum()), "extra": int(extra.sum()), "different": int(different.sum())}
    return FeatureSkew(name, len(online) - sum(counts.values()), **counts, largest=largest, rows=rows)


def _without_nan(values: pa.Array) -> pa.Array:
    if pa.types.is_list(values.type) and pa.types.is_floating(values.type.value_type):
        offsets, elements, unknown = values.offsets, _without_nan(values.values), values.is_null()
        return pa.ListArray.from_arrays(offsets, elements, mask=unknown)
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _is_known(values: pa.Array) -> pa.Array:
    """A list without elements stands for an unknown one, as in the samples."""
    if pa.types.is_list(values.type):
        return pc.greater(pc.list_value_length(values).fill_null(0), 0)
    return values.is_valid()


def _compared(online: pa.Array, offline: pa.Array) -> tuple[Bools, Floats | None]:
    """Rows with the same value on both sides, and the distance between numbers."""
    kind = offline.type
    if pa.types.is_list(kind) or pa.types.is_string(kind) or online.type != kind:
        pairs = zip(online.to_pylist(), offline.to_pylist(), strict=True)
        return np.fromiter((a == b for a, b in pairs), bool, len(online)), None
    values = [np.asarray(column.fill_null(0)).astype(np.float64) for column in (online, offline)]
    same = np.asarray(pc.fill_null(pc.equal(online, offline), True))
    return same, np.abs(values[0] - values[1])
