"""Trailing features: one code for the events of a day and for the rows of a request."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from feature_jobs.joins.aggregations import (
    NEWEST,
    ROW,
    Aggregation,
    KeySet,
    aggregations,
    key_sets,
    name_of,
    operation_name,
)
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.feature_values import Asking, feature_values
from feature_jobs.joins.request import ValuesOf
from feature_jobs.joins.summaries import Summaries, ordinal_of
from feature_jobs.joins.values import key_column
from feature_jobs.schema import Scenario
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Bools, Groups, Ints, Keys, group_rows, keys_of
from feature_jobs.windows.operations import Operation
from feature_jobs.windows.query import Answers, Asked, Question, answers
from feature_jobs.windows.rows import Summary


class Past(Protocol):
    """The rows before those that ask."""

    def found(
        self, one: KeySet, wanted: Mapping[Window, Wanted]
    ) -> tuple[Bools, Iterable[tuple[Window, Mapping[str, Summary]]]]:
        """Says which of the asking rows have a key of the set, and has for each window the summaries of its operations
        by name, a value for each asking row."""


@dataclass(frozen=True)
class Wanted:
    """The aggregations of a window with the names of their operations by role, and all these operations with the names
    of those that tiles hold."""

    aggregations: dict[str, tuple[Aggregation, dict[str, str]]]
    operations: dict[str, Operation]
    stored: dict[str, str]


class TrailingFeatures:
    """The scenario's trailing features, read once for all days and requests; with `names` these of them.

    `audited`: the newest source time behind each value is found too.
    """

    def __init__(self, scenario: Scenario, names: Collection[str] | None = None, *, audited: bool = True) -> None:
        by_window: dict[tuple[str, Window], dict[str, Aggregation]] = defaultdict(dict)
        for name, one in aggregations(scenario).items():
            if names is None or name in names:
                by_window[name_of(one.source, one.key), one.window][name] = one
        sets = {one.name: one for one in key_sets(scenario)}
        self.wanted: dict[str, tuple[KeySet, dict[Window, Wanted]]] = {}
        for (key, window), found in by_window.items():
            roles = {name: one.operations if audited else one.of_values for name, one in found.items()}
            operations = {operation_name(op): op for each in roles.values() for op in each.values()}
            stored = {name: operation_name(operation.stored) for name, operation in operations.items()}
            named = {n: (one, {role: operation_name(op) for role, op in roles[n].items()}) for n, one in found.items()}
            self.wanted.setdefault(key, (sets[key], {}))[1][window] = Wanted(named, operations, stored)
        self._order, self._audited = tuple(scenario.features), audited

    @property
    def key_sets(self) -> list[KeySet]:
        """The key sets that they read."""
        return [one for one, _ in self.wanted.values()]

    def columns(self, asking: Asking, past: Past) -> tuple[dict[str, pa.Array], dict[str, Ints], dict[str, int]]:
        """Their columns, the newest source time behind each value, and the least age of each source (µs)."""
        columns, sources, delays = {}, {}, {}
        for one, by_window in self.wanted.values():
            has_key, found_in = past.found(one, by_window)
            for window, found in found_in:
                for name, (aggregation, roles) in by_window[window].aggregations.items():
                    of_feature = {role: found[operation] for role, operation in roles.items()}
                    if self._audited:
                        sources[name] = np.asarray(of_feature[NEWEST]["time"])
                    columns[name] = feature_values(asking, name, aggregation, of_feature, has_key)
                    delays[name] = window.delay_us
        # In the order of the scenario, so that the audit names its first feature.
        return columns, {name: sources[name] for name in self._order if name in sources}, delays


def keys_that_ask(scenario: Scenario, one: KeySet, values_of: ValuesOf) -> tuple[Keys, Bools]:
    """The key of each asking row, and whether it has one."""
    places = {f"{scenario.file}: key of {one.name}: {text}": text for text in one.key}
    return keys_of([key_column(value, place) for place, value in values_of(places).items()])


class PastOfDay:
    """The past of a day's events, from the summaries of the days before and of the day itself. `answers` computes what
    windows hold: here, or on other machines."""

    def __init__(self, log: DayEvents, summaries: Summaries, answers: Answers = answers) -> None:
        self._log, self._summaries, self._answers = log, summaries, answers
        self._ordinal = ordinal_of(log.ds)
        # Each once for all windows of a key set, which come one after the other.
        self._run = functools.lru_cache(maxsize=None)(summaries.run)
        self._tile = functools.lru_cache(maxsize=None)(summaries.tile)

    def found(
        self, one: KeySet, wanted: Mapping[Window, Wanted]
    ) -> tuple[Bools, Iterable[tuple[Window, Mapping[str, Summary]]]]:
        """The summaries of a key set for the day's events, one window after the other."""
        asked = self._asked(one)
        questions = [self._question(one, window, of_window) for window, of_window in wanted.items()]
        return asked.codes_N >= 0, zip(wanted, self._answers(asked, questions), strict=True)

    def _question(self, one: KeySet, window: Window, wanted: Wanted) -> Question:
        # The days that the windows cut, and the tiles of those between.
        pieces = window.pieces(self._summaries.partitions, self._ordinal, one.max_level)
        runs = {day: self._run(one.name, day) for day in (*pieces.old, *pieces.new)}
        tiles = {tile: self._tile(one.name, tile) for tile in pieces.tiles}
        return Question(window, pieces, runs, tiles, wanted.operations, wanted.stored)

    def _asked(self, one: KeySet) -> Asked:
        """The day's events by key."""
        log = self._log
        self._run.cache_clear()  # the blocks of the key set before are not needed again
        self._tile.cache_clear()
        if one.source is None and not log.is_negative.any():  # whose run has the events sorted already
            run = self._run(one.name, self._ordinal)
            return Asked(Groups(run.keys, np.asarray(run.rows.columns[ROW]), run.offsets), log.known_at)
        return Asked(group_rows(*keys_that_ask(log.scenario, one, log.evaluate)), log.known_at)
