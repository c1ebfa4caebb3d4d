"""`recloop plan --source` finds days that were corrected after their commit, and names what they touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tasks.commands.cli import main

DAYS = [f"2024-03-0{n}" for n in range(1, 5)]
SCENARIO = """
name: shop
description: Does the user like or buy this item?
data:
  path: data
  events:
    path: events/{ds}.csv
    format: csv
    time: {column: t}
    columns: {user: {type: int}, item: {type: int}, t: {type: time}, stars: {type: int}}
  logs:
    orders:
      path: orders.csv
      format: csv
      time: {column: t}
      arrival: {column: came}
      columns: {user: {type: int}, item: {type: int}, t: {type: time}, came: {type: time}}
  entities:
    item: {path: "items/{ds}.csv", format: csv, key: item, columns: {item: {type: int}, price: {type: float}}}
  user: user
  item: item
  request: user
  days: {first: 2024-03-01, last: 2024-03-04}
labels:
  like: stars >= 4
  buy: {source: orders, on: [user, item], window_hours: 2, maturity_days: 0}
features:
  user: {kind: id}
  price: {kind: number, of: item.price}
  seen: {kind: count, by: [user]}
  bought: {kind: count, by: [user], source: orders}
  rank: {kind: request, operation: rank, of: price}
join: {lookback_days: 2}
"""


def lines(*rows: tuple[object, ...]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four days that are joined."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.yaml").write_text(SCENARIO)
    for name in ("events", "items"):
        (folder / "data" / name).mkdir(parents=True)
    orders: list[tuple[object, ...]] = [("user", "item", "t", "came")]
    for ds in DAYS:
        at = [f"{ds}T{hour:02}:00:00Z" for hour in (8, 9, 10)]
        events = [(user, item, at[item], item + 3) for user in range(4) for item in range(3)]
        (folder / f"data/events/{ds}.csv").write_text(lines(("user", "item", "t", "stars"), *events))
        (folder / f"data/items/{ds}.csv").write_text(lines(("item", "price"), *((item, item + 1) for item in range(3))))
        orders.append((1, 1, f"{ds}T09:30:00Z", f"{ds}T09:40:00Z"))
    (folder / "data/orders.csv").write_text(lines(*orders))
    recloop(folder, "run", "--until", "join", "--no-track")
    return folder


def recloop(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(main, [*words, "-s", str(folder / "shop.yaml"), "--store", str(folder / "store")])
    assert done.exit_code == 0, done.output
    return done.output


def corrected(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(recloop(folder, "plan", "--source", "--json"))["corrected"]
    return found


CHANGES: dict[str, tuple[str, str, str, dict[str, list[str]], list[str], list[str]]] = {
    "a partition of the events": (
        f"events/{DAYS[1]}.csv",
        "3,2,",
        "2,2,",
        {DAYS[1]: ["events"]},
        ["user", "price", "seen", "bought", "rank"],
        ["like", "buy"],
    ),
    "a snapshot of an entity": (
        f"items/{DAYS[2]}.csv",
        "1,2\n",
        "1,7\n",
        {DAYS[2]: ["entities/item"]},
        ["price", "rank"],
        [],
    ),
    "an order that came late": (
        "orders.csv",
        "user,item,t,came\n",
        f"user,item,t,came\n2,1,{DAYS[0]}T09:10:00Z,{DAYS[2]}T06:00:00Z\n",
        {DAYS[2]: ["logs/orders"]},
        ["bought"],
        ["buy"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_corrected_source_touches(name: str, shop: Path) -> None:
    path, old, new, days, features, labels = CHANGES[name]
    file = shop / "data" / path
    before = file.read_text()
    assert before.count(old) == 1 or old.endswith("\n")
    assert corrected(shop)["days"] == {}
    try:
        file.write_text(before.replace(old, new, 1))
        found = corrected(shop)
        text = recloop(shop, "plan", "--source")
    finally:
        file.write_text(before)
    assert found["days"] == days
    assert (found["features"], found["labels"]) == (features, labels)
    first = min(days)
    later = [ds for ds in DAYS if ds >= first]
    # A day before a changed one reads nothing of it, each day after it has its summaries.
    assert found["steps"] == {"ingest": [first], "summarize": later, "join": later}
    assert f"days that they touch: {', '.join(later)}\n" in text
    assert f"recloop chain replay -s {shop}/shop.yaml --store {shop}/store --from {first}" in text


def test_a_day_that_does_not_read_any_more_is_named(shop: Path) -> None:
    file = shop / f"data/events/{DAYS[1]}.csv"
    before = file.read_text()
    try:
        file.unlink()
        assert f"{DAYS[1]} does not read any more: " in recloop(shop, "plan", "--source")
    finally:
        file.write_text(before)
    assert "4 committed days read as they were committed" in recloop(shop, "plan", "--source")
    assert "corrected" not in json.loads(recloop(shop, "plan", "--json"))
