"""Trailing features: one code for the events of a day and for the rows of a request."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
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
from feature_jobs.joins.feature_values import Asking, FeatureValues, feature_values
from feature_jobs.joins.request import ValuesOf
from feature_jobs.joins.summaries import Summaries, ordinal_of
from feature_jobs.joins.values import key_column
from feature_jobs.schema import Scenario
from feature_jobs.windows.days import TileId, Window
from feature_jobs.windows.keys import Bools, Groups, Ints, Keys, collect_keys, group_rows, keys_of
from feature_jobs.windows.operations import Listed, Operation
from feature_jobs.windows.query import Answers, Asked, Question, answers
from feature_jobs.windows.rows import Summary
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Tile

FoundIn = Iterable[tuple[Window, Mapping[str, Summary]]]
"""For each window the summaries of its operations by name."""


class Past(Protocol):
    """The rows before those that ask."""

    def found(self, one: KeySet, wanted: Mapping[Window, Wanted]) -> tuple[Bools, FoundIn]:
        """Says which of the asking rows have a key of the set, and has for each window the summaries of its operations
        by name, a value for each asking row."""


@dataclass(frozen=True)
class Wanted:
    """The features of a window, as makers of their values with the names of their operations by role, and all these
    operations with the names of those that tiles hold."""

    features: dict[str, tuple[FeatureValues, dict[str, str]]]
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
            operations = {
                operation_name(op): op.shown() if isinstance(op, Listed) else op
                for each in roles.values()
                for op in each.values()
            }
            stored = {name: operation_name(operation.stored) for name, operation in operations.items()}
            features = {
                name: (
                    feature_values(one, f"{scenario.file}: features.{name}"),
                    {role: operation_name(op) for role, op in roles[name].items()},
                )
                for name, one in found.items()
            }
            self.wanted.setdefault(key, (sets[key], {}))[1][window] = Wanted(features, operations, stored)
        self._audited = audited

    @property
    def key_sets(self) -> list[KeySet]:
        """The key sets that they read."""
        return [one for one, _ in self.wanted.values()]

    def columns(self, asking: Asking, past: Past) -> tuple[dict[str, pa.Array], dict[str, Ints]]:
        """Their columns, and the newest source time behind each value."""
        columns, sources = dict[str, pa.Array](), dict[str, Ints]()
        for one, by_window in self.wanted.values():
            of_set = self.of_key_set(one, asking, *past.found(one, by_window))
            columns |= of_set[0]
            sources |= of_set[1]
        return columns, sources

    def of_key_set(
        self, one: KeySet, asking: Asking, has_key: Bools, found_in: FoundIn
    ) -> tuple[dict[str, pa.Array], dict[str, Ints]]:
        """The same of the features of one key set, for rows of which `found_in` has what their windows hold."""
        columns, sources = {}, {}
        by_window = self.wanted[one.name][1]
        known = np.True_ if has_key.all() else has_key  # looked at once, not for each feature
        for window, found in found_in:
            for name, (values_of, roles) in by_window[window].features.items():
                of_feature = {role: found[operation] for role, operation in roles.items()}
                if self._audited:
                    sources[name] = np.asarray(of_feature[NEWEST]["time"])
                columns[name] = values_of(asking, of_feature, known)
        return columns, sources

    @property
    def delays_us(self) -> dict[str, int]:
        """The least age of the sources of each feature, in µs."""
        return {
            name: window.delay_us
            for _, by_window in self.wanted.values()
            for window, of_window in by_window.items()
            for name in of_window.features
        }


def keys_that_ask(key: tuple[str, ...], place: str, values_of: ValuesOf) -> tuple[Keys, Bools]:
    """The key of each asking row, and whether it has one. `place` is for messages."""
    values = values_of({f"{place}: {text}": text for text in key})
    return keys_of([key_column(value, of) for of, value in values.items()])


@dataclass(frozen=True)
class AskingRows:
    """Some rows of a day, in any order."""

    log: DayEvents
    rows: Ints

    @property
    def scenario(self) -> Scenario:
        """The scenario of the log."""
        return self.log.scenario

    @functools.cached_property
    def known_at(self) -> Ints:
        """The time before which the features of each row were known, in µs."""
        return self.log.known_at[self.rows]

    def entity_lists(self, name: str) -> tuple[pa.Array, Ints]:
        """A column of an entity, and the entity row that each row sees (-1: none)."""
        values, found = self.log.entity_lists(name)
        return values, found[self.rows]


class PastOfDay:
    """The past of a day's events, from the summaries of the days before and of the day itself. `answers` computes what
    windows hold: here, or on other machines."""

    def __init__(self, log: DayEvents, summaries: Summaries, answers: Answers = answers) -> None:
        self._log, self._summaries, self._answers = log, summaries, answers
        self._ordinal = ordinal_of(log.ds)

    def parts(self, one: KeySet, wanted: Mapping[Window, Wanted]) -> Iterator[tuple[AskingRows, Bools, FoundIn]]:
        """Parts of the day's events, whether they have a key of the set, and what their windows hold.

        First those that have one, by key: a part then reads a stretch of each run and tile, and each is read once.
        """
        runs, tiles = dict[int, Run](), dict[TileId, Tile]()
        of_windows = []
        for window in wanted:
            # The days that the windows cut, and the tiles of those between.
            pieces = window.pieces(self._summaries.partitions, self._ordinal, one.max_level)
            of_windows.append((window, pieces))
            for day in {*pieces.old, *pieces.new} - runs.keys():
                runs[day] = self._summaries.run(one.name, day)
            for tile in set(pieces.tiles) - tiles.keys():
                tiles[tile] = self._summaries.tile(one.name, tile)
        for found in chain.from_iterable(map(self._cut, self._groups(one, runs))):
            rows = AskingRows(self._log, found.order)
            num = len(found.order)
            own = np.arange(num if len(found.keys) else 0)
            asked = Asked(Groups(found.keys, own, found.offsets), rows.known_at)
            near = {day: _seen(run, asked, wanted) for day, run in runs.items()}
            of_keys = {tile: whole.between(found.keys) for tile, whole in tiles.items()}
            questions = [
                Question(
                    window,
                    pieces,
                    {day: near[day] for day in (*pieces.old, *pieces.new)},
                    {tile: of_keys[tile] for tile in pieces.tiles},
                    wanted[window].operations,
                    wanted[window].stored,
                )
                for window, pieces in of_windows
            ]
            yield rows, np.full(num, bool(len(own))), zip(wanted, self._answers(asked, questions), strict=True)

    def _groups(self, one: KeySet, runs: Mapping[int, Run]) -> Iterator[Groups]:
        """The day's events by key, its negatives by key, and those that have none."""
        log, has_key = self._log, np.zeros(len(self._log), bool)
        both = bool(log.is_negative.any())
        for negatives in (False, True) if both else (False,):
            rows = np.flatnonzero(log.is_negative == negatives) if both else None
            if one.source is None and not negatives:  # whose run has the events sorted already
                # With a long delay no window reads the day's own run.
                run = runs.get(self._ordinal) or self._summaries.run(one.name, self._ordinal)
                groups = Groups(run.keys, np.asarray(run.rows.columns[ROW]), run.offsets)
            else:
                num = len(log) if rows is None else len(rows)
                groups = group_rows(*collect_keys(self._keys(one, negatives=negatives), num))
            if rows is not None:
                groups = Groups(groups.keys, rows[groups.order], groups.offsets)
            has_key[groups.order] = True
            yield groups
        # Without a key there is a value too, if only an unknown one: each event needs its own.
        yield Groups(groups.keys.part(slice(0, 0)), np.flatnonzero(~has_key), np.zeros(1, np.int64))

    def _keys(self, one: KeySet, *, negatives: bool) -> Iterator[tuple[Keys, Bools]]:
        """The keys of the day's events or of its negatives, some at a time."""
        place = f"{self._log.scenario.file}: key of {one.name}"
        for _, part in self._log.parts():
            keys, known = keys_that_ask(one.key, place, part.evaluate)
            part.audit_entities()
            rows = np.flatnonzero(part.is_negative == negatives)
            yield (keys, known) if len(rows) == len(part) else (keys.take(rows), known[rows])

    def _cut(self, groups: Groups) -> Iterator[Groups]:
        """Parts of about the same size."""
        num = len(groups.order)
        edges = np.linspace(0, num, -(-num // self._answers.rows_at_once) + 1).astype(np.int64)
        for begin, end in pairwise(edges.tolist()):
            yield groups.part(begin, end)


def _seen(run: Run, asked: Asked, windows: Iterable[Window]) -> Run:
    """The rows of a run that windows of the part may see, and some others."""
    near = run.between(asked.keys)
    # Rows of several keys are bounded by their keys; to cut each of them by time would copy them.
    if len(asked.keys) != 1 or len(near.keys) != 1:
        return near
    # A part of a busy key: its windows see few of the key's rows.
    low = min(int(window.low(asked.times.min())) for window in windows)
    high = max(int(window.high(asked.times.max())) for window in windows)
    return near.since(low, high)
