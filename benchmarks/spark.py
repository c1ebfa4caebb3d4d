"""The join of one large day by each engine: this machine's own, Spark local[2], and Spark with executors of their own.

    python -m benchmarks.spark [--rows 1000000] [--share 0.3] [--masters 'local[2]' 'local-cluster[2,1,1024]']
        [--rounds 3] [--output FILE.json]

Three days of a log of clicks of Zipf-distributed users and items, of which one item has `--share` of the rows. The last
day is joined from the summaries of the days before. All engines read the same files, and the samples must have the same
bytes. Spark's session starts once, and its start is reported apart; the seconds of a round are those of the whole join:
reading the events, features, audit, and the samples' file. CPU seconds are those of all processes of an engine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.three_days import DAY_US, DAYS, START_US, chosen, summarize_days, zipf_ids
from feature_jobs.joins.join import join_day
from feature_jobs.joins.summaries import days_of_windows
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.spark.windows import SparkWindows
from feature_jobs.spark_session import spark_session
from feature_jobs.windows.query import Answers, answers

USERS, ITEMS = 100_000, 20_000
SCENARIO = """\
name: skewed
data:
  path: .
  events:
    path: events.parquet
    format: parquet
    time: {column: at, unit: us}
    columns:
      at: {type: int, required: true}
      user: {type: int, required: true}
      item: {type: int, required: true}
      tab: {type: string}
      click: {type: int}
      spent: {type: float}
  user: user
  item: item
  days: {first: "2024-01-01", last: "2024-01-03"}
labels: {clicked: click == 1}
outcomes: [spent]
join: {lookback_days: 30, label_delay_s: 120}
features:
  user: {kind: id}
  item: {kind: id}
  seen: {kind: count, by: [user], windows: [1h, 1d, 7d]}
  rate: {kind: rate, by: [user], of: click == 1, windows: [1d, 7d]}
  since: {kind: recency, by: [user]}
  last: {kind: sequence, of: item, by: user, length: 20}
  item_seen: {kind: count, by: [item], windows: [1h, 1d, 7d]}
  item_rate: {kind: rate, by: [item], of: click == 1, windows: [1d, 7d]}
  item_spent: {kind: average, of: spent, by: [item], windows: [1d, 7d]}
  item_most: {kind: max, of: spent, by: [item], windows: [1d, 7d]}
  item_users: {kind: unique_count, of: user, by: [item], windows: [7d]}
  tab_rate: {kind: rate, by: [user, tab], of: click == 1, windows: [1d, 7d]}
  item_tab_rate: {kind: rate, by: [item, tab], of: click == 1, windows: [1d, 7d]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each day")
    parser.add_argument("--share", type=float, default=0.3, help="of the rows that one item has")
    parser.add_argument("--masters", nargs="*", default=["local[2]", "local-cluster[2,1,1024]"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        day = LastDay(Path(name), args.rows, args.share)
        found = {"this process": day.measured(answers, args.rounds)}
        for master in args.masters:
            begun = time.perf_counter()
            with spark_session(load_scenario(day.scenario.file, overrides={"spark.master": master})) as session:
                started = round(time.perf_counter() - begun, 1)
                found[master] = {"start_s": started, **day.measured(SparkWindows(session), args.rounds)}
    if len({one["samples"] for one in found.values()}) > 1:
        raise SystemExit(f"the samples differ: {found}")
    result = {"rows": args.rows, "share": args.share, "cores": len(os.sched_getaffinity(0)), "engines": found}
    print(json.dumps(result, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class LastDay:
    """The last of three days, summarized and ready to be joined again and again."""

    def __init__(self, root: Path, num_rows: int, share: float) -> None:
        self._root = root
        write_log(root, num_rows * len(DAYS), share)
        self.scenario: Scenario = load_scenario(root / "skewed.yaml")
        self._outputs = summarize_days(self.scenario, root)

    def measured(self, how: Answers, rounds: int) -> dict[str, Any]:
        """Medians of the join after a first one, which warms the engine up, and the digest of the samples."""
        ds, seconds, cpu = DAYS[-1], list[float](), list[float]()
        for _ in range(1 + rounds):
            begun, cpu_before = time.perf_counter(), _cpu_seconds()
            join_day(
                self.scenario,
                ds,
                self._root / "events" / ds,
                summaries=self._outputs[ds],
                past=chosen(days_of_windows, self.scenario, ds, self._outputs, ds),
                output=self._root / "samples",
                answers=how,
            )
            seconds.append(time.perf_counter() - begun)
            cpu.append(_cpu_seconds() - cpu_before)
        return {
            "first_s": round(seconds[0], 2),
            "join_s": round(median(seconds[1:] or seconds), 2),
            "cpu_s": round(median(cpu[1:] or cpu), 2),
            "samples": hashlib.sha256((self._root / "samples" / SAMPLES_FILE).read_bytes()).hexdigest(),
        }


def _cpu_seconds() -> float:
    """Of this process and all below it: Java, and the Python processes of executors."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def write_log(root: Path, num_rows: int, share: float) -> None:
    """Writes events.parquet and skewed.yaml; the same arguments give the same bytes."""
    random = np.random.default_rng(1)

    items = np.where(random.random(num_rows) < share, 0, zipf_ids(random, ITEMS, num_rows))
    events = {
        "at": np.sort(START_US + random.integers(0, len(DAYS) * DAY_US, num_rows)),
        "user": zipf_ids(random, USERS, num_rows),
        "item": items,
        "tab": np.array(["home", "search", "near", "live", "follow"])[random.integers(0, 5, num_rows)],
        "click": (random.random(num_rows) < 0.2).astype(np.int64),
        "spent": np.round(random.random(num_rows) * 90, 2),
    }
    pq.write_table(pa.table(events), root / "events.parquet")
    (root / "skewed.yaml").write_text(SCENARIO, encoding="utf-8")


if __name__ == "__main__":
    main()
