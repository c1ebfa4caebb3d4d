"""Copies of files of many days: the same bytes as without, never of a file in another state."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources import copies as module
from feature_jobs.sources.copies import Copies
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DAYS = [f"1970-01-0{day}" for day in (2, 3, 4, 5, 2)]


@pytest.fixture(autouse=True)
def small_files_are_copied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_BYTES", 0)
    monkeypatch.setattr(module, "SETTLED_S", -1)


def copies_in(folder: Path) -> Copies:
    def made() -> Path:
        folder.mkdir()
        return folder

    return Copies(made)


def results(scenario: Scenario, folder: Path, copies: Copies | None) -> list[Any]:
    """Content of all outputs of each day, or its error."""
    found: list[Any] = []
    for i, ds in enumerate(DAYS):
        try:
            ingest_day(scenario, ds, folder / str(i), copies)
        except BadInputError as error:
            found.append(str(error))
            continue
        files = [file for file in sorted((folder / str(i)).rglob("*")) if file.is_file()]
        found.append({file.name: file.read_bytes() for file in files})
    return found


def messy_csv(file: Path, rng: random.Random) -> None:
    """Repeated, broken, undated and undecodable lines, quoted texts of two lines, and perhaps a quote that never
    closes."""
    lines = [HEADER.encode() + b",note"]
    for i in range(300):
        at: Any = rng.randrange(7 * DAY_S)
        note = rng.choice(['"a\nb"', "ü", "", '"say ""x"""'])
        lines.append(f"{rng.randrange(9)},{i % 7},{rng.choice([1, 3.5, 9])},{at},{note}".encode())
        lines += [rng.choice(lines[1:])] * (rng.random() < 0.1)
        lines += [rng.choice([b"1,2", b"1,2,3,4,5,6", b"\xff,2,3,4,x", b"x,y,z,soon,x", b"1,2,3,,x"])] * (i % 20 == 0)
    if rng.random() < 0.3:
        lines.insert(200, b'1,2,3,4,"never')
    file.write_bytes(b"\n".join(lines) + b"\n")


def messy_jsonl(file: Path, rng: random.Random) -> None:
    lines = []
    for i in range(300):
        row = {"user": rng.choice([1, 2**60 + 1, "x", None]), "item": i % 7, "rating": 3, "t": rng.randrange(7 * DAY_S)}
        lines += [json.dumps({**row, "note": "ü"} if i % 2 else row)] * rng.choice([1, 1, 2])
        lines += [rng.choice(["{", "[]", "", '{"user": 1}'])] * (i % 20 == 0)
    write_lines(file, lines)


def texts_in_parquet(file: Path, rng: random.Random) -> None:
    """A Parquet file whose times are text: its statistics say nothing of them."""
    times = [rng.choice([str(rng.randrange(7 * DAY_S)), "soon", None]) for _ in range(300)]
    rows = {"user": pa.array(range(300)), "item": pa.array(range(300)), "rating": pa.array([3.0] * 300)}
    pq.write_table(pa.table({**rows, "t": pa.array(times), "note": pa.array(["x"] * 300)}), file, row_group_size=20)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("file_format", "write"), [("csv", messy_csv), ("jsonl", messy_jsonl), ("parquet", texts_in_parquet)]
)
def test_a_copy_changes_no_byte_and_no_error(
    tmp_path: Path, file_format: str, write: Callable[[Path, random.Random], None], seed: int
) -> None:
    changes = {
        "data.events.path": f"log.{file_format}",
        "data.events.format": file_format,
        "data.events.columns.note": {"type": "string", "optional": True},
        "ingest.max_quarantined_share": 1.0 if seed else 0.01,
    }
    scenario = scenario_in(tmp_path, changes)
    write(tmp_path / "data" / f"log.{file_format}", random.Random(seed))
    plain = results(scenario, tmp_path / "plain", None)
    assert all(isinstance(day, dict if seed else str) for day in plain)
    assert results(scenario, tmp_path / "copied", copies_in(tmp_path / "copies")) == plain
    assert len(list((tmp_path / "copies").iterdir())) == 2


def test_an_entity_is_copied_and_a_parquet_file_that_is_read_in_part_is_not(tmp_path: Path) -> None:
    user = {"path": "users.csv", "format": "csv", "key": "user", "columns": {"user": {"type": "int"}}}
    events = {"path": "log.parquet", "format": "parquet"}
    scenario = scenario_in(
        tmp_path, {"data.entities": {"user": user}, **{f"data.events.{key}": value for key, value in events.items()}}
    )
    write_lines(tmp_path / "data/users.csv", ["user", "1", "2", "2"])
    columns = {name: pa.array([1] * 7) for name in ("user", "item", "rating")}
    rows = pa.table({**columns, "t": pa.array([day * DAY_S for day in range(7)])})
    pq.write_table(rows, tmp_path / "data/log.parquet", row_group_size=1)
    copies = copies_in(tmp_path / "copies")
    assert results(scenario, tmp_path / "copied", copies) == results(scenario, tmp_path / "plain", None)
    assert [key for key, copy in copies._copies.items() if copy] == [
        ("data.entities.user", tmp_path / "data/users.csv")
    ]


@pytest.mark.parametrize(
    ("size", "is_copied"), [(50, True), (1_000, True), (17, False)], ids=["any order", "one group", "by time"]
)
@pytest.mark.parametrize("kind", [pa.int64(), pa.timestamp("ns", "UTC"), pa.timestamp("ms")], ids=str)
def test_a_parquet_file_is_copied_where_its_row_groups_are_of_all_times(
    tmp_path: Path, kind: pa.DataType, size: int, is_copied: bool
) -> None:
    time = {"column": "t", "unit": "s"} if kind == pa.int64() else {"column": "t"}
    changes = {"data.events.path": "log.parquet", "data.events.format": "parquet", "data.events.time": time}
    if kind != pa.int64():
        changes["data.events.columns.t"] = {"type": "time"}
    scenario, rng = scenario_in(tmp_path, changes), np.random.default_rng(1)
    seconds = rng.integers(0, 7 * DAY_S, 1_000)
    if not is_copied:
        seconds.sort()
    times = pa.array(seconds) if kind == pa.int64() else pa.array(seconds, pa.timestamp("s")).cast(kind)
    ids = {name: rng.integers(1, 6, 1_000) for name in ("user", "item", "rating")}
    pq.write_table(pa.table({**ids, "t": times}), tmp_path / "data/log.parquet", row_group_size=size)
    assert results(scenario, tmp_path / "copied", copies_in(tmp_path / "copies")) == results(
        scenario, tmp_path / "plain", None
    )
    assert (tmp_path / "copies").exists() == is_copied


def append(file: Path) -> None:
    with file.open("a") as text:
        text.write(f"7,7,5,{DAY_S + 1}\n")


def rewrite_in_place(file: Path) -> None:
    """Another content of the same size, with the time of the last change put back."""
    old = file.stat()
    file.write_bytes(file.read_bytes().replace(b"1,2,3", b"7,2,3"))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))


def replace_by_another(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes().replace(b"1,2,3", b"7,2,3"))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [append, rewrite_in_place, replace_by_another])
def test_a_changed_file_is_read_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    scenario, file = scenario_in(tmp_path), tmp_path / "data/events.csv"
    write_lines(file, [HEADER, *(f"1,2,3,{day * DAY_S}" for day in range(1, 5))])
    copies = copies_in(tmp_path / "copies")
    results(scenario, tmp_path / "before", copies)
    old = set((tmp_path / "copies").iterdir())
    change(file)
    found = results(scenario, tmp_path / "after", copies)
    assert found == results(scenario, tmp_path / "plain", None)
    assert 7 in pq.read_table(tmp_path / "after" / "0" / "events.parquet")["user"].to_pylist()
    assert len(old) == 2 and not old & set((tmp_path / "copies").iterdir())  # the old copy is gone


def test_a_file_that_changes_while_it_is_copied_has_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, file = scenario_in(tmp_path), tmp_path / "data/events.csv"
    write_lines(file, [HEADER, *(f"1,2,3,{day * DAY_S}" for day in range(1, 5))])
    copies = copies_in(tmp_path / "copies")
    make = copies.make

    def changed_meanwhile(scan: module.Scan, write: Callable[[module.Copy], tuple[str, ...]]) -> module.Copy | None:
        def write_then_append(copy: module.Copy) -> tuple[str, ...]:
            columns = write(copy)
            append(file)
            return columns

        return make(scan, write_then_append)

    monkeypatch.setattr(copies, "make", changed_meanwhile)
    ingest_day(scenario, DAYS[0], tmp_path / "0", copies)
    ingest_day(scenario, DAYS[0], tmp_path / "1", copies)
    assert pq.read_table(tmp_path / "1" / "events.parquet")["user"].to_pylist() == [1, 7]
    assert not list((tmp_path / "copies").iterdir())


def test_without_space_for_a_copy_the_file_is_read_each_day(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path)
    write_lines(tmp_path / "data/events.csv", [HEADER, *(f"1,2,3,{day * DAY_S}" for day in range(1, 5))])
    plain = results(scenario, tmp_path / "plain", None)
    assert results(scenario, tmp_path / "copied", Copies(lambda: tmp_path / "nowhere")) == plain


@pytest.mark.parametrize(("name", "value"), [("_LEAST_BYTES", 10**6), ("SETTLED_S", 100)])
def test_a_small_or_new_file_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(module, name, value)
    scenario = scenario_in(tmp_path)
    write_lines(tmp_path / "data/events.csv", [HEADER, *(f"1,2,3,{day * DAY_S}" for day in range(1, 5))])
    results(scenario, tmp_path / "copied", copies_in(tmp_path / "copies"))
    assert not (tmp_path / "copies").exists()
