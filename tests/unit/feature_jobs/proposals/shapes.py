"""Logs as people have them: a shop's invoices, news impressions with a second log, and the ways files are laid out."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.small import write_csv
from tests.unit.feature_jobs.fabricated import START, moments, taste

Row = dict[str, Any]


def invoices(folder: Path) -> None:
    """Like UCI's Online Retail: US dates, a quarter of the rows without a customer, no Saturdays, a long quiet tail."""
    random = np.random.default_rng(11)
    rows = []
    start = datetime.date(2010, 12, 1)
    for day in range(60):
        date = start + datetime.timedelta(days=day)
        if date.weekday() == 5:
            continue
        for number in range(30 if day < 36 else 400):
            customer, stock = int(random.integers(0, 80)), int(50 * random.random() ** 2)
            at = f"{date.month}/{date.day}/{date.year} {8 + number % 9}:{number % 60:02}"
            rows.append(
                [
                    f"{'C' if number % 40 == 0 else ''}{536365 + 500 * day + number // 6}",
                    f"{85000 + 7 * stock}{'AB'[stock % 2]}",
                    f"WHITE HANGING HEART No. {stock}",
                    int(random.integers(1, 4) + 6 * (random.random() < 0.2 + 0.5 * (stock % 2))),
                    at,
                    round(1 + stock / 7, 2),
                    "" if random.random() < 0.25 else f"{17850 + customer}.0",
                    ["United Kingdom", "France"][customer % 2],
                ]
            )
    header = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
    write_csv(folder / "online_retail.csv", header, rows)


def impressions(num_rows: int = 6000) -> Iterator[Row]:
    """News: ids of the row, the impression and the session; a split; a depth of scrolling known for clicks only."""
    drawn = taste(num_rows, 120, 60, seed=5)
    for i, at in enumerate(moments(drawn["second"])):
        clicked = bool(drawn["wanted"][i])
        yield {
            "row_id": i,
            "impression_id": 7_000_000 + i // 3,
            "session_id": f"s{i // 12}",
            "user_id": int(drawn["user"][i]),
            "article_id": 900 + int(drawn["item"][i]),
            "shown_at": at.isoformat(),
            "slot": i % 5,
            "split": ["train", "test"][i % 10 == 0],
            "clicked": int(clicked),
            "scroll_pct": round(40 + 50 * float(drawn["luck"][i]), 1) if clicked and i % 20 else None,
        }


def news(folder: Path) -> None:
    """A CSV with a byte order mark and semicolons, and a second log of what users read before."""
    listed = list(impressions())
    write_csv(folder / "impressions.csv", list(listed[0]), [list(row.values()) for row in listed], delimiter=";")
    file = folder / "impressions.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    random = np.random.default_rng(6)
    reads = [
        [i % 120, 900 + int(random.integers(0, 60)), (START - datetime.timedelta(minutes=7 * i)).isoformat()]
        for i in range(1500)
    ]
    write_csv(folder / "reads.csv", ["user_id", "article_id", "read_at"], reads)


def compressed(folder: Path) -> None:
    """Gzipped CSV, epoch milliseconds."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "ads.csv.gz", "wt") as file:
        file.write("ts,cookie,ad,price,clicked\n")
        for row in impressions():
            ms = int(datetime.datetime.fromisoformat(row["shown_at"] + "+00:00").timestamp() * 1000)
            price = "inf" if row["row_id"] % 50 == 0 else f"{row['row_id'] % 90 / 7:.3f}"
            file.write(f"{ms},k{row['user_id']},{row['article_id']},{price},{row['clicked']}\n")


def json_lines(folder: Path) -> None:
    """JSON lines in folders 2024/03/01, keys absent where unknown."""
    for row in impressions():
        day = row["shown_at"][:10].replace("-", "/")
        kept = {key: value for key, value in row.items() if value is not None}
        kept["tags"] = [["sport", "art", "food"][(row["article_id"] + j) % 3] for j in range(2)]
        (folder / day).mkdir(parents=True, exist_ok=True)
        with (folder / day / "part-0.jsonl").open("a") as file:
            file.write(json.dumps(kept) + "\n")


def nested(folder: Path) -> None:
    """Parquet in folders year=2024/month=3/day=1 as Spark writes them, times as timestamps."""
    table = pa.Table.from_pylist(list(impressions()))
    times = [datetime.datetime.fromisoformat(text) for text in table["shown_at"].to_pylist()]
    at = table.schema.get_field_index("shown_at")
    table = table.set_column(at, "shown_at", pa.array(times, pa.timestamp("us")))
    for day in range(1, 7):
        rows = table.take([i for i, time in enumerate(times) if time.day == day])
        target = folder / f"year=2024/month=3/day={day}"
        target.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, target / "part-0.snappy.parquet")
