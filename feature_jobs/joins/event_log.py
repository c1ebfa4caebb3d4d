"""The log that join looks at: past events and the day's, in time order, with the entity rows that each may see."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of, to_sql
from feature_jobs.joins.trailing import NO_SOURCE, Index, Ints, Timeline, encode_keys
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_window
from feature_jobs.sources.casts import quote
from feature_jobs.sources.output_files import EVENTS_FILE
from feature_jobs.sources.retyped import refuse_retyped
from feature_jobs.sources.source import time_columns

DAY_US = 86_400_000_000
WHOLE = slice(None)


class EventLog:
    """N events in time order; those at `today` are the day's, the others the past's.

    `names` are the columns that expressions will read. Raises BadInputError where the past reaches into the day, or
    events are out of order.
    """

    def __init__(
        self, scenario: Scenario, ds: str, events: Path, history: Mapping[str, Path], names: Collection[str]
    ) -> None:
        self.scenario, self.ds = scenario, ds
        data = scenario.data
        wanted = {data.user, data.item, *(entity.key for entity in data.entities.values()), *names}
        columns = [name for name in data.events.columns if name in wanted]
        day = _load(events, [*columns, "key.event_row"])
        # `promote_options`: nulls where an older day lacks a column that was declared later.
        self._events = pa.concat_tables([*self._past(history, columns, day.schema), day], promote_options="default")
        self._events = self._events.combine_chunks()
        self.times: Ints = np.asarray(self._events["key.event_time"])
        if (np.diff(self.times) < 0).any():
            raise BadInputError(
                f"{events}: events are not in time order; run ingest again for {ds} and the days before"
            )
        self.today = slice(len(self.times) - day.num_rows, len(self.times))
        self.timeline = Timeline(self.times)
        self._entities = {
            name: pq.read_table(events / "entities" / f"{name}.parquet").combine_chunks() for name in data.entities
        }
        self._entity_rows: dict[str, Ints] = {}
        self._indexes: dict[tuple[str, ...], Index] = {}
        self._database = duckdb.connect(config={"threads": 2})
        self._times = time_columns(scenario)

    def _past(self, history: Mapping[str, Path], columns: list[str], day: pa.Schema) -> list[pa.Table]:
        """Past days, oldest first, within the lookback, with the types of `day`."""
        begin = day_window(self.scenario, self.ds)[0]
        tables = []
        for ds in sorted(history):
            table = _load(history[ds], columns)
            refuse_retyped(self.scenario, (self.ds, day), (ds, table.schema), history[ds] / EVENTS_FILE)
            newest = pc.max(table["key.event_time"]).as_py()
            if newest is not None and newest >= begin:
                raise BadInputError(
                    f"{history[ds]}: history of {ds} holds an event at {newest} µs, which is not before {self.ds} "
                    f"(from {begin} µs on); run ingest again for {ds}"
                )
            # The day's first event can look back this far; `Bounds` cuts each later one at its own window.
            oldest = begin - self.scenario.join.lookback_days * DAY_US
            tables.append(table.filter(pc.field("key.event_time") >= oldest))
        return tables

    def column(self, name: str, rows: slice) -> pa.Array:
        """A column by its name in expressions, for some rows of the log. Raises BadInputError where there is none."""
        name = "key.event_time" if name == EVENT_TIME else name
        if name in self._events.column_names:
            return _whole(self._events[name])[rows]
        entity, values = self._entity_column(name)
        found = self.entity_rows(entity)[rows]
        # A null index takes a null: the event sees no row of the entity.
        return values.take(pa.array(found, mask=found < 0))

    def entity_lists(self, name: str) -> tuple[pa.Array, Ints]:
        """A column of an entity, whole, and the entity row that each of today's events sees (-1: none)."""
        entity, values = self._entity_column(name)
        return values, self.entity_rows(entity)[self.today]

    def _entity_column(self, name: str) -> tuple[str, pa.Array]:
        entity, _, column = name.partition(".")
        if entity in self._entities and column in self._entities[entity].column_names:
            return entity, _whole(self._entities[entity][column])
        known = [*self._events.column_names, *self.scenario.data.events.columns]
        known += [f"{e}.{c}" for e, table in self._entities.items() for c in table.column_names]
        known += [k.partition(".")[2] for k in known]
        close = difflib.get_close_matches(name, known, n=1)
        full = next((k for k in known if close and k.endswith(f".{close[0]}")), close[0] if close else None)
        hint = f"did you mean {full}?" if full else "name a column of events, or entity.column"
        raise BadInputError(f"{self.scenario.file}: {name!r} is not a column; {hint}")

    def entity_rows(self, name: str) -> Ints:
        """The entity's row that each event of the log may see, -1 for none; with time, the newest strictly before."""
        if name not in self._entity_rows:
            entity, table = self.scenario.data.entities[name], self._entities[name]
            keys, wanted = _whole(table[entity.key]), _whole(self._events[entity.key])
            if wanted.type != keys.type:
                raise BadInputError(
                    f"{self.scenario.file}: data.entities.{name}.columns.{entity.key}: {keys.type} there, but "
                    f"{wanted.type} in the events; give both the same type"
                )
            unique = keys.unique()  # in the order of the table: without time that is its row
            rows = _codes(wanted, unique)
            if entity.time:
                rows = self._newest_before(name, rows, _codes(keys, unique), np.asarray(table["key.valid_from"]))
            self._entity_rows[name] = rows
        return self._entity_rows[name]

    def _newest_before(self, name: str, codes_N: Ints, codes_E: Ints, valid_from_E: Ints) -> Ints:
        # Entity and time become one sorted number, so that one search finds the newest of an entity before a time.
        timeline = Timeline(np.sort(valid_from_E))
        place = codes_E * timeline.size + timeline.rank_of(valid_from_E, "left")
        if (np.diff(place) < 0).any():
            raise BadInputError(f"entities/{name}.parquet of {self.ds}: rows are not in order; run ingest again")
        start = codes_N * timeline.size
        end = np.searchsorted(place, start + timeline.rank_of(self.times, "left"))
        # The second condition: the row before `end` is this entity's own, not the one's before it.
        seen = (codes_N >= 0) & (end > np.searchsorted(place, start))
        return np.where(seen, end - 1, -1)

    def entity_times(self) -> dict[str, Ints]:
        """For each entity with time that was looked at: `valid_from` of the row that each event of the log sees."""
        found = {}
        for name, rows in self._entity_rows.items():
            if self.scenario.data.entities[name].time:
                times = np.asarray(self._entities[name]["key.valid_from"])
                found[name] = np.full(len(rows), NO_SOURCE)
                found[name][rows >= 0] = times[rows[rows >= 0]]
        return found

    def evaluate(
        self, expressions: Mapping[str, str], rows: slice, extra: Mapping[str, pa.Array] | None = None
    ) -> dict[str, pa.Array]:
        """Values of expressions by their place in the scenario (`features.age.of`), for some rows of the log.

        `extra` are further columns that they may name. Raises BadInputError naming the place.
        """
        extra = extra or {}
        names = sorted({EVENT_TIME}.union(*(columns_of(e) for e in expressions.values())))
        columns = {
            f"v{i}": extra[name] if name in extra and not self._is_own(name) else self.column(name, rows)
            for i, name in enumerate(names)
        }
        # By number, because DuckDB's names ignore case and ours do not.
        own = {name: quote(f"v{i}") for i, name in enumerate(names)}
        zone = self.scenario.data.events.time.zone
        sql = {place: to_sql(e, own.__getitem__, zone=zone, times=self._times) for place, e in expressions.items()}
        self._database.register("log", pa.table(columns))
        try:
            return _select(self._database, sql)
        except duckdb.Error:
            for place, expression in expressions.items():  # again, one by one, to name the one that fails
                try:
                    _select(self._database, {place: sql[place]})
                except duckdb.Error as error:
                    what = str(error).splitlines()[0]
                    raise BadInputError(
                        f"{self.scenario.file}: {place}: {expression!r} cannot be computed ({what}); correct it"
                    ) from None
            raise
        finally:
            self._database.unregister("log")

    def _is_own(self, name: str) -> bool:
        return name == EVENT_TIME or name in self._events.column_names

    def index(self, place: str, by: tuple[str, ...]) -> Index:
        """The log by the values of `by`."""
        if by not in self._indexes:
            parts = self.evaluate({f"{place}.by[{i}]": part for i, part in enumerate(by)}, WHOLE)
            self._indexes[by] = Index(self.timeline, encode_keys(list(parts.values())), self.today)
        return self._indexes[by]


def _load(folder: Path, columns: list[str]) -> pa.Table:
    """The columns that the day has; a day that was ingested before a column was declared lacks it."""
    present = pq.read_schema(folder / EVENTS_FILE).names
    columns = [name for name in columns if name in present]
    return pq.read_table(folder / EVENTS_FILE, columns=[*columns, "key.event_time"])


def _select(connection: duckdb.DuckDBPyConnection, sql: Mapping[str, str]) -> dict[str, pa.Array]:
    """The values of SQL expressions over the table `log`, in its order."""
    if not sql:
        return {}
    # Without ORDER BY: DuckDB keeps the order of the rows of a scan.
    wanted = ", ".join(f"{expression} AS x{i}" for i, expression in enumerate(sql.values()))
    table = connection.sql(f"SELECT {wanted} FROM log").to_arrow_table()
    return {place: _plain(_whole(table[f"x{i}"])) for i, place in enumerate(sql)}


def _codes(values: pa.Array, unique: pa.Array) -> Ints:
    """Position of each value in `unique`, -1 where it is null or not there."""
    # skip_nulls: otherwise a null key of an event would find the null key of a table.
    found = pc.index_in(values, value_set=unique, skip_nulls=True)
    codes: Ints = np.asarray(found.fill_null(-1)).astype(np.int64)
    return codes


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()


def _plain(values: pa.Array) -> pa.Array:
    """Numbers as int64 or float64; the database may have chosen another width."""
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    if pa.types.is_decimal(values.type) or pa.types.is_floating(values.type) or pa.types.is_null(values.type):
        return values.cast(pa.float64())
    return values
