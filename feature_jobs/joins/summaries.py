"""Summaries: the runs and tiles of the days so far, for the windows of later days, and the places where they lie.

    summaries/index.json      the days that a window of the next day can reach, and where each of their blocks lies
    summaries/DS.blocks       runs and tiles that a day added (feature_jobs.windows.blocks)

A day writes its own blocks; those of earlier days lie in the outputs of these days, and the index names them by digest.
So the index of one day stands for all days that it was made of. Only where summaries were built again from events, as
after a change of the features, blocks of earlier days lie beside the day's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from feature_jobs.control_records import read_record
from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.joins.aggregations import (
    DAY_US,
    KeySet,
    aggregations,
    key_sets,
    name_of,
    sampler_aggregations,
    summarized_key_sets,
    types_read,
)
from feature_jobs.joins.entities import EntityFacts, added_rows, holders, make_whole
from feature_jobs.schema import Scenario
from feature_jobs.schema.base import DayName
from feature_jobs.schema.days import day_window, history_days, log_window, parse_ds, trailing_days
from feature_jobs.sources.leave_out import find_in_entity
from feature_jobs.sources.user_ids import Found, User, Users
from feature_jobs.windows.blocks import REMEDY, Place, read_run, read_tile
from feature_jobs.windows.days import Partitions, Pieces, TileId, completed
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Tile

INDEX_FILE = "index.json"
ReadFile = Callable[[str], bytes | None]
"""Reads a file of an output by its name; None where there is none."""


class KeySetFacts(TypedDict):
    """A key set as it was summarized: its operations, the declared types of the columns it reads, and its levels."""

    operations: list[str]
    types: dict[str, str]
    max_level: int


class DayFacts(TypedDict):
    """A summarized day: its number and event-time range [begin, end) in µs, and its blocks.

    `holder` is the day whose output has the file `DS.blocks`, of this digest.
    """

    ds: DayName
    ordinal: int
    begin: int
    end: int
    holder: DayName
    digest: str
    blocks: dict[str, Place]


class Index(TypedDict):
    """`genesis` is the first day that was ever summarized; `days` are the day itself and all that its windows reach.
    `entities` are those of all days, by name."""

    genesis: int
    lookback_days: int
    key_sets: dict[str, KeySetFacts]
    days: list[DayFacts]
    entities: dict[str, EntityFacts]


def ordinal_of(ds: str) -> int:
    """The number of a day."""
    return parse_ds(ds).toordinal()


def reach(scenario: Scenario, ds: str) -> int:
    """The oldest time that a window of the day's first event reaches, in µs; later days reach less far."""
    return day_window(scenario, ds)[0] - scenario.join.lookback_days * DAY_US


def facts_of(scenario: Scenario, sets: Iterable[KeySet]) -> dict[str, KeySetFacts]:
    """Key sets as an index has them."""
    return {
        one.name: {
            "operations": sorted(one.operations),
            "types": types_read(scenario, one),
            "max_level": one.max_level,
        }
        for one in sets
    }


def is_enough(scenario: Scenario, index: Index) -> bool:
    """Says if the days of an index hold all that the scenario's features need of them."""
    # A shorter lookback has dropped the days beyond it from the index.
    if index["lookback_days"] < scenario.join.lookback_days:
        return False
    for name, wanted in facts_of(scenario, summarized_key_sets(scenario)).items():
        found = index["key_sets"].get(name)
        if found is None or found["types"] != wanted["types"] or found["max_level"] < wanted["max_level"]:
            return False
        # More than needed is enough: removing a feature must not make the days of the lookback be read again.
        if not set(wanted["operations"]) <= set(found["operations"]):
            return False
    return True


def run_name(key_set: str) -> str:
    """The name of a day's run among its blocks."""
    return f"{key_set}/run"


def tile_name(key_set: str, tile: TileId) -> str:
    """The name of a tile among the blocks of the day that completed it."""
    return f"{key_set}/{tile.level}-{tile.first}"


class Summaries:
    """An index, with the folders in which its blocks lie, by the day whose output each is."""

    def __init__(self, index: Index, folders: Mapping[str, Path]) -> None:
        self.index = index
        self._folders = folders
        # Runs of all days have one name; that of a tile is its own.
        self._days = {name: day for day in index["days"] for name in day["blocks"] if not name.endswith("/run")}
        self._of_day = {day["ordinal"]: day for day in index["days"]}

    @cached_property
    def partitions(self) -> Partitions:
        """The days of the index."""
        columns = zip(*((day["ordinal"], day["begin"], day["end"]) for day in self.index["days"]), strict=True)
        return Partitions(*map(np.array, columns))

    def run(self, key_set: str, ordinal: int) -> Run:
        """A day's run."""
        return read_run(*self._place(self._of_day[ordinal], run_name(key_set)))

    def tile(self, key_set: str, tile: TileId) -> Tile:
        """A tile of earlier days, or of this one."""
        name = tile_name(key_set, tile)
        return read_tile(*self._place(self._day_with(name), name))

    def has_tile(self, key_set: str, tile: TileId) -> bool:
        """Says if a tile is there, which a later day may complete."""
        return tile_name(key_set, tile) in self._days

    def holders(self, key_set: str, runs: Iterable[int], tiles: Iterable[TileId]) -> set[str]:
        """Days in whose outputs these runs and tiles lie."""
        days = [self._of_day[ordinal] for ordinal in runs]
        return {day["holder"] for day in [*days, *(self._day_with(tile_name(key_set, tile)) for tile in tiles)]}

    def file(self, holder: str, ds: str) -> Path:
        """The file of the blocks that a day added."""
        return self._folders[holder] / f"{ds}.blocks"

    def _day_with(self, name: str) -> DayFacts:
        day = self._days.get(name)
        if day is None:
            raise CorruptError(f"{INDEX_FILE}: has no tile {name}; {REMEDY}")
        return day

    def _place(self, day: DayFacts, name: str) -> tuple[Path, Place]:
        """File and place of one of a day's blocks."""
        if name not in day["blocks"]:
            raise CorruptError(f"{INDEX_FILE}: has no block {name} of {day['ds']}; {REMEDY}")
        return self.file(day["holder"], day["ds"]), day["blocks"][name]


def parse_index(data: bytes, place: str) -> Index:
    """An index. Raises CorruptError naming `place`."""
    return read_record(data, Index, place, REMEDY)


def usable_index(scenario: Scenario, read: ReadFile) -> Index | None:
    """The index of an output; None where it has none, or lacks something that the scenario needs."""
    data = read(INDEX_FILE)
    index = parse_index(data, INDEX_FILE) if data else None
    return index if index is not None and is_enough(scenario, index) else None


def days_of_entities(scenario: Scenario, ds: str, read: ReadFile) -> list[str]:
    """Earlier days, of any age, in whose outputs the rows of entities lie. `read` reads a file of the day before's."""
    data = read(INDEX_FILE)
    # Whatever the features are: entities are carried on even where windows are made again.
    return sorted(holders(parse_index(data, INDEX_FILE)["entities"])) if data else []


def find_carried(scenario: Scenario, summaries: Path, users: Users) -> Found:
    """Finds rows and ids of these users among the rows of entities that a day's output carries on."""
    index = parse_index((summaries / INDEX_FILE).read_bytes(), str(summaries / INDEX_FILE))
    own = index["days"][-1]["ds"]
    rows, ids, elsewhere = 0, frozenset[User](), Counter[str]()
    for name, tile in added_rows(index["entities"], own, summaries):
        found = find_in_entity(scenario, name, tile, users)
        rows, ids, elsewhere = rows + found.rows, ids | found.ids, elsewhere + Counter(found.elsewhere)
    return Found(rows, ids, dict(elsewhere))


def land_whole(scenario: Scenario, events: Path, summaries: Path, folder_of: Callable[[str], Path]) -> None:
    """Writes the entities of a day's `events` as if the chain began there: with the rows of earlier days that count.

    `summaries` is the day's output; `folder_of` returns the summaries of the days that hold its tiles.
    """
    entities = parse_index((summaries / INDEX_FILE).read_bytes(), str(summaries / INDEX_FILE))["entities"]
    make_whole(scenario, events, summaries, entities, {day: folder_of(day) for day in holders(entities)})


def days_to_merge(scenario: Scenario, ds: str, read: ReadFile) -> list[str]:
    """Earlier days whose summaries a day merges into longer ones, or whose events it reads again with the rows of
    entities that they saw. `read` reads a file of the day before's output."""
    index = usable_index(scenario, read)
    if index is None:
        return days_to_read_again(scenario, ds, read)
    if not index["days"]:
        return []
    # Without folders: this only asks where blocks lie, and the folders are found by the answer.
    summaries, last = Summaries(index, {}), index["days"][-1]["ordinal"]
    found: set[str] = set()
    for one in summarized_key_sets(scenario):
        added = completed(last, ordinal_of(ds), index["genesis"], one.max_level)
        # A half that the day adds itself is not there yet.
        halves = {half for tile in added if tile.level for half in tile.halves()} - set(added)
        found |= summaries.holders(one.name, (), halves)
    return sorted(found | _days_to_sample(scenario, ds, summaries))


def _days_to_sample(scenario: Scenario, ds: str, summaries: Summaries) -> set[str]:
    """Earlier days whose summaries negative sampling reads. `summaries` are those of the day before."""
    before, own, found = summaries.partitions, (ordinal_of(ds), *log_window(scenario, ds)), set[str]()
    days = Partitions(
        *(np.append(old, new) for old, new in zip((before.days, before.begins, before.ends), own, strict=True))
    )
    for name, pieces in sampler_pieces(scenario, days).items():
        one = sampler_aggregations(scenario)[name]
        # The day's own run, and the tiles that it completes, are not there yet.
        runs = [day for day in (*pieces.old, *pieces.new) if day != own[0]]
        tiles = [tile for tile in pieces.tiles if summaries.has_tile(name_of(one.source, one.key), tile)]
        found |= summaries.holders(name_of(one.source, one.key), runs, tiles)
    return found


def sampler_pieces(scenario: Scenario, days: Partitions) -> dict[str, Pieces]:
    """The days and tiles that negative sampling reads on the last of `days`, by what it reads."""
    levels = {one.name: one.max_level for one in summarized_key_sets(scenario)}
    return {
        name: one.window.pieces(days, int(days.days[-1]), levels[name_of(one.source, one.key)])
        for name, one in sampler_aggregations(scenario).items()
    }


def days_to_read_again(scenario: Scenario, ds: str, read: ReadFile) -> list[str]:
    """Earlier days whose events a day must summarize again: all that its windows reach, where the summaries of the
    day before lack something, else none."""
    return [] if usable_index(scenario, read) else trailing_days(scenario, ds, history_days(scenario))


def index_of_day(scenario: Scenario, ds: str, read: ReadFile) -> Index | None:
    """The index of a day, of whose own output `read` reads a file; None where it has none.

    Raises BadInputError where the day was summarized for other features.
    """
    data = read(INDEX_FILE)
    if data is None:
        return None
    index = parse_index(data, INDEX_FILE)
    if not is_enough(scenario, index):
        raise BadInputError(
            f"{scenario.file}: features or join.lookback_days were changed after {ds} was summarized; compute the day"
            f" again: recloop chain replay {scenario.option} --from {ds}"
        )
    return index


def days_of_windows(scenario: Scenario, ds: str, read: ReadFile) -> list[str]:
    """Earlier days whose summaries the windows of a day read. `read` reads a file of the day's own output.

    Raises BadInputError where the day was summarized for other features.
    """
    index = index_of_day(scenario, ds, read)
    if index is None:
        return []
    summaries, found = Summaries(index, {}), set[str]()
    sets = {one.name: one for one in key_sets(scenario)}
    for aggregation in aggregations(scenario).values():
        one = sets[name_of(aggregation.source, aggregation.key)]
        pieces = aggregation.window.pieces(summaries.partitions, ordinal_of(ds), one.max_level)
        found |= summaries.holders(one.name, (*pieces.old, *pieces.new), pieces.tiles)
    return sorted(found - {ds})
