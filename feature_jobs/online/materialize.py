"""Materialize: the state at a day's end for the requests after it, as files, and from these into an online store.

online/state.json        the times that it serves, and what the values of each key set hold
online/keys.blocks       by key set its keys, ascending, with their values
online/entities.blocks   by entity the newest row of each key, ascending; read in place
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from typing_extensions import TypedDict

from feature_jobs.control_records import read_record_file
from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.joins.entities import Newest, newest_rows
from feature_jobs.joins.summaries import INDEX_FILE, ReadFile, Summaries, index_of_day, parse_index
from feature_jobs.online.packed import KeyTable, Packed
from feature_jobs.online.state import KeySetState, days_of_state, state_of_keys
from feature_jobs.online.store import OnlineStore, Pairs, State, store_keys
from feature_jobs.schema import Scenario
from feature_jobs.schema.base import DayName, Micros
from feature_jobs.schema.days import ONE_DAY, day_window, parse_ds
from feature_jobs.windows.blocks import Place, digest_of_blocks, fills, read_block, write_blocks
from feature_jobs.windows.runs import key_columns, keys_from

STATE_FILE, KEYS_FILE, ENTITIES_FILE = "state.json", "keys.blocks", "entities.blocks"
DAYS_SERVED = 2
"""A state serves the requests of so many days of the chain after its own: if the next one is late, they still have
features."""
_REMEDY = "materialize the day again"
# Pairs that are Python objects at one time: those of a whole set would need more memory than its file.
_AT_ONCE = 50_000


class StateFacts(TypedDict):
    """state.json. `places` and `entities` are the blocks of key sets and of entities; `digests` those of both files."""

    ds: DayName
    begin: Micros
    end: Micros
    days: list[DayName]
    key_sets: dict[str, KeySetState]
    places: dict[str, Place]
    entities: dict[str, Place]
    digests: dict[str, str]


class OnlineReport(TypedDict):
    """Report of a day: keys by key set, rows by entity, bytes."""

    keys: dict[str, int]
    entities: dict[str, int]
    bytes: int


def served(scenario: Scenario, ds: str) -> tuple[list[str], int, int]:
    """The days whose requests a state serves, with those between that the chain passes over, and their times
    [begin, end) in µs."""
    day, days, left = parse_ds(ds), list[str](), DAYS_SERVED
    # Requests come on days without data too, but no such day brings a newer state.
    while left:
        day += ONE_DAY
        days.append(day.isoformat())
        left -= not scenario.data.days.passes_over(day)
    return days, day_window(scenario, ds)[1], day_window(scenario, days[-1])[1]


def days_to_materialize(scenario: Scenario, ds: str, read: ReadFile) -> list[str]:
    """Earlier days whose summaries the windows of a state need. `read` reads a file of the day's own output.

    Raises BadInputError where the day was summarized for other features.
    """
    index = index_of_day(scenario, ds, read)
    if index is None:
        return []
    _, begin, end = served(scenario, ds)
    # Without folders: this asks where blocks lie, and the folders are found by the answer.
    return sorted(days_of_state(scenario, Summaries(index, {}), begin, end) - {ds})


def materialize_day(
    scenario: Scenario, ds: str, *, summaries: Path, past: Mapping[str, Path], output: Path
) -> OnlineReport:
    """Writes the state at the end of a day. `summaries` is the day's folder, `past` those of the days that
    `days_to_materialize` and `days_of_entities` name."""
    output.mkdir(parents=True, exist_ok=True)
    index = parse_index((summaries / INDEX_FILE).read_bytes(), str(summaries / INDEX_FILE))
    folders = {**past, ds: summaries}
    days, begin, end = served(scenario, ds)
    facts: dict[str, KeySetState] = {}
    tables: dict[str, pa.Table] = {}
    for name, of_set, keys, packed in state_of_keys(scenario, Summaries(index, folders), begin, end):
        facts[name] = of_set
        # Large: 32-bit offsets end at 2 GiB, which the values of a set may exceed.
        values = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            len(keys),
            [None, pa.py_buffer(packed.offsets_K * 8), pa.py_buffer(packed.words.astype("<i8", copy=False))],
        )
        tables[name] = pa.table({**key_columns(keys), "value": values})
    newest = {name: one.table for name, one in newest_rows(index["entities"], folders).items()}
    state: StateFacts = {
        "ds": ds,
        "begin": begin,
        "end": end,
        "days": days,
        "key_sets": facts,
        "places": write_blocks(tables.items(), output / KEYS_FILE),
        "entities": write_blocks(newest.items(), output / ENTITIES_FILE),
        "digests": {},
    }
    state["digests"] = {name: digest_of_blocks(output / name) for name in (KEYS_FILE, ENTITIES_FILE)}
    (output / STATE_FILE).write_text(json.dumps(state, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "keys": {name: table.num_rows for name, table in tables.items()},
        "entities": {name: table.num_rows for name, table in newest.items()},
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
    }


def read_state(folder: Path) -> StateFacts:
    """state.json of a folder. Raises CorruptError where it is none, BadInputError where it is missing."""
    try:
        state = read_record_file(folder / STATE_FILE, StateFacts, _REMEDY)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInputError(f"{folder}: has no {STATE_FILE}; give a folder that materialize has committed") from None
    if wrong := _contradiction(state):
        raise CorruptError(f"{folder / STATE_FILE}: {wrong}; {_REMEDY}")
    return state


def _contradiction(state: StateFacts) -> str | None:
    """The first place of a state that does not fit the rest of it."""
    if not state["begin"] < state["end"]:
        return f"begin, {state['begin']}, is not before end, {state['end']}"
    if state["places"].keys() != state["key_sets"].keys():
        return "places and key_sets have not the same names"
    for name, of_set in state["key_sets"].items():
        for at, span in enumerate(of_set["spans"]):
            if not span["begin"] <= span["end"] <= state["begin"]:
                return f"key_sets.{name}.spans.{at}: {span['begin']} to {span['end']} are no days before the state's"
        if of_set["windows"].keys() != of_set["operations"].keys():
            return f"key_sets.{name}: windows and operations have not the same names"
        # A negative place would give another window's summary without an error.
        for window, at in of_set["windows"].items():
            if not 0 <= at < len(of_set["spans"]):
                return f"key_sets.{name}.windows.{window}: {at} is none of the {len(of_set['spans'])} spans"
    return None


def proven_state(folder: Path) -> StateFacts:
    """The same, after a look at all files that it names. Raises CorruptError where one is missing, is not the file that
    materialize wrote, or does not have its blocks at their places."""
    state = read_state(folder)
    for name, places in ((KEYS_FILE, state["places"]), (ENTITIES_FILE, state["entities"])):
        file = folder / name
        try:
            found = digest_of_blocks(file)
        except OSError as error:
            raise CorruptError(f"{file}: {error.strerror}; {_REMEDY}") from None
        if found != state["digests"].get(name):
            recorded = str(state["digests"].get(name))[:12]
            raise CorruptError(f"{file}: has the digest {found[:12]}…, but {STATE_FILE} records {recorded}…; {_REMEDY}")
        # The digest proves the file, but not that state.json still cuts it where its blocks begin.
        if not fills([*places.values()], file.stat().st_size):
            raise CorruptError(f"{folder / STATE_FILE}: the places of blocks are not those of {name}; {_REMEDY}")
    return state


@dataclass(frozen=True)
class OnlineFacts:
    """The state of a day's end: what it holds of key sets, the newest rows of entities, and the values of key sets that
    are not in the store. It serves requests of the times [begin, end) in µs."""

    begin: int
    end: int
    key_sets: Mapping[str, KeySetState]
    entities: Mapping[str, Newest]
    mapped: Mapping[str, KeyTable]


def online_facts(folder: Path, *, alone: bool = False) -> OnlineFacts:
    """The state of a folder, as requests read it besides the store; `alone`: without a store."""
    state = read_state(folder)
    entities = {
        name: Newest.read(read_block(folder / ENTITIES_FILE, place)) for name, place in state["entities"].items()
    }
    mapped = {
        name: _key_table(folder, state, name) for name, one in state["key_sets"].items() if alone or one["mapped"]
    }
    return OnlineFacts(state["begin"], state["end"], state["key_sets"], entities, mapped)


def state_in(folder: Path) -> State:
    """The state that a folder holds. state.json has the digests of the other files, so its own stands for all."""
    return State(read_state(folder)["ds"], hashlib.sha256((folder / STATE_FILE).read_bytes()).hexdigest()[:16])


def load(folder: Path, store: OnlineStore) -> State:
    """Loads the state of a folder into a store, and makes it the one that is read. Raises CorruptError, see
    `proven_state`."""
    facts, state = proven_state(folder), state_in(folder)
    store.load(state, _pairs(folder, facts))
    return state


def _key_table(folder: Path, state: StateFacts, name: str) -> KeyTable:
    """The keys and values of a set, in place."""
    table = read_block(folder / KEYS_FILE, state["places"][name])
    if not table.num_rows:
        # A stream of no rows has no batch, and so no chunk.
        return KeyTable(keys_from(table), Packed.of([]))
    column = table["value"].chunk(0)  # one batch has one chunk
    # The words stay in the mapped file, so a request reads the pages of its items alone.
    _, offsets, words = column.buffers()
    offsets_K = np.frombuffer(offsets, np.int64)[: len(column) + 1] // 8
    values = np.frombuffer(words or b"", "<i8")[: offsets_K[-1]]
    return KeyTable(keys_from(table), Packed(values.astype(np.int64, copy=False), offsets_K))


def _pairs(folder: Path, facts: StateFacts) -> Iterator[Pairs]:
    """Keys and values that the store has, in the order of its keys."""
    stored = [name for name, of_set in facts["key_sets"].items() if not of_set["mapped"]]
    # A file of RocksDB takes keys in ascending order alone, and they begin with the layout.
    for name in sorted(stored, key=lambda name: facts["key_sets"][name]["layout"]):
        table = read_block(folder / KEYS_FILE, facts["places"][name])
        keys, values = keys_from(table), table["value"].combine_chunks()
        for at in range(0, len(keys), _AT_ONCE):
            some = np.arange(at, min(at + _AT_ONCE, len(keys)))
            yield store_keys(facts["key_sets"][name], keys.take(some)), values[at : at + len(some)].to_pylist()
