"""Profiles of the columns of a found table: a type that ingest reads, and the number and kind of the values.

Rows are sampled evenly over all files. A cell reads as a type if ingest's own SQL (`Cell`) reads it, so that `init`,
`check` and `ingest` agree, on `inf` and on spaces too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import duckdb

from feature_jobs.expressions.compiler import literal
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.discover import FileGroup, day_in
from feature_jobs.proposals.vocabulary import clean, unique, words_of
from feature_jobs.schema import Column
from feature_jobs.sources.casts import Cell, quote

SAMPLE_ROWS = 200_000
FEW_TEXTS = 20  # so few different texts are categories, however long they are
_MAX_UNREAD = 0.002  # share of cells that need not read as the type: ingest quarantines their rows
_CANDIDATES = {
    "text": ("int", "float", "bool", "time"),
    "int": ("int",),
    "float": ("int", "float"),
    "bool": ("bool",),
    "list": ("list[int]", "list[string]"),
    "moment": ("time",),
}
# Where every day is below 13, month first and day first both read: `_likeliest_date` decides.
_LONG_DIGITS = ("%Y%m%d%H%M%S", "%Y%m%d%H")
_FORMATS = [
    f"{date}{clock}"
    for date in ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y", "%d-%m-%Y", "%d-%b-%Y", "%d %b %Y", "%m/%d/%y")
    for clock in (" %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "")
] + [*_LONG_DIGITS, "%Y%m%d", "%d/%b/%Y:%H:%M:%S %z", "%a %b %d %H:%M:%S %Y"]
UNITS = {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}  # in seconds
EARLIEST_S, LATEST_S = 631_152_000, 2_145_916_800  # 1990, 2038
_HEADER_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")  # RecBole's `user_id:token`


@dataclass(frozen=True)
class Profile:
    """Facts about a column. `column` is how ingest reads it; `low` and `high` are of numbers, without the outermost
    thousandth on either side; `top` are its twelve most frequent values; `sql` reads it from the files."""

    name: str
    column: Column
    sql: str
    known: int = 0
    distinct: int = 0
    mean_length: float = 0.0
    low: float | None = None
    high: float | None = None
    top: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """Its declared type."""
        return self.column.type

    @property
    def words(self) -> set[str]:
        """The words of its name."""
        return words_of(self.name)

    @property
    def is_number(self) -> bool:
        """True for int and float."""
        return self.type in ("int", "float")

    @property
    def is_id(self) -> bool:
        """True where the name says that it identifies something."""
        return not self.words.isdisjoint(vocabulary.ID_ENDINGS)

    @property
    def is_quantity(self) -> bool:
        """True where the name says that it measures something."""
        quantities = vocabulary.QUANTITIES | vocabulary.DURATIONS | vocabulary.AFTERWARDS
        return not (self.is_id or self.words.isdisjoint(quantities))

    @property
    def is_flag(self) -> bool:
        """True where it holds yes or no."""
        is_01 = self.is_number and self.distinct == 2 and {*self.top} <= {"0", "1", "0.0", "1.0"}
        return is_01 or self.type == "bool"

    @property
    def is_text(self) -> bool:
        """True for sentences and titles: long, of several words, and many. Names of countries are not."""
        num_words = sum(len(value.split()) for value in self.top) / max(len(self.top), 1)
        return self.type == "string" and self.mean_length > 12 and num_words > 1.5 and self.distinct > FEW_TEXTS

    def fields(self, name: str, required: bool) -> dict[str, object]:
        """The column as a scenario declares it under a name."""
        renamed = {"from": self.column.source} if self.column.source != name else {}
        declared = self.column.model_dump(exclude={"source"}, exclude_defaults=True)
        return renamed | declared | ({"required": True} if required else {})


@dataclass(frozen=True)
class Sample:
    """Rows of a table, evenly taken, as the relation `name` of a connection."""

    connection: duckdb.DuckDBPyConnection
    name: str

    def rows(self, what: str, then: str = "") -> list[tuple[Any, ...]]:
        """The rows of `SELECT what FROM it then`."""
        found: list[tuple[Any, ...]] = self.connection.execute(f"SELECT {what} FROM {self.name} {then}").fetchall()
        return found

    def row(self, *what: str) -> tuple[Any, ...]:
        """Aggregates over its rows."""
        return self.rows(", ".join(what))[0]


@dataclass(frozen=True)
class Table(Sample):
    """A found table: its sample, with columns by their clean names."""

    group: FileGroup
    columns: dict[str, Profile]
    num_rows: int
    num_sampled: int
    notes: list[str]

    @property
    def stem(self) -> str:
        """A name for it, from its path."""
        parts = [re.sub(r"[{*].*", "", part).split(".")[0].strip("_-=") for part in self.group.path.split("/")]
        named = [part for part in parts if len(part) > 1 and part not in ("year", "dt", "date", "part")]
        return clean(named[-1] if named else "table").lower()

    @property
    def size(self) -> str:
        """The number of rows, and of those that were read."""
        looked = "all" if self.num_sampled == self.num_rows else f"{self.num_sampled:,} of them, evenly taken,"
        files = len(self.group.files)
        return f"{self.num_rows:,} rows in {files:,} file{'s' * (files > 1)}, {looked} looked at"

    def missing(self, column: Profile) -> float:
        """Share of the sample's rows without a value."""
        return 1 - column.known / max(self.num_sampled, 1)


def profile(connection: duckdb.DuckDBPyConnection, group: FileGroup, number: int) -> Table:
    """Samples a table and describes its columns. Raises duckdb.Error where its files can't be read."""
    raw, typed = Sample(connection, f"raw{number}"), Sample(connection, f"t{number}")
    num_rows = int(Sample(connection, group.scan).row("count(*)")[0])
    every = -(-num_rows // SAMPLE_ROWS) or 1
    connection.execute(
        # Evenly over all files: a prefix would hold one day, or a few users.
        f"CREATE TABLE {raw.name} AS SELECT * EXCLUDE (_nth) FROM "
        f"(SELECT *, row_number() OVER () AS _nth FROM {group.scan}) WHERE _nth % {every} = 0"
    )
    columns: dict[str, Profile] = {}
    notes: list[str] = []
    summary = Sample(connection, f"(SUMMARIZE SELECT * EXCLUDE (_file) FROM {raw.name})")
    for source, kind, distinct in summary.rows("column_name, column_type, approx_unique"):
        column, note = _column(raw, source, kind, distinct)
        if note:
            notes.append(f"{group.path}: column {source} {note}")
        if column is not None:
            name = unique(clean(_HEADER_TYPE.sub("", source)), columns)
            column = column.model_copy(update={"source": source})
            columns[name] = Profile(name, column, Cell(name, column, kind).value(quote(source)))
    values = ", ".join(f"{column.sql} AS {quote(name)}" for name, column in columns.items())
    connection.execute(f"CREATE TABLE {typed.name} AS SELECT {values or 'NULL AS nothing'} FROM {raw.name}")
    connection.execute(f"DROP TABLE {raw.name}")
    return Table(connection, typed.name, group, _with_figures(typed, columns), num_rows, num_rows // every, notes)


def _column(raw: Sample, source: str, kind: str, distinct: int) -> tuple[Column | None, str]:
    """The column with the first type that its cells read as, or None where ingest has no use for it; and a note."""
    cell, shape = quote(source), Cell(source, _typed("string"), kind).kind
    words = words_of(_HEADER_TYPE.sub("", source))
    candidates = [_typed(name) for name in _CANDIDATES.get(shape, ())]
    if shape == "float" and distinct > 1000 and not words & vocabulary.ID_ENDINGS:
        candidates = [_typed("float")]  # 17850.0 is an id with gaps, but 12.0 among many others is a measure
    if kind.startswith(("FLOAT[", "DOUBLE[", "DECIMAL[")):
        candidates = []  # an embedding, not ids
    # 20240301 and 1709251200 read as numbers too: only the name can say that they are times.
    is_named = bool(words & vocabulary.ALL_TIMES) and not words & vocabulary.ID_ENDINGS
    times = _times(raw, cell, is_text=shape == "text", is_named=is_named and shape in ("text", "int", "float"))
    is_moment = any(time.date_format in _LONG_DIGITS for time in times)  # so many digits of an id would hardly all read
    candidates = times + candidates if is_named or is_moment else candidates + times
    cells = [Cell(source, column, kind) for column in candidates]
    known, is_padded, *unread = raw.row(
        f"count({cell})",
        f"bool_or(regexp_full_match(trim(CAST({cell} AS VARCHAR)), '0[0-9]+'))",
        *(f"count({one.reason(cell, one.value(cell))})" for one in cells),
    )
    shares = [(c, num / max(known, 1)) for c, num in zip(candidates, unread, strict=True) if known]
    # As a number 007 would become 7, and no longer match the ids of another table.
    shares = [(c, share) for c, share in shares if not (is_padded and c.type in ("int", "float"))]
    read = [column for column, share in shares if share <= _MAX_UNREAD]
    rivals = [time for time in times if time in read and time.date_format]
    if read:
        return _likeliest_date(raw, cell, rivals) if len(rivals) > 1 and read[0] is rivals[0] else (read[0], "")
    what = "of its cells are not finite numbers, and ingest would quarantine their rows"
    nearly = (f"is declared as text: {share:.1%} {what}" for c, share in shares if c.type == "float" and share < 0.1)
    if known and shape not in ("text", "int", "float", "bool"):
        return None, f"is left out: {kind} can't be a feature"
    return (_list_column(raw, source) if shape == "text" else None) or _typed("string"), next(nearly, "")


def _typed(kind: str, **fields: str) -> Column:
    return Column.model_validate({"type": kind, **fields})


def _times(raw: Sample, cell: str, *, is_text: bool, is_named: bool) -> list[Column]:
    """The formats of text, and the units of numbers that are named like times, in which all of the first cells read."""
    recent = {
        ("unit", unit): f"TRY_CAST(c AS DOUBLE) * {unit_s} BETWEEN {EARLIEST_S} AND {LATEST_S}"
        for unit, unit_s in UNITS.items()
    }
    years = "BETWEEN '1990-01-01' AND '2038-01-01'"
    read = {("date_format", text): f"try_strptime(c, {literal(text)}) {years}" for text in _FORMATS}
    tests = (read if is_text else {}) | (recent if is_named else {})  # in seconds 2025030313 would be in 2034
    # The first cells rule out most formats; only what is left is tried on all cells.
    head = f"(SELECT trim(CAST({cell} AS VARCHAR)) AS c FROM {raw.name} WHERE c <> '' LIMIT 200)"
    fits = Sample(raw.connection, head).row(*(f"bool_and({test})" for test in tests.values())) if tests else ()
    return [_typed("time", **{key: value}) for (key, value), fit in zip(tests, fits, strict=True) if fit]


def _likeliest_date(raw: Sample, cell: str, rivals: list[Column]) -> tuple[Column, str]:
    """Chooses among formats that all read: the one whose days are in the names of their files, or follow each other
    most closely. Also returns a note that others read too."""
    found = []
    for place, column in enumerate(rivals):
        day = f"CAST(try_strptime(trim({cell}), {literal(str(column.date_format))}) AS DATE) AS day"
        rows = raw.rows(f"_file, {day}, count(*)", "GROUP BY ALL HAVING day IS NOT NULL")
        days = {day for _, day, _ in rows}
        num_in_file = sum(num for file, day, num in rows if day_in(file) == day)
        found.append((-num_in_file, ((max(days) - min(days)).days + 1) / len(days), place))
    found.sort()
    (in_file, spread, first), (in_other, other_spread, second) = found[:2]
    why = "as the files' names have its days" if in_file < in_other else "as its days follow each other"
    why = why if (in_file, spread) != (in_other, other_spread) else "a guess, as nothing decides"
    formats = f"{rivals[first].date_format} and {rivals[second].date_format}"
    return rivals[first], f"reads as {formats}; the first is taken, {why}: check it"


def _list_column(raw: Sample, source: str) -> Column | None:
    """A list column, where cells hold values that occur again and again between separators; words of titles don't."""
    for separator in (" ",) if source.endswith(":token_seq") else ("|", ";", ","):
        is_list = f"contains(c, {literal(separator)}) AND NOT regexp_matches(c, '[.!?] |[][(){{}}]')"
        cells = f"(SELECT trim({quote(source)}) AS c FROM {raw.name} WHERE {quote(source)} <> '')"
        share = Sample(raw.connection, cells).row(f"avg(CAST({is_list} AS INT))")[0]
        parts = f"(SELECT trim(unnest(string_split(c, {literal(separator)}))) AS p FROM {cells})"
        figures = ("count(*)", "count(DISTINCT p)", "bool_and(regexp_full_match(p, '[0-9]*'))")
        num, distinct, whole = Sample(raw.connection, parts).row(*figures)
        if (share or 0) >= 0.2 and num > 5 * distinct:
            return _typed("list[int]" if whole else "list[string]", separator=separator)
    return None


def _with_figures(typed: Sample, columns: dict[str, Profile]) -> dict[str, Profile]:
    """Exact figures: SUMMARIZE only estimates how many values there are, and whether a key is unique depends on it."""
    texts = ", ".join(f"CAST({quote(name)} AS VARCHAR) AS {quote(name)}" for name in columns)
    cells = f"(UNPIVOT (SELECT {texts or 'NULL AS nothing'} FROM {typed.name}) ON * INTO NAME name VALUE v)"
    bounds = "quantile_disc(TRY_CAST(v AS DOUBLE), [0.001, 0.999]) AS ends"
    found = typed.connection.execute(
        f"WITH counted AS (SELECT name, v, count(*) AS n FROM {cells} GROUP BY ALL), "
        f"bounds AS (SELECT name, {bounds} FROM {cells} GROUP BY name) "
        "SELECT name, CAST(sum(n) AS BIGINT), count(*), sum(n * length(v)) / sum(n), any_value(ends[1]), "
        "any_value(ends[2]), list(v ORDER BY n DESC, v)[:12] FROM counted JOIN bounds USING (name) GROUP BY name"
    ).fetchall()
    figures = ("known", "distinct", "mean_length", "low", "high")
    return columns | {
        name: replace(columns[name], **dict(zip(figures, values, strict=True)), top=tuple(top))
        for name, *values, top in found
    }
