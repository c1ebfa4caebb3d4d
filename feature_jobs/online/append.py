"""Rows that come after a state's day, added to the online store as they happen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.joins.rules import summarized_expressions
from feature_jobs.joins.values import key_column
from feature_jobs.online.request import OnlineRows, RequestPath
from feature_jobs.online.state import StateReader, removed
from feature_jobs.online.store import OnlineStore, joined, keys_from_store, parted, store_keys
from feature_jobs.online.typed import typed
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_of
from feature_jobs.windows.keys import Bools, Ints, Keys, concat_keys, group_rows, keys_of
from feature_jobs.windows.rows import Column, take_columns
from feature_jobs.windows.runs import run_of


def append_rows(
    path: RequestPath,
    store: OnlineStore,
    columns: Mapping[str, pa.Array],
    *,
    times: Ints,
    rows: Ints,
    known_at: Ints | None = None,
    source: str | None = None,
) -> None:
    """Adds rows of a log that came after the state's day, so that later requests see them in their windows.

    `times` are those from which the rows count, in µs; `rows` number them from 0, so that a row that comes again with
    its time (and with its outcomes, say) replaces the former, also where that has another item; `known_at` are the
    times of their requests, where they have one. Of one row one call at a time: of two at once either may be the last.
    Raises BadInputError where a column is unknown, of another type or length.
    """
    scenario = path.scenario
    times, rows = np.asarray(times, np.int64), np.asarray(rows, np.int64)
    if source is None and scenario.data.request and known_at is None:
        raise BadInputError("known_at is missing: rows of a request have the features of its earliest time; give that")
    columns = _checked(scenario, columns, times=times, rows=rows, source=source)
    asking = OnlineRows(path, times if known_at is None else known_at, columns, source)
    places = summarized_expressions(scenario, source)
    values = dict(zip(places, asking.evaluate({p: e for e, p in places.items()}).values(), strict=True))
    full = {expression: f"{scenario.file}: {place}" for expression, place in places.items()}
    days = np.array([day_of(scenario, int(time)) or "" for time in times])
    if (days == "").any():
        raise BadInputError(f"times: {times[days == ''][0]} is of no day; give microseconds since 1970 (UTC)")
    order = np.argsort(times, kind="stable")
    order = order[_are_last(times, rows)[order]]
    for day in np.unique(days).tolist():
        of_day = order[days[order] == day]
        row_keys = _row_keys(source, times[of_day], rows[of_day])
        before = [parted(value or b"") for value in store.appended([day], row_keys)]
        after: list[list[bytes]] = [[] for _ in row_keys]
        records: dict[bytes, bytes] = {}
        for one in path.key_sets:
            if one.source == source:
                reader = path.readers[one.name]
                keys, known = keys_of([key_column(values[e], full[e]) for e in one.key])
                held = {name: column.of(values, full) for name, column in one.columns.items()}
                some = np.flatnonzero(known[of_day])
                own = keys.take(of_day[some])
                for number, key in zip(some.tolist(), store_keys(reader.facts, own), strict=True):
                    after[number].append(key)
                # Where the former row had another key, it must not count there any more.
                left, former = _left(before, after, bytes.fromhex(reader.facts["layout"]))
                own = own if former is None else concat_keys([own, former])
                numbers = np.concatenate([rows[of_day[some]], removed(rows[of_day[left]])])
                at = of_day[np.concatenate([some, left])]
                records |= _records(reader, own, numbers, times[at], take_columns(held, at))
        placed = {
            row_key: joined(new)
            for row_key, was, now in zip(row_keys, before, after, strict=True)
            if (new := [key for key in now if key not in was])
        }
        # One append for all key sets: if the process is killed, RocksDB has all of a row or nothing. Redis may have a
        # part: so first where the rows are, which the next version of a row must know.
        store.append(day, placed | records)


def _checked(
    scenario: Scenario, columns: Mapping[str, pa.Array], *, times: Ints, rows: Ints, source: str | None
) -> dict[str, pa.Array]:
    """The columns in the types of their log."""
    if source is not None and source not in scenario.data.logs:
        raise BadInputError(f"{scenario.file}: {source} is not a log of data.logs; add rows of one that is")
    found = {name: typed(scenario, name, column, source) for name, column in columns.items()}
    lengths = {"rows": len(rows), **{name: len(column) for name, column in found.items()}}
    if wrong := [name for name, length in lengths.items() if length != len(times)]:
        raise BadInputError(f"{wrong[0]}: {lengths[wrong[0]]} values for {len(times)} times; give one for each row")
    if (rows < 0).any():
        raise BadInputError(f"rows: {rows[rows < 0][0]} is not the number of a row; number them from 0")
    return found


def _records(
    reader: StateReader, keys: Keys, numbers: Ints, times: Ints, columns: Mapping[str, Column]
) -> dict[bytes, bytes]:
    """The records of rows that have these keys, numbers and times, by their keys of the store."""
    order = np.argsort(times, kind="stable")  # of a run; rows may be added in any
    grouped = group_rows(keys.take(order), np.ones(len(order), bool))
    run = run_of(grouped, times[order], take_columns(columns, order))
    found = reader.records_of(run, numbers[order][grouped.order])
    return dict(zip(store_keys(reader.facts, run.keys), found, strict=True))


def _are_last(times: Ints, rows: Ints) -> Bools:
    """Says which of the rows are not followed by the same one, of this time and number."""
    order = np.lexsort((rows, times))
    found = np.ones(len(rows), bool)
    found[order[:-1]] = (np.diff(times[order]) != 0) | (np.diff(rows[order]) != 0)
    return found


def _row_keys(source: str | None, times: Ints, rows: Ints) -> list[bytes]:
    """Keys of the store, under which it has the keys of each row."""
    prefix = hashlib.blake2b(json.dumps(["rows", source]).encode(), digest_size=8).digest()
    data = np.stack([rows, times], axis=1).astype(">i8").tobytes()
    return [prefix + data[at : at + 16] for at in range(0, len(data), 16)]


def _left(
    before: Sequence[Iterable[bytes]], after: Sequence[Sequence[bytes]], layout: bytes
) -> tuple[Ints, Keys | None]:
    """The places of rows that had another key of a set, and these keys."""
    found = [
        (at, key)
        for at, (was, now) in enumerate(zip(before, after, strict=True))
        for key in dict.fromkeys(was)
        if key.startswith(layout) and key not in now
    ]
    if not found:
        return np.zeros(0, np.int64), None
    places, keys = zip(*found, strict=True)
    return np.array(places), keys_from_store(keys, two_words=len(keys[0]) > len(layout) + 8)
