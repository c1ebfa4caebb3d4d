"""Rows that come after a state's day, added to the online store as they happen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.joins.rules import summarized_expressions
from feature_jobs.joins.values import key_column
from feature_jobs.online.request import OnlineRows, RequestPath
from feature_jobs.online.store import OnlineStore, store_keys
from feature_jobs.online.typed import typed
from feature_jobs.schema.days import day_of
from feature_jobs.windows.keys import Ints, group_rows, keys_of
from feature_jobs.windows.rows import take_columns
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

    `times` are those from which the rows count, in µs; `rows` number them, so that a row that comes again with its time
    (and with its outcomes, say) replaces the former; `known_at` are the times of their requests, where they have one.
    Raises BadInputError where a column is unknown, of another type or length.
    """
    scenario = path.scenario
    if source is not None and source not in scenario.data.logs:
        raise BadInputError(f"{scenario.file}: {source} is not a log of data.logs; add rows of one that is")
    times, rows = np.asarray(times, np.int64), np.asarray(rows, np.int64)
    if source is None and scenario.data.request and known_at is None:
        raise BadInputError("known_at is missing: rows of a request have the features of its earliest time; give that")
    columns = {name: typed(scenario, name, column, source) for name, column in columns.items()}
    lengths = {"rows": len(rows), **{name: len(column) for name, column in columns.items()}}
    if wrong := [name for name, length in lengths.items() if length != len(times)]:
        raise BadInputError(f"{wrong[0]}: {lengths[wrong[0]]} values for {len(times)} times; give one for each row")
    asking = OnlineRows(path, times if known_at is None else known_at, columns, source)
    places = summarized_expressions(scenario, source)
    values = dict(zip(places, asking.evaluate({p: e for e, p in places.items()}).values(), strict=True))
    full = {expression: f"{scenario.file}: {place}" for expression, place in places.items()}
    days = np.array([day_of(scenario, int(time)) or "" for time in times])
    if (days == "").any():
        wrong_time = int(times[days == ""][0])
        raise BadInputError(f"times: {wrong_time} is of no day; give microseconds since 1970 (UTC)")
    # A run is in the order of time; rows may be added in any.
    order = np.argsort(times, kind="stable")
    for day in np.unique(days).tolist():
        records: dict[bytes, bytes] = {}
        for one in path.key_sets:
            if one.source == source:
                reader = path.readers[one.name]
                keys, known = keys_of([key_column(values[e], full[e]) for e in one.key])
                held = {name: column.of(values, full) for name, column in one.columns.items()}
                own = order[known[order] & (days[order] == day)]
                grouped = group_rows(keys.take(own), np.ones(len(own), bool))
                run = run_of(grouped, times[own], take_columns(held, own))
                found = reader.records_of(run, rows[own][grouped.order])
                records |= dict(zip(store_keys(reader.facts, run.keys), found, strict=True))
        # One append for all key sets: if the process is killed, RocksDB has all of a row or nothing.
        store.append(day, records)
