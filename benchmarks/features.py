"""Point-in-time features of a month: Recloop's `ingest` and `join` beside hand-written numpy, DuckDB, Polars, pandas
and Feast.

    python -m benchmarks.features [--rows 5000000] [--users 100000] [--items 20000] [--days 30] [--cores 2]
        [--engines numpy kernel duckdb polars pandas feast recloop] [--rounds 1] [--work FOLDER] [--output FILE.json]

The data, made once into `--work`: events in time order, and a snapshot of every user and item a day. For each event all
engines find the user's age and the item's price as they were strictly before it, and the user's clicks of the seven
days before, [t - 7 days, t). They read the same Parquet files and must agree in every sum.

`recloop` is the whole loop up to `join`: `recloop run --until join`, with its checks, quarantine, digests, commits and
all processes. The others compute one table in memory and write none; `kernel` is the window part of the feature engine
alone, day by day. Each engine runs in a process of its own, with as many cores as `--cores`; seconds are those of the
engine, CPU seconds those of all its processes with their start, peak memory is that of the largest process.

Polars and Feast are in .venv-peers (`make benchmark-peers`). Feast joins features as of a time, but has no windows over
events: it finds no clicks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Ints = npt.NDArray[np.int64]

DAY_US = 86_400_000_000
WINDOW_US = 7 * DAY_US
START_US = 1_704_067_200_000_000  # 2024-01-01
GROUP_ROWS = 131_072
ZIPF = 1.1
KEY_BITS = 42  # of a time within the month, in microseconds; the key is above them

SCENARIO = """\
name: month
description: Will this user click this item?
data:
  path: .
  events:
    path: events.parquet
    format: parquet
    time: {{column: at, unit: us}}
    columns:
      user: {{type: int, required: true}}
      item: {{type: int, required: true}}
      click: {{type: int, values: [0, 1], required: true}}
      at: {{type: int, required: true}}
  entities:
    user: {{path: users.parquet, format: parquet, key: user, time: {{column: at, unit: us}},
      columns: {{user: {{type: int, required: true}}, age: {{type: int}}, at: {{type: int, required: true}}}}}}
    item: {{path: items.parquet, format: parquet, key: item, time: {{column: at, unit: us}},
      columns: {{item: {{type: int, required: true}}, price: {{type: int}}, at: {{type: int, required: true}}}}}}
  user: user
  item: item
  days: {{first: 2024-01-01, last: {last}}}
labels: {{click: click == 1}}
join: {{lookback_days: 7, label_delay_s: 0}}
features:
  age: {{kind: number, of: user.age}}
  price: {{kind: number, of: item.price}}
  clicks: {{kind: count, by: [user], where: click == 1, window_days: 7}}
"""


@dataclass(frozen=True)
class Sums:
    """Sums that must be equal for all engines; an event whose user or item has no snapshot before it adds nothing."""

    rows: int
    age: int
    price: int
    clicks: int | None


@dataclass(frozen=True)
class Run:
    """One engine, one time."""

    engine: str
    sums: Sums
    seconds: float
    cpu_seconds: float
    peak_mib: int


def make_data(folder: Path, rows: int, users: int, items: int, days: int) -> None:
    """Writes events.parquet, users.parquet and items.parquet; the same arguments give the same bytes."""
    rng = np.random.default_rng(1)

    def drawn(size: int) -> Ints:
        weights = np.cumsum(np.arange(1, size + 1) ** -ZIPF)
        found: Ints = np.searchsorted(weights, rng.random(rows) * weights[-1])
        return found

    def snapshots(size: int, name: str, value: str) -> pa.Table:
        """One a day at 00:00 of each key."""
        key, day = np.tile(np.arange(size), days), np.repeat(np.arange(days), size)
        return pa.table({name: key, "at": START_US + day * DAY_US, value: rng.integers(1, 100, size * days)})

    at = np.sort(START_US + rng.integers(0, days * DAY_US, rows))
    events = {"user": drawn(users), "item": drawn(items), "at": at, "click": (rng.random(rows) < 0.2).astype(np.int64)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {
        "events": pa.table(events),
        "users": snapshots(users, "user", "age"),
        "items": snapshots(items, "item", "price"),
    }.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=GROUP_ROWS)
    last = np.datetime64(START_US + (days - 1) * DAY_US, "us").astype("datetime64[D]")
    (folder / "month.yaml").write_text(SCENARIO.format(last=last))


def with_numpy(folder: Path) -> Sums:
    """Sorting and binary search of (key, time) as one number."""
    events = pq.read_table(folder / "events.parquet")
    at, user = _column(events, "at"), _column(events, "user")
    clicked = _column(events, "click") == 1
    clicks = np.sort(_place(user[clicked], at[clicked]))
    counts = np.searchsorted(clicks, _place(user, at)) - np.searchsorted(clicks, _place(user, at - WINDOW_US))
    return Sums(len(at), *_as_of_sums(folder, events), int(counts.sum()))


def with_kernel(folder: Path) -> Sums:
    """Clicks by the feature engine's windows, day by day from runs and tiles in memory; the rest as numpy does it."""
    from benchmarks.windows import DailyWindows
    from feature_jobs.windows.days import Window
    from feature_jobs.windows.operations import Count

    events = pq.read_table(folder / "events.parquet")
    at, user = _column(events, "at"), _column(events, "user")
    clicked = _column(events, "click") == 1
    clicks = 0
    state = DailyWindows(Window(WINDOW_US), {"clicks": Count(where="click")}, START_US)
    days = np.searchsorted(at, np.arange(START_US, int(at[-1]) + DAY_US, DAY_US))
    for begin, end in zip(days, [*days[1:], len(at)], strict=True):
        rows = slice(begin, end)
        found = state.add_day(pa.array(user[rows]), at[rows], {"click": clicked[rows]})
        clicks += int(found["clicks"]["num"].sum())
    return Sums(len(at), *_as_of_sums(folder, events), clicks)


def _as_of_sums(folder: Path, events: pa.Table) -> tuple[int, int]:
    """Sums of age and price as they were before each event."""

    def newest(name: str, key: str, value: str) -> int:
        table = pq.read_table(folder / f"{name}.parquet")
        places = _place(_column(table, key), _column(table, "at"))
        order = np.argsort(places, kind="stable")
        found = np.searchsorted(places[order], _place(_column(events, key), _column(events, "at"))) - 1
        known = (found >= 0) & (_column(table, key)[order][found] == _column(events, key))
        return int(_column(table, value)[order][found][known].sum())

    return newest("users", "user", "age"), newest("items", "item", "price")


def _column(table: pa.Table, name: str) -> Ints:
    values: Ints = table[name].to_numpy()
    return values


def _place(key: Ints, at: Ints) -> Ints:
    return (key << KEY_BITS) + np.maximum(at - START_US, 0)


def with_duckdb(folder: Path) -> Sums:
    """One statement: two as-of joins and a window."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {len(os.sched_getaffinity(0))}")
        found = connection.execute(
            f"""
            WITH e AS (
                SELECT *, count(*) FILTER (click = 1) OVER (
                    PARTITION BY "user" ORDER BY "at" RANGE BETWEEN {WINDOW_US} PRECEDING AND 1 PRECEDING
                ) AS clicks
                FROM '{folder}/events.parquet'
            )
            SELECT count(*), sum(u.age), sum(i.price), sum(e.clicks)
            FROM e
            ASOF LEFT JOIN '{folder}/users.parquet' u ON e."user" = u."user" AND e."at" > u."at"
            ASOF LEFT JOIN '{folder}/items.parquet' i ON e.item = i.item AND e."at" > i."at"
            """
        ).fetchone()
    assert found is not None  # noqa: S101 (an aggregate has one row)
    return Sums(*map(int, found))


def with_pandas(folder: Path) -> Sums:
    """merge_asof, and a rolling window of each user."""
    import pandas as pd

    events = pd.read_parquet(folder / "events.parquet")
    joined = events
    for name, key in (("users", "user"), ("items", "item")):
        snapshots = pd.read_parquet(folder / f"{name}.parquet").sort_values("at", kind="stable")
        joined = pd.merge_asof(joined, snapshots, on="at", by=key, allow_exact_matches=False)
    timed = events.assign(at=pd.to_datetime(events["at"], unit="us")).set_index("at")
    counts = timed.groupby("user")["click"].rolling("7D", closed="left").sum()
    return Sums(len(joined), int(joined["age"].sum()), int(joined["price"].sum()), int(counts.fillna(0).sum()))


def with_polars(folder: Path) -> Sums:
    """One lazy query: two as-of joins, and a rolling sum of each user."""
    import polars as pl

    events = pl.scan_parquet(folder / "events.parquet").sort("at")
    clicks = pl.col("click").rolling_sum_by("at", window_size=f"{WINDOW_US}i", closed="left").over("user")
    joined = events.with_columns(clicks.alias("clicks"))
    for name, key in (("users", "user"), ("items", "item")):
        snapshots = pl.scan_parquet(folder / f"{name}.parquet").sort("at")
        joined = joined.join_asof(snapshots, on="at", by=key, allow_exact_matches=False, check_sortedness=False)
    return Sums(*joined.select(pl.len(), pl.col("age", "price", "clicks").sum()).collect().row(0))


def with_feast(folder: Path) -> Sums:
    """`get_historical_features` of Feast's DuckDB store; each snapshot holds for its day. Feast reads timestamps only,
    so files with timestamps are written first."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Int64

    with tempfile.TemporaryDirectory(dir=folder) as repo:
        store = FeatureStore(
            config=RepoConfig(
                project="month",
                provider="local",
                registry=f"{repo}/registry.db",
                offline_store={"type": "duckdb"},
                online_store=None,
                entity_key_serialization_version=3,
            )
        )

        def timed(name: str) -> pa.Table:
            table = pq.read_table(folder / f"{name}.parquet")
            at = table["at"].cast(pa.timestamp("us", "UTC"))
            return table.set_column(table.column_names.index("at"), "event_timestamp", at)

        for name, key, value in (("users", "user", "age"), ("items", "item", "price")):
            pq.write_table(timed(name), f"{repo}/{name}.parquet")
            entity = Entity(name=key, join_keys=[key], value_type=ValueType.INT64)
            source = FileSource(name=name, path=f"{repo}/{name}.parquet", timestamp_field="event_timestamp")
            fields = [Field(name=value, dtype=Int64)]
            ttl = datetime.timedelta(microseconds=DAY_US)
            store.apply([entity, FeatureView(name=name, entities=[entity], ttl=ttl, schema=fields, source=source)])
        asked = timed("events").select(["user", "item", "event_timestamp"]).to_pandas()
        found = store.get_historical_features(entity_df=asked, features=["users:age", "items:price"]).to_arrow()
        return Sums(found.num_rows, int(pc.sum(found["age"]).as_py()), int(pc.sum(found["price"]).as_py()), None)


def with_recloop(folder: Path) -> Sums:
    """All days by `recloop run --until join`, into a store that is thrown away."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        command = [sys.executable, "-m", "tasks", "run", "-s", str(folder / "month.yaml"), "--store", store]
        done = subprocess.run(
            [*command, "--until", "join", "--no-track"], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise SystemExit(done.stdout.decode())
        samples = sorted(Path(store).glob("*/g0000/*/join/*/samples.parquet"))
        table = pq.read_table(samples, columns=["age", "price", "clicks"])
        return Sums(table.num_rows, *(int(pc.sum(table[name]).as_py()) for name in table.column_names))


ENGINES: dict[str, Callable[[Path], Sums]] = {
    "numpy": with_numpy,
    "kernel": with_kernel,
    "duckdb": with_duckdb,
    "polars": with_polars,
    "pandas": with_pandas,
    "feast": with_feast,
    "recloop": with_recloop,
}
PEERS_PYTHON = Path(".venv-peers/bin/python")
OF_PEERS = ("polars", "feast")


def run_here(engine: str, folder: Path) -> Run:
    """Runs an engine in this process."""
    begun = time.perf_counter()
    sums = ENGINES[engine](folder)
    seconds = time.perf_counter() - begun
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(one.ru_utime + one.ru_stime for one in used)
    peak = max(one.ru_maxrss for one in used)
    return Run(engine, sums, round(seconds, 2), round(cpu_seconds, 2), peak // 1024)


def run_in_a_process(engine: str, folder: Path, cores: int) -> Run:
    """Runs an engine in a process that has so many cores."""
    allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    python = sys.executable
    if engine in OF_PEERS:
        python = str(PEERS_PYTHON)
        if not PEERS_PYTHON.exists():
            raise SystemExit(
                f"{engine}: {PEERS_PYTHON} is missing; run make benchmark-peers, or leave it out of --engines"
            )
    command = ["taskset", "--cpu-list", allowed, python, "-m", "benchmarks.features"]
    done = subprocess.run([*command, "--one", engine, "--work", str(folder)], check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1])
    return Run(**{**found, "sums": Sums(**found["sums"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--work", type=Path, default=Path(".recloop/benchmarks/features"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asdict(run_here(given.one, given.work))))
        return
    folder = given.work / f"{given.rows}-{given.users}-{given.items}-{given.days}"
    if not (folder / "month.yaml").exists():
        make_data(folder, given.rows, given.users, given.items, given.days)
    # By turns, so that a busy minute of the machine does not hit one engine alone.
    runs = [run_in_a_process(name, folder, given.cores) for _ in range(given.rounds) for name in given.engines]
    clicks = next((run.sums.clicks for run in runs if run.sums.clicks is not None), None)
    if len(sums := {replace(run.sums, clicks=run.sums.clicks or clicks) for run in runs}) != 1:
        raise SystemExit(f"the engines disagree: {sums}")
    print(f"{given.rows:,} events, {given.days} days, {given.cores} cores; {runs[0].sums}")
    print(f"{'engine':10} {'seconds':>9} {'least':>8} {'most':>8} {'CPU s':>8} {'rows/s':>12} {'peak MiB':>9}")
    for name in given.engines:
        of_engine = [run for run in runs if run.engine == name]
        seconds = [run.seconds for run in of_engine]
        middle, cpu = median(seconds), median(run.cpu_seconds for run in of_engine)
        spread = f"{min(seconds):8.1f} {max(seconds):8.1f} {cpu:8.1f}"
        peak = max(run.peak_mib for run in of_engine)
        print(f"{name:10} {middle:9.1f} {spread} {given.rows / middle:12,.0f} {peak:9,}")
    if given.output:
        given.output.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
