"""Selection of files, and values of cells in CSV and Parquet."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.sources.files import files_of
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.source import sources_of
from feature_jobs.sources.tables import Reader, connect
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

T = DAY_S + 10
GOOD = [HEADER, f"1,2,3.5,{T}"]


def land(
    folder: Path, changes: dict[str, Any] | None = None, ds: str = "1970-01-02"
) -> tuple[pa.Table, list[dict[str, str]]]:
    """Events and quarantined rows of one day."""
    out = folder / "out"
    ingest_day(scenario_in(folder, changes), ds, out)
    return pq.read_table(out / "events.parquet"), pq.read_table(out / "quarantine.parquet").to_pylist()


def refusal(folder: Path, changes: dict[str, Any] | None = None, ds: str = "1970-01-02") -> str:
    with pytest.raises(BadInputError) as caught:
        ingest_day(scenario_in(folder, changes), ds, folder / "out")
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("b.csv", ["b.csv"]),
        (".", ["a.csv.gz", "b.csv"]),
        ("deep", ["deep/c.csv"]),
        ("**/*.csv", ["b.csv", "deep/c.csv", "ds=1970-01-02/19700102.csv"]),
        ("ds={ds}/{yyyymmdd}.csv", ["ds=1970-01-02/19700102.csv"]),
        ("ds={ds}", ["ds=1970-01-02/19700102.csv"]),
    ],
)
def test_files_of_a_path(tmp_path: Path, path: str, expected: list[str]) -> None:
    scenario = scenario_in(tmp_path, {"data.events.path": path})
    for name in ("b.csv", "deep/c.csv", "deep/d.txt", "ds=1970-01-02/19700102.csv", "a.csv.gz", "e.parquet"):
        write_lines(tmp_path / "data" / name, GOOD)
    found = files_of(scenario, sources_of(scenario)[0], "1970-01-02")
    assert [str(f.relative_to(tmp_path / "data")) for f in found] == expected


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.uint64()], ids=str)
def test_what_a_scan_passes_over_is_what_no_day_keeps(tmp_path: Path, kind: pa.DataType, unit: str) -> None:
    """The rows of a Parquet file that are staged are those that reading every row would stage."""
    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    edges = [edge * per_s + step for edge in (0, DAY_S, 2 * DAY_S) for step in (-1, 0, 1)]
    far = [2**31 - 1, 2**63 - 1, 2**63 // 10**6, 2**64 - 1, -(2**63), -(2**63) // 10**6, -1]
    low, high = (0, 2**64 - 1) if kind == pa.uint64() else (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)
    times = [*(t for t in (*edges, *far) if low <= t <= high), None]
    (tmp_path / "data").mkdir()
    columns = {"user": pa.array(range(len(times))), "item": pa.array([1] * len(times)), "t": pa.array(times, kind)}
    columns["rating"] = pa.array([1.0] * len(times))
    pq.write_table(pa.table(columns), tmp_path / "data" / "log.parquet", row_group_size=2)
    events = {"path": "log.parquet", "format": "parquet", "time": {"column": "t", "unit": unit}}
    scenario = scenario_in(tmp_path, {f"data.events.{key}": value for key, value in events.items()})
    start, end = DAY_S * 10**6, 2 * DAY_S * 10**6

    def read(*, whole: bool) -> list[tuple[Any, ...]]:
        with connect(tmp_path) as connection:
            files = [tmp_path / "data" / "log.parquet"]
            reader = Reader(connection, scenario, sources_of(scenario)[0], files, (start, end))
            return connection.execute(f"SELECT * FROM ({reader._rows(0, whole)}) ORDER BY row").fetchall()

    def staged(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [row for row in rows if row[2] is None or start <= row[2] < end]  # row[2]: the time

    every, few = read(whole=True), read(whole=False)
    assert staged(few) == staged(every) != []
    assert len(few) < len(every)


@pytest.mark.parametrize("path", ["nowhere.csv", "empty", "*.txt", "ds={ds}.csv"])
def test_a_path_to_no_file_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "data" / "empty").mkdir(parents=True)
    message = refusal(tmp_path, {"data.events.path": path})
    assert str(tmp_path / "data" / path.replace("{ds}", "1970-01-02")) in message
    assert "data.events.path" in message and "recloop fetch" in message
    assert ("no partition of 1970-01-02" in message) == ("{ds}" in path)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_first_day_reads_all_partitions_of_its_warm_up(tmp_path: Path) -> None:
    changes = {"data.events.path": "{ds}.csv", "data.days": {"warm_up_from": "1970-01-02", "first": "1970-01-03"}}
    write_lines(tmp_path / "data/1970-01-02.csv", GOOD)
    write_lines(tmp_path / "data/1970-01-03.csv", [HEADER, f"7,8,1,{T + DAY_S}"])
    assert land(tmp_path, changes, "1970-01-03")[0]["user"].to_pylist() == [1, 7]
    (tmp_path / "data/1970-01-02.csv").unlink()
    assert "no partition of 1970-01-02" in refusal(tmp_path, changes, "1970-01-03")


def test_a_row_outside_its_partitions_day_is_quarantined(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/1970-01-02.csv", [*GOOD, f"1,2,3.5,{T + DAY_S}"])
    events, bad = land(tmp_path, {"data.events.path": "{ds}.csv"})
    assert events.num_rows == 1
    assert bad[0]["reason"] == f"t: '{T + DAY_S}' is outside the day of its partition"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user,item,ratng,t\n", "no column 'rating'"),
        ("user,item,ratng,t\n", "did you mean 'ratng'?"),
        ("user;item;rating;t\n1;2;3;4\n", "delimiter ',' wrong?"),
        ("user,item,rating,t,t\n", "names 't' twice"),
        ("", "empty, without even a header"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    scenario_in(tmp_path)
    (tmp_path / "data/events.csv").write_text(text)
    message = refusal(tmp_path)
    assert expected in message and "events.csv" in message


def test_byte_order_mark_crlf_gzip_and_other_columns(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    text = f'\ufeffuser,more,item,rating,t\r\n1,"x\r\ny",2,3.5,{T}\r\n\r\n'
    (tmp_path / "data/events.csv.gz").write_bytes(gzip.compress(text.encode()))
    events, bad = land(tmp_path, {"data.events.path": "events.csv.gz"})
    assert events.select(["user", "item", "rating", "t"]).to_pylist() == [{"user": 1, "item": 2, "rating": 3.5, "t": T}]
    assert not bad


@pytest.mark.parametrize("keep", [0, 4, 100, -8, -300])
def test_a_truncated_parquet_file_is_one_clear_message(tmp_path: Path, keep: int) -> None:
    scenario_in(tmp_path)
    file = tmp_path / "data/events.parquet"
    pq.write_table(pa.table({"user": [1] * 500, "item": list(range(500)), "rating": [3.0] * 500, "t": [T] * 500}), file)
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(tmp_path, {"data.events.path": "events.parquet", "data.events.format": "parquet"})
    assert message.startswith(f"{file}: not readable as parquet") and "\n" not in message


def test_a_damaged_page_is_one_clear_message(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    file = tmp_path / "data/events.parquet"
    table = pa.table({"user": list(range(5000)), "item": [2] * 5000, "rating": [3.0] * 5000, "t": [T] * 5000})
    pq.write_table(table, file, use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[4:400] = b"\xff" * 396
    file.write_bytes(content)
    message = refusal(tmp_path, {"data.events.path": "events.parquet", "data.events.format": "parquet"})
    assert message.startswith(f"{file}: not readable as parquet") and "\n" not in message


def test_bytes_that_are_no_csv_are_refused(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    pq.write_table(pa.table({"user": [1]}), tmp_path / "data/events.csv")
    assert "events.csv" in refusal(tmp_path)
    (tmp_path / "data/events.csv.gz").write_bytes(gzip.compress(b"user,item,rating,t\n1,2,3,4\n" * 99)[:30])
    assert "not readable as csv" in refusal(tmp_path, {"data.events.path": "events.csv.gz"})


CELLS: list[tuple[dict[str, Any], str, Any]] = [
    ({"type": "int"}, "7", 7),
    ({"type": "int"}, " -7.0 ", -7),
    ({"type": "int"}, "3.7", "is not an int"),
    ({"type": "int"}, "1e3", "is not an int"),
    ({"type": "int"}, "0x10", "is not an int"),
    ({"type": "int"}, "1_000", "is not an int"),
    ({"type": "int"}, "9223372036854775807", 2**63 - 1),
    ({"type": "int"}, "9223372036854775808", "is not an int"),
    ({"type": "int"}, "", None),
    ({"type": "int", "required": True}, "", "x: missing"),
    ({"type": "int", "values": [1, 2]}, "3", "x: '3' is not one of 1, 2"),
    ({"type": "int", "min": 0}, "-1", "x: '-1' is below 0"),
    ({"type": "float"}, "1.5e2", 150.0),
    ({"type": "float"}, "abc", "x: 'abc' is not a float"),
    ({"type": "float"}, "1_0.5", "is not a float"),
    ({"type": "float"}, "inf", "is not a float"),
    ({"type": "float", "decimal": ","}, "3,5", 3.5),
    ({"type": "float", "decimal": ","}, " -1.234.567,25 ", -1234567.25),
    ({"type": "float", "decimal": ","}, "1.234", 1234.0),
    ({"type": "float", "decimal": ","}, ",5", 0.5),
    ({"type": "float", "decimal": ","}, "7", 7.0),
    ({"type": "float", "decimal": ","}, "1,5e3", 1500.0),
    ({"type": "float", "decimal": ","}, "1.5", "x: '1.5' is not a float"),
    ({"type": "float", "decimal": ","}, "1,234.5", "x: '1,234.5' is not a float"),
    ({"type": "float", "decimal": ","}, "1,2,3", "is not a float"),
    ({"type": "float", "decimal": ","}, ",", "is not a float"),
    ({"type": "float", "decimal": ","}, "NaN", None),
    ({"type": "float", "decimal": ","}, "", None),
    ({"type": "float"}, "3,5", "is not a float"),
    ({"type": "float"}, "NaN", None),
    ({"type": "float", "required": True}, "nan", "x: missing"),
    ({"type": "float", "max": 5}, "5.5", "x: '5.5' is above 5"),
    ({"type": "float", "min": 1, "max": 5}, "nan", None),
    ({"type": "bool"}, "True", True),
    ({"type": "bool"}, "0", False),
    ({"type": "bool"}, "2", "is not a bool"),
    ({"type": "string"}, "it's", "it's"),
    ({"type": "string"}, "", None),
    ({"type": "string", "values": ["F", "M"]}, "X", "x: 'X' is not one of F, M"),
    ({"type": "string", "values": ["F", "M"]}, "", None),
    ({"type": "string", "values": ["1", "2"]}, "1", "1"),
    ({"type": "list[int]", "separator": "|"}, "3| 4|", [3, 4]),
    ({"type": "list[int]", "separator": "|"}, "3|b", "x: '3|b' is not a list[int]"),
    ({"type": "list[int]", "separator": "|", "max": 9}, "3|10", "x: '3|10' is above 9"),
    ({"type": "list[string]", "separator": " "}, "a b", ["a", "b"]),
    ({"type": "list[string]", "separator": " ", "values": ["a"]}, "a b", "x: 'a b' is not one of a"),
    ({"type": "list[string]", "separator": " "}, "", None),
]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_each_cell_becomes_its_value_or_a_reason(tmp_path: Path, file_format: str) -> None:
    """The whole table of cells at once, each in a column of its own; Parquet holds the same as text."""
    columns = {f"x{i}": column for i, (column, _, _) in enumerate(CELLS)}
    changes = {
        "data.events.path": f"events.{file_format}",
        "data.events.format": file_format,
        "data.events.columns": {"user": {"type": "int"}, "item": {"type": "int"}, "t": {"type": "int"}, **columns},
        "labels.like": "user >= 1",
    }
    scenario_in(tmp_path)
    # Row 0 is good everywhere; row i+1 holds cell i, the others are filled with good values.
    good = [_good(column) for column, _, _ in CELLS]
    rows = [[*good[:i], cell, *good[i + 1 :]] for i, (_, cell, _) in enumerate(CELLS)]
    names = ["user", "item", "t", *columns]
    cells = [[str(i), "1", str(T), *row] for i, row in enumerate(rows)]
    if file_format == "csv":
        quoted = ([f'"{cell}"' if "," in cell else cell for cell in row] for row in cells)
        write_lines(tmp_path / "data/events.csv", [",".join(names), *(",".join(row) for row in quoted)])
    else:
        pq.write_table(
            pa.table(dict(zip(names, map(list, zip(*cells, strict=True)), strict=True))),
            tmp_path / "data/events.parquet",
        )
    events, bad = land(tmp_path, changes)
    by_row = {row["user"]: row for row in events.to_pylist()}
    reasons = {row["row"].split('"user":"')[1].split('"')[0]: row["reason"] for row in bad}
    for i, (column, cell, expected) in enumerate(CELLS):
        is_reason = isinstance(expected, str) and not (column["type"] == "string" and expected == cell)
        if is_reason:
            assert expected.replace("x:", f"x{i}:") in reasons[str(i)], (column, cell)
        else:
            assert by_row[i][f"x{i}"] == expected, (column, cell, reasons.get(str(i)))


def _good(column: dict[str, Any]) -> str:
    return (
        str(column["values"][0])
        if "values" in column
        else {"string": "a", "list[string]": "a"}.get(column["type"], "1")
    )


PARQUET: list[tuple[pa.Array, str, list[Any]]] = [
    (pa.array([1, 2**62], pa.int64()), "int", [1, 2**62]),
    (pa.array([1, 2**64 - 1], pa.uint64()), "int", [1, "is not an int"]),
    (pa.array([1.0, 1.5]), "int", [1, "is not an int"]),
    (pa.array([float("nan"), None]), "int", [None, None]),
    (pa.array([float("nan"), float("inf")]), "float", [None, "is not a float"]),
    (pa.array([1.5, None], pa.float32()), "float", [1.5, None]),
    (pa.array([True, False]), "int", [1, 0]),
    (pa.array([1, 2], pa.int8()), "bool", [True, "is not a bool"]),
    (pa.array([12, 13]), "string", ["12", "13"]),
    (pa.array([[1, 2], []], pa.list_(pa.int16())), "list[int]", [[1, 2], []]),
    (pa.array([["a"], None], pa.list_(pa.string())), "list[string]", [["a"], None]),
    (pa.array([[1], [2, None]], pa.list_(pa.int64())), "list[int]", [[1], [2]]),
    (pa.array(["a", "b"]).dictionary_encode(), "string", ["a", "b"]),
]


@pytest.mark.parametrize(("values", "wanted", "expected"), PARQUET)
def test_parquet_types(tmp_path: Path, values: pa.Array, wanted: str, expected: list[Any]) -> None:
    scenario_in(tmp_path)
    table = pa.table({"user": [0, 1], "item": [1, 1], "t": [T, T], "x": values})
    pq.write_table(table, tmp_path / "data/events.parquet")
    changes = {
        "data.events.path": "events.parquet",
        "data.events.format": "parquet",
        "data.events.columns": {
            "user": {"type": "int"},
            "item": {"type": "int"},
            "t": {"type": "int"},
            "x": {"type": wanted},
        },
        "labels.like": "user >= 1",
    }
    events, bad = land(tmp_path, changes)
    values_there = dict(zip(events["user"].to_pylist(), events["x"].to_pylist(), strict=True))
    for row, value in enumerate(expected):
        if isinstance(value, str) and value.startswith("is not"):
            assert value in bad[0]["reason"] and row not in values_there
        else:
            assert values_there[row] == value


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ({"type": "list[int]"}, "add separator"),
        ({"type": "int", "values": ["a"]}, "'a' does not go with int"),
        ({"type": "string", "min": 1}, "min and max are for numbers"),
    ],
)
def test_limits_that_do_not_go_with_the_type(tmp_path: Path, column: dict[str, Any], expected: str) -> None:
    scenario_in(tmp_path)
    write_lines(tmp_path / "data/events.csv", GOOD)
    message = refusal(tmp_path, {"data.events.columns.rating": column})
    assert expected in message and "rating" in message


def test_a_column_of_another_nature_is_refused(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    table = pa.table({"user": [0], "item": [1], "t": [T], "rating": [[1.0]]})
    pq.write_table(table, tmp_path / "data/events.parquet")
    message = refusal(tmp_path, {"data.events.path": "events.parquet", "data.events.format": "parquet"})
    assert "DOUBLE[]" in message and "rating" in message


US = 1_000_000
TIMES: list[tuple[str, dict[str, str], str, int | None]] = [
    ("int", {"unit": "s"}, str(T), T * US),
    ("float", {"unit": "s"}, f"{T}.25", T * US + 250_000),
    ("int", {"unit": "ms"}, str(T * 1000 + 1), T * US + 1000),
    ("int", {"unit": "us"}, str(T * US + 1), T * US + 1),
    ("int", {"unit": "ns"}, str(T * US * 1000 + 1999), T * US + 1),
    ("int", {"unit": "s"}, str(2**62), None),
    ("int", {"unit": "s"}, "soon", None),
    ("int", {"unit": "s"}, "", None),
    ("string", {"unit": "iso"}, "1970-01-02T00:00:10", T * US),
    ("string", {"unit": "iso"}, "1970-01-02 00:00:10.5Z", T * US + 500_000),
    ("string", {"unit": "iso"}, "1970-01-02T02:00:10+02:00", T * US),
    ("string", {"unit": "iso", "zone": "Asia/Shanghai"}, "1970-01-02T08:00:10", T * US),
    ("string", {"unit": "iso", "zone": "Asia/Shanghai"}, "1970-01-02T00:00:10Z", T * US),
    ("string", {"unit": "iso"}, "yesterday", None),
    ("string", {"unit": "iso"}, "infinity", None),
]


@pytest.mark.parametrize(("kind", "time", "cell", "expected"), TIMES)
def test_times(tmp_path: Path, kind: str, time: dict[str, str], cell: str, expected: int | None) -> None:
    scenario_in(tmp_path)
    fine = {"s": str(T), "ms": str(T * 1000), "us": str(T * US), "ns": str(T * US * 1000)}
    other = fine.get(time["unit"], "1970-01-02T08:00:00")
    write_lines(tmp_path / "data/events.csv", [HEADER, f"1,2,3,{cell}", f"9,2,3,{other}"])
    changes = {"data.events.time": {"column": "t", **time}, "data.events.columns.t": {"type": kind}}
    events, bad = land(tmp_path, changes)
    found = dict(zip(events["user"].to_pylist(), events["key.event_time"].to_pylist(), strict=True))
    assert found.get(1) == expected
    assert [row["reason"].split(":")[0] for row in bad] == ([] if expected else ["t"])


def test_a_timestamp_column_of_parquet_reads_as_iso(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    stamps = pa.array([T * US], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user": [1], "item": [1], "rating": [3.0], "t": stamps}), tmp_path / "data/events.parquet")
    changes = {
        "data.events.path": "events.parquet",
        "data.events.format": "parquet",
        "data.events.time": {"column": "t", "unit": "iso", "zone": "Asia/Shanghai"},
        "data.events.columns.t": {"type": "string"},
    }
    assert land(tmp_path, changes)[0]["key.event_time"].to_pylist() == [T * US]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data.events.time.column": "tt"}, "'tt' is not in data.events.columns; did you mean 't'?"),
        ({"data.events.time.unit": "iso"}, "unit iso needs t to be of type string"),
        ({"data.events.columns.t.type": "string"}, "unit s needs t to be of type int or float"),
        ({"data.events.delimiter": "||"}, "is not one character"),
    ],
)
def test_a_time_or_delimiter_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    scenario_in(tmp_path)
    write_lines(tmp_path / "data/events.csv", GOOD)
    assert expected in refusal(tmp_path, changes)


def test_order_of_a_large_file_is_the_files_order(tmp_path: Path) -> None:
    """Equal times keep the order of the source, though two threads read a file of many blocks."""
    scenario_in(tmp_path)
    number = 400_000
    rows = f"SELECT i AS user, i % 7 AS item, 3 AS rating, {T} AS t FROM range({number}) r(i)"
    with duckdb.connect() as connection:
        connection.sql(rows).write_csv(str(tmp_path / "data/events.csv"))
    events, _ = land(tmp_path)
    assert events["user"].to_pylist() == list(range(number))
    assert events["key.event_row"].to_pylist() == list(range(number))
