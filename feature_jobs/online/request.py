"""The features of a request: one user, n items, computed with the code of the daily join.

A feature that reads only the user, the context and the time is computed once for all items. The others are computed for
n rows. Both read the columns of entities as the day's end left them, and the past of their keys from the online store:
its state at that moment, and the rows that came since.
"""

from __future__ import annotations

import datetime
import functools
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.vectors import Columns, plain, repeated
from feature_jobs.joins.aggregations import key_sets
from feature_jobs.joins.entities import Newest
from feature_jobs.joins.request import RequestFeatures, no_request, one_request
from feature_jobs.joins.rules import (
    key_of,
    own_expressions,
    request_expressions,
    request_features,
    same_row_features,
    trailing_features,
)
from feature_jobs.joins.same_row import SameRowFeatures
from feature_jobs.joins.trailing import TrailingFeatures, Wanted, keys_that_ask
from feature_jobs.online.cache import SingleCache, WindowCache
from feature_jobs.online.crosses import joined_texts
from feature_jobs.online.entities import EntityRows
from feature_jobs.online.materialize import OnlineFacts
from feature_jobs.online.packed import KeyTable
from feature_jobs.online.past import PastOfRequest, SetPlan
from feature_jobs.online.state import StateReader, operations_of, window_name, windows_of
from feature_jobs.online.store import Reading
from feature_jobs.online.typed import of_type, typed
from feature_jobs.online.windows import SetWindows
from feature_jobs.schema import Scenario, SequenceFeature
from feature_jobs.sources.casts import arrow_schema
from feature_jobs.sources.source import time_columns
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Bools, Ints, Keys
from feature_jobs.windows.operations import Numbers


@dataclass(frozen=True)
class Request:
    """One user at a time in µs, n items, and further columns of the log: a single value, or one for each item.

    Where the scenario has `data.request`, its items are compared with each other.
    """

    time: int
    user: int | str | None
    items: pa.Array
    context: Mapping[str, pa.Array] = field(default_factory=dict)


class OnlineRows:
    """Rows with the state of a day's end: their columns, those of the entities that they see, values of expressions.

    `known_at` is the time of each in µs; `source` the further log whose rows they are, None for events. `common` is the
    one row whose columns, and those of the entities that it sees, these have in common.
    """

    def __init__(
        self,
        path: RequestPath,
        known_at: Ints,
        columns: Mapping[str, pa.Array],
        source: str | None = None,
        common: OnlineRows | None = None,
    ) -> None:
        self.scenario, self.known_at = path.scenario, known_at
        self._log, self._times = path.scenario.data.log(source), path.times[source]
        self._columns = dict(columns)
        self._common, self._entity_rows = common, dict[str, Ints]()
        self._keys: dict[tuple[str, ...], tuple[Keys, Bools]] = {}
        # Of one moment: positions among the rows of an entity hold for no others, and another thread may update them.
        self.entities: Mapping[str, EntityRows] = common.entities if common else path.entities
        self._shared = Columns({}, len(known_at))

    def column(self, name: str) -> pa.Array:
        """A column by its name in expressions: a value for each row, or a single one that stands for all."""
        if name == EVENT_TIME and name not in self._columns:
            self._columns[name] = pa.array(self.known_at)
        if name not in self._columns:
            entity = self.scenario.data.entities.get(name.partition(".")[0])
            if self._common is not None and (entity is None or self._columns.keys().isdisjoint(entity.keys)):
                self._columns[name] = self._common.column(name)
            else:
                self._columns[name] = self._entity_column(name)
        return self._columns[name]

    def keys(self, key: tuple[str, ...], place: str) -> tuple[Keys, Bools]:
        """The key of each row, and whether it has one. `place` is for messages."""
        if key not in self._keys:  # an item's is that of its table, and of its windows
            self._keys[key] = keys_that_ask(key, place, self.evaluate)
        return self._keys[key]

    def rows_of(self, entity: str) -> Ints:
        """The row of an entity that each row sees, -1 for none."""
        if entity not in self._entity_rows:
            keys, known = self.keys(self.scenario.data.entities[entity].keys, entity)
            self._entity_rows[entity] = self.entities[entity].find(keys, known)
        return self._entity_rows[entity]

    def _entity_column(self, name: str) -> pa.Array:
        entity, _, column = name.partition(".")
        declared = self.scenario.data.entities.get(entity)
        if declared is None:
            raise BadInputError(
                f"{self.scenario.file}: the request has no {name}, which features read; give it with the items, or once"
                f" for all of them"
            )
        if entity not in self.entities:  # which has no rows yet
            return pa.nulls(len(self.known_at), arrow_schema(declared.columns).field(column).type)
        return self.entities[entity].take(column, self.rows_of(entity))

    def entity_lists(self, name: str) -> tuple[pa.Array, Ints]:
        """A column of an entity for these rows, and the position of each row's value in it."""
        return repeated(self.column(name), len(self.known_at)), np.arange(len(self.known_at))

    def add(self, columns: Mapping[str, pa.Array]) -> None:
        """Further columns that expressions may name; those of the log come first."""
        self._columns = {**columns, **self._columns}

    def evaluate(self, expressions: Mapping[str, str]) -> dict[str, pa.Array]:
        """Values of expressions by place."""
        return {place: repeated(values, len(self.known_at)) for place, values in self.parts(expressions).items()}

    def parts(self, expressions: Mapping[str, str]) -> dict[str, pa.Array]:
        """The same; a single value may stand for all rows."""
        names = _names_in(tuple(expressions.values()))
        for name in names - self._shared.arrays.keys():
            self._shared.add(name, self.column(name))
        zone = self._log.time.zone
        return {
            # Most expressions are a column alone.
            place: plain(self._shared.arrays[e])
            if e in names
            else evaluate(e, self._shared, zone=zone, times=self._times)
            for place, e in expressions.items()
        }


@dataclass(frozen=True)
class _Side:
    """Features that are computed for one kind of rows: of the user, or of the items."""

    same_row: SameRowFeatures
    of_entities: dict[str, SameRowFeatures]
    """Features of the same row that read the columns of one entity alone, and are computed once for all its rows."""
    trailing: TrailingFeatures
    plans: dict[str, SetPlan]


class RequestPath:
    """Computes features of requests from one state of the store. `names` are the features wanted, by default all."""

    def __init__(self, scenario: Scenario, facts: OnlineFacts, names: Collection[str] | None = None) -> None:
        self.scenario, self.facts, self._file = scenario, facts, scenario.file
        self.entities: Mapping[str, EntityRows] = {
            name: EntityRows.of(self._place_of(name), facts.entities[name].of_columns(entity.columns))
            for name, entity in scenario.data.entities.items()
            if name in facts.entities
        }
        self._wanted = set(names if names is not None else scenario.features)
        self.readers = {name: StateReader(one) for name, one in facts.key_sets.items()}
        # Read once: a request, and each row that is added, asks for them.
        self.key_sets = key_sets(scenario)
        self.times = {source: time_columns(scenario, source) for source in (None, *scenario.data.logs)}
        compared = request_features(scenario).keys() & self._wanted
        self._compared, self._compares = RequestFeatures(scenario, compared), bool(compared)
        self._order = tuple(scenario.features)
        self._refuse_other_features()
        self._caches: list[WindowCache | SingleCache] = []
        self._read_last: Reading | None = None
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        # By the columns that come with a value for each item, which the client chooses.
        self._sides: dict[frozenset[str], tuple[_Side, _Side]] = {}

    def update(self, entity: str, rows: pa.Table, *, whole: bool) -> None:
        """Lets later requests see other rows of an entity: with `whole` these alone, else also these.

        They may come in any order; of rows with one key the last one counts. Raises BadInputError for an entity that
        the scenario does not have, and for rows that lack its columns, or have them in another type.
        """
        declared, place = self.scenario.data.entities.get(entity), self._place_of(entity)
        missing = sorted(declared.columns.keys() - set(rows.column_names)) if declared else []
        if declared is None or missing:
            what = f"the rows have no {missing[0]}" if missing else "the scenario declares no such entity"
            raise BadInputError(f"{place}: {what}; give rows of a declared entity")
        landed = pa.table(
            {one.name: of_type(place, one.name, rows[one.name], one.type) for one in arrow_schema(declared.columns)}
        )
        newest = Newest.of(landed, declared.keys, place)
        with self._lock:  # else of two updates at a time one is lost
            older = self.entities.get(entity)
            own = EntityRows.of(place, newest) if whole or older is None else older.then(newest)
            # Not in place: a request that runs has the rows of its beginning.
            self.entities = {**self.entities, entity: own}

    @property
    def layouts(self) -> list[bytes]:
        """The first bytes of the keys of each key set in the store."""
        return [bytes.fromhex(one["layout"]) for one in self.facts.key_sets.values()]

    def knows_how_long(self, name: str) -> bool:
        """Says if it knows of a trailing feature how long its values hold: windows of numbers by a key that names no
        user."""
        wanted = TrailingFeatures(self.scenario, {name}, audited=False).wanted
        return all(self._in_place(key, windows) is not None for key, (_, windows) in wanted.items())

    def times_of_items(self, keys: Keys) -> Ints:
        """The times [from, until) at which all features of items hold that were computed last. [2, N]"""
        found = np.array([[self.facts.begin], [self.facts.end]]) + np.zeros(len(keys), np.int64)
        for cache in self._caches:
            if isinstance(cache, WindowCache):
                begin, until = cache.times(keys)
                found = np.stack([np.maximum(found[0], begin), np.minimum(found[1], until)])
        return found

    def _place_of(self, entity: str) -> str:
        return f"{self.scenario.file}: data.entities.{entity}"

    def columns(self, request: Request, reading: Reading) -> dict[str, pa.Array]:
        """The columns of all features: those of the user have one row, the others n, in the order of the items."""
        self._refuse_time(request.time)
        data, num = self.scenario.data, len(request.items)
        if double := sorted({data.user, data.item} & request.context.keys()):
            raise BadInputError(f"{double[0]}: the context repeats the request's own; leave it out of the context")
        given = {data.user: typed(self.scenario, data.user, [request.user])}
        given |= {name: typed(self.scenario, name, column) for name, column in request.context.items()}
        if wrong := [name for name, column in given.items() if len(column) not in (1, num)]:
            raise BadInputError(f"{wrong[0]}: {len(given[wrong[0]])} values for {num} items; give one, or one an item")
        of_items = {data.item: typed(self.scenario, data.item, request.items)}
        of_items |= {name: column for name, column in given.items() if len(column) == num != 1}
        shared = {name: column for name, column in given.items() if name not in of_items}
        user_side, item_side = self._split(frozenset(of_items))
        user = OnlineRows(self, np.array([request.time]), shared)
        items = OnlineRows(self, np.full(num, request.time), of_items, common=user)
        if user_side.plans or item_side.plans:
            # Before rows are read: one that is added in between is then read now, and its key forgotten next time.
            with self._lock:
                self._forget_changed(reading)
        of_user = self._of_side(user_side, user, reading, request.time)
        found = of_user | self._of_side(item_side, items, reading, request.time)
        if self._compares:
            items.add(found)
            # A row of the log that names no request was shown in none.
            named = given.get(data.request or "")
            if named is not None and len(named.unique()) > 1:
                raise BadInputError(f"{data.request}: the items name several requests; ask for those of one at a time")
            is_one = data.request is not None and (named is None or not named.null_count)
            requests = one_request(num) if is_one else no_request(num)
            found |= self._compared.columns(items.evaluate, found, requests)
        return {name: found[name] for name in self._order if name in found}

    def table(self, request: Request, reading: Reading) -> pa.Table:
        """The same as a table of n rows."""
        columns = self.columns(request, reading)
        return pa.table({name: repeated(column, len(request.items)) for name, column in columns.items()})

    def _of_side(self, side: _Side, rows: OnlineRows, reading: Reading, time: int) -> dict[str, pa.Array]:
        asked = {one.name: rows.keys(one.key, f"{self._file}: key of {one.name}") for one in side.trailing.key_sets}
        with self._lock:  # of the caches
            past = PastOfRequest(side.plans, reading, asked, time=time, begin=self.facts.begin)
        found = side.same_row.columns(rows.parts) | side.trailing.columns(rows, past)[0]
        for entity, features in side.of_entities.items():
            found |= self._of_entity(entity, features, rows)
        return found

    def _of_entity(self, entity: str, features: SameRowFeatures, rows: OnlineRows) -> dict[str, pa.Array]:
        def of_all(columns: Mapping[str, pa.Array], num: int) -> dict[str, pa.Array]:
            named = {f"{entity}.{name}": column for name, column in columns.items()}
            return features.columns(OnlineRows(self, np.zeros(num, np.int64), named).evaluate)

        held = rows.entities.get(entity)
        found = held.features(of_all, rows.rows_of(entity)) if held else None
        return features.columns(rows.evaluate) if found is None else found

    def _split(self, of_items: frozenset[str]) -> tuple[_Side, _Side]:
        """Features of the user and features of items, where these columns have a value for each item."""
        if of_items not in self._sides:
            data = self.scenario.data
            entities = {f"{name}." for name, entity in data.entities.items() if not of_items.isdisjoint(entity.keys)}

            def is_of_item(expressions: Iterable[str]) -> bool:
                names = set().union(*map(columns_of, expressions))
                return any(name in of_items or f"{name.partition('.')[0]}." in entities for name in names)

            read = {n: [*own_expressions(n, one).values()] for n, one in same_row_features(self.scenario).items()}
            for name, feature in trailing_features(self.scenario).items():
                history = feature.history if isinstance(feature, SequenceFeature) else None
                read[name] = [*key_of(feature), *([history] if history else ())]
            of_user = {name for name, expressions in read.items() if not is_of_item(expressions)}
            user, items = of_user & self._needed, self._needed - of_user
            of_entities: dict[str, set[str]] = {}
            for name in items & same_row_features(self.scenario).keys():
                owners = {column.rpartition(".")[0] for column in set().union(*map(columns_of, read[name]))}
                if len(owners) == 1 and (owner := owners.pop()):
                    of_entities.setdefault(owner, set()).add(name)
            self._sides[of_items] = self._side(user, {}), self._side(items, of_entities)
        return self._sides[of_items]

    def _side(self, names: Collection[str], of_entities: Mapping[str, set[str]]) -> _Side:
        # Without the newest time behind each value, which only the audit of the join looks at.
        trailing = TrailingFeatures(self.scenario, names, audited=False)
        plans = {name: self._plan(name, wanted) for name, (_, wanted) in trailing.wanted.items()}
        others = set(names).difference(*of_entities.values())
        by_entity = {entity: SameRowFeatures(self.scenario, own) for entity, own in of_entities.items()}
        return _Side(SameRowFeatures(self.scenario, others, joined_texts), by_entity, trailing, plans)

    def _plan(self, name: str, wanted: Mapping[Window, Wanted]) -> SetPlan:
        reader, table = self.readers[name], self.facts.mapped.get(name)
        windows = SetWindows(reader, wanted)
        self._caches.append(single := SingleCache(reader.facts["layout"]))
        if (in_place := self._in_place(name, wanted)) is None:
            return SetPlan(reader, windows, single, table)
        self._caches.append(cache := WindowCache(in_place.index, reader.facts["layout"], windows))
        return SetPlan(reader, windows, single, table, cache)

    def _in_place(self, name: str, wanted: Mapping[Window, Wanted]) -> KeyTable | None:
        """The table of a key set whose windows a cache can hold, which has a place for each key and no lists."""
        # Without a store the values of users are mapped too, but requests name few of them.
        table = self.facts.mapped.get(name) if self.facts.key_sets[name]["mapped"] else None
        operations = [operation for one in wanted.values() for operation in one.operations.values()]
        return table if all(isinstance(operation, Numbers) for operation in operations) else None

    def _forget_changed(self, reading: Reading) -> None:
        """Lets caches forget the keys to which rows were added."""
        # Another reading may be of another state, for which nothing that is kept holds.
        if reading is not self._read_last:
            self._read_last, self._seen = reading, {}
            for cache in self._caches:
                cache.forget_all()
        self._seen, keys = reading.changed(self._seen)
        if keys:
            for cache in self._caches:
                cache.forget(keys)

    @functools.cached_property
    def _needed(self) -> set[str]:
        """Features that are wanted, and those that they are computed from."""
        needed = set(self._wanted)
        for name, feature in request_features(self.scenario).items():
            read = set().union(*map(columns_of, request_expressions(name, feature).values()))
            needed |= (read | {getattr(feature, "sequence", name)}) & self.scenario.features.keys()
        return needed

    def _refuse_other_features(self) -> None:
        """Raises BadInputError where the state was made for features that need less."""
        for one in self.key_sets:
            held = self.facts.key_sets.get(one.name)
            known = set(held["flags"]) | {name for name, _ in held["values"]} if held else set()
            operations = held["operations"] if held else {}
            if not set(one.columns) <= known or any(
                not set(operations_of(wanted)) <= set(operations.get(window_name(window), ()))
                for window, wanted in windows_of(self.scenario, one).items()
            ):
                raise BadInputError(
                    f"{self.scenario.file}: features by {one.name} were changed after this state was made; load one"
                    f" that was made with them: recloop materialize {self.scenario.option} --ds DAY, after a replay"
                )

    def _refuse_time(self, time: int) -> None:
        if not self.facts.begin <= time < self.facts.end:
            begin, end, asked = map(_text_of, (self.facts.begin, self.facts.end, time))
            raise BadInputError(
                f"the features of this state hold from {begin} to {end}, but the request is of {asked}; load the state"
                f" of the day before it: recloop materialize {self.scenario.option} --ds DAY"
            )


@functools.lru_cache(maxsize=1024)
def _names_in(expressions: tuple[str, ...]) -> frozenset[str]:
    """Names of the columns that expressions read."""
    return frozenset().union(*map(columns_of, expressions))


def _text_of(time: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(time / 1e6, datetime.UTC).isoformat(timespec="seconds")
    except (OSError, OverflowError, ValueError):  # of no year that a date can have: another unit, perhaps
        return f"{time} µs since 1970"
