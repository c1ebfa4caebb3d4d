"""Selection of a file, and files whose contents differ from their name: read right, or refused by name."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.sources.files import files_of
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.source import sources_of
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DS = "1970-01-02"
T = DAY_S + 10
GOOD = [HEADER, f"1,2,3.5,{T}"]
PARQUET = {"data.events.path": "events.parquet", "data.events.format": "parquet"}


def users(folder: Path, changes: dict[str, Any] | None = None, ds: str = DS) -> list[Any]:
    ingest_day(scenario_in(folder, changes), ds, folder / "out")
    found: list[Any] = pq.read_table(folder / "out/events.parquet")["user"].to_pylist()
    return found


def bad_rows(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(folder / "out/quarantine.parquet").to_pylist()
    return rows


def refusal(folder: Path, changes: dict[str, Any] | None = None) -> str:
    with pytest.raises(BadInputError) as caught:
        ingest_day(scenario_in(folder, changes), DS, folder / "out")
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert not (folder / "out/events.parquet").exists()
    return str(caught.value)


# Fault 8.


@pytest.mark.parametrize("name", ["e*.csv", "data[x].csv", "q?.csv", "e*", "[ab]/events.csv", "d*/*.csv"])
@pytest.mark.parametrize("file_format", ["csv", "parquet", "jsonl"])
def test_fault_8_a_path_that_exists_is_itself(tmp_path: Path, name: str, file_format: str) -> None:
    name = name.replace(".csv", f".{file_format}")
    decoys = ["e1", "e1.csv", "datax.csv", "q1.csv", "a/events.csv", "d1/x.csv", "d*1/x.csv"]
    for user, path in enumerate([name, *(d.replace(".csv", f".{file_format}") for d in decoys)], 1):
        _write(tmp_path / "data" / path, file_format, user)
    changes = {"data.events.path": name, "data.events.format": file_format}
    assert users(tmp_path, changes) == [1]


def test_fault_8_a_folder_that_exists_is_itself_and_the_pattern_below_it_works(tmp_path: Path) -> None:
    _write(tmp_path / "data/day[1]/a.csv", "csv", 1)
    _write(tmp_path / "data/day[1]/b.csv", "csv", 2)
    _write(tmp_path / "data/day1/a.csv", "csv", 3)
    assert users(tmp_path, {"data.events.path": "day[1]"}) == [1, 2]
    assert users(tmp_path, {"data.events.path": "day[1]/b*.csv"}) == [2]
    assert users(tmp_path, {"data.events.path": "day[0-9]/*.csv"}) == [3]
    assert users(tmp_path, {"data.events.path": str(tmp_path / "data/day[1]/*.csv")}) == [1, 2]


def _write(file: Path, file_format: str, user: int) -> None:
    row = {"user": user, "item": 2, "rating": 3.5, "t": T}
    file.parent.mkdir(parents=True, exist_ok=True)
    if file_format == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), file)
    else:
        write_lines(file, [json.dumps(row)] if file_format == "jsonl" else [HEADER, f"{user},2,3.5,{T}"])


# Fault 5: read right.

READ: list[tuple[str, bytes]] = [
    ("trailing comma", f"{HEADER},\n1,2,3.5,{T},\n".encode()),
    ("unnamed first column", f",{HEADER}\n0,1,2,3.5,{T}\n".encode()),
    ("two unnamed columns", f",{HEADER},\n0,1,2,3.5,{T},x\n".encode()),
    ("names equal but for case", f"User,{HEADER},T\n9,1,2,3.5,{T},8\n".encode()),
    ("UTF-16", f"\ufeff{HEADER}\n1,2,3.5,{T}\n".encode("utf-16-le")),
    ("gzip named csv", gzip.compress(f"{HEADER}\n1,2,3.5,{T}\n".encode())),
    ("gzip of UTF-16", gzip.compress(f"\ufeff{HEADER}\n1,2,3.5,{T}\n".encode("utf-16-le"))),
    ("byte order mark", f"\ufeff{HEADER}\n1,2,3.5,{T}\n".encode()),
    ("CRLF", f"{HEADER}\r\n1,2,3.5,{T}\r\n".encode()),
    ("quoted newline in a name", f'"a\nb",{HEADER}\nx,1,2,3.5,{T}\n'.encode()),
    ("quoted newline in a cell", f'more,{HEADER}\n"x\ny",1,2,3.5,{T}\n'.encode()),
    ("zero byte in another column", f"more,{HEADER}\n\0,1,2,3.5,{T}\n".encode()),
    ("quotes in a name", f'"a ""b""",{HEADER}\nx,1,2,3.5,{T}\n'.encode()),
]


@pytest.mark.parametrize(("what", "content"), READ, ids=[what for what, _ in READ])
def test_fault_5_csv_is_read(tmp_path: Path, what: str, content: bytes) -> None:
    scenario_in(tmp_path)
    (tmp_path / "data/events.csv").write_bytes(content)
    assert users(tmp_path) == [1], what
    assert not bad_rows(tmp_path)


def test_fault_5_names_equal_but_for_case_are_two_columns(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    write_lines(tmp_path / "data/events.csv", [f"USER,{HEADER}", f"7,1,2,3.5,{T}"])
    changes = {"data.events.columns.other": {"type": "int", "from": "USER"}}
    assert users(tmp_path, changes) == [1]
    assert pq.read_table(tmp_path / "out/events.parquet")["other"].to_pylist() == [7]
    table = {"USER": [7], "user": [1], "item": [2], "rating": [3.5], "t": [T], "file_row": [0]}
    pq.write_table(pa.table(table), tmp_path / "data/events.parquet")
    assert users(tmp_path, {**changes, **PARQUET}) == [1]
    assert pq.read_table(tmp_path / "out/events.parquet")["other"].to_pylist() == [7]
    declared = {"data.events.columns.USER": {"type": "int"}}
    assert "columns.USER: differs from user in capitals only; rename it" in refusal(tmp_path / "x", declared)


def test_fault_5_plain_text_with_the_ending_of_gzip_is_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/events.csv.gz", GOOD)
    assert users(tmp_path, {"data.events.path": "events.csv.gz"}) == [1]


# Fault 5: refused by name.


def _zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("events.csv", "\n".join(GOOD))


REFUSED: list[tuple[bytes, str]] = [
    (b"", "empty, without even a header; bring the file again"),
    (
        f"\ufeff{HEADER}\n1,2,3,{T}\n".encode("utf-16-be"),
        "UTF-16 with the high byte first; declare `encoding: utf-16-be`",
    ),
    (f"{HEADER}\n1,2,3,{T}\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
    (f"é,{HEADER}\n1,1,2,3,{T}\n".encode("latin-1"), "row 1: the column name '\ufffd' is not UTF-8; declare its `enc"),
    (f"user,{HEADER}\n1,1,2,3,{T}\n".encode(), "the header names 'user' twice; rename one"),
    (b"\x28\xb5\x2f\xfd1234", "compressed with zstd; unpack it"),
    (gzip.compress(f"{HEADER}\n1,2,3,{T}\n".encode(), mtime=0)[:-20], "not readable as csv"),
    (bytes(range(256)), "row 1 holds zero bytes"),
    (f"\ufeff{HEADER},n\n1,2,3,{T},😀\n".encode("utf-16-le"), "UTF-16 with characters of 32 bits, such as emoji"),
    (f"{HEADER}\r\n1,2,3,{T}\r\n1,2,3,{T}\n".encode(), "line 3 ends in another way than line 1"),
    (f'{HEADER},n\n1,2,3,{T},"a\r\nb"\n1,2,3,{T},a\rb\n'.encode(), "line 4 ends in another way than line 1"),
    (f"\n{HEADER}\n1,2,3,{T}\n".encode(), "row 1 is blank, where the names of the columns belong"),
    (b"\n \n", "empty, without even a header"),
    (f"{HEADER},\n1,2,3,{T}\n".encode(), "fewer cells than the header (line 2; 1 such rows)"),
]


@pytest.mark.parametrize(("content", "expected"), REFUSED)
def test_fault_5_what_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes, expected: str) -> None:
    scenario_in(tmp_path)
    (tmp_path / "data/events.csv").write_bytes(content)
    message = refusal(tmp_path)
    assert expected in message and "events.csv" in message


def test_fault_5_a_gzip_file_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    """DuckDB does not look at the checksum: it would read rows with other values. Only the end of a file has it."""
    scenario_in(tmp_path)
    written = gzip.compress("\n".join([HEADER, *(f"{n},2,3,{T}" for n in range(20_000))]).encode())
    (tmp_path / "data/events.csv").write_bytes(written[:-8] + bytes(4) + written[-4:])
    assert "events.csv: not readable as csv (CRC check failed" in refusal(tmp_path)


def test_fault_5_another_format_is_refused_by_name(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    pq.write_table(pa.table({"user": [1]}), tmp_path / "data/events.csv")
    assert "events.csv: not readable as csv: it is a Parquet file; set format: parquet" in refusal(tmp_path)
    _zip(tmp_path / "data/events.csv")
    assert "events.csv: not readable as csv: it is a zip archive; unpack it" in refusal(tmp_path)
    write_lines(tmp_path / "data/events.parquet", GOOD)
    assert "events.parquet: not readable as parquet" in refusal(tmp_path, PARQUET)


def test_fault_5_a_header_alone_has_no_events(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/events.csv", [HEADER])
    assert "no events on 1970-01-02" in refusal(tmp_path) and "it holds no events at all" in refusal(tmp_path)


# JSON lines.

JSONL = {"data.events.path": "events.jsonl", "data.events.format": "jsonl"}


def test_json_lines_are_typed_and_a_broken_line_is_a_row_with_a_reason(tmp_path: Path) -> None:
    changes = {
        **JSONL,
        "data.events.columns.tags": {"type": "list[string]"},
        "data.events.columns.seen": {"type": "list[int]"},
        "data.events.columns.liked": {"type": "bool"},
        "data.events.columns.note": {"type": "string", "from": 'a "note".x'},
    }
    lines = [
        json.dumps(
            {"user": 2**53 + 1, "item": "7", "rating": 4.5, "t": T, "tags": ["a", None, "b"], "seen": [2**53 + 1]}
        )
        + "\r",
        "",
        json.dumps({"user": 2, "item": 7.0, "t": T, "rating": None, "liked": True, 'a "note".x': "é", "User": 5}),
        "not json",
        "[1, 2]",
        json.dumps({"user": 3, "item": 1, "t": T, "tags": "a"}),
        json.dumps({"user": 4, "item": 1, "t": T, "seen": [1, "x"]}),
        json.dumps({"user": {"id": 5}, "item": 1, "t": T}),
        f'{{"user": 6, "item": 1, "t": {T}, "user": 7}}',
    ]
    write_lines(tmp_path / "data/events.jsonl", lines)
    counts = ingest_day(scenario_in(tmp_path, changes), DS, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    assert [(r["user"], r["item"], r["rating"], r["tags"], r["seen"], r["liked"], r["note"]) for r in rows] == [
        (2**53 + 1, 7, 4.5, ["a", "b"], [2**53 + 1], None, None),
        (2, 7, None, None, None, True, "é"),
    ]
    assert counts["null_elements"] == 1 and counts["quarantined"] == 4 and counts["undated"] == 2
    assert counts["reasons"]["line: a key more than once"] == 1
    reasons = {row["reason"]: row["row"] for row in bad_rows(tmp_path)}
    assert json.loads(reasons["line: not a JSON object"])["text"] in ("not json", "[1, 2]")
    assert "tags: 'a' is not a list[string]" in reasons
    assert "seen: '[1,\"x\"]' is not a list[int]" in reasons
    assert "user: '{\"id\":5}' is not an int" in reasons


def test_json_lines_refuse_a_key_that_no_line_has(tmp_path: Path) -> None:
    row = {"user": 1, "item": 2, "ratng": 3, "t": T}
    write_lines(tmp_path / "data/events.jsonl", [json.dumps(row)])
    message = refusal(tmp_path, JSONL)
    assert "events.jsonl: no column 'rating'" in message and "did you mean 'ratng'?" in message
    assert users(tmp_path, {**JSONL, "data.events.columns.rating": {"type": "float", "optional": True}}) == [1]
    write_lines(
        tmp_path / "data/events.jsonl", [*[json.dumps(row)] * 1500, json.dumps({**row, "user": 2, "rating": 5})]
    )
    assert users(tmp_path, JSONL) == [1, 2]  # a rare key is found, however late
    write_lines(tmp_path / "data/events.jsonl", [json.dumps([row])])
    assert "it is one JSON array; write each" in refusal(tmp_path / "x", {**JSONL, "data.path": str(tmp_path / "data")})
    write_lines(tmp_path / "data/events.jsonl", ["user,item", "1,2"])
    assert "no line is a JSON object" in refusal(tmp_path / "x", {**JSONL, "data.path": str(tmp_path / "data")})


# Days in a path.


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("year={yyyy}/month={mm}/day={dd}", "year=1970/month=01/day=02"),
        ("year={yyyy}/month={m}/day={d}", "year=1970/month=1/day=2"),
        ("{yyyy}/{mm}/{dd}", "1970/01/02"),
        ("{yyyy}-{mm}/{yyyymmdd}", "1970-01/19700102"),
    ],
)
def test_days_in_folders(tmp_path: Path, pattern: str, folder: str) -> None:
    write_lines(tmp_path / "data" / folder / "part-0.csv", [*GOOD, f"5,5,5,{T + DAY_S}"])
    write_lines(tmp_path / "data" / folder.replace("2", "3") / "part-0.csv", GOOD)
    assert users(tmp_path, {"data.events.path": pattern}) == [1]
    assert "is outside the day of its partition" in bad_rows(tmp_path)[0]["reason"]


def test_a_path_that_names_a_month_only_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/1970/01.csv", GOOD)
    message = refusal(tmp_path, {"data.events.path": "{yyyy}/{mm}.csv"})
    assert "names a month or year, but not the day" in message and "data.events.path" in message


def test_folders_with_values_are_columns(tmp_path: Path) -> None:
    changes = {
        "data.events.path": "country=*/slot=*/*.csv",
        "data.events.columns.country": {"type": "string"},
        "data.events.columns.slot": {"type": "int"},
    }
    write_lines(tmp_path / "data/country=D%20E/slot=7/a.csv", GOOD)
    write_lines(tmp_path / "data/country=FR/slot=__HIVE_DEFAULT_PARTITION__/a.csv", GOOD)
    ingest_day(scenario_in(tmp_path, changes), DS, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    assert [(row["country"], row["slot"]) for row in rows] == [("D E", 7), ("FR", None)]


def test_an_optional_column_may_be_absent(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/events.csv", ["user,item,t", f"1,2,{T}"])
    message = refusal(tmp_path)
    assert "no column 'rating'" in message and "declare it optional: true" in message
    changes = {"data.events.columns.rating": {"type": "float", "optional": True}}
    assert users(tmp_path, changes) == [1]
    assert pq.read_table(tmp_path / "out/events.parquet")["rating"].to_pylist() == [None]


def test_files_are_sorted_and_each_is_read_once(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, {"data.events.path": "**/*.csv"})
    for name in ("b.csv", "a/c.csv", "a/b/c.csv"):
        write_lines(tmp_path / "data" / name, GOOD)
    found = files_of(scenario, sources_of(scenario)[0], DS)
    assert [str(f.relative_to(tmp_path / "data")) for f in found] == ["a/b/c.csv", "a/c.csv", "b.csv"]


def test_a_day_without_a_snapshot_reads_the_newest_before(tmp_path: Path) -> None:
    columns = {"item": {"type": "int"}, "price": {"type": "int"}}
    entity = {"path": "items/{ds}.csv", "format": "csv", "key": "item", "columns": columns}
    for day, price in ((2, 20), (4, 40)):
        _write_lines(tmp_path / f"data/items/1970-01-0{day}.csv", ["item,price", f"2,{price}"])
    _write_lines(tmp_path / "data/events.csv", [HEADER, *(f"1,2,3.5,{DAY_S * day + 10}" for day in range(1, 5))])
    changes: dict[str, Any] = {"data.entities": {"item": {**entity, "max_age_days": 1}}}
    scenario, before, found = scenario_in(tmp_path, changes), None, []
    for day in ("1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"):
        counts = ingest_day(scenario, day, tmp_path / day, yesterday=before)["entities"]["item"]
        found.append((counts["rows"], counts.get("age_days")))
        before = tmp_path / day
    # The third of January has the second's snapshot, which it has already; the fifth has that of the fourth.
    assert found == [(1, None), (0, 1), (1, None), (0, 1)]
    with pytest.raises(BadInputError, match=r"no partition of 1970-01-03"):
        ingest_day(scenario_in(tmp_path, {"data.entities": {"item": entity}}), "1970-01-03", tmp_path / "out")


def _write_lines(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_lines(file, lines)
