"""Values of trailing features, from what their windows hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.joins.aggregations import NEWEST, Aggregation
from feature_jobs.joins.audit import NO_SOURCE
from feature_jobs.schema import (
    CountFeature,
    PercentileFeature,
    RateFeature,
    RecencyFeature,
    Scenario,
    SequenceFeature,
    StatisticFeature,
    TopFeature,
    UniqueCountFeature,
    ValueFeature,
)
from feature_jobs.windows.keys import Bools, Ints
from feature_jobs.windows.rows import Summary

_HASHES = 2.0**64


Known = Bools | np.bool_
"""Says of each row if it is known; np.True_: all are."""


class Asking(Protocol):
    """The rows that features are computed for: the events of a day, or the rows of a request."""

    @property
    def scenario(self) -> Scenario:
        """The scenario of the log."""

    @property
    def known_at(self) -> Ints:
        """The time before which the features of each row were known, in µs."""

    def entity_lists(self, name: str) -> tuple[pa.Array, Ints]:
        """A column of an entity, and the entity row that each row sees (-1: none)."""


Found = Mapping[str, Summary]
"""The content of a window, by the role of an operation."""
FeatureValues = Callable[[Asking, Found, Known], pa.Array]
"""Makes a feature's values, one for each asking row; the last argument says which of them have a key."""


def feature_values(aggregation: Aggregation, place: str) -> FeatureValues:
    """Makes the values of the feature of an aggregation. `place` is for messages."""
    feature: Any = aggregation.feature
    decimals = aggregation.decimals
    makers: dict[type, FeatureValues] = {
        # Without a key the count is unknown, which is not the 0 of a key that never came before.
        CountFeature: lambda _, found, has_key: _doubles(found["count"]["num"], has_key),
        RecencyFeature: lambda asking, found, _: _recency(asking.known_at, np.asarray(found[NEWEST]["time"])),
        RateFeature: lambda _, found, has_key: _rate(feature, found, has_key),
        StatisticFeature: lambda _, found, has_key: _statistic(feature.kind, found, decimals, has_key),
        PercentileFeature: lambda _, found, __: _in_units(found["quantile"], decimals),
        UniqueCountFeature: lambda _, found, has_key: _doubles(_distinct(found["distinct"]), has_key),
        ValueFeature: lambda _, found, __: first_of(_listed(found["last"])),
        TopFeature: lambda _, found, __: _listed(found["frequent"]),
        SequenceFeature: lambda asking, found, _: _sequence(asking, place, feature, found["last"]),
    }
    return makers[type(feature)]


def _doubles(values: Any, known: Known) -> pa.Array:
    numbers = np.asarray(values).astype(float)
    if known is np.True_ or known.all():  # most often; without a mask a third of the time
        return pa.Array.from_buffers(pa.float64(), len(numbers), [None, pa.py_buffer(numbers)])
    return pa.array(numbers, pa.float64(), mask=~known)


def _recency(known_at: Ints, newest: Ints) -> pa.Array:
    seen = newest != NO_SOURCE
    return _doubles((known_at - np.where(seen, newest, 0)) / 1e6, seen)  # from microseconds to seconds


def _rate(feature: RateFeature, found: Found, has_key: Known) -> pa.Array:
    held, num = np.asarray(found["held"]["num"]), np.asarray(found["count"]["num"])
    return _doubles((held + feature.prior * feature.prior_weight) / (num + feature.prior_weight), has_key)


def _statistic(kind: str, found: Mapping[str, Summary], decimals: int, has_key: Known) -> pa.Array:
    if kind in ("min", "max"):
        return _in_units(found["value"], decimals)
    total, num = np.asarray(found["sum"]["sum"]), np.asarray(found["count"]["num"])
    if kind == "sum":
        return _doubles(total / 10.0**decimals, has_key)
    some = num > 0
    num = np.where(some, num, 1)
    if kind == "average":
        return _doubles(total / (num * 10.0**decimals), some)
    # Whole numbers of any size: the difference of two sums of nearly the same size would lose its digits.
    high, low, total, num = (
        np.asarray(column).astype(object) for column in (found["squares"]["high"], found["squares"]["low"], total, num)
    )
    scaled = num * num * 10 ** (2 * decimals)
    variance = ((num * ((high << 32) + low) - total * total) / scaled).astype(float)
    return _doubles(np.sqrt(variance) if kind == "stddev" else variance, some)


def _in_units(found: Summary, decimals: int) -> pa.Array:
    """A number that is meaningful where some rows count."""
    return _doubles(np.asarray(found["value"]) / 10.0**decimals, np.asarray(found["num"]) > 0)


def _distinct(found: Summary) -> Any:
    """The number of different hashes, from those below a threshold: all 2^64 hashes are equally likely."""
    num, below = np.asarray(found["num"]), np.asarray(found["below"])
    is_exact = below == np.iinfo(np.int64).max
    return np.where(is_exact, num, np.rint(num * (_HASHES / (np.where(is_exact, 0, below) + _HASHES / 2))))


def _listed(found: Summary) -> pa.ListArray:
    """The lists of an operation's column; where it lists times alone, these."""
    name = next((name for name in found if name != "time"), "time")
    lists: pa.ListArray = found[name]
    return lists


def first_of(lists: pa.ListArray) -> pa.Array:
    """The first value of each list, null where it is empty."""
    offsets = np.asarray(lists.offsets)
    begin = np.where(np.diff(offsets) > 0, offsets[:-1], -1)
    return lists.values.take(pa.array(begin, mask=begin < 0))


def _sequence(asking: Asking, place: str, feature: SequenceFeature, found: Summary) -> pa.Array:
    lists = _steps_ago(asking.known_at, found["time"]) if [*found] == ["time"] else _listed(found)
    if not feature.history:
        return lists
    history, rows = asking.entity_lists(feature.history)
    if history.type != pa.list_(lists.type.value_type):
        wanted = "int" if pa.types.is_int64(lists.type.value_type) else "string"
        raise BadInputError(
            f"{place}.history: {feature.history} is {history.type}, but the sequence holds {lists.type.value_type}; "
            f"declare it as list[{wanted}]"
        )
    return _continued(lists, history, rows, feature.length)


def _steps_ago(times_N: Ints, lists: Any) -> pa.ListArray:
    """The time from each listed one to that of its row, as the number of bits of its whole seconds."""
    offsets = np.asarray(lists.offsets)
    seconds = (np.repeat(times_N, np.diff(offsets)) - np.asarray(lists.values)) // 1_000_000
    # Exact: whole seconds of any window are far below 2^53.
    bits = np.frexp(seconds.astype(float))[1].astype(np.int64)
    return pa.ListArray.from_arrays(lists.offsets, pa.array(bits))


def _continued(lists: pa.ListArray, history: pa.ListArray, rows: Ints, length: int) -> pa.ListArray:
    """Lists, newest first, that go on with the end of `history[rows]` (oldest first; -1: none) up to `length`."""
    if not len(history):
        return lists
    if len(rows) < len(history):  # so that few rows do not copy the history of all
        history = history.take(pa.array(np.maximum(rows, 0)))
        rows = np.where(rows >= 0, np.arange(len(rows)), -1)
    taken = np.diff(np.asarray(lists.offsets)).astype(np.int64)
    offsets = np.asarray(history.offsets).astype(np.int64)
    listed = np.where(np.asarray(history.is_valid()), np.diff(offsets), 0)
    more = np.where(rows >= 0, np.minimum(listed[rows], length - taken), 0)
    ends = offsets[1:][rows]
    joined = pa.concat_arrays([lists.flatten(), history.values])
    result = np.concatenate([[0], np.cumsum(taken + more)])
    own = np.concatenate([[0], np.cumsum(taken)])
    # Position of each value: the list's own first, then the history's backwards from its end.
    within = np.arange(result[-1]) - np.repeat(result[:-1], taken + more)
    is_own = within < np.repeat(taken, taken + more)
    places = np.where(
        is_own,
        within + np.repeat(own[:-1], taken + more),
        own[-1] + np.repeat(ends + taken - 1, taken + more) - within,
    )
    return pa.ListArray.from_arrays(pa.array(result.astype(np.int32)), joined.take(pa.array(places)))
