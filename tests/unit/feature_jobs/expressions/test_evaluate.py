"""The evaluator against DuckDB: random expressions over random columns, equal types and equal bytes."""

from __future__ import annotations

import datetime
import math
import struct
import subprocess
import sys
from collections.abc import Mapping
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import to_sql
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.types import type_of
from feature_jobs.expressions.vectors import Columns
from tests.unit.feature_jobs.expressions.grammar import ARROW, KINDS, Grammar, random_columns

# Where the two differ on purpose: DuckDB takes these of integers by way of floats, or of sums that may not fit, and it
# knows the hour of years after 9998.
INEXACT = ("floor", "bucket", "//", "%", "hour", "weekday")


def duckdb_answer(expression: str, columns: Mapping[str, pa.Array], zone: str) -> pa.Array:
    """The same expression as SQL; integers as int64."""
    names = {name: f"v{i}" for i, name in enumerate(columns)}
    sql = to_sql(expression, names.__getitem__, zone=zone, times={"t"})
    log = pa.table({names[name]: values for name, values in columns.items()})
    values = duckdb.from_arrow(log).project(f"{sql} AS x").to_arrow_table()["x"].combine_chunks()
    return values.cast(pa.int64()) if pa.types.is_integer(values.type) else values


def exact(values: pa.Array) -> list[Any]:
    """Values that are equal where their bytes are; each NaN counts as the same."""
    return [struct.pack("<d", v) if isinstance(v, float) and not math.isnan(v) else str(v) for v in values.to_pylist()]


@settings(max_examples=200)
@given(random=st.randoms(use_true_random=True), zone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]))
def test_equal_to_duckdb_to_the_last_bit(random: Random, zone: str) -> None:
    expression = Grammar(random).any()
    extreme = not any(word in expression for word in INEXACT) and random.random() < 0.5
    columns = random_columns(random, 20, extreme=extreme)
    try:
        expected = duckdb_answer(expression, columns, zone)
    except duckdb.OutOfRangeException:
        if extreme:
            with pytest.raises(BadInputError, match="does not fit 64 bits"):
                evaluate(expression, columns, zone=zone, times={"t"})
        return
    try:
        found = evaluate(expression, columns, zone=zone, times={"t"})
    except BadInputError:
        assert extreme and "coalesce" in expression  # DuckDB does not compute what coalesce does not need
        return
    assert found.type == expected.type
    assert exact(found) == exact(expected)
    kind = type_of(expression, KINDS.__getitem__)
    assert found.type == {"int": pa.int64(), "time": pa.int64(), "float": pa.float64()}.get(kind, found.type)


@settings(max_examples=300)
@given(random=st.randoms(use_true_random=True))
def test_a_column_of_one_value_is_computed_once_with_the_same_result(random: Random) -> None:
    expression = Grammar(random).any()
    columns, together = random_columns(random, 20, extreme=False), Columns({}, 20)
    for name, values in columns.items():
        single = values[:1] if random.random() < 0.5 else None
        columns[name] = values if single is None else pa.repeat(single[0], 20)
        together.add(name, columns[name] if single is None else single)

    def found(given: Columns | Mapping[str, pa.Array]) -> tuple[pa.DataType, list[Any]] | str:
        try:
            values = evaluate(expression, given, times={"t"})
        except BadInputError as error:
            return str(error)
        return values.type, exact(values)

    assert found(together) == found(columns)


BIG, NAN, INF = 2**53 + 1, float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expression", "row", "expected"),
    [
        # Integers are exact up to 64 bits.
        ("floor(a)", {"a": BIG}, BIG),
        ("bucket(a, 1)", {"a": BIG}, BIG),
        ("a // -1", {"a": 2**63 - 1}, -(2**63) + 1),
        ("a % -1", {"a": -(2**63)}, 0),
        ("a % 9223372036854775807", {"a": -1}, 2**63 - 2),
        ("a // b", {"a": -(2**63), "b": 2}, -(2**62)),
        ("a / 0", {"a": 1}, None),
        ("a // b", {"a": 1, "b": 0}, None),
        ("floor(x)", {"x": 1e19}, None),
        ("bucket(x, 2)", {"x": NAN}, None),
        # Floats: NaN is the largest number and equals itself.
        ("x == y", {"x": NAN, "y": NAN}, True),
        ("x > y", {"x": NAN, "y": INF}, True),
        ("min(x, y)", {"x": NAN, "y": 1.0}, 1.0),
        ("x * 10", {"x": 1e308}, INF),
        ("log1p(x)", {"x": -1.0}, None),
        # True and False beside numbers, numbers as conditions.
        ("f < x", {"f": True, "x": 1.5}, True),
        ("coalesce(f, a)", {"f": True, "a": 5}, 1),
        ("x and f", {"x": NAN, "f": True}, True),
        # None has a type of its own.
        ("None", {"a": 1}, None),
        ("min(a, None)", {"a": 1}, None),
        ("coalesce(None, s)", {"s": "a"}, "a"),
        ("None in s", {"s": "a"}, None),
        ("nums == coalesce(None, None)", {"nums": [1]}, None),
        ("coalesce(nums, None) is None", {"nums": [1]}, False),
        ("None in ['a']", {"a": 1}, None),
        ("lower(None) == s", {"s": "a"}, None),
        ("length(None) is None", {"a": 1}, True),
        ("1 is None", {"a": 1}, False),
        # A choice: an unknown condition does not hold.
        ("1 if f else 2.5", {"f": True}, 1.0),
        ("a if f else b", {"f": None, "a": 1, "b": 2}, 2),
        ("s if f else 'x'", {"f": True, "s": None}, None),
        ("s if f else 'x'", {"f": False, "s": "a"}, "x"),
        ("nums if f else None", {"f": True, "nums": [1]}, [1]),
        ("nums if length(nums) > 1 else nums", {"nums": None}, None),
        ("1 if a > 0 else -1 if a < 0 else 0", {"a": -7}, -1),
        ("exp(x)", {"x": 710.0}, INF),
        ("sqrt(x)", {"x": -0.0}, -0.0),
        ("sqrt(a)", {"a": -4}, None),
        ("sqrt(x)", {"x": NAN}, NAN),
        # Texts.
        ("starts_with(s, 'ab')", {"s": "abc"}, True),
        ("starts_with(s, r)", {"s": "abc", "r": "bc"}, False),
        ("contains(s, r)", {"s": "abc", "r": "bc"}, True),
        ("contains(s, '%')", {"s": "abc"}, False),
        ("contains(s, r)", {"s": "abc", "r": None}, None),
        ("matches(s, '^[a-c]+$')", {"s": "abc"}, True),
        ("matches(s, 'B')", {"s": "abc"}, False),
        ("matches(s, '(?i)B')", {"s": "abc"}, True),
        ("matches(s, 'a')", {"s": None}, None),
        # Times: beyond the calendar, and a difference of 65 bits.
        ("hour(t)", {"t": 2**62}, None),
        ("weekday(t)", {"t": -(2**63)}, None),
        ("t - event_time", {"t": -(2**63), "event_time": 2**63 - 1}, -(2**64) / 1e6),
        ("t + 18446744073709.54", {"t": -(2**63)}, int(18446744073709.54 * 1e6) - 2**63),
        ("t + x", {"t": 0, "x": NAN}, None),
    ],
)
def test_values_at_the_edges(expression: str, row: dict[str, Any], expected: Any) -> None:
    columns = {name: pa.array([value], ARROW[name]) for name, value in row.items()}
    assert exact(evaluate(expression, columns, times={"t"})) == exact(pa.array([expected]))


@pytest.mark.parametrize("expression", ["a + 1", "a * a", "-(0 - a - 1)", "abs(-a - 1)", "(-a - 1) // -1", "a - -5"])
def test_an_integer_beyond_64_bits_is_an_error_that_names_the_expression(expression: str) -> None:
    columns = {"a": pa.array([None, 3, 2**63 - 1])}
    with pytest.raises(BadInputError, match=r"expression '.*', position \d+: the result of .* does not fit 64 bits"):
        evaluate(expression, columns)
    assert evaluate(expression, {"a": columns["a"].slice(0, 2)})[0].as_py() is None


@settings(max_examples=40)
@given(
    zone=st.sampled_from(
        ["Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "Asia/Kolkata", "Africa/Monrovia"]
    ),
    start=st.datetimes(datetime.datetime(1850, 1, 1), datetime.datetime(2300, 1, 1)),
    step_s=st.integers(1, 10**7),
)
def test_hours_and_weekdays_follow_the_clock_of_the_zone(zone: str, start: datetime.datetime, step_s: int) -> None:
    moments = [start.replace(tzinfo=datetime.UTC) + datetime.timedelta(seconds=i * step_s) for i in range(100)]
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    times = {"event_time": pa.array([(m - epoch) // datetime.timedelta(microseconds=1) for m in moments])}
    local = [moment.astimezone(ZoneInfo(zone)) for moment in moments]
    assert evaluate("hour(event_time)", times, zone=zone).to_pylist() == [moment.hour for moment in local]
    assert evaluate("weekday(event_time)", times, zone=zone).to_pylist() == [moment.weekday() for moment in local]


def test_slices_empty_columns_and_null_lists_that_cover_values() -> None:
    random = Random(1)
    columns = random_columns(random, 50, extreme=False)
    for expression in ("a + 1", "f and a", "length(nums) + length(s)", "a in nums", "'a' in user.tags", "x", "nums"):
        whole = evaluate(expression, columns)
        part = evaluate(expression, {name: values.slice(13, 20) for name, values in columns.items()})
        assert exact(part) == exact(whole)[13:33]
        none = evaluate(expression, {name: values.slice(0, 0) for name, values in columns.items()})
        assert (none.type, len(none)) == (whole.type, 0)
    hidden = pa.ListArray.from_arrays(np.array([0, 2, 3], np.int32), pa.array([1, 2, 1]), mask=pa.array([True, False]))
    assert evaluate("1 in nums", {"nums": hidden}).to_pylist() == [None, True]
    assert evaluate("length(nums)", {"nums": hidden}).to_pylist() == [None, 1]


def test_chains_inside_one_another_are_computed_once() -> None:
    expression = "a"
    for _ in range(45):  # twice for each level would never end
        expression = f"(f == ({expression} < 2) == f)"
    assert evaluate(expression, {"a": pa.array([1, 5, None]), "f": pa.array([True] * 3)}).null_count == 1


def test_the_evaluator_needs_neither_duckdb_nor_pandas_nor_torch() -> None:
    code = """
import sys

class Refused:
    def find_spec(self, name, *_):
        if name in ("pandas", "duckdb", "torch"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refused())
import pyarrow as pa
from feature_jobs.expressions.evaluate import evaluate
columns = {"event_time": pa.array([0]), "s": pa.array(["ab"]), "nums": pa.array([[1]])}
print(evaluate("hour(event_time) == 1 and starts_with(s, 'a') and 1 in nums", columns, zone="Europe/Berlin"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "true" in done.stdout, done.stderr
