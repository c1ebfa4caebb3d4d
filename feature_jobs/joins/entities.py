"""Entities carried from day to day: the newest row of each key, and the rows that the events of a day may see.

    summaries/entities/NAME.parquet    rows that the day's events may see: of their keys, those of the day itself and
                                       the newest before it
    summaries/entities.blocks          tiles: the newest row of each key over a stretch of days, sorted by key

A day adds a tile of its own changes. While the last tile is at least half as large as the one before it, the two become
one (the logarithmic method of Bentley and Saxe, 1980). So there are at most log2 of all rows, a row is written again
that often, and a day without changes writes nothing. Tiles lie in the outputs of the days that wrote them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from feature_jobs.errors import BadInputError
from feature_jobs.joins.rows import Rows, RowsOfFile, RowsWithNegatives
from feature_jobs.joins.values import joint_key, key_column
from feature_jobs.schema import Scenario
from feature_jobs.schema.base import DayName
from feature_jobs.schema.data import Entity
from feature_jobs.sources.changes import Landed, read_landed, write_landed
from feature_jobs.sources.output_files import EVENTS_FILE, log_file
from feature_jobs.sources.tables import as_written, write_parquet
from feature_jobs.windows.blocks import Place, digest_of_blocks, read_block, write_blocks
from feature_jobs.windows.keys import Bools, Ints, Keys, keys_of, union
from feature_jobs.windows.runs import FIRST, SECOND, key_columns, keys_from
from feature_jobs.windows.stretches import stretches

FOLDER = "entities"
_BLOCKS_FILE = "entities.blocks"


class TileFacts(TypedDict):
    """A tile: the day in whose output it lies, the digest of its file, its place there, and its number of rows."""

    holder: DayName
    digest: str
    place: Place
    rows: int


class EntityFacts(TypedDict):
    """An entity in an index: digest of its declaration, and its tiles, oldest first."""

    declared: str
    tiles: list[TileFacts]


@dataclass(frozen=True)
class Newest:
    """The newest row of each key, sorted by key: `rows` with the columns of the entity."""

    keys: Keys
    rows: pa.Table

    @staticmethod
    def of(landed: pa.Table, names: Sequence[str], place: str) -> Newest:
        """Of rows in any order, of which the last one of a key is the newest. Rows without a key are left out: no event
        can ask for them."""
        keys, known = _keys_in(landed, names, place)
        rows = np.flatnonzero(known)
        distinct, codes = keys.take(rows).numbered()
        newest = np.empty(len(distinct), np.int64)
        newest[codes] = rows  # of several rows of a key the last one stays
        return Newest(distinct, landed.take(pa.array(newest)))

    def of_columns(self, names: Collection[str]) -> Newest:
        """With those of these columns that it has."""
        return Newest(self.keys, self.rows.select([name for name in self.rows.column_names if name in names]))

    @staticmethod
    def read(table: pa.Table) -> Newest:
        """From the table of a tile."""
        return Newest(keys_from(table), table.drop_columns([n for n in (FIRST, SECOND) if n in table.column_names]))

    @cached_property
    def table(self) -> pa.Table:
        """As a table, for a tile."""
        columns = dict(zip(self.rows.column_names, self.rows.columns, strict=True))
        return pa.table({**key_columns(self.keys), **columns})

    def __len__(self) -> int:
        return len(self.keys)

    def then(self, newer: Newest) -> Newest:
        """With a later stretch of days."""
        keys, in_older, in_newer = union(self.keys, newer.keys)
        places = np.where(in_newer >= 0, in_newer + len(self), in_older)
        return Newest(keys, pa.concat_tables([self.rows, newer.rows]).take(pa.array(places)))


def carry_entities(
    scenario: Scenario,
    ds: str,
    events: Path,
    *,
    yesterday: Mapping[str, EntityFacts],
    folders: Mapping[str, Path],
    output: Path,
) -> dict[str, EntityFacts]:
    """Writes the rows of each entity that the day's events may see, and the tiles that the day adds.

    `yesterday` are the entities of the day before, `folders` the outputs that hold their tiles, by day.
    Raises BadInputError where a day landed only changes, and the entity was declared otherwise on the day before.
    """
    (output / FOLDER).mkdir(parents=True, exist_ok=True)
    landed, carried, added = read_landed(events), dict[str, EntityFacts](), dict[str, pa.Table]()
    for name, entity in scenario.data.entities.items():
        own = landed.get(name)
        old = _before(name, landed, yesterday)
        if own and not own["whole"] and (old is None or old["declared"] != own["declared"]):
            raise BadInputError(
                f"{scenario.file}: data.entities.{name}: the summaries of the day before {ds} do not hold the entity as"
                f" it is declared; compute them again: recloop chain replay {scenario.option} --from"
                f" {scenario.data.days.first}"
            )
        facts: EntityFacts = {"declared": own["declared"] if own else "", "tiles": [*old["tiles"]] if old else []}
        place = f"{scenario.file}: data.entities.{name}.key"
        rows = pq.read_table(events / FOLDER / f"{name}.parquet").combine_chunks()
        tiles = [_read(tile, folders) for tile in facts["tiles"]]
        asked = _asked(scenario, entity, events)
        write_rows(_visible(entity, asked, rows, tiles, place), output / FOLDER / f"{name}.parquet")
        newest = Newest.of(rows, entity.keys, place)
        if len(newest):
            while tiles and 2 * len(newest) >= len(tiles[-1]):
                # Half as large, as in the text above: with a smaller share a big tile would be rewritten day by day.
                newest = tiles.pop().then(newest)
            # The others have been merged into the new one.
            facts["tiles"] = facts["tiles"][: len(tiles)]
            added[name] = newest.table
        carried[name] = facts
    if added:
        file = output / _BLOCKS_FILE
        places = write_blocks(added.items(), file)
        digest = digest_of_blocks(file)
        for name, place_in_file in places.items():
            tile: TileFacts = {"holder": ds, "digest": digest, "place": place_in_file, "rows": added[name].num_rows}
            carried[name]["tiles"].append(tile)
    return carried


def see_more(
    scenario: Scenario,
    events: Path,
    more: RowsOfFile,
    *,
    yesterday: Mapping[str, EntityFacts],
    folders: Mapping[str, Path],
    output: Path,
) -> None:
    """Writes the rows of entities that a day may see again, also those of the keys that the negatives `more` have. All
    else as `carry_entities`, which came before."""
    landed = read_landed(events)
    among = RowsWithNegatives(RowsOfFile(events / EVENTS_FILE), more, ())
    for name, entity in scenario.data.entities.items():
        if not {*entity.keys}.isdisjoint(more.names):
            old = _before(name, landed, yesterday)
            rows = pq.read_table(events / FOLDER / f"{name}.parquet").combine_chunks()
            tiles = [_read(tile, folders) for tile in (old["tiles"] if old else ())]
            asked = pa.concat_tables([_asked(scenario, entity, events), _distinct(among, entity.keys)])
            place = f"{scenario.file}: data.entities.{name}.key"
            visible = _visible(entity, asked, rows, tiles, place)
            write_rows(visible, output / FOLDER / f"{name}.parquet")


def _before(name: str, landed: Mapping[str, Landed], yesterday: Mapping[str, EntityFacts]) -> EntityFacts | None:
    """The facts of the day before on an entity of which a day landed only changes."""
    own = landed.get(name)
    # A whole table replaces all rows that came before.
    return yesterday.get(name) if own and not own["whole"] else None


def newest_rows(entities: Mapping[str, EntityFacts], folders: Mapping[str, Path]) -> dict[str, Newest]:
    """The newest row of each key at the day's end, by entity; entities without rows are left out."""
    tiles = {name: [_read(tile, folders) for tile in facts["tiles"]] for name, facts in entities.items()}
    return {name: reduce(Newest.then, found) for name, found in tiles.items() if found}


def added_rows(entities: Mapping[str, EntityFacts], ds: str, output: Path) -> Iterator[tuple[str, pa.Table]]:
    """The rows of the tiles that a day added, by entity."""
    for name, facts in entities.items():
        for tile in facts["tiles"]:
            if tile["holder"] == ds:
                yield name, _read(tile, {ds: output}).rows


def make_whole(
    scenario: Scenario,
    events: Path,
    summaries: Path,
    entities: Mapping[str, EntityFacts],
    folders: Mapping[str, Path],
) -> None:
    """Writes the entities of a day with the rows of earlier days: those that its events may see, and of all other keys
    the newest. `entities` are those of the day's index; the rest as `carry_entities`."""
    landed = read_landed(events)
    for name, facts in landed.items():
        if facts["whole"] or name not in scenario.data.entities:
            continue
        keys, file = scenario.data.entities[name].keys, f"{FOLDER}/{name}.parquet"
        seen = pq.read_table(summaries / file)
        tables = [seen]
        # The newest first: of each key the row that comes first is the one that counts.
        for tile in reversed(entities[name]["tiles"]):
            rows = _read(tile, folders).rows.select(seen.column_names).cast(seen.schema)
            known = _joint(pa.concat_tables(tables), keys, name)
            tables.append(rows.filter(pc.invert(pc.is_in(_joint(rows, keys, name), value_set=known))))
        newest = pa.concat_tables(tables).combine_chunks()
        write_rows(newest.sort_by(_order(scenario.data.entities[name])), events / file)
        landed[name] = {**facts, "whole": True}
    write_landed(landed, events)


def _order(entity: Entity) -> list[tuple[str, str]]:
    # The join looks for the newest row before a time in this order (`DayEvents`).
    return [*((key, "ascending") for key in entity.keys), *([("key.valid_from", "ascending")] if entity.time else [])]


def write_rows(rows: pa.Table, file: Path) -> None:
    """Writes rows of an entity as ingest does."""
    table = as_written(rows)
    write_parquet(table.to_batches(), table.schema, file)


def holders(entities: Mapping[str, EntityFacts]) -> set[str]:
    """Days in whose outputs the tiles lie."""
    return {tile["holder"] for facts in entities.values() for tile in facts["tiles"]}


def _read(tile: TileFacts, folders: Mapping[str, Path]) -> Newest:
    return Newest.read(read_block(folders[tile["holder"]] / _BLOCKS_FILE, tile["place"]))


def _asked(scenario: Scenario, entity: Entity, events: Path) -> pa.Table:
    """The keys of an entity that a day's logs have, where they have them as the events do; each once in a log."""
    own = _distinct(RowsOfFile(events / EVENTS_FILE), entity.keys)
    found = [own]
    for source, log in scenario.data.logs.items():
        file = events / log_file(source)
        if log.columns.keys() >= {*entity.keys} and file.exists():
            keys = _distinct(RowsOfFile(file), entity.keys)
            # Reading the log refuses two types, and names them.
            found += [keys] if keys.schema.types == own.schema.types else []
    return pa.concat_tables(found)


def _distinct(rows: Rows, names: Sequence[str]) -> pa.Table:
    """The distinct keys of rows of which no column is null."""
    parts = (
        _known(pa.table({name: rows.column(name, begin, end) for name in names}))
        for begin, end in stretches(rows.num_rows)
    )
    return reduce(lambda found, part: _known(pa.concat_tables([found, part])), parts)


def _known(keys: pa.Table) -> pa.Table:
    """The distinct keys of which no column is null."""
    return keys.select(keys.column_names).group_by(keys.column_names, use_threads=False).aggregate([]).drop_null()


def _visible(entity: Entity, asked: pa.Table, landed: pa.Table, tiles: list[Newest], place: str) -> pa.Table:
    """The rows of the `asked` keys: the newest of earlier days, and those of the day."""
    if any(asked[key].type != landed[key].type for key in entity.keys):
        return landed  # the join refuses the two types, and names them
    asked = _known(asked)
    keys, _ = _keys_in(asked, entity.keys, place)
    found, left = [], np.arange(len(keys))
    for tile in reversed(tiles):  # the newest tile that has a key has its newest row
        at: Ints = tile.keys.find(keys.take(left))
        found.append(tile.rows.take(pa.array(at[at >= 0])))
        left = left[at < 0]
    own = landed.filter(pc.is_in(_joint(landed, entity.keys, place), value_set=_joint(asked, entity.keys, place)))
    rows = pa.concat_tables([*(table.select(own.column_names) for table in found), own])
    return rows.sort_by(_order(entity)).combine_chunks()


def _keys_in(rows: pa.Table, names: Sequence[str], place: str) -> tuple[Keys, Bools]:
    return keys_of([key_column(rows[name].combine_chunks(), place) for name in names])


def _joint(rows: pa.Table, names: Sequence[str], place: str) -> pa.Array:
    return joint_key([rows[name].combine_chunks() for name in names], place)
