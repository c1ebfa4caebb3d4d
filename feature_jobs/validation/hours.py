"""Shifted time: a day whose events lie as on the days before it, but some hours later or earlier.

A change of the time zone, or of summer time, moves all times of a log by whole hours. No row is malformed then, but
each window of the day is. What shows it is the count of events by hour of the day, which is much the same each day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_start
from feature_jobs.sources.output_files import log_file

Hours = list[int]
"""Events by hour of the day, of 24 hours from its start."""

MIN_DAYS = 3
MIN_ROWS = 500  # by chance alone two days of n events lie sqrt(24 / n) apart, or so
_Shares = npt.NDArray[np.float64]
_HOUR_US = 3_600_000_000


def hours_of_logs(scenario: Scenario, ds: str, events: Path) -> dict[str, Hours]:
    """The hours at which the events of a day and the rows of its further logs happened, by the log's name; the events
    have the name "". `events` is the folder that ingest wrote."""
    begin = day_start(scenario, ds)
    found = {}
    for name in ("", *scenario.data.logs):
        file = events / log_file(name or None)
        if file.exists():
            found[name] = _hours(file, begin)
    return found


def _hours(file: Path, begin: int) -> Hours:
    counts = np.zeros(24, np.int64)
    # With pre_buffer, iter_batches keeps all that it has read until the end.
    with pq.ParquetFile(file, pre_buffer=False) as parquet:
        arrives = "key.happened_at" in parquet.schema_arrow.names
        for batch in parquet.iter_batches(columns=["key.happened_at" if arrives else "key.event_time"]):
            times = batch.column(0).cast(pa.int64()).to_numpy()
            counts += np.bincount((times - begin) // _HOUR_US % 24, minlength=24)
    return [int(count) for count in counts]


def shifted_hours(today: Hours, past: Sequence[Hours]) -> int | None:
    """By how many hours the events of a day lie later than on the days before it, from -11 to 12: 0 where no shift
    explains them better. None where there are fewer than MIN_DAYS days of MIN_ROWS events.

    A shift is only believed where the day lies further from the days before it than any of these from the others, and
    the shift takes away more than half of that distance. The distance is the share of events at another hour (total
    variation).
    """
    days = [_shares(hours) for hours in past if sum(hours) >= MIN_ROWS]
    if len(days) < MIN_DAYS or sum(today) < MIN_ROWS:
        return None
    usual = np.mean(days, axis=0)
    widest = max(
        _distance(day, np.mean([other for at, other in enumerate(days) if at != number], axis=0))
        for number, day in enumerate(days)
    )
    own = _shares(today)
    # The smallest shift first: of two that fit equally well it is the likely one.
    distances = {hours: _distance_shifted(own, usual, hours) for hours in sorted(range(-11, 13), key=abs)}
    best = min(distances, key=distances.__getitem__)
    return best if distances[0] > widest and distances[best] < distances[0] / 2 else 0


def shifts(today: Mapping[str, Hours], past: Sequence[Mapping[str, Hours]]) -> dict[str, int | None]:
    """The shift of each log by its name."""
    return {name: shifted_hours(hours, [day[name] for day in past if name in day]) for name, hours in today.items()}


def _shares(hours: Hours) -> _Shares:
    shares: _Shares = np.asarray(hours, np.float64) / sum(hours)
    return shares


def _distance_shifted(own: _Shares, usual: _Shares, hours: int) -> float:
    """The distance of a day from usual ones that are shifted. Its last hours are then those of the day before; on the
    first such day, or in a partition, they are missing."""
    moved = np.roll(usual, hours)
    begin, end = max(hours, 0), 24 + min(hours, 0)
    cut = np.where((np.arange(24) >= begin) & (np.arange(24) < end), moved, 0.0)
    return min(_distance(own, moved), _distance(own, cut / cut.sum()) if cut.any() else 1.0)


def _distance(one: _Shares, other: _Shares) -> float:
    return float(np.abs(one - other).sum() / 2)
