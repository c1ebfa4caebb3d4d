"""Entities found by two columns together, in the join and in requests: as a search through their whole source."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check, check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.joins.rules import refuse_leaks
from feature_jobs.joins.summaries import land_whole
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.source import sources_of
from tests.unit.feature_jobs.joins.small_log import Carried
from tests.unit.feature_jobs.online.test_parity import assert_equal, replayed
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DAYS = ("1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05")
SHOPS = ("a", "b", "a\x1f1", "ä")
Key = tuple[int, str]


def _entity(path: str, key: list[str], **columns: str) -> dict[str, Any]:
    types = {"item": "int", "shop": "string", "user": "int"}
    declared = {name: {"type": kind} for name, kind in {**{name: types[name] for name in key}, **columns}.items()}
    return {"path": path, "format": "csv", "key": key, "columns": declared}


CHANGES: dict[str, Any] = {
    "data.events.columns.shop": {"type": "string"},
    "data.entities": {
        "stock": {**_entity("stock.csv", ["item", "shop"], since="int", left="int"), "time": {"column": "since"}},
        "price": _entity("price/{ds}.csv", ["shop", "item"], cents="int"),
        "likes": _entity("likes.csv", ["user", "item"], num="int"),
    },
    "features": {
        "left": {"kind": "number", "of": "stock.left", "scale": "none"},
        "cents": {"kind": "number", "of": "price.cents", "scale": "none"},
        "num": {"kind": "number", "of": "likes.num", "scale": "none"},
        "of_left": {"kind": "count", "by": ["stock.left"]},
    },
}


class _Source:
    """The source files, with changes, empty cells and keys that no event has, and the same values to search through."""

    def __init__(self, folder: Path) -> None:
        rng = self.rng = random.Random(5)
        self.folder = folder
        keys = [(item, shop) for item in range(1, 9) for shop in SHOPS]
        times = sorted(rng.sample(range(DAY_S, 5 * DAY_S), 160))
        self.events = [(rng.randint(1, 6), rng.randint(1, 9), rng.choice([*SHOPS, ""]), t) for t in times]
        since = rng.sample(range(5 * DAY_S), 120)
        self.stock = [(*rng.choice(keys), t, rng.randint(0, 3)) for t in since]
        self.prices = {ds: {key: rng.randint(1, 99) for key in rng.sample(keys, 20)} for ds in DAYS}
        self.likes = {(user, item): rng.randint(0, 9) for user in range(1, 5) for item in range(1, 9, 2)}
        rows = {
            "events.csv": [f"{HEADER},shop", *(f"{u},{i},4,{t},{shop}" for u, i, shop, t in self.events)],
            "stock.csv": ["item,shop,since,left", *(f"{i},{shop},{t},{n}" for i, shop, t, n in self.stock), "1,,9,9"],
            "likes.csv": ["user,item,num", *(f"{u},{i},{n}" for (u, i), n in self.likes.items())],
            **{
                f"price/{ds}.csv": ["shop,item,cents", *(f"{shop},{i},{n}" for (i, shop), n in of_day.items())]
                for ds, of_day in self.prices.items()
            },
        }
        for name, lines in rows.items():
            write_lines(folder / "data" / name, lines)

    def values(self, ds: str) -> list[list[int | None]]:
        """The features of the day's events."""
        begin = (1 + DAYS.index(ds)) * DAY_S
        found = []
        for user, item, shop, at in self.events:
            if begin <= at < begin + DAY_S:
                known = [(t, n) for i, s, t, n in self.stock if (i, s) == (item, shop) and t < at]
                left = max(known)[1] if known else None
                found.append([left, self.prices[ds].get((item, shop)), self.likes.get((user, item))])
        return found


def _joined(scenario: Scenario, root: Path, days: tuple[str, ...] = DAYS) -> tuple[Carried, Mapping[str, Path]]:
    carried, folders = Carried(root), dict[str, Path]()
    for ds in days:
        yesterday = folders[max(folders)] if folders else None
        folders[ds] = root / "ingested" / ds
        ingest_day(scenario, ds, folders[ds], yesterday=yesterday)
        carried.add(scenario, ds, folders[ds], folders)
    return carried, folders


def test_a_row_is_found_by_all_columns_of_its_key(tmp_path: Path) -> None:
    source, scenario = _Source(tmp_path), scenario_in(tmp_path, CHANGES)
    carried, folders = _joined(scenario, tmp_path)
    for ds in DAYS:
        samples = pq.read_table(carried.samples(scenario, ds, folders[ds], folders))
        assert [[*row.values()] for row in samples.select(["left", "cents", "num"]).to_pylist()] == source.values(ds)
    last = DAYS[-1]
    assert_equal(
        scenario, replayed(scenario, carried, last, folders[last]), carried.samples(scenario, last, folders[last])
    )
    # A day that is ingested by itself lands the entities whole, and a day that is made whole has the same rows.
    ingest_day(scenario, last, tmp_path / "alone")
    again = Carried(tmp_path / "again")
    again.add(scenario, last, tmp_path / "alone")
    by_itself = pq.read_table(again.samples(scenario, last, tmp_path / "alone"))
    assert [[*row.values()] for row in by_itself.select(["left", "cents", "num"]).to_pylist()] == source.values(last)
    land_whole(scenario, folders[last], carried.outputs[last], carried.outputs.__getitem__)
    seen = pq.read_table(folders[last] / "entities/stock.parquet")
    assert {(*pair,) for pair in zip(seen["item"].to_pylist(), seen["shop"].to_pylist(), strict=True)} >= {
        (item, shop) for item, shop, t, _ in source.stock if t < 5 * DAY_S
    }


def test_negative_rows_find_rows_of_their_own_item(tmp_path: Path) -> None:
    source = _Source(tmp_path)
    sampler = {"num_sample": 9}
    features = {name: one for name, one in CHANGES["features"].items() if name in ("num", "left")}
    scenario = scenario_in(tmp_path, {**CHANGES, "features": features, "join.negative_sampler": sampler})
    carried, folders = _joined(scenario, tmp_path)
    samples = pq.read_table(carried.samples(scenario, DAYS[-1], folders[DAYS[-1]], folders)).to_pylist()
    negatives = [row for row in samples if row["key.negative"]]
    assert len(negatives) > 8
    shops = {at * 1_000_000: shop for _, _, shop, at in source.events}
    for row in negatives:
        at, shop = row["key.event_time"], shops[row["key.event_time"]]
        known = [(t, n) for i, s, t, n in source.stock if (i, s) == (row["key.item"], shop) and t * 1_000_000 < at]
        assert row["num"] == source.likes.get((row["key.user"], row["key.item"]))
        assert row["left"] == (max(known)[1] if known else None)


def test_rows_that_contradict_each_other_have_all_columns_of_the_key_alike(tmp_path: Path) -> None:
    _Source(tmp_path)
    scenario = scenario_in(tmp_path, CHANGES)
    likes = tmp_path / "data/likes.csv"
    write_lines(likes, [*likes.read_text().splitlines(), "1,1,77", "1,2,78", "1,,3"])
    counts = ingest_day(scenario, DAYS[0], tmp_path / "out")["entities"]["likes"]
    assert counts["reasons"] == {"item: missing": 1, "user, item: ... conflicting: other values before": 1}
    assert check(scenario)["entities"]["likes"]["keys_found"] is not None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (["user", "colour"], r"data\.entities\.likes\.key: 'colour'.*"),
        (["user", "rating"], r"data\.entities\.likes\.key: .*rating.* is an outcome, known only after the event"),
        ("rating", r"data\.entities\.likes\.key: .*rating.* is an outcome, known only after the event"),
        ([], "likes.key"),
    ],
)
def test_a_key_that_can_find_no_row_or_an_outcome_is_refused(tmp_path: Path, key: Any, message: str) -> None:
    entity = {**CHANGES["data.entities"]["likes"], "key": key}
    entity["columns"] = {**entity["columns"], "rating": {"type": "float"}}
    _Source(tmp_path)
    with pytest.raises(BadInputError, match=message):
        scenario = scenario_in(tmp_path, {**CHANGES, "data.entities.likes": entity})
        sources_of(scenario)
        refuse_leaks(scenario)
    if key:
        assert re.search(message, "\n".join(check_scenario(scenario)))
