"""A day's ingested events, written again without the rows and the ids of some users.

A user's rows are the events with that value in `data.user`, the rows of entities that have this column as their key,
and the quarantined rows that name the user. In other columns that name users (`feature_jobs.sources.user_ids`) the
cell that holds the id becomes empty, as if it had been so in the source, and a list loses the element. A longer text
counts as such a cell where a person named its column.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Column, Scenario
from feature_jobs.schema.data import Entity, Events, Log
from feature_jobs.sources.output_files import (
    COLUMNS_FILE,
    COUNTS_FILE,
    EVENTS_FILE,
    LOGS,
    QUARANTINE_FILE,
    DayCounts,
    TableCounts,
    log_file,
)
from feature_jobs.sources.source import rising_columns
from feature_jobs.sources.tables import as_written, write_parquet
from feature_jobs.sources.user_ids import ID_TYPES, Found, User, Users

Bools = npt.NDArray[np.bool_]
EVENTS = Path(EVENTS_FILE).stem
_CELL = re.compile("'.*'", re.DOTALL)


def find(scenario: Scenario, folder: Path, users: Users) -> Found:
    """Finds rows and ids of these users in the folder of a day, as ingest wrote it."""
    rows, ids, elsewhere = 0, set[User](), Counter[str]()
    quarantine = pq.read_table(folder / QUARANTINE_FILE)
    for stored in _stored(scenario, folder):
        for cleaned in (
            stored.cleaned(as_written(pq.read_table(folder / stored.file)), users),
            _quarantined(stored, quarantine, users),
        ):
            rows += int(cleaned.is_named.sum())
            ids |= cleaned.ids
            elsewhere.update(cleaned.elsewhere)
    return Found(rows, frozenset(ids), dict(elsewhere))


def leave_out(scenario: Scenario, folder: Path, users: Users, output: Path) -> DayCounts:
    """Writes the day to `output` without the rows and ids of these users; returns the counts as ingest does.

    The files are those that ingest would have written if they had never been in the source. The counts are, too, but
    for exact duplicates: the number of theirs is not known any more, and rows that become equal without an id stay.
    landed.json and columns.json stay as they are: they describe the source, which may still have these users.
    Raises BadInputError where no events are left.
    """
    # All of them first: entities without users stay byte for byte as ingest wrote them.
    for name in ("entities", *([LOGS] if (folder / LOGS).exists() else [])):
        shutil.copytree(folder / name, output / name, copy_function=shutil.copyfile, dirs_exist_ok=True)
    if (columns := folder / COLUMNS_FILE).exists():
        shutil.copyfile(columns, output / COLUMNS_FILE)
    counts: DayCounts = json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8"))
    quarantine = pq.read_table(folder / QUARANTINE_FILE)
    is_named = np.zeros(len(quarantine), bool)
    for stored in _stored(scenario, folder):
        is_named |= _quarantined(stored, quarantine, users).is_named
        cleaned = stored.cleaned(as_written(pq.read_table(folder / stored.file)), users)
        left = cleaned.table
        if stored.file == EVENTS_FILE:
            _refuse_empty(scenario, folder, left)
        if "key.event_row" in left.column_names:
            # Numbered again, as ingest would number the rows that are left.
            place = left.schema.get_field_index("key.event_row")
            left = left.set_column(place, left.schema.field(place), pa.array(np.arange(len(left)), pa.int64()))
        rising = [name for name in stored.rising if name in left.column_names]
        write_parquet(left.to_batches(), left.schema, output / stored.file, rising=rising)
        # The rows count as never read: a difference between read and kept would still say that rows were removed.
        own = _of_table(counts, stored.name)
        own["rows"] -= cleaned.num_gone
        own["rows_read"] -= cleaned.num_gone
    kept = quarantine.filter(pa.array(~is_named))
    write_parquet(kept.to_batches(), kept.schema, output / QUARANTINE_FILE)
    _subtract(counts, quarantine.filter(pa.array(is_named)))
    text = json.dumps(counts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (output / COUNTS_FILE).write_text(text, encoding="utf-8")
    return counts


def _refuse_empty(scenario: Scenario, folder: Path, left: pa.Table) -> None:
    if not left.num_rows:
        raise BadInputError(
            f"{folder / EVENTS_FILE}: all events of the day belong to these users, so that nothing would be left; list"
            f" the day under data.days.skip in {scenario.file}, then give the same command again"
        )


@dataclass(frozen=True)
class _Cleaned:
    """A table without users. `is_named`: mask of the earlier rows that named one of them. `num_gone`: number of these
    that went as a whole. `ids`, `elsewhere`: see Found."""

    table: pa.Table
    is_named: Bools
    ids: frozenset[User]
    elsewhere: Mapping[str, int]
    num_gone: int = 0


@dataclass(frozen=True)
class _Stored:
    """A table of a day as ingest wrote it: a log, or an entity. `columns`: as the scenario declares them today;
    `needed`: a row goes where one of these is empty, as ingest takes no such row."""

    file: str
    name: str
    columns: Mapping[str, Column]
    needed: frozenset[str]
    rising: tuple[str, ...] = ()

    def full(self, column: str) -> str:
        """The column's name in expressions."""
        return column if self.file == EVENTS_FILE else f"{self.name}.{column}"

    def can_hold_ids(self, field: pa.Field) -> bool:
        """Says if a column can; one that the scenario does not declare any more can, too."""
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        declared = self.columns.get(field.name)
        # Ids are stored as these two types only; all other columns are left alone without a look.
        fits = pa.types.is_int64(kind) or pa.types.is_string(kind)
        return fits and not field.name.startswith("key.") and (declared is None or declared.type in ID_TYPES)

    def cleaned(self, table: pa.Table, users: Users) -> _Cleaned:
        """The table without these users."""
        is_named, is_gone, ids = np.zeros(len(table), bool), np.zeros(len(table), bool), set[User]()
        holders = [field.name for field in table.schema if self.can_hold_ids(field)]
        naming = [name for name in holders if self.full(name) in users.columns]
        for name in naming:
            values = table[name].combine_chunks()
            hits = _hits(values, users, in_texts=self.full(name) in users.texts)
            if not hits.num:
                continue
            is_named |= hits.in_rows
            ids |= hits.ids
            left = hits.taken_out(values, empty_is_null=self.columns[name].separator is not None)
            # A row without its user, key or time would not have passed ingest, so it goes as a whole.
            if name in self.needed:
                is_gone |= hits.in_rows & np.asarray(left.is_null())
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), left)
        left_rows = table.filter(pa.array(~is_gone))
        # Only counted and reported, never changed: an equal number in another column may be a price. A column that
        # names users may still hold texts with ids in them.
        others = {name: _hits(left_rows[name].combine_chunks(), users, in_texts=True).num for name in holders}
        elsewhere = {self.full(name): num for name, num in others.items() if num}
        return _Cleaned(left_rows, is_named, frozenset(ids), elsewhere, int(is_gone.sum()))


def _stored(scenario: Scenario, folder: Path) -> list[_Stored]:
    data = scenario.data
    needed, rising = _needed(data.events, data.user, data.item), tuple(rising_columns(data.events))
    events = _Stored(EVENTS_FILE, EVENTS, data.events.columns, needed, rising)
    logs = [_log(scenario, file.stem) for file in sorted((folder / LOGS).glob("*.parquet"))]
    return [events, *logs, *(_entity(scenario, file.stem) for file in sorted((folder / "entities").glob("*.parquet")))]


def _log(scenario: Scenario, name: str) -> _Stored:
    log = scenario.data.logs.get(name)
    if log is None:
        return _Stored(log_file(name), name, {}, frozenset())
    # Nobody's order says nothing of a user, and a row that names no other thing says nothing else.
    needed = _needed(log, *({scenario.data.user} & log.columns.keys()))
    return _Stored(log_file(name), name, log.columns, needed, tuple(rising_columns(log)))


def _entity(scenario: Scenario, name: str) -> _Stored:
    entity = scenario.data.entities.get(name)
    columns, needed = (entity.columns, _needed(entity, *entity.keys)) if entity else ({}, frozenset[str]())
    return _Stored(f"entities/{name}.parquet", name, columns, needed)


def find_in_entity(scenario: Scenario, name: str, rows: pa.Table, users: Users) -> Found:
    """Finds rows and ids of these users among rows of an entity."""
    cleaned = _entity(scenario, name).cleaned(rows, users)
    return Found(int(cleaned.is_named.sum()), cleaned.ids, cleaned.elsewhere)


def _needed(table: Events | Log | Entity, *keys: str) -> frozenset[str]:
    times = [time.column for time in (table.time, getattr(table, "arrival", None)) if time]
    return frozenset((*keys, *times, *(name for name, column in table.columns.items() if column.required)))


@dataclass(frozen=True)
class _Hits:
    """Values of a column, those in lists one by one, that are or hold ids: their rows, the ids, and their number."""

    is_hit: Bools
    in_rows: Bools
    ids: frozenset[User]

    @property
    def num(self) -> int:
        return int(self.is_hit.sum())

    def taken_out(self, values: pa.Array, *, empty_is_null: bool) -> pa.Array:
        """The column without them: null in place of a value, a list without its values. A list of text that becomes
        empty is null, as ingest reads an empty text."""
        if not pa.types.is_list(values.type):
            return pc.if_else(pa.array(self.is_hit), pa.scalar(None, values.type), values)
        rows = np.asarray(pc.list_parent_indices(values))[~self.is_hit]
        lengths = np.bincount(rows, minlength=len(values))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        # A list that was empty before stays empty; one that became so is null only where its source was text.
        is_null = np.asarray(values.is_null()) | (self.in_rows & (lengths == 0) & empty_is_null)
        flat = values.flatten().filter(pa.array(~self.is_hit))
        return pa.ListArray.from_arrays(offsets, flat, type=values.type, mask=pa.array(is_null))


def _hits(values: pa.Array, users: Users, *, in_texts: bool) -> _Hits:
    is_list = pa.types.is_list(values.type)
    flat = values.flatten() if is_list else values
    wanted = {value: {user} for value, user in _as_values(users, flat.type).items()}
    if in_texts and pa.types.is_string(flat.type):
        for text in flat.unique().drop_null().to_pylist():  # a text that comes often is read once
            if found := users.finder.find(text):
                wanted[text] = wanted.get(text, set()) | found
    is_hit = np.asarray(pc.is_in(flat, value_set=pa.array(list(wanted), flat.type)), bool)
    in_rows = is_hit
    if is_list:
        in_rows = np.zeros(len(values), bool)
        # Elements back to their rows, since a user can stand in the middle of another one's list.
        in_rows[np.asarray(pc.list_parent_indices(values))[is_hit]] = True
    hit_values = flat.filter(pa.array(is_hit)).unique().to_pylist()
    return _Hits(is_hit, in_rows, frozenset[User]().union(*(wanted[value] for value in hit_values)))


def _as_values(users: Users, kind: pa.DataType) -> Mapping[str, User] | dict[int, User]:
    """The ids by the value that a column has of them: numbers as text in a column of text, and the other way round."""
    if pa.types.is_string(kind):
        return users.finder.by_text
    # At most 19 digits: no 64-bit integer has more.
    whole = {int(user): user for user in users.ids if re.fullmatch("-?[0-9]{1,19}", str(user))}
    return {number: user for number, user in whole.items() if str(number) == str(user) and -(2**63) <= number < 2**63}


def _quarantined(stored: _Stored, quarantine: pa.Table, users: Users) -> _Cleaned:
    """Finds the quarantined rows of a table that name one of the users: in a cell that names users, or anywhere in a
    line without cells."""
    is_named, ids, elsewhere = np.zeros(len(quarantine), bool), set[User](), Counter[str]()
    for row, (table, text) in enumerate(zip(*(quarantine[name].to_pylist() for name in ("table", "row")), strict=True)):
        if table != stored.name:
            continue
        found = _named_in_cells(stored, text, users)
        named = set[User]().union(*(ids for name, ids in found.items() if not name or name in users.columns))
        is_named[row] = bool(named)
        ids |= named
        if not named:
            elsewhere.update(name for name, ids_found in found.items() if ids_found)
    return _Cleaned(quarantine, is_named, frozenset(ids), elsewhere)


def _named_in_cells(stored: _Stored, row: str, users: Users) -> dict[str, set[User]]:
    """Ids in a quarantined row, by column; under "" those in no column. The row is JSON with the columns' names in the
    file, or the text of a line."""
    try:
        cells = json.loads(row)
    except ValueError:
        cells = None
    # A line that was no row has no cells, so any word in it may be the id: rather one row too many than one left.
    if not isinstance(cells, dict) or cells.keys() == {"line", "text"}:
        return {"": _named_in(row, users)}
    found = {}
    for name, column in stored.columns.items():
        texts = {str(cells[key]) for key in (name, column.source or name) if cells.get(key) is not None}
        parts = {part for text in texts for part in text.split(column.separator)} if column.separator else set()
        found[stored.full(name)] = set[User]().union(*(_named_in(text, users) for text in texts | parts))
    return found


def _named_in(text: str, users: Users) -> set[User]:
    """Ids that a text of a row that was not read may stand for, as a whole, as a number (" +7", "007"), or in words."""
    number = re.fullmatch(r"\s*([+-]?\d+)(\.0*)?\s*", text)
    readings = {text, text.strip(), *([str(int(number[1]))] if number else [])}
    whole = users.finder.by_text
    return {whole[reading] for reading in readings & whole.keys()} | users.finder.find(text)


def _of_table(counts: DayCounts, name: str) -> TableCounts:
    return counts if name == EVENTS else {**counts["entities"], **counts.get("logs", {})}[name]


def _subtract(counts: DayCounts, gone: pa.Table) -> None:
    """Takes rows that left the quarantine out of the counts."""
    for name, reason in zip(gone["table"].to_pylist(), gone["reason"].to_pylist(), strict=True):
        own = _of_table(counts, name)
        if own["quarantined"]:
            own["quarantined"] -= 1
            own["rows_read"] -= 1
        else:  # a row without a time belongs to no day, so it was not counted as read
            own["undated"] -= 1
        # Counter's minus drops counts that fall to 0, as ingest lists no reason without rows.
        reasons = Counter(_positive(own["reasons"])) - Counter([_CELL.sub("...", reason)])
        own["reasons"] = dict(reasons)


def _positive(reasons: Mapping[str, int]) -> dict[str, int]:
    return {reason: num for reason, num in reasons.items() if num > 0}
