"""The state of keys at the end of a day: what the windows of later requests need of the days before.

A window [t − W, t) of a request after the day holds some days whole, whenever it comes, and cuts others. Of a key the
state has the rows of the days that some window cuts, and for each stretch of whole days the summary of its rows. So a
request reads one value for each key, and computes with the kernel of the daily join (`feature_jobs.windows.query`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial, reduce

import numpy as np
import pyarrow as pa
from typing_extensions import TypedDict

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.aggregations import Aggregation, KeySet, aggregations, key_sets, name_of, operation_name
from feature_jobs.joins.summaries import Summaries
from feature_jobs.online.packed import Kind, Lazily, Lists, Packed, Shape, ids_of, kind_of
from feature_jobs.schema import Scenario
from feature_jobs.schema.base import Micros
from feature_jobs.windows.days import Partitions, Pieces, TileId, Window
from feature_jobs.windows.keys import Ints, Keys, concat_keys, union
from feature_jobs.windows.rows import (
    Column,
    Rows,
    Summary,
    as_arrow,
    concat_columns,
    lists_of,
    prefix_sums,
    take_columns,
)
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import split_name

TIME, FLAGS, ROW = "time", "flags", "row"
_MOST_FLAGS = 64
_LENGTH = 4  # bytes of a record's length


class SpanFacts(TypedDict):
    """Whole days with the times [begin, end) in µs, and the summary of their rows: numbers, and lists with the kind of
    their elements, each as OPERATION.COLUMN. Without whole days begin and end are the end of the state."""

    begin: Micros
    end: Micros
    numbers: list[str]
    lists: list[tuple[str, Kind]]


class KeySetState(TypedDict):
    """Content of the values of a key set: columns of its rows that are conditions, those that are values with the kind
    of their elements, and the span of each window by its name. `layout` is a digest of the set's name and of its
    columns: keys of the store begin with it, so that records of other columns are never read as these. `operations`:
    those of each window by its name. `mapped`: no key names a user, so the values stay in a file, beside those of
    entities; the others are in the store."""

    layout: str
    operations: dict[str, list[str]]
    mapped: bool
    flags: list[str]
    values: list[tuple[str, Kind]]
    spans: list[SpanFacts]
    windows: dict[str, int]


def window_name(window: Window) -> str:
    """The name of a window in the facts."""
    return f"{window.width_us}-{window.delay_us}"


def windows_of(scenario: Scenario, one: KeySet) -> dict[Window, list[Aggregation]]:
    """The windows of a key set, with their aggregations."""
    found: dict[Window, list[Aggregation]] = {}
    for aggregation in aggregations(scenario).values():
        if name_of(aggregation.source, aggregation.key) == one.name:
            found.setdefault(aggregation.window, []).append(aggregation)
    return found


def state_of_keys(
    scenario: Scenario, summaries: Summaries, begin: int, end: int
) -> Iterable[tuple[str, KeySetState, Keys, Packed]]:
    """For each key set its name, facts, keys (sorted) and values, for requests at the times [begin, end) in µs.

    `summaries` are those of the day that ends at `begin`, with the blocks of `days_of_state`.
    """
    user = scenario.data.user
    for one in key_sets(scenario):
        pieces = _pieces(scenario, one, summaries, begin, end)
        windows, names_user = windows_of(scenario, one), user in set().union(*map(columns_of, one.key))
        facts, keys, packed = _state(one, summaries, windows, pieces=pieces, begin=begin, names_user=names_user)
        yield one.name, facts, keys, packed


def days_of_state(scenario: Scenario, summaries: Summaries, begin: int, end: int) -> set[str]:
    """Days in whose outputs the blocks lie that the state is made of."""
    found: set[str] = set()
    for one in key_sets(scenario):
        for pieces in _pieces(scenario, one, summaries, begin, end).values():
            found |= summaries.holders(one.name, (*pieces.old, *pieces.new), pieces.tiles)
    return found


def _pieces(scenario: Scenario, one: KeySet, summaries: Summaries, begin: int, end: int) -> dict[Window, Pieces]:
    """The reach of each window, if all times [begin, end) were one day after the last one, without rows of its own."""
    days = summaries.partitions
    # What is whole for the first and for the last time of this one long day is whole for every request of the state.
    own = int(days.days[-1]) + 1
    later = Partitions(
        *(np.append(old, new) for old, new in ((days.days, own), (days.begins, begin), (days.ends, end)))
    )
    found = {}
    for window in windows_of(scenario, one):
        pieces = window.pieces(later, own, one.max_level)
        # Its own rows come to the store as they happen: no summary has them.
        old, new = (tuple(day for day in edge if day != own) for edge in (pieces.old, pieces.new))
        found[window] = Pieces(old, pieces.tiles, new)
    return found


def _state(
    one: KeySet,
    summaries: Summaries,
    windows: Mapping[Window, list[Aggregation]],
    *,
    pieces: Mapping[Window, Pieces],
    begin: int,
    names_user: bool,
) -> tuple[KeySetState, Keys, Packed]:
    run = _rows_in_reach(one, summaries, pieces, begin)
    tiles = {tile: summaries.tile(one.name, tile) for each in pieces.values() for tile in each.tiles}
    keys = reduce(lambda all_keys, tile: union(all_keys, tile.keys)[0], tiles.values(), run.keys)
    spans: list[SpanFacts] = []
    numbers: dict[str, Ints] = {}
    lists: dict[str, pa.ListArray] = {}
    of_tiles: dict[tuple[TileId, ...], int] = {}
    of_window = {}
    for window, wanted in windows.items():
        covered = pieces[window].tiles
        # Windows with the same whole days share a span, so that a key's value has these summaries once.
        if covered not in of_tiles:
            of_tiles[covered] = len(spans)
            spans.append(_no_span(summaries, covered, begin))
        span = spans[place := of_tiles[covered]]
        of_window[window_name(window)] = place
        parts = [(tiles[tile].summaries, tiles[tile].keys.find(keys)) for tile in covered]
        stored = {operation_name(op.stored): op.stored for each in wanted for op in each.of_values.values()}
        # An operation can't combine no parts at all, and a short window holds no day whole.
        for name, operation in stored.items() if covered else ():
            for column, values in operation.combine([(held[name], at) for held, at in parts]).items():
                full = f"{name}.{column}"
                if isinstance(values, np.ndarray):
                    span["numbers"] += [] if full in span["numbers"] else [full]
                    numbers[f"{place} {full}"] = values
                elif (entry := (full, _kind_in(one, column, values))) not in span["lists"]:
                    span["lists"].append(entry)
                    lists[f"{place} {full}"] = values
    flags = [name for name, column in run.rows.columns.items() if _is_flag(column)]
    if len(flags) > _MOST_FLAGS:
        raise BadInputError(
            f"features by {one.name} look at {len(flags)} conditions of earlier rows (`where`, and whether `of` is"
            f" known); a row of the online store has {_MOST_FLAGS} bits for them: let features share conditions"
        )
    values = [(name, _kind_in(one, name, column)) for name, column in run.rows.columns.items() if not _is_flag(column)]
    facts: KeySetState = {
        "layout": _layout(one.name, flags, values),
        "operations": {window_name(window): operations_of(wanted) for window, wanted in windows.items()},
        "mapped": not names_user,
        "flags": flags,
        "values": values,
        "spans": spans,
        "windows": of_window,
    }
    reader = StateReader(facts)
    lists |= reader.row_lists(run, keys)
    return facts, keys, reader.shape.pack(numbers, lists, len(keys))


def operations_of(wanted: Iterable[Aggregation]) -> list[str]:
    """Names of the summaries that values of these aggregations are made of."""
    return sorted({operation_name(op.stored) for each in wanted for op in each.of_values.values()})


def _layout(name: str, flags: list[str], values: list[tuple[str, Kind]]) -> str:
    """16 digits in hex."""
    return hashlib.blake2b(json.dumps([name, flags, values]).encode(), digest_size=8).hexdigest()


def _no_span(summaries: Summaries, tiles: tuple[TileId, ...], begin: int) -> SpanFacts:
    if not tiles:
        return {"begin": begin, "end": begin, "numbers": [], "lists": []}
    days = summaries.partitions
    held = (days.days >= tiles[0].first) & (days.days <= tiles[-1].last)
    return {"begin": int(days.begins[held][0]), "end": int(days.ends[held][-1]), "numbers": [], "lists": []}


def _is_flag(column: Column) -> bool:
    return isinstance(column, np.ndarray) and column.dtype == np.bool_


def _kind_in(one: KeySet, column: str, values: Column) -> Kind:
    """Ids and texts may be null on any day; the other columns of rows and summaries never are."""
    past = one.columns.get(column)
    return kind_of(values) if past is not None and past.ids_of else "int"


def _rows_in_reach(one: KeySet, summaries: Summaries, pieces: Mapping[Window, Pieces], begin: int) -> Run:
    """The rows of all days that a window cuts, without those that every window has left behind."""
    reached: dict[int, int] = {}  # by day the oldest time that a window still sees of it
    for window, each in pieces.items():
        for day in (*each.old, *each.new):
            # The earliest request reaches furthest back.
            reached[day] = min(reached.get(day, begin), begin - window.width_us)

    def run_of(day: int) -> Run:
        run = summaries.run(one.name, day)
        # A run of an earlier day can have columns of features that are gone.
        return Run(run.keys, run.offsets, Rows(run.rows.times, {name: run.rows.columns[name] for name in one.columns}))

    all_runs = [(run_of(day), oldest) for day, oldest in sorted(reached.items())]
    runs = [chosen_rows(run, run.rows.times >= oldest) for run, oldest in all_runs]
    if not runs:
        # A run without rows still gives the columns their types.
        return run_of(int(summaries.partitions.days[-1])).without_rows()
    return merged(runs)


def chosen_rows(run: Run, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Run:
    """The run of some of its rows, with the keys of all."""
    if kept.all():
        return run
    rows = np.flatnonzero(kept)
    return Run(
        run.keys, prefix_sums(kept)[run.offsets], Rows(run.rows.times[rows], take_columns(run.rows.columns, rows))
    )


def merged(runs: list[Run]) -> Run:
    """The rows of several runs by key, those of an earlier run first."""
    if len(runs) == 1:
        return runs[0]
    keys, codes = concat_keys([run.keys.take(run.codes) for run in runs]).numbered()
    # Stable, so that a key's rows stay in the order of the days, and so of time.
    order = np.argsort(codes, kind="stable")
    columns = {name: concat_columns([run.rows.columns[name] for run in runs]) for name in runs[0].rows.columns}
    times = np.concatenate([run.rows.times for run in runs])[order]
    offsets = prefix_sums(np.bincount(codes, minlength=len(keys)))
    return Run(keys, offsets, Rows(times, take_columns(columns, order)))


class StateReader:
    """Reads and writes the values of a key set."""

    def __init__(self, facts: KeySetState) -> None:
        self.facts = facts
        rows: list[tuple[str, Kind]] = [(TIME, "int"), *([(FLAGS, "int")] if facts["flags"] else ()), *facts["values"]]
        numbers = [f"{at} {name}" for at, span in enumerate(facts["spans"]) for name in span["numbers"]]
        lists = [(f"{at} {name}", kind) for at, span in enumerate(facts["spans"]) for name, kind in span["lists"]]
        self.shape = Shape(tuple(numbers), (*rows, *lists))
        self._number_places = {name: at for at, name in enumerate(numbers)}
        self._summaries: dict[tuple[int, str], dict[str, str]] = {}
        for full in (*numbers, *(name for name, _ in lists)):
            place, _, name = full.partition(" ")
            operation, column = split_name(name)
            self._summaries.setdefault((int(place), operation), {})[column] = full
        # Rows that came since have a number each: others may have their time. Without texts all are of one width.
        self._added = Shape((), ((ROW, "int"), *rows))
        widths = [0 if kind == "text" else 2 if kind == "id" else 1 for _, kind in self._added.lists]
        self._width = sum(widths) if all(widths) else 0

    def row_lists(self, run: Run, keys: Keys) -> dict[str, pa.ListArray]:
        """The rows of a run as lists of each of these keys, which are all of its own and maybe more."""
        num = np.zeros(len(keys), np.int64)
        num[keys.find(run.keys)] = np.diff(run.offsets)
        offsets, rows = prefix_sums(num), run.rows
        columns: dict[str, Column] = {
            TIME: rows.times,
            **{name: rows.columns[name] for name, _ in self.facts["values"]},
        }
        if self.facts["flags"]:
            # One bit a condition: a word for each would make every row of the store longer.
            columns[FLAGS] = np.zeros(len(rows.times), np.int64)
            for bit, name in enumerate(self.facts["flags"]):
                columns[FLAGS] |= np.asarray(rows.columns[name]).astype(np.int64) << bit
        return {name: lists_of(offsets, pa.array(column)) for name, column in columns.items()}

    def rows_of(self, keys: Keys, lists: Mapping[str, Lists]) -> Run:
        """The run of such lists."""

        def flag(bit: int) -> Column:
            return (np.asarray(lists[FLAGS].values) >> bit & 1).astype(bool)

        def values(name: str) -> Column:
            return lists[name].values

        makers: dict[str, Callable[[], Column]] = {
            **{name: partial(values, name) for name, _ in self.facts["values"]},
            **{name: partial(flag, bit) for bit, name in enumerate(self.facts["flags"])},
        }
        return Run(keys, lists[TIME].offsets_K, Rows(np.asarray(lists[TIME].values), Lazily(makers)))

    def records_of(self, run: Run, rows: Ints) -> list[bytes]:
        """The rows of each key of a run as a record, to append to those that came before; `rows` are their numbers,
        `removed` of which say that a former row counts there no more."""
        lists = {ROW: lists_of(run.offsets, pa.array(rows)), **self.row_lists(run, run.keys)}
        if self._width:
            columns = [part for name, kind in self._added.lists for part in _words(lists[name].values, kind)]
            return Packed(np.stack(columns, axis=1).ravel(), run.offsets * self._width).values()
        # Records are appended one after the other, and texts have no fixed width: only a length says where one ends.
        values = self._added.pack({}, lists, len(run.keys)).values()
        return [len(value).to_bytes(_LENGTH, "little") + value for value in values]

    def added_rows(self, values: Sequence[bytes], keys: Keys) -> tuple[Ints, Ints, Run]:
        """The rows of appended records: for each the position of its value, and its number; and a run of them, whose
        keys have no meaning."""
        if self._width:
            packed = Packed.of(values)
            words = packed.words.reshape(-1, self._width)
            codes = np.repeat(np.arange(len(values)), np.diff(packed.offsets_K) // self._width)
            lists: Mapping[str, Lists]
            found, at = dict[str, Lists](), 0
            for name, kind in self._added.lists:
                column = words[:, at]
                if kind == "id":
                    column = ids_of(column, words[:, at + 1])
                found[name] = Lists(np.array([0, len(words)]), column)
                at += 2 if kind == "id" else 1
            lists = found
        else:
            records = [(at, record) for at, value in enumerate(values) for record in _split(value)]
            _, lists = self._added.unpack(Packed.of([record for _, record in records]))
            codes = np.repeat([at for at, _ in records], np.diff(lists[TIME].offsets_K)).astype(np.int64)
        return codes, np.asarray(lists[ROW].values), self.rows_of(keys, lists)

    def number_place(self, place: int, operation: str, column: str) -> int:
        """The place among the numbers of a value of a column of an operation's summary of a span, -1 for none."""
        return self._number_places.get(self._summaries.get((place, operation), {}).get(column, ""), -1)

    def summary(
        self,
        place: int,
        operation: str,
        numbers_KN: Ints,
        lists: Mapping[str, Lists],
        columns: Sequence[str] | None = None,
    ) -> Summary | None:
        """The summary of a span by an operation, from what was unpacked; None where it has none. With `columns`: these
        of it."""
        found: Summary = {}
        for column, full in self._summaries.get((place, operation), {}).items():
            if columns is not None and column not in columns:
                continue
            at = self._number_places.get(full)
            if at is None:
                found[column] = lists_of(lists[full].offsets_K, as_arrow(lists[full].values))
            else:
                found[column] = numbers_KN[:, at]
        return found or None

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """The times [begin, end) of each span."""
        return [(span["begin"], span["end"]) for span in self.facts["spans"]]


def removed(rows: Ints) -> Ints:
    """Numbers of rows (from 0) as a key has them that no longer count there; and of such numbers those of the rows."""
    return ~rows


def _words(values: pa.Array, kind: Kind) -> list[Ints]:
    """A column as words: its values, and for ids whether each is known."""
    if kind == "int":
        return [np.asarray(values).astype(np.int64, copy=False)]
    # Any whole number may be an id, so none is free to stand for an unknown one.
    return [np.asarray(values.fill_null(0)), np.asarray(values.is_valid()).astype(np.int64)]


def _split(value: bytes) -> list[bytes]:
    """The records of a value, each after its length."""
    found, at = [], 0
    while at < len(value):
        begin = at + _LENGTH
        at = begin + int.from_bytes(value[at:begin], "little")
        found.append(value[begin:at])
    return found
