"""The logs of a company as they are in real life: what was shown, clicked and ordered in files of their own, each with
its faults. The best AUC is known to the generator alone; the faults are counted in `planted.json`.

    exposures.parquet   request, user, item, position, time: a row for each item shown, several in a request
    clicks.jsonl        up to two hours late       orders.csv   up to three days late, by user and item
    items/{ds}.csv      a snapshot a day, one of them missing
    users.csv           a log of changes, with the date on which a user was created

Planted: deliveries that came twice, test traffic, users that were deleted (null), clocks twenty years off.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_start

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SEED = 11
NUM_REQUESTS, SHOWN, NUM_USERS, NUM_ITEMS, NUM_KINDS = 1_500, 6, 1_500, 300, 12
COUNTRIES = np.array(["BR", "DE", "FR", "IN", "JP", "US"])
HOUR_S, DAY_S = 3_600, 86_400
SKEW_S = 20 * 365 * DAY_S


@dataclass(frozen=True)
class _World:
    """Users U and items I with what they like and are; `quality_I` without what a day adds."""

    taste_UK: Floats
    quality_I: Floats
    kind_I: Ints
    price_I: Floats


def generate(scenario: Scenario, folder: Path) -> Iterator[str]:
    """Writes the logs of all days of the scenario, each file whole; yields lines for a person. Raises BadInputError
    where the scenario has no last day."""
    days = scenario.data.days
    if days.last is None:
        raise BadInputError(f"{scenario.place_of('data', 'days')}: data.days.last: missing; say where to stop")
    if (folder / "planted.json").exists():
        yield f"{folder}: the logs are there"
        return
    dates = [str(days.first + ONE_DAY * i) for i in range((days.last - days.first).days + 1)]
    starts = np.array([day_start(scenario, ds) // 1_000_000 for ds in dates])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        planted = _write_all(Path(scratch), dates, starts)
        # Last the file that says that all are there.
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == "planted.json"):
            if (target := folder / path.name).is_dir():
                shutil.rmtree(target)
            path.replace(target)
    yield f"{folder}: {', '.join(f'{name} {num:,}' for name, num in planted.items())}"


def _random(stream: int, day: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=SEED, counter=[0, 0, day, stream]))


def _write_all(folder: Path, dates: list[str], starts: Ints) -> dict[str, int]:
    """Writes all files; returns the numbers of rows and of planted faults."""
    random = _random(0)
    world = _World(
        random.normal(size=(NUM_USERS, NUM_KINDS)),
        0.7 * random.normal(size=NUM_ITEMS),
        random.integers(0, NUM_KINDS, NUM_ITEMS),
        np.exp(1 + 3 * random.random(NUM_ITEMS)).round(2),
    )
    shown = [_day(world, number, int(start)) for number, start in enumerate(starts)]
    columns = {name: np.concatenate([day[name] for day in shown]) for name in shown[0]}
    planted = {
        "exposures": _write_exposures(folder, columns),
        "clicks": _write_clicks(folder, columns),
        "orders": _write_orders(folder, columns, world),
        **{name: int(columns[f"is_{name}"].sum()) for name in ("test", "deleted", "twice", "skewed")},
    }
    _write_items(folder, dates, world)
    _write_users(folder, starts)
    (folder / "planted.json").write_text(json.dumps(planted, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return planted


def _day(world: _World, number: int, start: int) -> dict[str, Any]:
    """The rows of one day, in order of time, with what came of them: seconds to the click and to the order, or -1."""
    random = _random(1, number)
    begin = start + np.sort(random.integers(0, DAY_S - 60, NUM_REQUESTS))
    user = (NUM_USERS * random.random(NUM_REQUESTS) ** 2).astype(np.int64)
    user_N, time_N = np.repeat(user, SHOWN), np.repeat(begin, SHOWN)
    num = len(user_N)
    item_N = (NUM_ITEMS * random.random(num) ** 1.5).astype(np.int64)
    position_N = np.tile(np.arange(1, SHOWN + 1), NUM_REQUESTS)
    liking_N = world.taste_UK[user_N, world.kind_I[item_N]]
    logit_N = -2.0 + 0.9 * liking_N + world.quality_I[item_N] - 0.15 * position_N
    click_N = random.random(num) < 1 / (1 + np.exp(-logit_N))
    order_N = click_N & (random.random(num) < 1 / (1 + np.exp(0.6 - liking_N)))
    wait_N = random.integers(2, 30 * 60, num)
    return {
        "request": np.array([f"r{number}-{request}" for request in np.repeat(np.arange(NUM_REQUESTS), SHOWN)]),
        "user": user_N,
        "item": item_N,
        "position": position_N,
        "time": time_N,
        "click_after": np.where(click_N, wait_N, -1),
        "order_after": np.where(order_N, wait_N + random.integers(60, 12 * HOUR_S, num), -1),
        "is_test": random.random(num) < 0.02,
        "is_deleted": user_N % 97 == 0,
        "is_twice": random.random(num) < 0.01,
        "is_skewed": random.random(num) < 0.002,
        "late": random.random(num),
    }


def _write_exposures(folder: Path, columns: Mapping[str, Any]) -> int:
    times = columns["time"] - np.where(columns["is_skewed"], SKEW_S, 0)
    table = pa.table(
        {
            "request": columns["request"],
            "user": pa.array(columns["user"], pa.int64(), mask=columns["is_deleted"]),
            "item": columns["item"],
            "position": columns["position"],
            "shown_at": pa.array(times * 1000, pa.timestamp("ms", "UTC")),
            "is_test": columns["is_test"],
        }
    )
    rows = np.arange(len(table))
    again = rows[columns["is_twice"]]
    # A row that came twice came again a little later.
    order = np.argsort(np.concatenate([rows, np.minimum(again + 40, len(rows) - 1)]), kind="stable")
    pq.write_table(table.take(pa.array(np.concatenate([rows, again])[order])), folder / "exposures.parquet")
    return len(order)


def _write_clicks(folder: Path, columns: Mapping[str, Any]) -> int:
    rows = np.flatnonzero(columns["click_after"] >= 0)
    happened = columns["time"][rows] + columns["click_after"][rows]
    # One in ten is late, by up to two hours.
    late = np.where(columns["late"][rows] < 0.1, columns["late"][rows] * 10 * 2 * HOUR_S, 0).astype(np.int64)
    order = np.argsort(happened + late, kind="stable")
    with (folder / "clicks.jsonl").open("w", encoding="utf-8") as lines:
        for row, at, came in zip(rows[order], happened[order], (happened + late)[order], strict=True):
            click = {"ts": int(at), "user": int(columns["user"][row]), "item": int(columns["item"][row])}
            text = json.dumps({**click, "received": int(came)})
            lines.write(f"{text}\n" * (2 if columns["is_twice"][row] else 1))
    return len(rows)


def _write_orders(folder: Path, columns: Mapping[str, Any], world: _World) -> int:
    rows = np.flatnonzero(columns["order_after"] >= 0)
    happened = columns["time"][rows] + columns["order_after"][rows]
    # One in five is late, by up to three days.
    late = np.where(columns["late"][rows] > 0.8, (columns["late"][rows] - 0.8) * 5 * 3 * DAY_S, 0).astype(np.int64)
    order = np.argsort(happened + late, kind="stable")
    rows, happened, came = rows[order], happened[order], (happened + late)[order]
    texts = [np.datetime_as_string(times.astype("datetime64[s]")).tolist() for times in (happened, came)]
    prices = [f"{price:.2f}".replace(".", ",") for price in world.price_I[columns["item"][rows]].tolist()]
    table = pa.table(
        {
            "ordered_at": texts[0],
            "user": columns["user"][rows],
            "item": columns["item"][rows],
            "price": prices,
            "received_at": texts[1],
        }
    )
    pacsv.write_csv(table, folder / "orders.csv", pacsv.WriteOptions(delimiter=";", quoting_style="needed"))
    return len(rows)


def _write_items(folder: Path, dates: list[str], world: _World) -> None:
    """A snapshot a day, but none of the fourth; prices rise by a hundredth a day."""
    (folder / "items").mkdir()
    for number, ds in enumerate(dates):
        if number == 3:
            continue
        price = np.round(world.price_I * 1.01**number, 2)
        table = pa.table({"item": np.arange(NUM_ITEMS), "kind": world.kind_I, "price": price})
        pacsv.write_csv(table, folder / "items" / f"{ds}.csv")


def _write_users(folder: Path, starts: Ints) -> None:
    """Every user as first seen, and one in ten moves to another country on some day."""
    random = _random(2)
    users = np.arange(NUM_USERS)
    created = starts[0] - random.integers(1, 900, NUM_USERS) * DAY_S
    country = random.integers(0, len(COUNTRIES), NUM_USERS)
    movers = users[random.random(NUM_USERS) < 0.1]
    moved = starts[0] + random.integers(0, len(starts) * DAY_S, len(movers))
    changes = pa.table(
        {
            "user": np.concatenate([users, movers]),
            "changed_at": np.concatenate([created, moved]),
            "country": COUNTRIES[np.concatenate([country, (country[movers] + 1) % len(COUNTRIES)])],
            "created": np.datetime_as_string(
                np.concatenate([created, created[movers]]).astype("datetime64[s]"), unit="D"
            ),
        }
    )
    pacsv.write_csv(changes, folder / "users.csv")
