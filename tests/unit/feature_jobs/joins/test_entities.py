"""Entities carried from day to day give what a search through their whole source gives."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.joins.summaries import INDEX_FILE, find_carried, land_whole
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range, parse_ds
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.user_ids import users_of
from tests.unit.feature_jobs.joins.small_log import Carried
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in

FIRST, LAST = "1970-01-02", "1970-02-10"
KEYS = ("int", "string")
State = tuple[str, int, int | None, str | None]
"""Key, since (s), level, city."""


def changes_of(key: str) -> dict[str, Any]:
    """The scenario: a log of changes, a table without time, and a snapshot of each day."""

    def table(path: str, **columns: Any) -> dict[str, Any]:
        return {"path": path, "format": "csv", "key": "user", "columns": {"user": {"type": key}, **columns}}

    state = table("state.csv", since={"type": "int"}, level={"type": "int"}, city={"type": "string"})
    return {
        "data.days": {"first": FIRST, "last": LAST, "skip": ["1970-01-09"]},
        "data.events.columns.user": {"type": key, "required": True},
        "data.entities": {
            "state": {**state, "time": {"column": "since"}},
            "who": table("who.csv", group={"type": "string"}),
            "daily": table("daily/{ds}.csv", price={"type": "int"}),
        },
        "features": {
            "level": {"kind": "number", "of": "state.level", "scale": "none"},
            "city": {"kind": "id", "of": "state.city"},
            "group": {"kind": "id", "of": "who.group"},
            "price": {"kind": "number", "of": "daily.price", "scale": "none"},
            "of_city": {"kind": "count", "by": ["state.city"], "window_days": 2},
        },
        "join": {"lookback_days": 2},
    }


@dataclass
class Source:
    """The source as it is on a day, and its rows as a list to search through."""

    folder: Path
    rng: random.Random
    events: list[tuple[str, int]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    who: dict[str, str] = field(default_factory=dict)
    daily: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.users = [str(user) for user in range(1, 30)]
        self.who = dict.fromkeys(self.users[:20], "a")

    def add_day(self, ds: str, begin_s: int) -> None:
        """New events and states (some late, some as before), a snapshot, and now and then another table."""
        rng, moments = self.rng, range(begin_s, begin_s + DAY_S)
        # Each event at a time of its own, so that samples are in the order of this list.
        times = sorted(rng.sample(moments, 25))
        self.events += [(rng.choice(self.users), time) for time in times]
        for user in rng.sample(self.users, rng.choice([0, 3, 12])):
            late = rng.random() < 0.1
            since = rng.choice(times) if not late else begin_s - rng.randrange(1, 5 * DAY_S)
            old = self.newest(user, 2**60)
            said = (rng.choice([None, 1, 2, 3]), rng.choice("xy"))
            self.states.append((user, since, *(old[2:] if old and rng.random() < 0.4 else said)))
        if rng.random() < 0.3:
            self.who = {user: rng.choice("abc") for user in rng.sample(self.users, 15)}
        if rng.random() < 0.6:
            self.daily = {user: rng.randrange(9) for user in rng.sample(self.users, 15)}
        self._write(ds)

    def _write(self, ds: str) -> None:
        data = self.folder / "data"
        (data / "daily").mkdir(parents=True, exist_ok=True)
        rows = [f"{user},1,{4 + i % 2},{time}" for i, (user, time) in enumerate(self.events)]
        (data / "events.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        states = [",".join("" if v is None else str(v) for v in state) for state in self.states]
        (data / "state.csv").write_text("\n".join(["user,since,level,city", *(states or ["99,1,1,x"])]) + "\n")
        for file, column, table in ("who.csv", "group", self.who), (f"daily/{ds}.csv", "price", self.daily):
            lines = [f"user,{column}", *(f"{user},{value}" for user, value in (table or {"98": 1}).items())]
            (data / file).write_text("\n".join(lines) + "\n")

    def newest(self, user: str, time_s: int) -> State | None:
        """The user's newest state strictly before a time; of one moment the first counts."""
        found = [state for state in self.states if state[0] == user and state[1] < time_s]
        return max(found, key=lambda state: state[1], default=None)

    def expected(self, begin_s: int) -> list[dict[str, Any]]:
        """The features of the day's events, but for the count, which looks at the cities of other days."""
        rows = []
        for user, time in (event for event in self.events if event[1] >= begin_s):
            state = self.newest(user, time)
            level, city = state[2:] if state else (None, None)
            rows.append({"level": level, "city": city, "group": self.who.get(user), "price": self.daily.get(user)})
        return rows


class Loop:
    """Days ingested and summarized one after the other."""

    def __init__(self, root: Path) -> None:
        self.root, self.carried, self.folders = root, Carried(root), dict[str, Path]()

    def add(self, scenario: Scenario, ds: str) -> list[dict[str, Any]]:
        """Adds a day and returns its features."""
        folder = self.root / "events" / ds
        before = max(self.folders, default=None)
        self.counts = ingest_day(scenario, ds, folder, yesterday=self.folders[before] if before else None)
        self.folders[ds] = folder
        self.carried.add(scenario, ds, folder, self.folders)
        samples = pq.read_table(self.carried.samples(scenario, ds, folder))
        return samples.select([*scenario.features]).to_pylist()

    def index(self, ds: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads((self.carried.outputs[ds] / INDEX_FILE).read_text())
        return found


def begin_of(ds: str) -> int:
    return (parse_ds(ds).toordinal() - parse_ds("1970-01-01").toordinal()) * DAY_S


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_carried_rows_are_those_of_the_whole_source(tmp_path, seed):
    """With rows that come days late, tables that change, snapshots that stay, and a skipped day."""
    scenario = scenario_in(tmp_path, changes_of(KEYS[seed % 2]))
    source, loop = Source(tmp_path, random.Random(seed)), Loop(tmp_path)
    for ds in day_range(scenario, FIRST, "1970-02-08"):
        source.add_day(ds, begin_of(ds))
        rows = [{name: row[name] for name in ("level", "city", "group", "price")} for row in loop.add(scenario, ds)]
        assert rows == source.expected(begin_of(ds)), ds
        read = loop.counts["entities"]["state"]
        assert read["rows_read"] == read["rows"] + read["duplicates"] + read["quarantined"] + read.get("unchanged", 0)
    assert [{name: row[name] for name in rows[0]} for row in begun_at(tmp_path, scenario, loop, ds)] == rows
    tiles = loop.index(ds)["entities"]["state"]["tiles"]
    assert all(older["rows"] > 2 * newer["rows"] for older, newer in itertools.pairwise(tiles))


def begun_at(folder: Path, scenario: Scenario, loop: Loop, ds: str) -> list[dict[str, Any]]:
    """The day's features where the chain begins with it, from what the chain before had carried to it."""
    events, other = folder / "first" / ds, Carried(folder / "first")
    shutil.copytree(loop.folders[ds], events)
    land_whole(scenario, events, loop.carried.outputs[ds], loop.carried.outputs.__getitem__)
    other.add(scenario, ds, events)
    found: list[dict[str, Any]] = pq.read_table(other.samples(scenario, ds, events)).to_pylist()
    return found


def test_rows_that_are_carried_are_found(tmp_path):
    """Of a user without events since, whose day of ingest may be deleted."""
    scenario, days = of_snapshots(tmp_path, 2)
    snapshots(tmp_path, 2, {})
    loop = Loop(tmp_path)
    for ds in days:
        loop.add(scenario, ds)
    first, second = (find_carried(scenario, loop.carried.outputs[ds], users_of(scenario, ["40", "77"])) for ds in days)
    assert (first.rows, first.ids) == (1, {"40"})
    assert (second.rows, second.ids) == (0, set())


def snapshots(folder: Path, num_days: int, changed: Mapping[int, int]) -> None:
    """A snapshot of 50 users a day in one file, in which one user has another level on the days `changed`."""
    users = [str(user) for user in range(50)]
    days = [
        pa.table(
            {
                "user": users,
                "since": [(day + 1) * DAY_S + 5] * 50,
                "level": [changed.get(day, 0), *[1] * 49],
                "city": ["x"] * 50,
            }
        )
        for day in range(num_days)
    ]
    pq.write_table(pa.concat_tables(days), folder / "data" / "state.parquet")


def of_snapshots(folder: Path, num_days: int) -> tuple[Scenario, list[str]]:
    """A scenario over them."""
    changes = changes_of("string")
    state = {**changes["data.entities"]["state"], "path": "state.parquet", "format": "parquet"}
    changes |= {"data.entities": {"state": state}, "features": {"city": {"kind": "id", "of": "state.city"}}}
    scenario = scenario_in(folder, {**changes, "data.days": {"first": FIRST, "last": LAST}})
    days = day_range(scenario, FIRST, LAST)[:num_days]
    rows = [f"{i},1,{4 + i % 2},{begin_of(ds) + 100 + i}" for ds in days for i in range(3)]
    (folder / "data" / "events.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return scenario, days


def test_a_day_lands_what_changed_whatever_the_number_of_snapshots(tmp_path):
    scenario, days = of_snapshots(tmp_path, 12)
    snapshots(tmp_path, 12, {7: 3})
    loop, landed = Loop(tmp_path), []
    for ds in days:
        loop.add(scenario, ds)
        landed.append(loop.counts["entities"]["state"]["rows"])
    # On day 7 the user has another level, on day 8 the former one again.
    assert landed == [50, *[0] * 6, 1, 1, 0, 0, 0]
    written = [ds for ds in days if (loop.carried.outputs[ds] / "entities.blocks").exists()]
    assert written == [days[0], days[7], days[8]]
    assert [(tile["holder"], tile["rows"]) for tile in loop.index(days[-1])["entities"]["state"]["tiles"]] == [
        (days[0], 50),
        (days[8], 1),
    ]


def test_an_entity_that_is_declared_otherwise_lands_whole(tmp_path):
    """A column that is declared on a later day has values from then on, for all keys."""
    scenario, days = of_snapshots(tmp_path, 4)
    snapshots(tmp_path, 4, {})
    loop = Loop(tmp_path)
    loop.add(scenario, days[0])
    columns = {**scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)["data"]["entities"]["state"]}
    del columns["columns"]["level"]
    other = scenario_in(tmp_path, {**of_data(scenario), "data.entities": {"state": columns}})
    loop.add(other, days[1])
    assert loop.counts["entities"]["state"]["rows"] == 50
    rows = loop.add(scenario, days[2])
    assert loop.counts["entities"]["state"]["rows"] == 50
    assert [row["city"] for row in rows] == ["x"] * 3


def of_data(scenario: Scenario) -> dict[str, Any]:
    """Changes of the small scenario."""
    document = scenario.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {
        "data.days": document["data"]["days"],
        "data.events.columns.user": {"type": "string", "required": True},
        "features": document["features"],
        "join": document["join"],
    }


def test_a_day_without_the_state_of_the_day_before_is_refused(tmp_path):
    scenario, days = of_snapshots(tmp_path, 3)
    snapshots(tmp_path, 3, {})
    loop = Loop(tmp_path)
    loop.add(scenario, days[0])
    index = loop.carried.outputs[days[0]] / INDEX_FILE
    index.write_text(json.dumps({**json.loads(index.read_text()), "entities": {}}))
    with pytest.raises(BadInputError, match=r"data\.entities\.state: the summaries of the day before .* chain replay"):
        loop.add(scenario, days[1])


def test_an_equal_row_with_a_list_or_nothing_in_it_is_unchanged(tmp_path):
    """Nulls are equal to nulls, and lists are compared by their elements."""
    changes = changes_of("int")
    state = {**changes["data.entities"]["state"], "path": "state.jsonl", "format": "jsonl"}
    state["columns"] = {**state["columns"], "seen": {"type": "list[int]"}}
    changes |= {"data.entities": {"state": state}, "features": {"city": {"kind": "id", "of": "state.city"}}}
    scenario = scenario_in(tmp_path, {**changes, "data.days": {"first": FIRST, "last": LAST}})
    days = day_range(scenario, FIRST, LAST)[:3]
    (tmp_path / "data" / "events.csv").write_text(
        "\n".join([HEADER, *(f"1,1,4,{begin_of(ds) + 9}" for ds in days)]) + "\n"
    )
    seen = [[1, 2], [1, 2], [2, 1]]
    rows = [
        {"user": 1, "since": begin_of(ds), "level": None, "city": "x", "seen": s}
        for ds, s in zip(days, seen, strict=True)
    ]
    (tmp_path / "data" / "state.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loop, landed = Loop(tmp_path), []
    for ds in days:
        loop.add(scenario, ds)
        landed.append(loop.counts["entities"]["state"]["rows"])
    assert landed == [1, 0, 1]
