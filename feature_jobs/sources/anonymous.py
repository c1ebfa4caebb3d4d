"""Anonymous users: values of the user column that name nobody (`data.anonymous`) are null in all logs and requests."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Scenario
from feature_jobs.sources.source import Source


def leave_out_anonymous(scenario: Scenario, source: Source, connection: duckdb.DuckDBPyConnection) -> None:
    """Makes such users null in the table `staged` of a log."""
    if scenario.data.anonymous and not source.keys and scenario.data.user in source.columns:
        column = f"c{source.place_of(scenario.data.user)}"
        values = ", ".join(map(literal, scenario.data.anonymous))
        connection.execute(f"UPDATE staged SET {column} = NULL WHERE reason IS NULL AND {column} IN ({values})")


def known_users(scenario: Scenario, users: pa.Array) -> pa.Array:
    """Users of a request or of rows, without such."""
    if not scenario.data.anonymous:
        return users
    nobody = pa.array(scenario.data.anonymous, users.type)
    return pc.if_else(pc.is_in(users, value_set=nobody), pa.scalar(None, users.type), users)
