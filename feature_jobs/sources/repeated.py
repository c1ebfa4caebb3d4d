"""Repeated rows of a log (`deduplicate`): those that follow a kept one with equal values soon."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.schema.data import Deduplicate
from feature_jobs.sources.casts import quote
from feature_jobs.sources.files import duckdb_path
from feature_jobs.sources.output_files import log_file
from feature_jobs.sources.source import Source

Ints = npt.NDArray[np.int64]
_US = 1_000_000


def stage_repeated(
    connection: duckdb.DuckDBPyConnection, source: Source, rule: Deduplicate, begin: int, yesterday: Path | None
) -> int:
    """Adds the rows of the table `good` that repeat others to the table `left_out`; returns how many.

    `begin` is the first moment of the day (µs); `yesterday` the folder of the day before, of which all rows are kept.
    """
    within = rule.within_s * _US
    columns = ", ".join(f"c{source.place_of(name)}" for name in rule.on)
    known = " AND ".join(f"c{source.place_of(name)} IS NOT NULL" for name in rule.on)
    before = _kept_before(source, rule, begin - within, yesterday)
    # One after the other within their keys; most rows have no other near them, and need no look.
    found = connection.execute(
        f"WITH every AS (SELECT file, row, time, {columns} FROM good WHERE {known}{before}), "
        f"near AS (SELECT *, coalesce(time - lag(time) OVER key < {within}, false) AS follows, "
        f"coalesce(lead(time) OVER key - time < {within}, false) AS leads FROM every "
        f"WINDOW key AS (PARTITION BY {columns} ORDER BY time, file, row)) "
        f"SELECT file, row, time, follows FROM near WHERE follows OR leads ORDER BY {columns}, time, file, row"
    ).fetchnumpy()
    is_repeated = ~kept(np.asarray(found["time"]), np.asarray(found["follows"]), within)
    files, rows = (np.asarray(found[name])[is_repeated] for name in ("file", "row"))
    own = files >= 0
    repeated = pa.table({"file": files[own], "row": rows[own]})
    connection.register("_repeated", repeated)
    connection.execute("INSERT INTO left_out SELECT file, row FROM _repeated")
    connection.unregister("_repeated")
    return int(repeated.num_rows)


def _kept_before(source: Source, rule: Deduplicate, since: int, yesterday: Path | None) -> str:
    """SQL of the day before's rows since a moment, before those of the day: their file is -1."""
    file = yesterday / log_file(source.log) if yesterday else None
    if file is None or not file.exists() or not set(rule.on) <= set(pq.read_schema(file).names):
        return ""
    columns = ", ".join(f"{quote(name)} AS c{source.place_of(name)}" for name in rule.on)
    return (
        f' UNION ALL SELECT -1, "key.event_row", "key.event_time", {columns} FROM read_parquet({duckdb_path(file)}) '
        f'WHERE "key.event_time" >= {since}'
    )


def kept(times_N: Ints, follows_N: npt.NDArray[np.bool_], within: int) -> npt.NDArray[np.bool_]:
    """Says which rows are kept, of stretches of rows in the order of their times: a stretch begins where a row does not
    follow the one before it within the time. Its first row is kept, then each time the next one that is far enough."""
    kept_N = np.zeros(len(times_N), bool)
    if not len(times_N):
        return kept_N
    begins = np.flatnonzero(~follows_N)
    ends = np.append(begins[1:], len(times_N))
    # Stretch and time as one rising number, so that one search finds the next row of all stretches.
    oldest, span = int(times_N.min()), int(times_N.max() - times_N.min()) + within + 1
    places_N = np.repeat(np.arange(len(begins)) * span, ends - begins) + times_N - oldest
    at = begins
    while len(at):
        kept_N[at] = True
        following = np.searchsorted(places_N, places_N[at] + within)
        at, ends = following[following < ends], ends[following < ends]
    return kept_N
