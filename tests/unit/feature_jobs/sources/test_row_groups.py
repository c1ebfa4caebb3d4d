"""A day of a Parquet log of many days reads its own row groups, and loses no row by that."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_window
from feature_jobs.sources import tables
from feature_jobs.sources.files import files_of
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.source import sources_of
from feature_jobs.sources.tables import Reader, connect
from tests.unit.feature_jobs.small_source import scenario_in

US = 1_000_000
DAY_US = 86_400 * US
FIRST = datetime.date(2024, 3, 9)  # New York's clocks go forward on the 10th
START_US = int(datetime.datetime(2024, 3, 8, tzinfo=datetime.UTC).timestamp()) * US
DAYS = [str(FIRST + datetime.timedelta(days=i)) for i in range(3)]

KINDS: dict[str, tuple[pa.DataType, dict[str, str], dict[str, str]]] = {
    # name: the file's type, the scenario's time, its column
    "int64 s": (pa.int64(), {"unit": "s"}, {"type": "int"}),
    "uint64 ms": (pa.uint64(), {"unit": "ms"}, {"type": "int"}),
    "int64 us": (pa.int64(), {"unit": "us"}, {"type": "int"}),
    "int64 ns as time": (pa.int64(), {}, {"type": "time", "unit": "ns"}),
    "float64 s": (pa.float64(), {"unit": "s"}, {"type": "float"}),
    "timestamp[ms] as time": (pa.timestamp("ms"), {}, {"type": "time"}),
    "timestamp[us] as text": (pa.timestamp("us"), {"unit": "iso"}, {"type": "string"}),
    "timestamp[ns]": (pa.timestamp("ns"), {}, {"type": "time"}),
    "timestamp[us] with zone": (pa.timestamp("us", "UTC"), {}, {"type": "time"}),
    "timestamp[ns] with zone as text": (pa.timestamp("ns", "America/New_York"), {"unit": "iso"}, {"type": "string"}),
    "date32": (pa.date32(), {}, {"type": "time"}),
    "string": (pa.string(), {"unit": "iso"}, {"type": "string"}),
}
READ = {kind: range(48, 56) for kind in KINDS} | {
    **{kind: range(110, 126) for kind in ("timestamp[ms] as time", "timestamp[us] as text", "timestamp[ns]")},
    "date32": range(200, 210),
    **{kind: range(250, 260) for kind in ("float64 s", "string")},
}
"""Row groups that a day reads."""
ZONES = ["UTC", "America/New_York", "Asia/Shanghai", "Pacific/Apia"]


def column(kind: str, times_us: list[int | None]) -> pa.Array:
    """Times as a file of that kind holds them."""
    arrow_type, time, declared = KINDS[kind]
    if pa.types.is_timestamp(arrow_type):
        return pa.array(times_us, pa.timestamp("us", arrow_type.tz)).cast(arrow_type, safe=False)
    moments = pa.array(times_us, pa.timestamp("us"))
    if pa.types.is_date(arrow_type):
        return moments.cast(arrow_type, safe=False)
    if pa.types.is_string(arrow_type):
        return moments.cast(arrow_type)
    unit = time.get("unit") or declared["unit"]
    per_us = {"s": 1 / US, "ms": 1 / 1000, "us": 1, "ns": 1000}[unit]
    number = float if pa.types.is_floating(arrow_type) else int
    return pa.array([None if at is None else number(at * per_us) for at in times_us], arrow_type)


def limits(kind: str, rng: random.Random) -> dict[str, int]:
    """Perhaps bounds that make a part of the first or the last day malformed, in most zones; only numbers have them."""
    if KINDS[kind][2] != {"type": "int"} or rng.random() < 0.5:
        return {}
    per_us = {"s": US, "ms": 1000, "us": 1}[KINDS[kind][1]["unit"]]
    return {"min": (START_US + DAY_US) // per_us, "max": (START_US + 15 * DAY_US // 4) // per_us}


def log_in(folder: Path, kind: str, rng: random.Random, *, is_sorted: bool = False, num: int = 200) -> Scenario:
    """A log of five days in one to three files of small row groups, some rows without a time, some of far years."""
    zone, starts = rng.choice(ZONES), rng.choice(["00:00", "07:00"])
    days: dict[str, Any] = {"first": DAYS[0], "last": DAYS[-1], "day_starts": starts}
    if rng.random() < 0.5:
        days["warm_up_from"] = str(FIRST - datetime.timedelta(days=1))
    changes = {
        "data.days": days,
        "data.events.path": "log*.parquet",
        "data.events.format": "parquet",
        "data.events.time": {"column": "t", "zone": zone, **KINDS[kind][1]},
        "data.events.columns.t": {**KINDS[kind][2], **({} if is_sorted else limits(kind, rng))},
    }
    scenario = scenario_in(folder, changes)
    edges = [edge for ds in DAYS for edge in day_window(scenario, ds)]
    times: list[int | None] = [START_US + rng.randrange(5 * DAY_US) for _ in range(num)]
    times += [edge + step for edge in edges for step in (-1, 0, 1)]
    times.sort(key=lambda at: at or 0)
    if not is_sorted:
        past_years = 40 if kind.startswith("uint") else 90
        times += [None, START_US - past_years * 365 * DAY_US, START_US + 200 * 365 * DAY_US]
        rng.shuffle(times)
        if rng.random() < 0.5:
            times.sort(key=lambda at: (at or 0) // (2 * DAY_US))
    num_files = 1 if is_sorted else rng.choice([1, 3])
    for i in range(num_files):
        part = times[i::num_files]
        rows = {"user": range(len(part)), "item": [i] * len(part), "rating": [1.0] * len(part)}
        table = pa.table({**{name: pa.array(values) for name, values in rows.items()}, "t": column(kind, part)})
        pq.write_table(
            table, folder / "data" / f"log{i}.parquet", row_group_size=8 if is_sorted else rng.choice([1, 5, 40])
        )
    return scenario


def outputs(scenario: Scenario, folder: Path) -> Iterator[tuple[str, bytes]]:
    for ds in DAYS:
        ingest_day(scenario, ds, folder / ds)
    yield from ((str(file.relative_to(folder)), file.read_bytes()) for file in sorted(folder.rglob("*.*")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_row_groups_passed_over_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    scenario = log_in(tmp_path, kind, random.Random(f"{kind}{seed}"))
    few = dict(outputs(scenario, tmp_path / "few"))
    monkeypatch.setattr(tables, "bounds_of", lambda *_: None)
    every = dict(outputs(scenario, tmp_path / "every"))
    assert few == every


@pytest.mark.parametrize("kind", KINDS)
def test_a_day_reads_its_own_row_groups(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    scenario = log_in(tmp_path, kind, rng, is_sorted=True, num=2_000)
    source = sources_of(scenario)[0]
    with connect(tmp_path, source.zone) as connection:
        reader = Reader(
            connection, scenario, source, files_of(scenario, source, DAYS[1]), day_window(scenario, DAYS[1])
        )
        plan = connection.execute(f"EXPLAIN ANALYZE {reader._rows(0, whole=False)}").fetchall()[0][1]
    scanned, num_all = map(int, re.findall(r"Row Groups Scanned: (\d+) / (\d+)", plan)[0])
    # The day is about 50 of the 250; without a zone, a clock may show its hours up to 16 hours sooner or later.
    assert num_all > 250 and scanned in READ[kind]
