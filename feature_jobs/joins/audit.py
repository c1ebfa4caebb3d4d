"""The audit of a join: no value may come from a source that is not older than its event."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from feature_jobs.errors import BadInputError
from feature_jobs.windows.keys import Ints
from feature_jobs.windows.operations import NEVER

NO_SOURCE = NEVER
"""Source time of a value that came from no earlier row."""


def audit_point_in_time(
    event_times: Ints,
    source_times: Mapping[str, Ints],
    *,
    place: str,
    delays_us: Mapping[str, int] | None = None,
    rows: Sequence[int] | Ints | None = None,
) -> dict[str, int | None]:
    """Checks that every value comes from strictly before its event, independently of the code that computed it.

    `source_times`: feature or entity → newest source time behind each row's value (µs; NO_SOURCE: none). `delays_us`:
    least age of the source at the event's time. `rows`: the numbers of the events, where these are not all of the day.
    Returns the smallest distance of each in µs, None where no row has a source. Raises BadInputError naming feature,
    row and times.
    """
    gaps: dict[str, int | None] = {}
    for name, sources in source_times.items():
        some = np.flatnonzero(sources != NO_SOURCE)
        gap = event_times[some] - sources[some]
        # At least a microsecond: a source at the time of its event was not known before it.
        least = max((delays_us or {}).get(name, 0), 1)
        if len(gap) and gap.min() < least:
            at = int(some[int(np.argmax(gap < least))])
            row = at if rows is None else int(rows[at])
            wait = f", or not {least / 1e6:g} s old" if least > 1 else ""
            raise BadInputError(
                f"{place} {name}: row {row}: uses a value known at {_utc(sources[at])}, which is not before{wait} at "
                f"the event of {_utc(event_times[at])}; nothing was written. Check the times of its source"
            )
        gaps[name] = int(gap.min()) if len(gap) else None
    return gaps


def smallest_gaps(found: Iterable[Mapping[str, int | None]]) -> dict[str, int | None]:
    """The smallest gap of each feature or entity in several parts of the rows."""
    smallest: dict[str, int | None] = {}
    for gaps in found:
        for name, gap in gaps.items():
            known = [one for one in (smallest.get(name), gap) if one is not None]
            smallest[name] = min(known, default=None)
    return smallest


class EntitiesSeen:
    """The rows of entities that a day's events have looked at, some events after the other."""

    def __init__(self, num_events: int) -> None:
        self._all = range(num_events)
        self._hits: dict[str, dict[range, int]] = defaultdict(dict)
        self._gaps: list[Mapping[str, int | None]] = []

    def add(self, events: range, num_hits: Mapping[str, int], gaps: Mapping[str, int | None]) -> None:
        """Adds how many of some events see a row of each entity, and the smallest gaps of those with time."""
        self._gaps.append(gaps)
        for name, num in num_hits.items():
            # Not a sum: the same events may look at an entity more than once.
            self._hits[name][events] = num

    def num_hits(self) -> dict[str, int]:
        """For each entity that was looked at: the number of events that see a row of it."""
        return {name: found.get(self._all, sum(found.values())) for name, found in self._hits.items()}

    def smallest_gaps(self) -> dict[str, int | None]:
        """The smallest gap of each entity with time."""
        return smallest_gaps(self._gaps)


def _utc(time_us: np.int64) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(time_us))
    return f"{moment.isoformat()}Z"
