"""A table, view or foreign table of a Postgres server, read over ADBC.

A NUMERIC comes as text, so that no digit is lost, and so do the types that Parquet does not have, and those that the
driver gives as another value: `oid` in 32 bits with a sign, `money` in cents, `char(n)` with spaces at its end. An
infinite date or timestamp is null: as Arrow knows no infinity, the driver would give a moment of long ago. An array of
more than one dimension is refused: the driver gives its elements as one list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.sources.bounds import Bounds
from feature_jobs.sources.casts import quote
from feature_jobs.sources.readers.remote_table import RemoteTable

if TYPE_CHECKING:
    from adbc_driver_postgresql.dbapi import Cursor

CONNECT_TIMEOUT_S = 10
_SCHEMES = ("postgresql", "postgres")
_CHANGED = {"oid": "", "bpchar": "", "money": "::numeric"}
"""Types of which the driver gives other values, with what they are cast to before text."""
_AWAY = ("08", "53", "57", "58", "40")  # classes of SQLSTATE: connection, resources, shutdown, system, serialization
_NOT_REACHED = "refused|No such file|time(d )?out|not translate host|starting up|shutting down|too many|unreachable"


@dataclass(frozen=True)
class _Known:
    """An error that a person can correct: by its SQLSTATEs, or by libpq's text where it has none."""

    states: tuple[str, ...]
    text: str
    problem: str


_KNOWN = (
    _Known(
        ("28P01", "28000"),
        "authentication failed|no password supplied",
        "{server} refuses the user or the password; correct them in {variable}",
    ),
    _Known(
        ("3D000",),
        '(database|role) ".*" does not exist',
        "{server} has no such database or user; correct {variable}",
    ),
    _Known((), "pg_hba.conf", "{server} does not allow such a connection (pg_hba.conf); allow it there"),
    _Known(("42P01", "3F000"), "$^", "no such table there; correct the path (schema.table), or create the table"),
    _Known(("42501",), "$^", "its user may not read it; GRANT SELECT on it, and USAGE on its schema"),
)


@dataclass(frozen=True)
class PostgresTable(RemoteTable):
    """A table by its name, `schema.table`. `variable` names the environment variable with the server's URL."""

    name: str
    variable: str

    def __str__(self) -> str:
        return f"Postgres table {self.name} ({self.variable})"

    @property
    def version(self) -> None:
        """See RemoteTable: it has none."""
        return None

    def schema(self) -> pa.Schema:
        """See RemoteTable."""
        with self._cursor() as cursor:
            types = self._types(cursor)
        return pa.schema([(name, _text_type(cast) if cast else kind) for name, (kind, cast) in types.items()])

    def batches(self, columns: Sequence[str], bounds: Sequence[Bounds] | None) -> Iterator[pa.RecordBatch]:
        """See RemoteTable. One statement reads them, so that it sees one state of the table."""
        with self._cursor() as cursor:
            types = self._types(cursor)
            chosen = [_selected(name, *types[name]) for name in columns]
            lists = [name for name in columns if pa.types.is_list(types[name][0])]
            nested = [f"coalesce(array_ndims({quote(name)}) > 1, false)" for name in lists]
            where = " OR ".join(one.sql(quote(one.name)) for one in bounds) if bounds else "true"
            cursor.execute(f"SELECT {', '.join([*chosen, *nested])} FROM {self._quoted} WHERE {where}")
            for batch in cursor.fetch_record_batch():
                for name, is_nested in zip(lists, batch.columns[len(columns) :], strict=True):
                    if is_nested.true_count:
                        raise BadInputError(
                            f"{self}: column {name!r} has an array of more than one dimension, which does not read as a"
                            f" list; leave the column out, or read a view that has its parts in columns"
                        )
                yield batch.select(range(len(columns)))

    def num_rows(self) -> int:
        """See RemoteTable."""
        with self._cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {self._quoted}")
            return int(cursor.fetch_arrow_table()[0][0].as_py())

    @property
    def _quoted(self) -> str:
        return ".".join(map(quote, self.name.split(".", 1)))

    def _types(self, cursor: Cursor) -> dict[str, tuple[pa.DataType, str]]:
        """The Arrow type of each column, and the cast that it needs in SQL, or ""."""
        cursor.execute(f"SELECT * FROM {self._quoted} LIMIT 0")
        return {field.name: (field.type, _cast(field)) for field in cursor.fetch_record_batch().schema}

    @contextmanager
    def _cursor(self) -> Iterator[Cursor]:
        """A cursor of a transaction that only reads. Errors of the driver become ours, without their text: it can
        repeat the URL, and cells of the table."""
        import adbc_driver_manager
        from adbc_driver_postgresql import dbapi

        url = _url(self.variable)
        try:
            with dbapi.connect(url) as connection, connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")
                yield cursor
        except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> RecloopError:
        state, text = getattr(error, "sqlstate", None) or "", str(error)
        server = f"the Postgres server of {self.variable}"
        for known in _KNOWN:
            if state in known.states or (not state and re.search(known.text, text)):
                return BadInputError(f"{self}: {known.problem.format(server=server, variable=self.variable)}")
        said = f" (SQLSTATE {state})" if state else ""
        if state.startswith(_AWAY) or (not state and re.search(_NOT_REACHED, text)):
            return RetryLaterError(
                f"{self}: {server} cannot be reached or is busy{said}; try again later, and check its host, its port"
                f" and the network if this repeats"
            )
        return BadInputError(
            f"{self}: {server} does not accept the connection or the query{said}; check {self.variable} and the table"
        )


def _url(variable: str) -> str:
    url = os.environ.get(variable, "")
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme in _SCHEMES and (parts.port is None or parts.port > 0)
    except ValueError:
        is_plain = False
    if not is_plain:
        what = "is not the URL of a Postgres server" if url else "is not set"
        raise BadInputError(f"{variable}: {what}; set it to postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if "connect_timeout" in parse_qs(parts.query):
        return url
    return f"{url}{'&' if parts.query else '?'}connect_timeout={CONNECT_TIMEOUT_S}"


def _cast(field: pa.Field) -> str:
    """SQL that turns a value into text, where Parquet does not have its type or the driver changes its value."""
    is_list = pa.types.is_list(field.type)
    name = (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode().removeprefix("_" if is_list else "")
    before = _CHANGED.get(name)
    if before is None and _is_plain(field.type.value_type if is_list else field.type):
        return ""
    casts = [before, "::text"] if before else ["::text"]
    return "".join(f"{cast}[]" if is_list else cast for cast in casts)


def _text_type(cast: str) -> pa.DataType:
    return pa.list_(pa.string()) if cast.endswith("[]") else pa.string()


def _is_plain(kind: pa.DataType) -> bool:
    is_other = isinstance(kind, pa.BaseExtensionType) or pa.types.is_interval(kind) or pa.types.is_struct(kind)
    return not is_other and not pa.types.is_duration(kind)


def _selected(name: str, kind: pa.DataType, cast: str) -> str:
    quoted = quote(name)
    if pa.types.is_temporal(kind) and not pa.types.is_time(kind) and not cast:
        return f"CASE WHEN isfinite({quoted}) THEN {quoted} END AS {quoted}"
    return f"{quoted}{cast} AS {quoted}"
