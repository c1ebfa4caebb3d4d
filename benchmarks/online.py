"""The online store and the features of a request: reads, upserts while a state is loaded, and a request of 500 items.

    python -m benchmarks.online [--rows 1000000] [--users 100000] [--items 20000] [--upserts 1000000]
        [--items-asked 500] [--redis redis://127.0.0.1:6379/0] [--output FILE.json]

A month of three days is ingested and summarized, and the state of the last day is loaded into RocksDB, or into a Redis
server that runs already. Then, one after the other:

- `read`: as many values of the store as a request of one user and the items asked for has keys, in one call; wall time.
- `upserts`: rows of both key sets are added, a thousand at a time, while another state is loaded again and again.
- `first_request`: all 26 features of one user and the items asked for, while most items were never asked for;
  `request`: of other users, whose items were; `session`: the same requests again; `user_part`: of users never asked
  for, with one item; `request_after_upserts`: after rows of today were added to all items, and
  `session_after_upserts` once more. CPU time of the process, which the load of the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.three_days import DAY_US, DAYS, START_US, summarize_days, zipf_ids
from feature_jobs.online.materialize import load, materialize_day, online_facts, read_state
from feature_jobs.online.redis_store import RedisStore
from feature_jobs.online.request import Request, RequestPath
from feature_jobs.online.rocks_store import RocksStore
from feature_jobs.online.state import StateReader
from feature_jobs.online.store import OnlineStore, StoreReading, store_keys
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.windows.keys import Keys, group_rows
from feature_jobs.windows.runs import run_of

SCENARIO = """\
name: asked
data:
  path: .
  events:
    path: events.parquet
    format: parquet
    time: {column: at, unit: us}
    columns:
      user: {type: int, required: true}
      item: {type: int, required: true}
      at: {type: int, required: true}
      hour: {type: int}
      click: {type: int}
  entities:
    users:
      path: users.parquet
      format: parquet
      key: user
      columns: {user: {type: int}, age: {type: int}, city: {type: string}}
    items:
      path: items.parquet
      format: parquet
      key: item
      columns: {item: {type: int}, price: {type: float}, maker: {type: int}, tags: {type: "list[int]"}}
  user: user
  item: item
  days: {first: "2024-01-01", last: "2024-01-04"}
labels: {clicked: click == 1}
join: {lookback_days: 30}
features:
  user: {kind: id}
  age: {kind: number, of: users.age}
  city: {kind: id, of: users.city}
  hour: {kind: id, of: hour}
  item: {kind: id}
  price: {kind: number, of: items.price}
  maker: {kind: id, of: items.maker}
  tags: {kind: ids, of: items.tags}
  city_maker: {kind: cross, of: [users.city, items.maker]}
  dear: {kind: number, of: items.price / (users.age + 1)}
  seen: {kind: count, by: [user], windows: [1h, 1d, 7d, 30d]}
  clicks: {kind: count, by: [user], where: click == 1, windows: [1h, 1d, 7d, 30d]}
  rate: {kind: rate, by: [user], of: click == 1, windows: [1d, 7d]}
  since: {kind: recency, by: [user]}
  last: {kind: sequence, of: item, by: user, length: 20}
  item_seen: {kind: count, by: [item], windows: [1d, 7d]}
  item_rate: {kind: rate, by: [item], of: click == 1, windows: [7d]}
  again: {kind: match, of: item, sequence: last}
"""


_Asked = tuple[int, npt.NDArray[np.int64]]
"""A user and the items asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--upserts", type=int, default=1_000_000)
    parser.add_argument("--items-asked", type=int, default=500)
    parser.add_argument("--redis", help="URL of a server; default: RocksDB")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        scenario, online, seconds = _materialized(root, args.rows, args.users, args.items)
        store: OnlineStore = (
            RedisStore(args.redis, scenario.name)
            if args.redis
            else RocksStore(root / "store", scenario.name, writable=True)
        )
        with closing(store):
            found = {
                "store": "redis" if args.redis else "rocksdb",
                **seconds,
                **_measured(scenario, online, store, args),
            }
    print(json.dumps(found, indent=1))
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _materialized(root: Path, num_rows: int, num_users: int, num_items: int) -> tuple[Scenario, Path, dict[str, float]]:
    """The state after three days, and the seconds of each part."""
    write_log(root, num_rows, num_users=num_users, num_items=num_items)
    (root / "asked.yaml").write_text(SCENARIO, encoding="utf-8")
    scenario, last = load_scenario(root / "asked.yaml"), DAYS[-1]
    outputs = summarize_days(scenario, root)
    begun = time.perf_counter()
    report = materialize_day(scenario, last, summaries=outputs[last], past=outputs, output=root / "online")
    seconds = time.perf_counter() - begun
    return scenario, root / "online", {"keys": sum(report["keys"].values()), "materialize_s": round(seconds, 2)}


def write_log(root: Path, num_rows: int, *, num_users: int, num_items: int) -> None:
    """Three days of a log of Zipf-distributed users and items, with the entities of SCENARIO."""
    random = np.random.default_rng(1)
    at = np.sort(START_US + random.integers(0, len(DAYS) * DAY_US, num_rows))
    events = {
        "user": zipf_ids(random, num_users, num_rows),
        "item": zipf_ids(random, num_items, num_rows),
        "at": at,
        "hour": at // 3_600_000_000 % 24,
    }
    pq.write_table(
        pa.table({**events, "click": (random.random(num_rows) < 0.2).astype(np.int64)}), root / "events.parquet"
    )
    users, items = np.arange(num_users), np.arange(num_items)
    cities = [f"city {user % 300}" for user in users]
    pq.write_table(pa.table({"user": users, "age": 15 + users % 70, "city": cities}), root / "users.parquet")
    tags = [[int(item % 97), int(item % 31)] for item in items]
    table = {"item": items, "price": np.round(random.random(num_items) * 90, 2), "maker": items % 500, "tags": tags}
    pq.write_table(pa.table(table), root / "items.parquet")


def _measured(
    scenario: Scenario, online: Path, store: OnlineStore, args: argparse.Namespace
) -> dict[str, float | dict[str, float]]:
    begun = time.perf_counter()
    state = load(online, store)
    found: dict[str, float | dict[str, float]] = {"load_s": round(time.perf_counter() - begun, 2)}
    path, facts = RequestPath(scenario, online_facts(online)), read_state(online)
    reading, random = StoreReading(store, state, tuple(facts["days"])), np.random.default_rng(2)
    users, num = random.permutation(args.users), min(200, args.users // 3)
    items = [random.integers(0, args.items, args.items_asked) for _ in range(num)]
    first, asked, new = ([*zip(some.tolist(), items, strict=False)] for some in np.array_split(users[: 3 * num], 3))
    by_user, by_item = path.readers["user"], path.readers["item"]

    def read(user: int, items: npt.NDArray[np.int64]) -> None:
        reading.state(store_keys(by_user.facts, Keys(np.unique(np.append(items, user)))))

    def request(user: int, items: npt.NDArray[np.int64]) -> None:
        context = {"hour": pa.array([9])}
        path.columns(Request(facts["begin"] + 3_600_000_000, user, pa.array(items), context), reading)

    found["read_ms"] = _times(lambda one: read(*one), asked, time.perf_counter)
    found["first_request_ms"] = _times(lambda one: request(*one), first, time.process_time)
    found["request_ms"] = _times(lambda one: request(*one), asked, time.process_time)
    found["session_ms"] = _times(lambda one: request(*one), asked, time.process_time)
    found["user_part_ms"] = _times(lambda one: request(one[0], one[1][:1]), new, time.process_time)
    found["upserts_per_s"] = round(_upserts(online, store, (by_user, by_item), args))
    found["request_after_upserts_ms"] = _times(lambda one: request(*one), asked, time.process_time)
    found["session_after_upserts_ms"] = _times(lambda one: request(*one), asked, time.process_time)
    return found


def _times(call: Callable[[_Asked], None], asked: list[_Asked], clock: Callable[[], float]) -> dict[str, float]:
    taken = []
    for one in asked:
        begun = clock()
        call(one)
        taken.append((clock() - begun) * 1e3)
    return {f"p{share}": round(float(np.percentile(taken, share)), 2) for share in (50, 99)}


def _upserts(
    online: Path, store: OnlineStore, readers: tuple[StateReader, StateReader], args: argparse.Namespace
) -> float:
    """Rows added a second, each to the key sets of its user and of its item, while states are loaded."""
    ended, loads = threading.Event(), 0

    def switch() -> None:
        nonlocal loads
        while not ended.is_set():
            load(online, store)
            loads += 1

    thread = threading.Thread(target=switch)
    thread.start()
    random, at_once = np.random.default_rng(3), 1_000
    begun = time.perf_counter()
    for first in range(0, args.upserts, at_once):
        times = np.sort(3 * DAY_US + START_US + random.integers(0, DAY_US, at_once))
        for reader, most in zip(readers, (args.users, args.items), strict=True):
            columns = {name: np.ones(at_once, bool) for name in reader.facts["flags"]}
            columns |= {name: random.integers(0, most, at_once) for name, _ in reader.facts["values"]}
            grouped = group_rows(Keys(random.integers(0, most, at_once)), np.ones(at_once, bool))
            run = run_of(grouped, times, columns)
            records = reader.records_of(run, first + grouped.order)
            store.append("2024-01-04", dict(zip(store_keys(reader.facts, run.keys), records, strict=True)))
    seconds = time.perf_counter() - begun
    ended.set()
    thread.join()
    return float(args.upserts) / seconds


if __name__ == "__main__":
    main()
