"""The audit of a join: no value may come from a source that is not older than its event."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import numpy as np

from feature_jobs.errors import BadInputError
from feature_jobs.windows.keys import Ints
from feature_jobs.windows.operations import NEVER

NO_SOURCE = NEVER
"""Source time of a value that came from no earlier row."""


def audit_point_in_time(
    event_times: Ints, source_times: Mapping[str, Ints], *, place: str, delays_us: Mapping[str, int] | None = None
) -> dict[str, int | None]:
    """Checks that every value comes from strictly before its event, independently of the code that computed it.

    `source_times`: feature or entity → newest source time behind each row's value (µs; NO_SOURCE: none). `delays_us`:
    least age of the source at the event's time. Returns the smallest distance of each in µs, None where no row
    has a source. Raises BadInputError naming feature, row and times.
    """
    gaps: dict[str, int | None] = {}
    for name, sources in source_times.items():
        rows = np.flatnonzero(sources != NO_SOURCE)
        gap = event_times[rows] - sources[rows]
        # At least a microsecond: a source at the time of its event was not known before it.
        least = max((delays_us or {}).get(name, 0), 1)
        if len(gap) and gap.min() < least:
            row = int(rows[int(np.argmax(gap < least))])
            wait = f", or not {least / 1e6:g} s old" if least > 1 else ""
            raise BadInputError(
                f"{place} {name}: row {row}: uses a value known at {_utc(sources[row])}, which is not before{wait} at "
                f"the event of {_utc(event_times[row])}; nothing was written. Check the times of its source"
            )
        gaps[name] = int(gap.min()) if len(gap) else None
    return gaps


def _utc(time_us: np.int64) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(time_us))
    return f"{moment.isoformat()}Z"
