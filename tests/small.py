"""A small shop log with a signal, as CSV with its scenario: the data of tests that run whole days."""

from __future__ import annotations

import csv
import datetime
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks import steps

FIRST = datetime.date(2024, 3, 1)
DAILY = tuple(name for name in steps.DAILY if steps.STEPS[name].needs is None)
"""Steps of a day of this shop, which has no online store."""

SCENARIO = """\
name: shop
description: Will this shopper buy?
data:
  path: data
  events:
    path: events
    format: csv
    time: {{column: at, unit: iso, zone: UTC}}
    columns:
      shopper: {{type: string, required: true}}
      product: {{type: int, required: true}}
      bought: {{type: int, values: [0, 1], required: true}}
      rated: {{type: float, min: 0, max: 5}}
      at: {{type: string, required: true}}
  entities:
    product:
      path: products.csv
      format: csv
      key: product
      columns:
        product: {{type: int, required: true}}
        price: {{type: float}}
        colours: {{type: "list[string]", separator: "|"}}
  user: shopper
  item: product
  days: {{first: 2024-03-01, last: {last}}}
labels:
  buy: bought == 1
  loved: rated >= 4
ingest: {{max_quarantined_share: 0.05}}
join: {{lookback_days: 7}}
features:
  shopper: {{kind: id}}
  product: {{kind: id}}
  price: {{kind: number, of: product.price}}
  colours: {{kind: ids, of: product.colours}}
  seen: {{kind: count, by: [product]}}
  buy_rate: {{kind: rate, by: [product], of: bought == 1, prior: 0.4}}
  shopper_rate: {{kind: rate, by: [shopper], of: bought == 1, prior: 0.4}}
  bought_before: {{kind: sequence, of: product, by: shopper, where: bought == 1, length: 5, table: product}}
model: {{embedding_dim: 4, bottom: [16], tower: [8]}}
train: {{batch_size: 64, threads: 1}}
evaluate: {{bootstrap: 50, segments: {{cheap: product.price < 20}}}}
deploy: {{max_auc_drop: 0.2, max_segment_auc_drop: 0.5, max_calibration_error: 5.0}}
quantize: {{max_auc_loss: 0.05, max_calibration_shift: 0.2}}
tune:
  trials: 3
  replay_days: 2
  space:
    train.learning_rate: {{low: 0.0001, high: 0.1, log: true}}
"""


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], **options: Any) -> None:
    """A CSV with a header; `options` as of csv.writer."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        csv.writer(stream, **options).writerows([header, *rows])


def write_day(folder: Path, ds: str, rows: int = 400, seed: int = 0) -> Path:
    """Writes one day's events; the same arguments give the same file."""
    rng = random.Random(f"{seed} {ds}")
    day = datetime.datetime.fromisoformat(ds)
    lines = []
    for _ in range(rows):
        shopper, product = rng.randrange(40), int(30 * rng.random() ** 2)
        bought = int(rng.random() < 0.15 + 0.6 * (product % 3 == 0) * (shopper % 5 != 0))
        rated = "" if not bought else str(rng.choice([1, 3, 4, 5]))
        at = day + datetime.timedelta(seconds=rng.randrange(86_400))
        lines.append([f"s{shopper}", product, bought, rated, at.isoformat(sep=" ")])
    file = folder / "data" / "events" / f"{ds}.csv"
    write_csv(file, ["shopper", "product", "bought", "rated", "at"], sorted(lines, key=lambda line: line[-1]))
    return file


def days(num_days: int) -> list[str]:
    """The first days of the log."""
    return [str(FIRST + datetime.timedelta(days=i)) for i in range(num_days)]


def write_small(folder: Path, num_days: int = 3, rows: int = 400) -> Path:
    """Writes data and scenario below `folder`; returns the scenario's path."""
    for ds in days(num_days):
        write_day(folder, ds, rows)
    products = [[p, 5 + 3 * p, ["red|blue", "green", ""][p % 3]] for p in range(30)]
    write_csv(folder / "data" / "products.csv", ["product", "price", "colours"], products)
    scenario = folder / "shop.yaml"
    scenario.write_text(SCENARIO.format(last=days(num_days)[-1]))
    return scenario
