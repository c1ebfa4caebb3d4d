"""Stretches of a day's rows: a day may be larger than the memory, so its rows are computed some at a time."""

from __future__ import annotations

from collections.abc import Iterator

ROWS_AT_ONCE = 1 << 18
"""Rows of which all intermediate values are in memory; of so few, many are still in the cache of the processor."""


def stretches(num_rows: int) -> Iterator[tuple[int, int]]:
    """The stretches [begin, end) of the rows; an empty one where there are no rows."""
    for begin in range(0, max(num_rows, 1), ROWS_AT_ONCE):
        yield begin, min(begin + ROWS_AT_ONCE, num_rows)
