"""Times in microseconds since 1970 UTC: hours and weekdays in a zone, differences and sums, exact at every extreme."""

from __future__ import annotations

import datetime
import functools
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Known = npt.NDArray[np.bool_]

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# The years 2 to 9998: Python's calendar without its ends, where an offset of the zone would leave it.
_FIRST, _LAST = (int((datetime.datetime(y, 1, 1, tzinfo=datetime.UTC) - _EPOCH).total_seconds()) for y in (2, 9999))


def hour(times: Ints, zone: str) -> tuple[Ints, Known]:
    """Hour of the day in the zone, 0 to 23; unknown beyond the years 2 to 9998."""
    local, known = _local(times, zone)
    return local // (3600 * _SECOND) % 24, known


def weekday(times: Ints, zone: str) -> tuple[Ints, Known]:
    """Day of the week in the zone, Monday 0 to Sunday 6; unknown beyond the years 2 to 9998."""
    local, known = _local(times, zone)
    return (local // _DAY + 3) % 7, known


def _local(times: Ints, zone: str) -> tuple[Ints, Known]:
    known: Known = (times >= _FIRST * _SECOND) & (times < _LAST * _SECOND)
    times = np.where(known, times, 0)
    if zone != "UTC" and len(times):
        times = times + _offsets(times // _SECOND, zone) * _SECOND
    return times, known


def _offsets(seconds: Ints, zone: str) -> Ints:
    """Seconds to add for the clock of the zone."""
    days = seconds // 86_400
    if days.min() == days.max():
        offset = _offset_of_day(zone, int(days[0]))
        if offset is not None:
            return np.full(1, offset, np.int64)
    # A day that keeps its offset is looked up once; on the few others each second is.
    unique, place = np.unique(days, return_inverse=True)
    of_days = [_offset_of_day(zone, day) for day in unique.tolist()]
    offsets = np.array([offset or 0 for offset in of_days], np.int64)[place]
    changing = np.array([offset is None for offset in of_days])[place]
    if changing.any():
        moments, place = np.unique(seconds[changing], return_inverse=True)
        offsets[changing] = np.array([_offset(zone, second) for second in moments.tolist()], np.int64)[place]
    return offsets


@functools.lru_cache(maxsize=100_000)
def _offset_of_day(zone: str, day: int) -> int | None:
    """The offset of a day in UTC, None where it changes within the day."""
    first, last = _offset(zone, day * 86_400), _offset(zone, (day + 1) * 86_400)
    return first if first == last else None


def _offset(zone: str, second: int) -> int:
    moment = _EPOCH + datetime.timedelta(seconds=second)
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset()
    return int((offset or datetime.timedelta()).total_seconds())


def seconds_between(later: Ints, earlier: Ints) -> npt.NDArray[np.float64]:
    """The difference in seconds, rounded once though it may need 65 bits."""
    # Two's complement: the difference of the larger and the smaller always fits unsigned 64 bits.
    high, low = np.maximum(later, earlier), np.minimum(later, earlier)
    size = (high.view(np.uint64) - low.view(np.uint64)).astype(np.float64)
    seconds: npt.NDArray[np.float64] = np.where(later < earlier, -size, size) / _SECOND
    return seconds


def moved(times: Ints, by_us: npt.NDArray[np.float64]) -> tuple[Ints, Known]:
    """Times plus whole microseconds, and where the sum fits 64 bits."""
    fits: Any = np.abs(by_us) < 2.0**64
    # In two halves, each of which fits 64 bits; above 2^53 a float is even, so no microsecond is lost.
    half = np.trunc(np.where(fits, by_us, 0) / 2)
    for part in (half, np.where(fits, by_us, 0) - half):
        step = part.astype(np.int64)
        total = times + step
        fits = fits & ((total >= times) == (step >= 0))
        times = total
    return times, fits
