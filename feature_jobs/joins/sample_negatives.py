"""Negative sampling: for each positive row other items, drawn by a hash of the row from those known at its time.

Row r draws the items c(r, 0), c(r, 1), … and keeps the first `num_sample` different ones that are not masked: its own
item, and those of which its user has a row. c(r, k) is a hash of r's user, item and time, of the seed and of k, modulo
the total weight of the items that had an event before r. So no draw depends on another row, or on the order of the
work. Shapes: I items, P positive rows, D draws of each row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.aggregations import ITEMS, PAIRS, name_of, operation_name, sampler_aggregations
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.entities import FOLDER
from feature_jobs.joins.feature_values import first_of
from feature_jobs.joins.negatives import read_negatives, write_negatives
from feature_jobs.joins.rows import ROW, RowsOfFile
from feature_jobs.joins.summaries import Summaries, ordinal_of, sampler_pieces
from feature_jobs.joins.values import condition, key_column
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_window
from feature_jobs.schema.negatives import NegativeSampler
from feature_jobs.windows import stretches
from feature_jobs.windows.keys import Bools, Groups, HashedKeys, Ints, Keys, concat_keys, keys_of
from feature_jobs.windows.query import Asked, Question, aggregate
from feature_jobs.windows.rows import as_arrow
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Tile

_UNIT = 1024  # weights are whole numbers, so that their sums are exact
_MOST_DRAWS = 20  # for each negative that is asked for


def sample_negatives(
    scenario: Scenario,
    sampler: NegativeSampler,
    ds: str,
    folders: tuple[Path, Path],
    summaries: Summaries,
    *,
    output: Path,
) -> RowsOfFile:
    """Writes the negatives of a day, and returns them. `folders` has its events, and the one with the rows of entities
    that they may see; `summaries` are those of the day itself."""
    events, seen = folders
    names = set(sampler.item_columns).union(*map(columns_of, scenario.own_labels.values()))
    log = DayEvents(scenario, ds, events, names, entities=seen / FOLDER)
    past = _Past(scenario, ds, summaries)
    pool = past.pool(sampler)
    schema = pa.schema([(ROW, pa.int64()), *((name, log.part(0, 0).column(name).type) for name in pool.columns)])
    positives = [begin + _positive_rows(part) for begin, part in log.parts()]
    num_wanted = sum(map(len, positives)) * sampler.num_sample

    def tables() -> Iterator[pa.Table]:
        step = max(stretches.ROWS_AT_ONCE // sampler.num_sample, 1)
        for rows_P in positives:
            for at in range(0, len(rows_P), step):
                some = rows_P[at : at + step]
                # From the first to the last of them, whose columns are then read once.
                begin, end = int(some[0]), int(some[-1]) + 1
                rows, items = _drawn(log.part(begin, end), some - begin, pool, past, sampler)
                found = {name: column.take(pa.array(items)) for name, column in pool.columns.items()}
                yield pa.table({ROW: begin + rows, **found}).cast(schema)

    write_negatives(scenario, tables(), schema, num_wanted, output)
    return read_negatives(scenario, ds, output).rows


def _positive_rows(log: DayEvents) -> Ints:
    """Rows for which a label of the log holds; all of them where other logs decide all labels."""
    labels = log.scenario.own_labels
    if not labels:
        return np.arange(len(log))
    values = log.evaluate({f"labels.{task}": expression for task, expression in labels.items()})
    return np.flatnonzero(
        np.logical_or.reduce([condition(v, f"{log.scenario.file}: {place}") for place, v in values.items()])
    )


@dataclass(frozen=True)
class _Pool:
    """Items that may be drawn: those known before the day, then those of the day by the time of their first event.

    `columns` of each, the item's own first. `totals_I` are their weights, summed up; `first_times` are those of the
    items that are new on the day.
    """

    columns: Mapping[str, pa.Array]
    totals_I: Ints
    first_times: Ints

    @property
    def items(self) -> pa.Array:
        """The items. [I]"""
        return next(iter(self.columns.values()))

    def totals(self, times: Ints) -> Ints:
        """The weight of all items that had an event strictly before each time."""
        known = len(self.items) - len(self.first_times) + np.searchsorted(self.first_times, times)
        return np.concatenate([[0], self.totals_I])[known]


class _Past:
    """The earlier events that negative sampling reads, from the summaries of the day."""

    def __init__(self, scenario: Scenario, ds: str, summaries: Summaries) -> None:
        self._ordinal, self._wanted = ordinal_of(ds), sampler_aggregations(scenario)
        self._begin, self._end = day_window(scenario, ds)
        self._pieces = sampler_pieces(scenario, summaries.partitions)
        self._summaries = summaries

    def pool(self, sampler: NegativeSampler) -> _Pool:
        """The items of events in the lookback before the day, and those of the day."""
        one = self._wanted[ITEMS]
        name, pieces = name_of(one.source, one.key), self._pieces[ITEMS]
        runs = {day: self._summaries.run(name, day) for day in {*pieces.old, *pieces.new, self._ordinal}}
        tiles = {tile: self._summaries.tile(name, tile) for tile in pieces.tiles}
        own = runs[self._ordinal]
        holders: list[Run | Tile] = [*runs.values(), *tiles.values()]
        keys, _ = concat_keys([holder.keys for holder in holders]).numbered()
        stored = {role: operation_name(operation) for role, operation in one.operations.items()}
        question = Question(one.window, pieces, runs, tiles, one.operations, stored)
        found = aggregate(Asked(_each(keys), np.full(len(keys), self._begin)), question)
        counts = np.asarray(found["count"]["num"])
        held = counts > 0
        first = own.offsets[:-1][~held[keys.find(own.keys)]]
        first = first[np.argsort(own.rows.times[first], kind="stable")]
        columns = {}
        for column in one.columns:
            before, today = first_of(found["last"][column.name]), as_arrow(own.rows.columns[column.name])
            columns[column.ids_of or ""] = pa.concat_arrays(
                [before.filter(pa.array(held)), today.take(pa.array(first))]
            )
        counts = np.concatenate([counts[held], np.ones(len(first), np.int64)])
        weights = np.ones(len(counts), np.int64)
        if sampler.distribution == "popularity":
            weights = np.rint(counts.astype(float) ** sampler.alpha * _UNIT).astype(np.int64)
        return _Pool(columns, np.cumsum(weights), own.rows.times[first])

    def are_known(self, users: pa.Array, items: pa.Array) -> Bools:
        """Says for pairs if the user has a row of the item in the lookback, which ends with the day."""
        pairs, known = keys_of([users, items])
        left = np.flatnonzero(known)
        for some in self._pairs:
            left = left[some.find(pairs.take(left)) < 0]
        known[left] = False
        return known

    @functools.cached_property
    def _pairs(self) -> list[HashedKeys]:
        """The pairs of the days and tiles of the lookback."""
        one, pieces = self._wanted[PAIRS], self._pieces[PAIRS]
        name, low = name_of(one.source, one.key), int(one.window.low(np.array(self._end)))
        found = [self._summaries.tile(name, tile).keys for tile in pieces.tiles]
        for day in (*pieces.old, *pieces.new):
            run = self._summaries.run(name, day)
            newest = run.rows.times[run.offsets[1:] - 1]
            found.append(run.keys if (newest >= low).all() else run.keys.take(np.flatnonzero(newest >= low)))
        return [HashedKeys(keys) for keys in found]


def _each(keys: Keys) -> Groups:
    """A row of each key."""
    return Groups(keys, np.arange(len(keys)), np.arange(len(keys) + 1))


def _drawn(log: DayEvents, rows_P: Ints, pool: _Pool, past: _Past, sampler: NegativeSampler) -> Ints:
    """The rows of the log and the items (by their places in the pool) of the negatives of these rows. [2, …]"""
    data, num = log.scenario.data, sampler.num_sample
    users, items = (log.column(name).take(pa.array(rows_P)) for name in (data.user, data.item))
    times_P = log.known_at[rows_P]
    totals_P = pool.totals(times_P)
    of_row = [key_column(users, "").fill_null(_nothing(users)), key_column(items, "").fill_null(_nothing(items))]
    hashes_P = _hashed(*of_row, pa.array(log.times[rows_P]), pa.array(np.full(len(rows_P), sampler.seed)))
    # The first column is the row's own item, which no draw may repeat; -1 is a place that is still free.
    kept_PD = np.full((len(rows_P), num + 1), -1)
    # -2: an item that is not in the pool is none of the draws either.
    kept_PD[:, 0] = np.asarray(pc.index_in(items, value_set=pool.items).fill_null(-2))
    nums_P = np.ones(len(rows_P), np.int64)
    left = np.flatnonzero((totals_P > 0) & np.asarray(items.is_valid()))
    # Bounded, because a user who has a row of each item would draw for ever.
    for k in range(_MOST_DRAWS * num):
        if not len(left):
            break
        draws = _hashed(pa.array(hashes_P[left]), pa.array(np.full(len(left), k))).view(np.uint64)
        found = np.searchsorted(
            pool.totals_I, (draws % totals_P[left].astype(np.uint64)).astype(np.int64), side="right"
        )
        taken = (kept_PD[left] == found[:, None]).any(axis=1)
        at = pa.array(found)
        taken |= past.are_known(users.take(pa.array(left)), pool.items.take(at))
        fits = left[~taken]
        kept_PD[fits, nums_P[fits]] = found[~taken]
        nums_P[fits] += 1
        left = left[nums_P[left] <= num]
    negatives_PD = kept_PD[:, 1:]
    held_PD = negatives_PD >= 0
    return np.stack([np.repeat(rows_P, held_PD.sum(axis=1)), negatives_PD[held_PD]])


def _nothing(column: pa.Array) -> str | int:
    return "" if pa.types.is_string(column.type) else 0


def _hashed(*columns: pa.Array) -> Ints:
    """A hash of the values of each row."""
    return keys_of(list(columns))[0].first
