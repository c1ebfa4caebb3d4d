"""Sketches of columns, and the population stability index between two of them.

A number is kept to two significant digits (at most 90 values for each power of ten, within 5 % of the true value, a
decimal form of the sketch of Masson, Rim and Lee 2019, "DDSketch"), an id as its 50 most frequent values. Bins of the
index are cut from the earlier days together, never from the day that is judged.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MAX_IDS = 50  # ids with more values than this are profiled only where the scenario names them
NUM_BINS = 10  # deciles, as in credit scoring, where the index comes from
NUM_TOP_IDS = 20

Kind = Literal["number", "id"]


class Sketch(TypedDict):
    """Summary of a column's values: rows by value, in order of value; nulls; rows of the values left out."""

    kind: Kind
    counts: list[list[Any]]
    nulls: int
    other: int


def sketch(values: pd.Series[Any], kind: Kind) -> Sketch:
    """The sketch of a column of R rows."""
    known = values.dropna()
    if kind == "number":
        number_N, rows_N = np.unique(known.to_numpy(np.float64), return_counts=True)
        # Two digits: a profile of exact values would be as large as the day, and every later day keeps it.
        # Numbers that round alike are neighbours, so a search finds where they end; to round each would take seconds.
        up_to_N, begin, counts = np.concatenate([[0], np.cumsum(rows_N)]), 0, dict[Any, int]()
        while begin < len(number_N):
            rounded = _two_digits(number_N[begin])
            end = bisect.bisect_right(number_N, rounded, begin, key=_two_digits)
            counts[rounded] = int(up_to_N[end] - up_to_N[begin])
            begin = end
        return {"kind": kind, "counts": _sorted(counts), "nulls": int(values.isna().sum()), "other": 0}
    tally = {_plain(value): int(rows) for value, rows in known.value_counts().items()}
    # By text among equal counts: pandas does not say how it orders them, and a profile is content.
    top = sorted(tally, key=lambda value: (-tally[value], str(value)))[:MAX_IDS]
    kept = {value: tally[value] for value in top}
    return {
        "kind": kind,
        "counts": _sorted(kept),
        "nulls": int(values.isna().sum()),
        "other": sum(tally.values()) - sum(kept.values()),
    }


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")


def _plain(value: Any) -> Any:
    """An id as JSON holds it; a frame turns ints beside nulls into floats."""
    if isinstance(value, str):
        return value
    return int(value) if float(value).is_integer() else float(value)


def _sorted(counts: Mapping[Any, int]) -> list[list[Any]]:
    return [[value, counts[value]] for value in sorted(counts, key=lambda v: (isinstance(v, str), v))]


def merge(sketches: Sequence[Sketch]) -> Sketch:
    """One sketch of several days."""
    counts: dict[Any, int] = {}
    for day in sketches:
        for value, rows in day["counts"]:
            counts[value] = counts.get(value, 0) + rows
    nulls, other = (sum(day[key] for day in sketches) for key in ("nulls", "other"))
    return {"kind": sketches[0]["kind"], "counts": _sorted(counts), "nulls": nulls, "other": other}


def psi(reference: Sketch, day: Sketch) -> float:
    """Population stability index of a day: the sum over bins of (p - q)·ln(p / q).

    0 is the same, 0.1 a small and 0.25 a large change (Siddiqi 2006, "Credit Risk Scorecards"). Bins are the deciles
    of the reference, or its 20 most frequent ids and the rest; nulls are a bin. Half a row is added to each bin, so
    that an empty one does not make it infinite.
    """
    bin_of = _number_bins(reference) if reference["kind"] == "number" else _id_bins(reference)
    q, p = (_binned(s, bin_of) for s in (reference, day))
    bins = sorted(q.keys() | p.keys())
    # Bins of the reference alone: cut from the day too, a jump would move the edges that should show it.
    q_B, p_B = (np.array([rows.get(b, 0) for b in bins]) + 0.5 for rows in (q, p))
    q_B, p_B = q_B / q_B.sum(), p_B / p_B.sum()
    return float(((p_B - q_B) * np.log(p_B / q_B)).sum())


def _number_bins(reference: Sketch) -> Any:
    """Cut at the deciles; values that many rows share are not split, so there may be fewer bins."""
    values = np.array([value for value, _ in reference["counts"]])
    share = np.cumsum([rows for _, rows in reference["counts"]])
    if not len(values):
        return lambda _: 0
    # By cumulated rows: a sketch has distinct values with their counts, not the rows.
    places = np.searchsorted(share, share[-1] * np.arange(1, NUM_BINS) / NUM_BINS)
    edges = np.unique(values[places])
    return lambda value: int(np.searchsorted(edges, value, side="left"))


def _id_bins(reference: Sketch) -> Any:
    top = sorted(reference["counts"], key=lambda pair: (-pair[1], str(pair[0])))[:NUM_TOP_IDS]
    places = {value: i for i, (value, _) in enumerate(top)}
    return lambda value: places.get(value, NUM_TOP_IDS)


def _binned(sketched: Sketch, bin_of: Any) -> dict[int, int]:
    rows_by_bin: dict[int, int] = {}
    for value, rows in sketched["counts"]:
        b = bin_of(value)
        rows_by_bin[b] = rows_by_bin.get(b, 0) + rows
    for b, rows in ((NUM_TOP_IDS, sketched["other"]), (-1, sketched["nulls"])):
        if rows:
            rows_by_bin[b] = rows_by_bin.get(b, 0) + rows
    return rows_by_bin
