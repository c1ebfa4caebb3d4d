"""Arithmetic and comparisons of times in expressions, against Python's datetime."""

from __future__ import annotations

import datetime
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import to_sql
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.types import type_of

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
US = datetime.timedelta(microseconds=1)
MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1), timezones=st.just(datetime.UTC))
ZONES = ["UTC", "Europe/Berlin", "Asia/Kolkata"]
TYPES = {"t": "time", "user.since": "time", "n": "int", "x": "float", "s": "string", "f": "bool", "l": "list[int]"}


def run(expression: str, zone: str = "UTC", **row: Any) -> Any:
    """The value; columns `t`, `since` (of user) and `event_time` are datetimes, others keep their type."""
    names = {"event_time": "event_time", "t": "t", "user.since": "since", "n": "n"}
    us = {name: (value - EPOCH) // US if isinstance(value, datetime.datetime) else value for name, value in row.items()}
    sql = to_sql(expression, names.__getitem__, zone=zone, times={"t", "user.since"})
    columns = ", ".join(f"${i}::{'DOUBLE' if name == 'n' else 'BIGINT'} AS {name}" for i, name in enumerate(us, 1))
    found = duckdb.execute(f"SELECT {sql} FROM (SELECT {columns})", list(us.values())).fetchall()[0][0]
    kinds = {name: pa.float64() if name == "n" else pa.int64() for name in us}
    arrays = {"user.since" if name == "since" else name: pa.array([us[name]], kinds[name]) for name in us}
    assert evaluate(expression, arrays, zone=zone, times={"t", "user.since"}).to_pylist() == [found]
    return found


@given(a=MOMENTS, b=MOMENTS)
def test_fault_7_a_difference_of_times_is_seconds(a: datetime.datetime, b: datetime.datetime) -> None:
    assert run("event_time - user.since", event_time=a, since=b) == (a - b) / datetime.timedelta(seconds=1)


@given(a=MOMENTS, seconds=st.integers(-(10**9), 10**9), parts=st.integers(0, 7))
def test_fault_7_a_time_plus_seconds_is_a_time(a: datetime.datetime, seconds: int, parts: int) -> None:
    n = seconds + parts / 8
    later = (a + datetime.timedelta(seconds=seconds, microseconds=125_000 * parts) - EPOCH) // US
    earlier = (a - datetime.timedelta(seconds=seconds, microseconds=125_000 * parts) - EPOCH) // US
    assert run("t + n", t=a, n=n) == run("n + t", t=a, n=n) == later
    assert run("t - n", t=a, n=n) == earlier
    assert run("(t + n) - t", t=a, n=n) == n


@given(a=MOMENTS, b=MOMENTS.map(lambda moment: moment.replace(microsecond=0)), zone=st.sampled_from(ZONES))
def test_fault_7_times_compare_with_times_and_texts(a: datetime.datetime, b: datetime.datetime, zone: str) -> None:
    local = b.astimezone(ZoneInfo(zone))
    for sign, expected in (("<", a < b), (">=", a >= b), ("==", a == b), ("!=", a != b)):
        assert run(f"t {sign} user.since", t=a, since=b) == expected
        assert run(f"t {sign} '{local.isoformat()}'", zone, t=a) == expected
        if not local.fold and local.astimezone(datetime.UTC) == b:
            assert run(f"t {sign} '{local.replace(tzinfo=None).isoformat(' ')}'", zone, t=a) == expected
    assert run(f"'{b.isoformat()}' <= t < '{(b + datetime.timedelta(1)).isoformat()}'", t=a) == (
        b <= a < b + datetime.timedelta(1)
    )


def test_fault_7_null_times_and_choices() -> None:
    a, b = EPOCH + datetime.timedelta(5), EPOCH + datetime.timedelta(7)
    assert run("event_time - t", event_time=a, t=None) is None
    assert run("event_time - coalesce(t, user.since)", event_time=b, t=None, since=a) == 2 * 86_400
    assert run("max(t, user.since) - min(t, user.since)", t=a, since=b) == 2 * 86_400
    assert run("t is None", t=None) is True
    assert run("hour(t + 3600)", "Asia/Kolkata", t=EPOCH) == 6
    assert run("weekday(t - 86400)", t=EPOCH) == 2
    assert run("t > '2024-01-01'", t=2**62) is True
    assert run("t - user.since", t=2**62, since=-(2**62)) == 2**63 / 1e6  # beyond 64 bits


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("event_time", "time"),
        ("event_time - user.since", "float"),
        ("t + 3600", "time"),
        ("3600 + t", "time"),
        ("t - x", "time"),
        ("(event_time - t) // 3600", "float"),
        ("bucket(event_time - t, 3600)", "int"),
        ("coalesce(t, user.since)", "time"),
        ("min(t, user.since, event_time)", "time"),
        ("t < user.since", "bool"),
        ("t >= '2024-01-01'", "bool"),
        ("'2024-01-01' <= t < '2024-02-01'", "bool"),
        ("t is None or t == None", "bool"),
        ("hour(t)", "int"),
        ("hour(n)", "int"),
        ("t - None", "time"),
    ],
)
def test_fault_7_types_of_times(expression: str, kind: str) -> None:
    assert type_of(expression, TYPES.__getitem__) == kind


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("t + user.since", "a time is added to a time; write - for the seconds"),
        ("t * 2", "arithmetic with a time; subtract another time from it"),
        ("t // 3600", "arithmetic with a time"),
        ("5 - t", "arithmetic with a time"),
        ("-t", "- with a time"),
        ("abs(t)", "abs with a time"),
        ("bucket(t, 3600)", "bucket with a time"),
        ("log1p(t)", "log1p with a time"),
        ("length(t)", "length of a time"),
        ("t + s", "a time plus with text"),
        ("t - f", "a time minus with a yes/no value"),
        ("t > 5", "a time is compared with a number; compare it with a time, or a text such as"),
        ("n == t", "a number is compared with a time"),
        ("t == s", "a time is compared with text"),
        ("t < 'soon'", "'soon' is not a time; write it as"),
        ("coalesce(t, n)", "a time is compared with a number"),
        ("max(n, t)", "a number is compared with a time"),
        ("t and f", "a time is not a condition"),
        ("t in l", "a time in a list[int]"),
        ("t in ['2024-01-01']", "a time is compared with text"),
    ],
)
def test_fault_7_what_a_time_does_not_do(expression: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        type_of(expression, TYPES.__getitem__)
    assert message in str(caught.value) and "position" in str(caught.value)
