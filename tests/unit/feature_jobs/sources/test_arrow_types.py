"""Every Arrow type that can lie in a Parquet file: the value is right, or the message names file, column and remedy."""

from __future__ import annotations

import datetime
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.output_files import DayCounts
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in, write_lines

DS = "1970-01-02"
T = DAY_S + 10
US = 1_000_000
BIG = 2**53 + 1
EXACT_WORD = "is a float too large to be exact"


def land(folder: Path, values: Any, column: dict[str, Any], **changes: Any) -> tuple[list[Any], DayCounts]:
    """The values of column x after ingest, None where its row is quarantined, and the counts."""
    scenario = scenario_in(folder, {**_changes(column), **{k.replace("__", "."): v for k, v in changes.items()}})
    num = len(values)
    table = pa.table({"user": list(range(num)), "item": [1] * num, "t": [T] * num, "x": values})
    pq.write_table(table, folder / "data/events.parquet")
    counts = ingest_day(scenario, DS, folder / "out")
    rows = {row["user"]: row["x"] for row in pq.read_table(folder / "out/events.parquet").to_pylist()}
    return [rows.get(i) for i in range(num)], counts


def _changes(column: dict[str, Any]) -> dict[str, Any]:
    return {
        "data.events.path": "events.parquet",
        "data.events.format": "parquet",
        "data.events.columns": {"user": {"type": "int"}, "item": {"type": "int"}, "t": {"type": "int"}, "x": column},
        "labels.like": "user >= 1",
    }


def refusal(folder: Path, values: Any, column: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        land(folder, values, column, **changes)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert not (folder / "out/events.parquet").exists()
    return str(caught.value)


# Fault 1: integers that floats have rounded.

ROUNDED = [
    pa.array([1.0, float(BIG), None]),
    pa.array([1.0, -float(2**53), None]),
    pa.array([1.0, 2.0**63, None]),
    pa.array([1.0, 2.0**24, None], pa.float32()),
    pa.array(np.array([1, 2050, 3], np.float16)),
    pa.array([Decimal(1), Decimal(BIG), None], pa.decimal256(50, 0)),  # DuckDB reads so many digits as a float
]


@pytest.mark.parametrize("values", ROUNDED, ids=[str(v.type) for v in ROUNDED])
@pytest.mark.parametrize("kind", ["int", "string"])
def test_fault_1_a_float_that_may_have_merged_ids_refuses_the_day(tmp_path: Path, values: pa.Array, kind: str) -> None:
    """For any allowed share of malformed rows, as the rows beside it look good."""
    message = refusal(tmp_path, values, {"type": kind}, ingest__max_quarantined_share=1.0)
    assert f"{tmp_path}/data/events.parquet: row 2: x: '" in message and EXACT_WORD in message
    assert "Write the column as 64-bit integers" in message and "data.events.columns.x" in message


def test_fault_1_a_list_of_rounded_ids_refuses_the_day(tmp_path: Path) -> None:
    values = pa.array([[1.0], [2.0, float(BIG)]])
    assert "row 2: x: " in refusal(tmp_path, values, {"type": "list[int]"})


def test_fault_1_a_list_of_ids_of_16_bits_refuses_the_day(tmp_path: Path) -> None:
    values = pa.array([np.array([1], np.float16), np.array([2, 2050], np.float16)], pa.list_(pa.float16()))
    assert "row 2: x: " in refusal(tmp_path, values, {"type": "list[int]"})
    assert land(tmp_path / "floats", values, {"type": "list[float]"})[0] == [[1.0], [2.0, 2050.0]]


def test_fault_1_an_entity_with_rounded_keys_refuses_the_day(tmp_path: Path) -> None:
    entity = {"path": "u.parquet", "format": "parquet", "key": "user", "columns": {"user": {"type": "int"}}}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"user": [1.0, 2.0**60]}), tmp_path / "data/u.parquet")
    with pytest.raises(BadInputError, match=r"u\.parquet: row 2: user: .*data\.entities\.u\.columns\.user"):
        land(tmp_path, [1], {"type": "int"}, data__entities={"u": entity})


def test_fault_1_text_that_a_float_wrote_refuses_the_day_and_exact_text_does_not(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path)
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", f"1.0,2.0,3,{T}", f"{BIG}.0,2.0,3,{T}"])
    with pytest.raises(BadInputError, match=rf"events\.csv: row 2: user: '{BIG}\.0' {EXACT_WORD}"):
        ingest_day(scenario, DS, tmp_path / "out")
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", *(f"{i},2.0,3,{T}" for i in (BIG, BIG - 1, 7))])
    ingest_day(scenario, DS, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/events.parquet")["user"].to_pylist() == [BIG, BIG - 1, 7]


@pytest.mark.parametrize("kind", ["int", "string", "list[int]", "list[string]"])
@pytest.mark.parametrize("number", [f"{BIG}.0", "1e17"])
def test_fault_1_a_number_of_json_that_a_float_wrote_refuses_the_day(tmp_path: Path, kind: str, number: str) -> None:
    column = {
        "data.events.path": "events.jsonl",
        "data.events.format": "jsonl",
        "data.events.columns.x": {"type": kind},
    }
    good, texts = {"int": ("7", str(BIG)), "string": ('"7.5e20"', str(2**70))}.get(kind, ("[7]", f"[{BIG}]"))
    line = '{"user":1,"item":1,"rating":3,"t":%d,"x":%s}'
    lines = [line % (T, good), line % (T, texts), line % (T, f"[{number}]" if kind.startswith("list") else number)]
    write_lines(tmp_path / "data/events.jsonl", lines)
    with pytest.raises(BadInputError, match=rf"events\.jsonl: row 3: x: .* {EXACT_WORD}"):
        ingest_day(scenario_in(tmp_path, column), DS, tmp_path / "out")
    write_lines(tmp_path / "data/events.jsonl", lines[:2])
    assert ingest_day(scenario_in(tmp_path, column), DS, tmp_path / "out")["rows"] == 2


@pytest.mark.parametrize(
    ("kind", "cell"), [("int", "1e+17"), ("int", "9.1E15"), ("list[int]", f"1 {BIG}.0"), ("list[int]", "2e16")]
)
def test_fault_1_text_of_a_float_with_an_exponent_or_in_a_list_refuses_the_day(
    tmp_path: Path, kind: str, cell: str
) -> None:
    scenario = scenario_in(tmp_path, {"data.events.columns.x": {"type": kind, "separator": " "}})
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t,x", f"1,2,3,{T},1", f"1,2,3,{T},{cell}"])
    with pytest.raises(BadInputError, match=rf"events\.csv: row 2: x: '{re.escape(cell)}' {EXACT_WORD}"):
        ingest_day(scenario, DS, tmp_path / "out")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(2**53 - 3, 2**53 + 3), min_size=1, max_size=6))
def test_fault_1_ids_are_exact_or_refused(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    assert land(folder, pa.array([*ids, None], pa.int64()), {"type": "int"})[0] == [*ids, None]
    floats = pa.array([*map(float, ids), None], pa.float64())
    if all(abs(i) < 2**53 for i in ids):
        assert land(folder, floats, {"type": "int"})[0] == [*ids, None]
    else:
        (folder / "out/events.parquet").unlink()
        assert EXACT_WORD in refusal(folder, floats, {"type": "int"})


def test_a_float_that_is_not_an_id_may_be_as_large_as_it_likes(tmp_path: Path) -> None:
    assert land(tmp_path, pa.array([1e300, 2.0**60]), {"type": "float"})[0] == [1e300, 2.0**60]


def test_an_integer_beyond_64_bits_is_refused_by_name(tmp_path: Path) -> None:
    values = pa.array([1, 2**64 - 1], pa.uint64())
    message = refusal(tmp_path, values, {"type": "int"}, ingest__max_quarantined_share=0.0)
    assert f"events.parquet: 1 of the 2 rows of {DS} are quarantined" in message
    assert f"x: '{2**64 - 1}' is not an int (row 2" in message
    assert land(tmp_path, values, {"type": "string"})[0] == ["1", str(2**64 - 1)]


# Fault 6.


def test_fault_6_nan_is_null_and_inf_is_malformed(tmp_path: Path) -> None:
    for kind in (pa.float64(), pa.float32(), pa.float16()):
        values = _floats(kind, 1.5, math.nan, math.inf, -math.inf)
        found, counts = land(tmp_path, values, {"type": "float"})
        assert found[:2] == [1.5, None] and counts["rows"] == 2
        assert counts["reasons"] == {"x: ... is not a float": 2}
    assert land(tmp_path, pa.array([math.nan, 3.0]), {"type": "int"})[0] == [None, 3]


def _floats(kind: pa.DataType, *values: float) -> pa.Array:
    return pa.array(np.array(values)).cast(pa.float32()).cast(kind)


@pytest.mark.parametrize("declared", ["float", "int", "bool", "string", "time", "list[int]"])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_fault_6_nan_is_null_where_every_other_value_is_finite(tmp_path: Path, declared: str, bits: int) -> None:
    # The file's minimum and maximum are finite here, and DuckDB would conclude from them that no value is NaN.
    floats = pa.array(np.array([1.0, math.nan, 0.0], f"float{bits}"), from_pandas=False)
    assert floats.null_count == 0
    column = {"type": declared, "unit": "s"} if declared == "time" else {"type": declared}
    expected: dict[str, list[Any]] = {
        "bool": [True, None, False],
        "string": ["1.0", None, "0.0"],
        "time": [US, None, 0],
        "list[int]": [[1], [], [0]],
    }
    if declared.startswith("list"):
        floats = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), floats)
    found, counts = land(tmp_path, floats, column)
    assert found == expected.get(declared, [1, None, 0]) and counts["quarantined"] == 0


def test_fault_6_inf_is_judged_alike_by_check_and_in_text(tmp_path: Path) -> None:
    from feature_jobs.checks.data import check_data

    scenario = scenario_in(tmp_path)
    write_lines(tmp_path / "data/events.csv", ["user,item,rating,t", f"1,1,inf,{T}", f"2,1,nan,{T}", f"3,1,4,{T}"])
    assert ingest_day(scenario, DS, tmp_path / "out")["quarantined"] == 1
    assert check_data(scenario)[1]["malformed"] == {"events": {"rating: 'inf' is not a float": 1}}


def test_fault_6_null_elements_are_dropped_and_counted(tmp_path: Path) -> None:
    values = pa.array([[1, None, 2], [None], [], None])
    found, counts = land(tmp_path, values, {"type": "list[int]"})
    assert found == [[1, 2], [], [], None] and counts["null_elements"] == 2 and counts["rows"] == 4
    texts = pa.array([["a", None], ["b"]])
    found, counts = land(tmp_path, texts, {"type": "list[string]"})
    assert found == [["a"], ["b"]] and counts["null_elements"] == 1
    found, counts = land(tmp_path, pa.array([[1.0, math.nan], [2.5]]), {"type": "list[int]"})
    assert found == [[1], None] and counts["null_elements"] == 1 and counts["quarantined"] == 1
    assert "null_elements" not in land(tmp_path, pa.array([[1], [2]]), {"type": "list[int]"})[1]


@pytest.mark.parametrize("kind", ["int", "float", "string", "bool", "time", "list[int]", "list[string]"])
def test_fault_6_a_column_without_any_value_reads_as_nulls(tmp_path: Path, kind: str) -> None:
    found, counts = land(tmp_path, pa.nulls(2), {"type": kind})
    assert found == [None, None] and counts["rows"] == 2
    if kind.startswith("list"):
        found, counts = land(tmp_path, pa.array([[None], []], pa.list_(pa.null())), {"type": kind})
        assert found == [[], []] and counts["null_elements"] == 1


D = Decimal
READ: list[tuple[pa.Array, str, list[Any]]] = [
    (pa.array(["a", "b"], pa.string_view()), "string", ["a", "b"]),
    (pa.array(["a", "b"], pa.large_string()), "string", ["a", "b"]),
    (pa.array(["a", None]).dictionary_encode(), "string", ["a", None]),
    (pa.array(["7", "8"], pa.string_view()), "int", [7, 8]),
    (pa.array([BIG, 6]).dictionary_encode(), "int", [BIG, 6]),
    (pa.array([[BIG], [2]], pa.large_list(pa.int64())), "list[int]", [[BIG], [2]]),
    (pa.array([[1], None], pa.list_view(pa.int64())), "list[int]", [[1], None]),
    (pa.array([[1], [2]], pa.large_list_view(pa.int32())), "list[int]", [[1], [2]]),
    (pa.array([[1, 2], [2, 3]], pa.list_(pa.int64(), 2)), "list[int]", [[1, 2], [2, 3]]),
    (pa.array([["a"], ["b"]], pa.list_(pa.string_view())), "list[string]", [["a"], ["b"]]),
    (pa.array([["a"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))), "list[string]", [["a"]]),
    (pa.array([[D(5)], [D(6)]], pa.list_(pa.decimal128(5, 0))), "list[int]", [[5], [6]]),
    (pa.array([D(1), D(2)], pa.decimal32(7, 0)), "int", [1, 2]),
    (pa.array([D(1), D(BIG)], pa.decimal64(17, 0)), "int", [1, BIG]),
    (pa.array([D(BIG), D("2.00")], pa.decimal128(30, 2)), "int", [BIG, 2]),
    (pa.array([D("1.25"), D("2.5")], pa.decimal128(30, 2)), "float", [1.25, 2.5]),
    (pa.array([D(5), D(6)], pa.decimal256(50, 0)), "int", [5, 6]),
    (pa.array([D("5.5"), D(6)], pa.decimal256(30, 1)), "float", [5.5, 6.0]),
    (pa.array(np.array([1.5, 2], np.float16)), "float", [1.5, 2.0]),
    (pa.array([True, None]), "bool", [True, None]),
    (pa.array([True, None]), "int", [1, None]),
    (pa.array([1, 2**63 - 1], pa.uint64()), "int", [1, 2**63 - 1]),
    (pa.array([b"a", "é".encode()], pa.binary()), "string", ["a", "é"]),
    (pa.array([b"a", b"b"], pa.binary_view()), "string", ["a", "b"]),
    (pa.array([b"ab", b"cd"], pa.binary(2)), "string", ["ab", "cd"]),
    (
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}', '"b"', "null"])),
        "string",
        ['{"a":1}', "b", None],
    ),
    (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['["a",1]'])), "list[string]", [["a", "1"]]),
    (pa.array([b"a" * 16], pa.uuid()), "string", ["61616161-6161-6161-6161-616161616161"]),
    (pa.array([datetime.time(1, 2, 3)], pa.time32("s")), "string", ["01:02:03"]),
    (pa.array([datetime.time(1, 2, 3)], pa.time64("us")), "string", ["01:02:03"]),
    (pa.array([datetime.date(2020, 1, 2)], pa.date32()), "string", ["2020-01-02"]),
    # In microseconds, as times are.
    (pa.array([5, None], pa.duration("s")), "int", [5 * US, None]),
    (pa.array([5, -1500], pa.duration("ms")), "float", [5e3, -1.5 * US]),
    (pa.array([BIG], pa.duration("us")), "string", [str(BIG)]),
    (pa.array([1999, -1], pa.duration("ns")), "int", [1, -1]),
    (pa.array([[5], [6, None]], pa.list_(pa.duration("ms"))), "list[int]", [[5000], [6000]]),
    # As JSON lines have them.
    (pa.array([{"a": 1, "b": 'say "x"'}, None]), "string", ['{"a":1,"b":"say \\"x\\""}', None]),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "string", ['{"k":1}']),
    (pa.array([[{"a": 1}], []]), "list[string]", [['{"a":1}'], []]),
    (pa.array([[[1, 2], [3]]]), "list[string]", [["[1,2]", "[3]"]]),
]


@pytest.mark.parametrize(("values", "kind", "expected"), READ, ids=[f"{v.type} as {k}" for v, k, _ in READ])
def test_fault_6_arrow_types_read(tmp_path: Path, values: pa.Array, kind: str, expected: list[Any]) -> None:
    found, counts = land(tmp_path, values, {"type": kind})
    assert found == expected and counts["quarantined"] == 0


def test_fault_6_bytes_that_are_not_text_are_malformed_and_a_moment_is_not_a_number(tmp_path: Path) -> None:
    found, counts = land(tmp_path, pa.array([b"a", b"\xff"]), {"type": "string"})
    assert found == ["a", None] and counts["reasons"] == {"x: ... is not a string": 1}
    stamps = pa.array([datetime.datetime(2020, 1, 1)], pa.timestamp("us"))
    message = refusal(tmp_path / "time", stamps, {"type": "int"})
    assert "column 'x' is TIMESTAMP, which does not read as int" in message and "declare it as time" in message
    message = refusal(tmp_path / "duration", pa.array([5], pa.duration("ms")), {"type": "time", "unit": "s"})
    assert "column 'x' is DURATION(ms), which does not read as time" in message and "declare it as int" in message
    message = refusal(tmp_path / "struct", pa.array([{"a": 1}]), {"type": "int"})
    assert "column 'x' is STRUCT" in message and "declare it as string" in message


# Fault 7: times.

MOMENT = datetime.datetime(2024, 3, 31, 1, 30, 15, 123_456)
ZONE = "Europe/Berlin"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Shanghai"])
def test_fault_7_timestamps_of_parquet_are_times(tmp_path: Path, unit: str, zone: str | None) -> None:
    """With a zone they are moments, in any zone; without, the clock of the scenario's zone showed them."""
    factor = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[unit]
    us = (MOMENT - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1) // factor * factor
    raw = us * 1000 + 999 if unit == "ns" else us // factor
    values = pa.array([raw, None], pa.int64()).cast(pa.timestamp(unit, zone))
    time = {"column": "t", "unit": "s", "zone": ZONE}
    found, _ = land(tmp_path, values, {"type": "time"}, data__events__time=time)
    local = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=us)
    expected = us if zone else int(local.replace(microsecond=0, tzinfo=ZoneInfo(ZONE)).timestamp()) * US + us % US
    assert found == [expected, None]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_fault_7_a_date_is_its_midnight(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([datetime.date(2024, 7, 1), None]).cast(kind)
    time = {"column": "t", "zone": ZONE}
    found, _ = land(tmp_path, values, {"type": "time"}, data__events__time=time)
    assert found == [int(datetime.datetime(2024, 7, 1, tzinfo=ZoneInfo(ZONE)).timestamp()) * US, None]


TEXT: list[tuple[dict[str, str], str, int | str | None]] = [
    ({}, "1970-01-02T00:00:10", T * US),
    ({}, " 1970-01-02 00:00:10.5Z ", T * US + 500_000),
    ({}, "1970-01-02T02:00:10+02:00", T * US),
    ({}, "1970-01-02", DAY_S * US),
    ({}, "", None),
    ({}, "soon", "x: 'soon' is not a time"),
    ({}, "infinity", "x: 'infinity' is not a time"),
    ({"unit": "s"}, f"{T}", T * US),
    ({"unit": "s"}, f"{T}.25", T * US + 250_000),
    ({"unit": "ms"}, f"{T * 1000 + 7}", T * US + 7000),
    ({"unit": "us"}, f"{2**53 + 1}", 2**53 + 1),
    ({"unit": "ns"}, f"{T * US * 1000 + 1999}", T * US + 1),
    ({"unit": "s"}, "soon", "x: 'soon' is not a time"),
    ({"unit": "s"}, "NaN", None),
    ({"date_format": "%d/%m/%Y %H:%M"}, "2/1/1970 00:01", (DAY_S + 60) * US),
    ({"date_format": "%d/%m/%Y %H:%M"}, "1970-01-02", "x: '1970-01-02' is not a time"),
]


@pytest.mark.parametrize(("column", "text", "expected"), TEXT)
def test_fault_7_times_in_text(tmp_path: Path, column: dict[str, str], text: str, expected: int | str | None) -> None:
    if isinstance(expected, str):
        with pytest.raises(BadInputError, match=f"no events on {DS}"):
            land(tmp_path, pa.array([text]), {"type": "time", **column})
        found, counts = land(tmp_path, pa.array([text, None]), {"type": "time", **column})
        assert found == [None, None] and counts["quarantined"] == 1
        reason = pq.read_table(tmp_path / "out/quarantine.parquet")["reason"].to_pylist()
        assert reason == [expected]
    else:
        assert land(tmp_path, pa.array([text]), {"type": "time", **column})[0] == [expected]


def test_fault_7_numbers_need_a_unit(tmp_path: Path) -> None:
    message = refusal(tmp_path, pa.array([5]), {"type": "time"})
    assert "column 'x' is BIGINT, a time in numbers" in message and "add its unit: s, ms, us or ns" in message
    assert land(tmp_path, pa.array([5]), {"type": "time", "unit": "ms"})[0] == [5000]
    digits = pa.array([1970010203, None], pa.int64())
    assert land(tmp_path, digits, {"type": "time", "date_format": "%Y%m%d%H"})[0] == [(DAY_S + 3 * 3600) * US, None]
    assert land(tmp_path, pa.array([5.5, math.nan]), {"type": "time", "unit": "s"})[0] == [5_500_000, None]
    decimals = pa.array([D(BIG * 1000 + 999), None], pa.decimal128(30, 1))
    assert land(tmp_path, decimals, {"type": "time", "unit": "ns"})[0] == [BIG, None]
    assert "min and max are for numbers" in refusal(tmp_path / "x", pa.array(["5"]), {"type": "time", "min": 1})


def test_fault_7_the_time_of_events_may_be_a_time(tmp_path: Path) -> None:
    changes = {
        "data.events.path": "events.parquet",
        "data.events.format": "parquet",
        "data.events.time": {"column": "t", "zone": "Asia/Shanghai"},
        "data.events.columns.t": {"type": "time"},
    }
    scenario = scenario_in(tmp_path, changes)
    clock = pa.array([datetime.datetime(1970, 1, 2, 0, 0, 10), datetime.datetime(1970, 1, 1, 23)], pa.timestamp("ms"))
    table = pa.table({"user": [1, 2], "item": [1, 1], "rating": [3.0, 3.0], "t": clock})
    pq.write_table(table, tmp_path / "data/events.parquet")
    ingest_day(scenario, DS, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    moment = (T - 8 * 3600) * US
    assert [(row["user"], row["t"], row["key.event_time"]) for row in rows] == [(1, moment, moment)]
    changes["data.events.time"] = {"column": "t", "unit": "ms"}
    with pytest.raises(
        BadInputError, match=r"data\.events\.time\.unit: 'ms': .*move it to data\.events\.columns\.t\.unit"
    ):
        ingest_day(scenario_in(tmp_path, changes), DS, tmp_path / "out")
