"""Rows that were shown together, in a sample of the log."""

from __future__ import annotations

import duckdb

from feature_jobs.checks.facts import RequestFacts
from feature_jobs.checks.problems import Problems
from feature_jobs.sources.source import Source

_LONGEST_S = 3600


def check_requests(
    problems: Problems, source: Source, connection: duckdb.DuckDBPyConnection, sample: str
) -> RequestFacts | None:
    """Numbers of the rows in the table `staged` that `data.request` says were shown together, None where there are
    none; warns where they hardly can have been. `sample` names the rows."""
    data = problems.scenario.data
    if data.request is None:
        return None
    columns = f"c{source.place_of(data.user)}, c{source.place_of(data.request)}"
    num, rows, longest = connection.execute(
        f"SELECT count(*), avg(num), max(longest) FROM (SELECT count(*) AS num, max(time) - min(time) AS longest "
        f"FROM staged WHERE reason IS NULL AND c{source.place_of(data.request)} IS NOT NULL GROUP BY {columns})"
    ).fetchall()[0]
    if not num:
        return None
    where = ("data", "request")
    if rows == 1:
        what = f"holds one row in each request {sample}: nothing was shown together"
        problems.warn(where, data.request, what, "name another column, or leave it out")
    elif longest > _LONGEST_S * 1_000_000:
        what = f"has rows that are {longest / 3.6e9:,.1f} hours apart in one request {sample}"
        remedy = "name the column of one answer, not of a session: a row sees nothing after the first of its request"
        problems.warn(where, data.request, what, remedy)
    return RequestFacts(num=num, rows=round(rows, 2), longest_s=longest / 1e6)
