"""A day's logs as requests, one after the other in the order of time: what a server that saw them live had computed.

Each request reads the state of the day before from the store and the rows that came since; then its own rows are added.
So the features must be those of the daily join, value by value (`feature_jobs.online.skew` compares them).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.joins.entities import FOLDER
from feature_jobs.joins.request import no_request, requests_of
from feature_jobs.joins.rules import logs_read
from feature_jobs.online.append import append_rows
from feature_jobs.online.materialize import load, online_facts, read_state
from feature_jobs.online.request import Request, RequestPath
from feature_jobs.online.rocks_store import RocksStore
from feature_jobs.online.store import OnlineStore, Reading, StoreReading
from feature_jobs.schema import Scenario
from feature_jobs.sources.changes import read_landed
from feature_jobs.sources.output_files import log_file
from feature_jobs.windows.keys import Ints

ROW = "key.event_row"
_ENTITY, _ASK, _ROWS = 0, 1, 2
"""At one time: rows of entities that hold from an earlier time, then requests, then what they and others add."""


@dataclass(frozen=True)
class _Rows:
    """Rows of a log, in the order of their times."""

    table: pa.Table
    times: Ints
    known_at: Ints


def replay_day(
    path: RequestPath, store: OnlineStore, reading: Reading, events: Path, *, most: int | None = None
) -> pa.Table:
    """Features of a day's rows with the keys that samples have, in the order in which they were asked for.

    `events` is the day's folder as ingest wrote it; `store` is where `reading` reads. `most`: the number of requests
    after which the replay ends.
    """
    scenario = path.scenario
    logs = {source: _rows_of(scenario, events, source) for source in logs_read(scenario)}
    shown = logs[None].table
    requests = no_request(shown.num_rows)
    if scenario.data.request:
        requests = requests_of(_column(shown, scenario.data.user), _column(shown, scenario.data.request))
    alone = np.setdiff1d(np.arange(shown.num_rows), requests.order_M)
    groups = [*np.split(requests.order_M, requests.offsets_R[1:-1]), *np.split(alone, np.arange(1, len(alone)))]
    asked = ((int(logs[None].known_at[rows[0]]), _ASK, number) for number, rows in enumerate(groups) if len(rows))
    sources, entities = list(logs), list(scenario.data.entities)
    added = (
        (time, _ROWS, number)
        for number, source in enumerate(sources)
        # Rows of one time together, after the requests of that time: none sees another.
        for time in np.unique(logs[source].times).tolist()
    )
    updates = (
        (time, _ENTITY, number)
        for number, name in enumerate(entities)
        for time in _entity_times(scenario, events, name, path.facts.begin)
    )
    found: list[pa.Table] = []
    for time, kind, number in sorted([*updates, *asked, *added]):
        if kind == _ENTITY:
            _update(path, events, entities[number], time)
        elif kind == _ROWS:
            log = logs[source := sources[number]]
            some = np.flatnonzero(log.times == time)
            rows = log.table.take(pa.array(some))
            columns = {name: _column(rows, name) for name in scenario.data.log(source).columns}
            numbers, known_at = np.asarray(rows[ROW]), log.known_at[some]
            append_rows(path, store, columns, times=log.times[some], rows=numbers, known_at=known_at, source=source)
        elif most is None or len(found) < most:
            found.append(_asked(path, reading, shown.take(pa.array(groups[number])), time))
        else:
            break
    return pa.concat_tables(found) if found else _asked(path, reading, shown, path.facts.begin)


def _asked(path: RequestPath, reading: Reading, rows: pa.Table, time: int) -> pa.Table:
    data = path.scenario.data
    outcomes = {data.user, data.item}
    context = {name: _column(rows, name) for name in data.events.columns if name not in outcomes}
    request = Request(time, rows[data.user][0].as_py(), _column(rows, data.item), context)
    features = path.table(request, reading)
    keys = {"key.event_time": rows["key.event_time"], ROW: rows[ROW]}
    named = {"user": data.user, "item": data.item, **({"request": data.request} if data.request else {})}
    keys |= {f"key.{name}": rows[column] for name, column in named.items()}
    return pa.table({**keys, **dict(zip(features.column_names, features.columns, strict=True))})


def _rows_of(scenario: Scenario, events: Path, source: str | None) -> _Rows:
    table = pq.read_table(events / log_file(source)).combine_chunks()
    times = np.asarray(table["key.event_time"])
    known_at = times
    if source is None and scenario.data.request:
        requests = requests_of(_column(table, scenario.data.user), _column(table, scenario.data.request))
        # As in the join: a request is asked once, at the time of its earliest row.
        known_at = requests.earliest(times)
    return _Rows(table, times, known_at)


def _entity_times(scenario: Scenario, events: Path, name: str, begin: int) -> list[int]:
    """The moments from which requests see other rows of an entity; the first one is before all events."""
    if not scenario.data.entities[name].time:
        return [begin]
    since = pq.read_table(events / FOLDER / f"{name}.parquet", columns=["key.valid_from"])
    # An event sees only rows of times strictly before its own.
    later = np.unique(np.asarray(since["key.valid_from"])) + 1
    return [begin, *later[later > begin].tolist()]


def _update(path: RequestPath, events: Path, name: str, time: int) -> None:
    """Lets requests see the rows of an entity that hold by now."""
    entity, landed = path.scenario.data.entities[name], read_landed(events).get(name)
    rows = pq.read_table(events / FOLDER / f"{name}.parquet").combine_chunks()
    if entity.time:
        # All so far, and not the new ones alone: a whole table replaces the rows before.
        rows = rows.filter(pa.array(np.asarray(rows["key.valid_from"]) < time))
    path.update(name, rows, whole=landed is None or landed["whole"])


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def replay_in_scratch(
    scenario: Scenario, state: Path, events: Path, scratch: Path, *, most: int | None = None
) -> pa.Table:
    """The same through a store of its own in the folder `scratch`. `state` is the folder that materialize wrote of the
    day before."""
    with closing(RocksStore(scratch, scenario.name, writable=True)) as store:
        reading = StoreReading(store, load(state, store), tuple(read_state(state)["days"]))
        found = replay_day(RequestPath(scenario, online_facts(state)), store, reading, events, most=most)
    # The join numbers its rows together with those of earlier days whose labels mature.
    return found.drop_columns(ROW)
