"""The rows that a source sends for a day: equal ones by each form of the condition, and all that may be of the day."""

from __future__ import annotations

import datetime
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.expressions.visitors import bind
from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids, expression_to_pyarrow
from pyiceberg.schema import assign_fresh_schema_ids

from feature_jobs.schema import Column, Time
from feature_jobs.sources.bounds import bounds_of
from feature_jobs.sources.casts import Cell
from feature_jobs.sources.readers import delta, iceberg

DAY_US = 86_400_000_000
UNITS = {"s": 10**6, "ms": 10**3, "us": 1}
NUMBERS = {"INTEGER": pa.int32(), "BIGINT": pa.int64()}
MOMENTS = {
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
    "DATE": pa.date32(),
}
ZONES = ("UTC", "Asia/Shanghai", "America/New_York")


def kept(values: list[Any], raw_type: str, column: Column, window: tuple[int, int], zone: str) -> list[Any]:
    """The values that the three forms of the condition keep, which must be the same ones."""
    cells = pa.array(values, {**NUMBERS, **MOMENTS}[raw_type])
    table = pa.table({"n": pa.array(range(len(values)), pa.int64()), "t": cells})
    bounds = bounds_of(window, Cell("t", column, raw_type), Time(column="t"), zone)
    assert bounds
    rows = duckdb.from_arrow(table).filter(bounds.sql("t")).fetchall()
    by_sql = sorted(row[0] for row in rows)
    by_delta = table.filter(delta._condition(bounds, table.schema.field("t").type))["n"].to_pylist()
    schema = assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(table.schema))
    bound = bind(schema, iceberg._condition(bounds), case_sensitive=True)
    by_iceberg = table.filter(expression_to_pyarrow(bound))["n"].to_pylist()
    assert by_sql == by_delta == by_iceberg
    return [values[n] for n in by_sql]


near = st.integers(-2 * DAY_US, 2 * DAY_US)
days = st.integers(0, 20_000)


@pytest.mark.parametrize("raw_type", NUMBERS)
@settings(max_examples=30)
@given(st.data(), days, st.sampled_from(sorted(UNITS)))
def test_numbers(raw_type: str, data: st.DataObject, day: int, unit: str) -> None:
    most = 2 ** (31 if raw_type == "INTEGER" else 63) - 1
    start, per = day * DAY_US, UNITS[unit]
    around = near.map(lambda offset: max(-most, min(most, (start + offset) // per)))
    ends = [min(most, at // per) + by for at in (start, start + DAY_US) for by in (-1, 0)]
    edges = st.sampled_from([None, most, -most, 0, *ends])
    values = data.draw(st.lists(around | edges | st.integers(-most, most), max_size=30))
    found = kept(values, raw_type, Column(type="time", unit=unit), (start, start + DAY_US), "UTC")
    largest = (2**63 - 1) // per
    wanted = [v for v in values if v is None or start <= v * per < start + DAY_US or abs(v) > largest]
    assert found == wanted


@pytest.mark.parametrize("raw_type", MOMENTS)
@settings(max_examples=30)
@given(st.data(), days, st.sampled_from(ZONES))
def test_moments(raw_type: str, data: st.DataObject, day: int, zone: str) -> None:
    start = day * DAY_US
    zoned = raw_type == "TIMESTAMP WITH TIME ZONE"

    def moment(at_us: int) -> Any:
        at = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=at_us)
        return at.date() if raw_type == "DATE" else at if zoned else at.replace(tzinfo=None)

    strange = st.sampled_from([-(2**55), 2**56, start - 1, start, start + DAY_US - 1, start + DAY_US])
    values = data.draw(st.lists(st.none() | (near.map(lambda offset: start + offset) | strange).map(moment)))
    found = kept(values, raw_type, Column(type="time"), (start, start + DAY_US), zone)
    connection = duckdb.connect(config={"threads": 1})
    connection.execute(f"SET TimeZone = '{zone}'")
    connection.register("cells", pa.table({"t": pa.array(values, MOMENTS[raw_type])}))
    at_us = "epoch_us(CAST(t AS TIMESTAMPTZ))"
    own = connection.execute(
        f"SELECT t FROM cells WHERE t IS NULL OR ({at_us} >= {start} AND {at_us} < {start + DAY_US})"
    ).fetchall()
    missing = [row[0] for row in own if row[0] not in found]
    assert not missing
    margin_us = DAY_US  # of dates and of zones
    far = [v for v in found if v is not None and zoned and not start - margin_us < _us(v) < start + 2 * margin_us]
    assert all(v.year < 1970 or v.year >= 2200 for v in far)


def _us(at: datetime.datetime) -> int:
    return (at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
