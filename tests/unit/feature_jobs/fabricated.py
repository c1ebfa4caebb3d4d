"""Data sets that nobody described: made up, each of another shape, with a signal to learn."""

from __future__ import annotations

import csv
import datetime
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tests.small import write_csv

START = datetime.datetime(2024, 3, 1)
NUM_DAYS = 6


def taste(num_rows: int, num_users: int, num_items: int, seed: int) -> dict[str, np.ndarray]:
    """Rows in time order with a user, an item, seconds since the start; `wanted`: the user wanted the item."""
    random = np.random.default_rng(seed)
    users = random.integers(0, num_users, num_rows)
    items = (num_items * random.random(num_rows) ** 2).astype(np.int64)
    logit = random.normal(0, 1, num_users)[users] + random.normal(0, 1.5, num_items)[items] - 0.7
    wanted = random.random(num_rows) < 1 / (1 + np.exp(-logit))
    seconds = np.sort(random.random(num_rows)) * NUM_DAYS * 86400
    return {"user": users, "item": items, "wanted": wanted, "second": seconds, "luck": random.random(num_rows)}


def moments(seconds: np.ndarray) -> list[datetime.datetime]:
    """Times without microseconds."""
    return [START + datetime.timedelta(seconds=int(second)) for second in seconds]


def shop(folder: Path, num_rows: int = 6000) -> None:
    """E-commerce: a CSV a day, ISO times, the kind of event in a column; customers by `id`, products with a brand."""
    drawn = taste(num_rows, 150, 80, seed=1)
    kinds = np.where(drawn["wanted"], np.where(drawn["luck"] < 0.5, "purchase", "cart"), "view")
    times = moments(drawn["second"])
    for day in range(NUM_DAYS):
        date = (START + datetime.timedelta(days=day)).date()
        rows = [
            [times[i], kinds[i], 5000 + drawn["item"][i], drawn["user"][i], str(uuid.UUID(int=i)), i % 4]
            for i in range(num_rows)
            if times[i].date() == date
        ]
        header = ["event_time", "event_type", "product_id", "customer_id", "session_token", "slot"]
        write_csv(folder / "events" / f"{date}.csv", header, rows)
    customers = [[i, ["DE", "FR", "IT"][i % 3], f"2023-0{i % 9 + 1}-01"] for i in range(150)]
    write_csv(folder / "customers.csv", ["id", "country", "signup_date"], customers)
    products = [[5000 + i, f"brand{i % 7}", round(1.5 * i + 3, 2), f"Thing No. {i}"] for i in range(80)]
    write_csv(folder / "products.csv", ["product_id", "brand", "price", "title"], products)


def library(folder: Path, num_rows: int = 5000) -> None:
    """Semicolons and quotes, names with spaces, uuid readers, tags in cells, yes and no."""
    drawn = taste(num_rows, 120, 60, seed=2)
    readers = [str(uuid.UUID(int=7919 * (i + 1))) for i in range(120)]
    rows = [
        [
            readers[user],
            f"art-{item}",
            moment.isoformat() + "Z",
            "yes" if wanted else "no",
            round(90 * luck + 8 if wanted else 8 * luck, 1),
            ["app", "web; mobile", 'the "old" site'][int(luck * 3)],
        ]
        for user, item, moment, wanted, luck in zip(
            drawn["user"], drawn["item"], moments(drawn["second"]), drawn["wanted"], drawn["luck"], strict=True
        )
    ]
    header = ["Reader ID", "Article", "Read at", "Finished", "Scrolled %", "Source"]
    options: dict[str, Any] = {"delimiter": ";", "quoting": csv.QUOTE_ALL}
    write_csv(folder / "reads.csv", header, rows, **options)
    tags = ["politics", "sport", "art", "science", "food"]
    articles = [
        [f"art-{i}", f"A title; with {i}, words", ",".join(tags[j % 5] for j in range(i, i + 1 + i % 3)), 300 + 17 * i]
        for i in range(60)
    ]
    write_csv(folder / "meta" / "articles.csv", ["Article", "Title", "Tags", "Words count"], articles, **options)


def ads(folder: Path, num_rows: int = 6000) -> None:
    """An ad log in Parquet parts: nanoseconds, a boolean label, cookies as text, a bid, the price paid afterwards."""
    drawn = taste(num_rows, 200, 40, seed=3)
    table = pa.table(
        {
            "ts": (drawn["second"] * 1e9).astype(np.int64) + 1_709_251_200_000_000_000,
            "cookie": [f"{user * 2654435761 % 2**32:08x}" for user in drawn["user"]],
            "creative_id": drawn["item"] * 10 + 1_000_000_007,
            "campaign": [f"c{item % 6}" for item in drawn["item"]],
            "bid": np.round(np.exp(drawn["luck"] * 3), 4),
            "device": pa.array(["phone", "tablet", "desktop"]).take(pa.array((drawn["luck"] * 3).astype(np.int64))),
            "clicked": drawn["wanted"],
            "charged": np.where(drawn["wanted"], np.round(np.exp(drawn["luck"] * 3), 4), 0.0),
        }
    )
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for part in range(3):
        rows = table.slice(part * num_rows // 3, num_rows // 3)
        pq.write_table(rows, folder / "logs" / f"part-0000{part}.snappy.parquet")


def lake(folder: Path, num_rows: int = 6000) -> None:
    """Hive-like partitions dt=…, Parquet timestamps, ratings out of ten, embeddings and structs that are of no use, and
    profiles that change over time."""
    drawn = taste(num_rows, 100, 50, seed=4)
    rating = np.clip(np.round(4 + 5 * drawn["wanted"] * drawn["luck"] + 2 * drawn["luck"]), 1, 10)
    times = moments(drawn["second"])
    table = pa.table(
        {
            "userId": drawn["user"],
            "movieId": drawn["item"],
            "rating": rating,
            "rated_at": pa.array(times, pa.timestamp("ns")),
            "class": [f"k{int(10 * luck) % 5}" for luck in drawn["luck"]],
            "vector": pa.array([[int(item) % 7, 0.1] for item in drawn["item"]], pa.list_(pa.float32())),
            "client": pa.array([{"os": "x"}] * num_rows),
        }
    )
    for day in range(NUM_DAYS):
        date = (START + datetime.timedelta(days=day)).date()
        inside = [i for i in range(num_rows) if times[i].date() == date]
        target = folder / "ratings" / f"dt={date}"
        target.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(inside), target / "part-0.parquet")
    profiles = {
        "userId": [i for i in range(100) for _ in range(2)],
        "updated_at": [START - datetime.timedelta(days=30 - 20 * k) for _ in range(100) for k in range(2)],
        "plan": [["free", "paid"][(i + k) % 2] for i in range(100) for k in range(2)],
    }
    pq.write_table(pa.table(profiles), folder / "profiles.parquet")


def junk(folder: Path) -> None:
    """Files that are no tables, or broken ones."""
    (folder / "README.md").write_text("# Notes, with, commas\n\nmore, of, them\n")
    (folder / "picture.csv").write_bytes(bytes(range(256)) * 4)
    (folder / "empty.csv").write_text("")
    (folder / "numbers.csv").write_text("1,2,3\n4,5,6\n7,8,9\n")
    (folder / "ragged.csv").write_text("a,b\n1\n2,3,4\nx\ny,z,w,v\n")
    pq.write_table(pa.table({"x": list(range(1000))}), folder / "cut.parquet")
    (folder / "cut.parquet").write_bytes((folder / "cut.parquet").read_bytes()[:200])
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "secret.csv").write_text("user,item\n1,2\n")
    (folder / "_SUCCESS").write_text("")
    pyarrow.csv.write_csv(pa.table({"k": ["a", "b"], "v": [1, 2]}), folder / "unrelated.csv")
