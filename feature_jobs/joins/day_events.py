"""The events of one day, or the rows of a further log, in time order, with the entity rows that each may see."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.vectors import Columns
from feature_jobs.joins.audit import NO_SOURCE, EntitiesSeen, audit_point_in_time
from feature_jobs.joins.entity_rows import EntityRows
from feature_jobs.joins.request import Requests, no_request, request_keys, requests_by_key
from feature_jobs.joins.rows import Rows, RowsOfFile, RowsWithNegatives
from feature_jobs.joins.rules import outcome_columns
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_window, log_window
from feature_jobs.sources.casts import arrow_schema
from feature_jobs.sources.output_files import log_file
from feature_jobs.sources.retyped import refuse_retyped
from feature_jobs.sources.source import time_columns
from feature_jobs.windows.keys import Ints, collect_keys
from feature_jobs.windows.stretches import stretches


class DayEvents:
    """N events of one day, in time order; with a `source` the rows of this further log.

    Of a column no more is in memory than its reader holds, and `part` has a few of the rows: a day may be larger than
    the memory.

    `seen`: what `audit_entities` has found. `names` are the columns that expressions will read; `entities` the folder
    of the rows of entities that the events may see, None where no expression looks at one. `later` is the day that
    reads them again: the events may then lack a column that was declared since, and it is null. With `negatives` these
    rows stand among the events, see `is_negative`. Raises BadInputError where events are out of order or of another
    day, and where a column has another type than the scenario declares for the later day.
    """

    def __init__(
        self,
        scenario: Scenario,
        ds: str,
        events: Path,
        names: Collection[str],
        *,
        entities: Path | None,
        source: str | None = None,
        later: str | None = None,
        negatives: RowsOfFile | None = None,
    ) -> None:
        self.scenario, self.ds, self.source = scenario, ds, source
        data, self._log = scenario.data, scenario.data.log(source)
        wanted = {data.user, data.item, *(key for entity in data.entities.values() for key in entity.keys), *names}
        wanted |= {data.request} if data.request else set()
        file = events / log_file(source)
        if source is not None and not file.exists():
            raise BadInputError(
                f"{file}: {ds} was ingested before {scenario.file} had data.logs.{source}; ingest these days again:"
                f" recloop chain replay {scenario.option} --from {scenario.data.days.first}"
            )
        schema = pq.read_schema(file)
        declared = arrow_schema(self._log.columns)
        if later:
            refuse_retyped(scenario, source, (later, declared), (ds, schema), file)
        columns = [name for name in self._log.columns if name in wanted]
        present = [name for name in columns if name in schema.names]
        keys = [name for name in ("key.event_row", "key.event_time", "key.happened_at") if name in schema.names]
        self._nulls = {name: declared.field(name).type for name in columns if later and name not in present}
        self._names = [*present, *keys, *self._nulls]
        own = RowsOfFile(file)
        self._rows: Rows = own
        self.is_negative = np.zeros(own.num_rows, bool)
        if negatives is not None:
            self._rows = among = RowsWithNegatives(own, negatives, outcome_columns(scenario))
            self.is_negative = among.is_negative
        self._begin, self._end = 0, self._rows.num_rows
        self._read: dict[str, pa.Array] | None = None
        self._whole: DayEvents | None = None
        self.times: Ints = np.asarray(self._event_column("key.event_time"))
        self._check_times(events)
        self._entities = dict[str, EntityRows]()
        if entities:
            for name, one in data.entities.items():
                place = f"{scenario.file}: data.entities.{name}.key"
                self._entities[name] = EntityRows(entities, name, one.keys, wanted, ds=ds, place=place)
        self._entity_rows: dict[str, Ints] = {}
        self._times = time_columns(scenario, source)
        self.seen = EntitiesSeen(len(self))

    @cached_property
    def requests(self) -> Requests:
        """The requests of the events; of some of the events none, as their other rows may be elsewhere."""
        data = self.scenario.data
        if self._whole is not None or not data.request or self.source is not None:
            return no_request(len(self))
        keys = (request_keys(part.column(data.user), part.column(data.request)) for _, part in self.parts())
        return requests_by_key(*collect_keys(keys, len(self)))

    @cached_property
    def known_at(self) -> Ints:
        """The time before which each event's features were known: that of its request, or its own."""
        if self._whole is not None:
            return self._whole.known_at[self._begin : self._end]
        # All rows of a request are shown at once: none sees what happened between its first row and itself.
        return self.requests.earliest(self.times)

    def parts(self) -> Iterator[tuple[int, DayEvents]]:
        """All events, some at a time, each time with the number of the first."""
        for begin, end in stretches(len(self)):
            yield begin, self.part(begin, end)

    def part(self, begin: int, end: int) -> DayEvents:
        """Some of the events, whose columns stay in memory once they are read. They are in no request."""
        # Not a new one: tables of entities are read and times are checked once a day.
        part = copy.copy(self)
        for found in ("requests", "known_at"):
            part.__dict__.pop(found, None)
        part._whole = self if self._whole is None else self._whole
        part._begin, part._end, part._read, part._entity_rows = self._begin + begin, self._begin + end, {}, {}
        part.times, part.is_negative = self.times[begin:end], self.is_negative[begin:end]
        return part

    def _event_column(self, name: str) -> pa.Array:
        if name in self._nulls:
            return pa.nulls(len(self), self._nulls[name])
        if self._read is None:
            return self._rows.column(name, self._begin, self._end)
        if name not in self._read:
            self._read[name] = self._rows.column(name, self._begin, self._end)
        return self._read[name]

    def _check_times(self, events: Path) -> None:
        if (self.times[1:] < self.times[:-1]).any():
            raise BadInputError(f"{events}: events are not in time order; run ingest again for {self.ds}")
        begin, end = (log_window if self.source else day_window)(self.scenario, self.ds)
        # They are in order, so the first and the last stand for all.
        for time in self.times[[0, -1]].tolist() if len(self.times) else ():
            if not begin <= time < end:
                raise BadInputError(
                    f"{events}: {self.ds} holds an event at {time} µs, which is not in the day (from {begin} to"
                    f" {end} µs); run ingest again for {self.ds}"
                )

    def __len__(self) -> int:
        return len(self.times)

    @property
    def happened_at(self) -> Ints:
        """The times at which the rows happened, which may be before they arrived."""
        has_arrivals = "key.happened_at" in self._names
        return np.asarray(self._event_column("key.happened_at")) if has_arrivals else self.times

    def column(self, name: str) -> pa.Array:
        """A column by its name in expressions. Raises BadInputError where there is none."""
        if name == EVENT_TIME:
            return pa.array(self.known_at)
        if name in self._names:
            return self._event_column(name)
        entity, values = self._entity_column(name)
        found = self.entity_rows(entity)
        # A null index takes a null: the event sees no row of the entity.
        return values.take(pa.array(found, mask=found < 0))

    def entity_lists(self, name: str) -> tuple[pa.Array, Ints]:
        """A column of an entity, whole, and the entity row that each event sees (-1: none)."""
        entity, values = self._entity_column(name)
        return values, self.entity_rows(entity)

    def _entity_column(self, name: str) -> tuple[str, pa.Array]:
        of, _, column = name.partition(".")
        if of in self._entities and column in self._entities[of].names:
            return of, self._entities[of].column(column)
        known = [*self._names, *self._log.columns]
        known += [f"{e}.{c}" for e, entity in self.scenario.data.entities.items() for c in entity.columns]
        known += [k.partition(".")[2] for k in known]
        close = difflib.get_close_matches(name, known, n=1)
        full = next((k for k in known if close and k.endswith(f".{close[0]}")), close[0] if close else None)
        hint = f"did you mean {full}?" if full else f"name a column of {self.source or 'events'}, or entity.column"
        raise BadInputError(f"{self.scenario.file}: {name!r} is not a column; {hint}")

    def entity_rows(self, name: str) -> Ints:
        """The entity's row that each event may see, -1 for none; with time, the newest strictly before."""
        if name not in self._entity_rows:
            entity, table = self.scenario.data.entities[name], self._entities[name]
            for key in entity.keys:
                if key not in self._names:
                    raise BadInputError(
                        f"{self.scenario.file}: data.logs.{self.source} has no column {key}, by which a row of"
                        f" {name} would be found; declare it, with `from` where the file names it otherwise"
                    )
                mine, theirs = table.column(key).type, self._event_column(key).type
                if theirs != mine:
                    raise BadInputError(
                        f"{self.scenario.file}: data.entities.{name}.columns.{key}: {mine} there, but "
                        f"{theirs} in {self.source or 'the events'}; give both the same type"
                    )
            codes = table.find([self._event_column(key) for key in entity.keys])
            self._entity_rows[name] = table.newest_before(codes, self.known_at) if entity.time else codes
        return self._entity_rows[name]

    def audit_entities(self) -> None:
        """Counts the events that see a row of the entities that were looked at. Raises BadInputError where one is not
        older than its event."""
        times = {}
        for name, rows in self._entity_rows.items():
            if self.scenario.data.entities[name].time:
                times[name] = np.full(len(rows), NO_SOURCE)
                times[name][rows >= 0] = self._entities[name].valid_from[rows[rows >= 0]]
        numbers, place = range(self._begin, self._end), f"{self.scenario.file}: {self.ds}: entity"
        gaps = audit_point_in_time(self.known_at, times, place=place, rows=numbers)
        self.seen.add(numbers, {name: int((rows >= 0).sum()) for name, rows in self._entity_rows.items()}, gaps)

    def evaluate(
        self, expressions: Mapping[str, str], extra: Mapping[str, pa.Array] | None = None
    ) -> dict[str, pa.Array]:
        """Values of expressions by their place in the scenario (`features.age.of`).

        `extra` are further columns that they may name. Raises BadInputError naming the place.
        """
        extra = extra or {}
        names = {EVENT_TIME}.union(*(columns_of(e) for e in expressions.values()))
        columns = Columns(
            {n: extra[n] if n in extra and not self._is_own(n) else self.column(n) for n in names}, len(self)
        )
        zone = self._log.time.zone
        values = {}
        for place, expression in expressions.items():
            try:
                values[place] = evaluate(expression, columns, zone=zone, times=self._times)
            except BadInputError as error:
                raise BadInputError(f"{self.scenario.file}: {place}: {error}") from None
        return values

    def _is_own(self, name: str) -> bool:
        return name == EVENT_TIME or name in self._names
