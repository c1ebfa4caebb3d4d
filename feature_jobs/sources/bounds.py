"""Bounds of the raw values that the times of a day can have, so that a scan passes over the rest of a file or table."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from feature_jobs.expressions.compiler import literal
from feature_jobs.schema.data import Moment
from feature_jobs.sources.casts import MOST, US_PER, Cell

_WIDEST_OFFSET_US = 16 * 3_600_000_000  # no zone has ever been further from UTC


@dataclass(frozen=True)
class Bounds:
    """Raw values that a time within a window can have: null, from `low` to `high`, and those below `least` or above
    `most`, which may not read as a time. Both ends of each range belong to it, but for `least` and `most`.

    Numbers, or moments: with a zone where the column has one. `raw_type` is DuckDB's type of the column `name`.
    """

    name: str
    raw_type: str
    low: int | datetime.datetime
    high: int | datetime.datetime
    least: int | datetime.datetime
    most: int | datetime.datetime

    def sql(self, raw: str, moment: Callable[[datetime.datetime, str], str] | None = None) -> str:
        """SQL of the condition, for DuckDB and for Postgres; for another one `moment` gives the literals of moments, by
        the moment and `raw_type`."""
        moment = moment or _cast_moment
        low, high, least, most = (
            str(value) if isinstance(value, int) else moment(value, self.raw_type)
            for value in (self.low, self.high, self.least, self.most)
        )
        return f"({raw} IS NULL OR ({raw} >= {low} AND {raw} <= {high}) OR {raw} < {least} OR {raw} > {most})"


def _cast_moment(value: datetime.datetime, raw_type: str) -> str:
    return f"CAST({literal(f'{value:%Y-%m-%d %H:%M:%S}' + ('Z' if value.tzinfo else ''))} AS {raw_type})"


def bounds_of(window: tuple[int, int], cell: Cell, time: Moment, zone: str) -> Bounds | None:
    """The bounds of the rows whose time lies in the window (µs), and of those whose time does not read. By them, a scan
    passes over row groups of a Parquet file that hold neither, and a database over its rows.

    Text and floats have none: text is not ordered as its times are, and statistics leave NaN out.
    """
    column, (start, end) = cell.column, window
    unit = column.unit if column.type == "time" else time.unit
    if cell.kind == "moment" and (column.type == "time" or (column.type == "string" and unit == "iso")):
        return _bounds_of_moments(window, cell, zone)
    if cell.kind != "int" or column.type not in ("int", "time") or unit == "iso":
        return None
    if unit == "ns":
        low, high, most = start * 1000, end * 1000, MOST
    else:
        per = US_PER[unit]
        low, high, most = -(-start // per), -(-end // per), MOST // per
    # A number beyond `most` is not a time in microseconds: such a row stays, for its reason.
    return Bounds(cell.source, cell.raw_type, max(low, -MOST), min(high - 1, MOST), -most, most)


def _bounds_of_moments(window: tuple[int, int], cell: Cell, zone: str) -> Bounds:
    """`bounds_of` for dates and timestamps. Nearly all of other days lie outside, but not each one."""
    has_zone = cell.raw_type in ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS")
    margin_us = US_PER["s"] if has_zone or zone == "UTC" else _WIDEST_OFFSET_US
    # Rows of strange years stay: infinity, and what a zone's history or a cast may not read.
    least, most = (int(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp()) for year in (1970, 2200))

    def bound(at_s: int) -> datetime.datetime:
        at = datetime.datetime.fromtimestamp(min(max(at_s, least), most), datetime.UTC)
        return at if has_zone else at.replace(tzinfo=None)

    low, high = (window[0] - margin_us) // US_PER["s"], (window[1] + margin_us) // US_PER["s"]
    return Bounds(cell.source, cell.raw_type, bound(low), bound(high), bound(least), bound(most))
