"""Aggregations: the needs of trailing features of earlier events, by the key that they share.

Features with the same key share a key set: its rows are sorted once a day, and one summary of whole days serves all
their windows. Columns and operations are named by their expressions: features that look at the same share them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from feature_jobs.expressions.compiler import EVENT_TIME, columns_of
from feature_jobs.expressions.custom import digests_of
from feature_jobs.expressions.types import type_of
from feature_jobs.joins.rules import Trailing, key_of, outcome_delays, past_expressions, trailing_features
from feature_jobs.joins.values import condition, fixed_point, ids, is_finite
from feature_jobs.schema import (
    SECONDS_AGO,
    CountFeature,
    NumbersFeature,
    PercentileFeature,
    RateFeature,
    RecencyFeature,
    Scenario,
    SequenceFeature,
    StatisticFeature,
    TopFeature,
    UniqueCountFeature,
    ValueFeature,
    Windowed,
)
from feature_jobs.windows.days import Window
from feature_jobs.windows.frequent import Frequent
from feature_jobs.windows.keys import hashes_of
from feature_jobs.windows.operations import Count, Least, Listed, Most, Newest, Operation, Squares, Sum
from feature_jobs.windows.rows import Column
from feature_jobs.windows.tallies import Distinct, Quantile, steps_of

ROW = "key.row"
"""Column of a run: the event's position in its day."""
DAY_US = 86_400_000_000
NEWEST = "newest"
"""The role of the operation that the audit looks at."""
ITEMS, PAIRS = "items", "pairs"
"""Names of the aggregations of negative sampling."""
DECIMALS = 4
"""Decimal places of a number that may have a fraction, where the feature does not say."""


@dataclass(frozen=True)
class Aggregation:
    """The need of one feature: rows of its `source` (a further log, or None for the events) in its `window` with the
    same values of `key`, their `columns`, and operations by their role. `decimals`: decimal places of a feature of
    numbers."""

    feature: Trailing
    source: str | None
    key: tuple[str, ...]
    window: Window
    columns: tuple[PastColumn, ...]
    operations: Mapping[str, Operation]
    decimals: int

    @property
    def of_values(self) -> dict[str, Operation]:
        """The operations that its values are made of: without the newest source, if only the audit looks at it."""
        needs_newest = isinstance(self.feature, RecencyFeature)
        return {role: op for role, op in self.operations.items() if needs_newest or role != NEWEST}


@dataclass(frozen=True)
class KeySet:
    """Aggregations of one log by one key. `columns` of its rows by name; `operations` by the name in summaries."""

    source: str | None
    key: tuple[str, ...]
    columns: Mapping[str, PastColumn]
    operations: Mapping[str, Operation]
    max_level: int
    """Summaries are of up to 2^max_level days; -1: no window holds a day whole."""

    @cached_property
    def name(self) -> str:
        """Its log and key as text."""
        return name_of(self.source, self.key)


@dataclass(frozen=True)
class PastColumn:
    """A column of earlier events, from expressions. Conditions: `where` and `held` are true, `known` is not null, and
    `finite` a finite number. Or values: ids, hashes of ids, numbers in units of 10^-decimals, or steps of these."""

    where: str | None = None
    known: str | None = None
    held: str | None = None
    finite: str | None = None
    ids_of: str | None = None
    hashes_of: str | None = None
    number_of: str | None = None
    steps_of: str | None = None
    decimals: int = 0
    # Not compared, so that features which look at the same share the column.
    feature: str = field(default="", compare=False)
    """The first feature with this column, for messages."""

    @property
    def name(self) -> str:
        """The expressions, with their roles."""
        return ", ".join(f"{role} {text}" for role, text in vars(self).items() if text and role != "feature")

    @property
    def expressions(self) -> list[str]:
        """The expressions alone."""
        return [text for role, text in vars(self).items() if isinstance(text, str) and role != "feature"]

    def of(self, values: Mapping[str, pa.Array], places: Mapping[str, str]) -> Column:
        """The column from the values of expressions; `places` are where the scenario has them."""
        if of := self.ids_of or self.hashes_of:
            found = ids(values[of], self._place(places[of]))
            return found if self.ids_of else hashes_of(found)
        if of := self.number_of or self.steps_of:
            number = fixed_point(values[of], self.decimals, self._place(places[of]))
            return steps_of(number) if self.steps_of else number
        parts = [condition(values[e], places[e]) for e in (self.where, self.held) if e]
        if self.known:
            parts.append(np.asarray(values[self.known].is_valid()))
        if self.finite:
            parts.append(is_finite(values[self.finite], self._place(places[self.finite])))
        return np.logical_and.reduce(parts)

    def _place(self, first: str) -> str:
        """The place in this feature of an expression whose first place may be in one of another kind."""
        return f"{first.rpartition(': ')[0]}: features.{self.feature}.of"


def name_of(source: str | None, key: tuple[str, ...]) -> str:
    """The name of the set of all features of a log with this key."""
    # No expression has a colon, so that no key of the events is called so.
    return ", ".join(key) if source is None else f"{source}: {', '.join(key)}"


def aggregations(scenario: Scenario) -> dict[str, Aggregation]:
    """The aggregation of each trailing feature, by its name."""
    delays = outcome_delays(scenario)
    found = {}
    for name, feature in trailing_features(scenario).items():
        decimals = _decimals(scenario, feature)
        columns = {
            role: replace(column, feature=name) for role, column in _columns(feature, decimals).items() if column.name
        }
        found[name] = Aggregation(
            feature,
            feature.source,
            key_of(feature),
            _window(scenario, feature, past_expressions(name, feature).values(), delays),
            tuple(columns.values()),
            _operations(feature, {role: column.name for role, column in columns.items()}),
            decimals,
        )
    return found


def sampler_aggregations(scenario: Scenario) -> dict[str, Aggregation]:
    """The aggregations of negative sampling: ITEMS are earlier events of each item, PAIRS those of each user with an
    item. Empty without it."""
    sampler, data = scenario.join.negative_sampler, scenario.data
    if sampler is None:
        return {}
    window = Window(scenario.join.lookback_days * DAY_US)
    values = tuple(PastColumn(ids_of=name, feature=ITEMS) for name in (data.item, *sampler.item_columns))
    of_item: dict[str, Operation] = {
        "count": Count(),
        "last": Listed(of=tuple(column.name for column in values), length=1),
    }
    found = {}
    # CountFeature stands for the feature that each needs: sampling reads the operations alone.
    for name, key, columns, operations in (
        (ITEMS, (data.item,), values, of_item),
        (PAIRS, (data.user, data.item), (), {"count": Count()}),
    ):
        found[name] = Aggregation(CountFeature(kind="count", by=key), None, key, window, columns, operations, 0)
    return found


def key_sets(scenario: Scenario) -> list[KeySet]:
    """The key sets of the scenario's features, in their order."""
    return _grouped(aggregations(scenario).values())


def summarized_key_sets(scenario: Scenario) -> list[KeySet]:
    """All key sets that summaries hold: also those of negative sampling."""
    return _grouped([*aggregations(scenario).values(), *sampler_aggregations(scenario).values()])


def _grouped(found: Iterable[Aggregation]) -> list[KeySet]:
    by_key: dict[tuple[str | None, tuple[str, ...]], list[Aggregation]] = defaultdict(list)
    for aggregation in found:
        by_key[aggregation.source, aggregation.key].append(aggregation)
    return [_key_set(source, key, of_key) for (source, key), of_key in by_key.items()]


def operation_name(operation: Operation) -> str:
    """The name of an operation in summaries: its kind, with all that decides what it holds."""
    settings = ", ".join(f"{name} {value}" for name, value in sorted(vars(operation).items()) if value)
    return f"{type(operation).__name__}({settings})"


def _key_set(source: str | None, key: tuple[str, ...], found: Iterable[Aggregation]) -> KeySet:
    columns: dict[str, PastColumn] = {}
    operations: dict[str, Operation] = {}
    widest = 0
    for aggregation in found:
        for column in aggregation.columns:
            columns.setdefault(column.name, column)
        for operation in aggregation.operations.values():
            operations[operation_name(operation.stored)] = operation.stored
        widest = max(widest, aggregation.window.width_us)
    # A window of a day or less holds no day whole.
    # No window holds the whole days of a longer tile.
    max_level = (widest // DAY_US).bit_length() - 1 if widest > DAY_US else -1
    return KeySet(source, key, columns, operations, max_level)


def _columns(feature: Trailing, decimals: int) -> dict[str, PastColumn]:
    """Columns of earlier events that a feature looks at, by role."""
    where, of = feature.where, getattr(feature, "of", None)
    match feature:
        case NumbersFeature():
            found = {"seen": PastColumn(where, finite=of)}
        case SequenceFeature(known=known):
            # Seconds ago are known of every event, since each has a time.
            found = {"seen": PastColumn(where, known or (None if of == SECONDS_AGO else of))}
        case _:  # an earlier event of which `of` is unknown does not count
            found = {"seen": PastColumn(where, of)}
    match feature:
        case RateFeature():
            found["held"] = PastColumn(where, of, held=of)
        case StatisticFeature():
            found["values"] = PastColumn(number_of=of, decimals=decimals)
        case PercentileFeature():
            found["values"] = PastColumn(steps_of=of, decimals=decimals)
        case UniqueCountFeature():
            found["values"] = PastColumn(hashes_of=of)
        case ValueFeature() | TopFeature() | SequenceFeature() if of != SECONDS_AGO:
            found["values"] = PastColumn(ids_of=of)
    return found


def _operations(feature: Trailing, names: Mapping[str, str]) -> dict[str, Operation]:
    """Operations of a feature by role; `names` are those of its columns by role."""
    where, of = names.get("seen"), names.get("values", "")
    # The newest event behind each value, also where the feature does not need it: the audit looks at it.
    found: dict[str, Operation] = {NEWEST: Newest(where=where)}
    match feature:
        case SequenceFeature(length=length):
            found["last"] = Listed(where=where, of=(of,) if of else (), length=length)
        case ValueFeature(kind=kind):
            found["last"] = Listed(where=where, of=(of,), length=1, oldest=kind == "first")
        case TopFeature(among=among, k=k):
            found["frequent"] = Frequent(where=where, of=(of,), length=among, k=k)
        case UniqueCountFeature(exact_up_to=exact_up_to):
            # One more than are counted exactly: if there are so many, the largest of them is the bound of a sample.
            found["distinct"] = Distinct(where=where, of=of, limit=exact_up_to + 1)
        case PercentileFeature(percent=percent):
            found["quantile"] = Quantile(where=where, of=of, share=round(percent * 1000))
        case StatisticFeature(kind=kind):
            found |= {role: operation(where=where, of=of) for role, operation in _STATISTICS[kind].items()}
        case RateFeature():
            found["held"] = Count(where=names["held"])
    if isinstance(feature, CountFeature | RateFeature | RecencyFeature) or "sum" in found:
        found["count"] = Count(where=where)
    return found


_STATISTICS: dict[str, dict[str, type[Sum | Squares | Least | Most]]] = {
    "sum": {"sum": Sum},
    "average": {"sum": Sum},
    "variance": {"sum": Sum, "squares": Squares},
    "stddev": {"sum": Sum, "squares": Squares},
    "min": {"value": Least},
    "max": {"value": Most},
}
"""Operations of a statistic by role, besides the count of a sum's rows."""


def _decimals(scenario: Scenario, feature: Trailing) -> int:
    """Decimal places of a feature of numbers; 0 of another."""
    if not isinstance(feature, NumbersFeature):
        return 0
    if feature.decimals is not None:
        return feature.decimals
    types = _types(scenario, feature.source)
    # A name without a type is refused where the expression is evaluated.
    if not columns_of(feature.of) - {EVENT_TIME} <= types.keys():
        return DECIMALS
    return DECIMALS if type_of(feature.of, types.__getitem__) == "float" else 0


def _types(scenario: Scenario, source: str | None) -> dict[str, str]:
    """Declared types of all columns, by their name in expressions over a log."""
    found: dict[str, str] = {name: column.type for name, column in scenario.data.log(source).columns.items()}
    for entity_name, entity in scenario.data.entities.items():
        found |= {f"{entity_name}.{name}": column.type for name, column in entity.columns.items()}
    return found


def _window(scenario: Scenario, feature: Trailing, expressions: Iterable[str], delays: Mapping[str, int]) -> Window:
    """The window of the feature, with the least age of the events that it may see."""
    lookback_s = scenario.join.lookback_days * 86_400
    window_s = feature.window_s if isinstance(feature, Windowed) else None
    if feature.source is not None:  # its rows are what happened, known from then on
        delay_s = scenario.data.logs[feature.source].delay_s
    else:
        # An event's own columns are known at once; its outcomes only after the delay.
        read = set[str]().union(*map(columns_of, expressions))
        delay_s = max((delays[name] for name in read & delays.keys()), default=0)
    # Summaries reach back as far as the lookback, and no further.
    return Window(min(window_s or lookback_s, lookback_s) * 1_000_000, delay_s * 1_000_000)


def types_read(scenario: Scenario, key_set: KeySet) -> dict[str, str]:
    """Declared types of the columns that a key set reads, by their name in expressions, and the source digests of the
    registered functions that it calls.

    With others the same expression has other values, so older summaries don't fit.
    """
    texts = [*key_set.key, *(text for column in key_set.columns.values() for text in column.expressions)]
    types = _types(scenario, key_set.source)
    found = {name: types[name] for name in sorted(set().union(*map(columns_of, texts)) & types.keys() - {EVENT_TIME})}
    # Entities and `event_time` are then those of the request's time.
    if scenario.data.request and key_set.source is None:
        found[EVENT_TIME] = f"time of {scenario.data.request}"
    return found | {f"custom.{name}": digest for name, digest in digests_of(texts).items()}
