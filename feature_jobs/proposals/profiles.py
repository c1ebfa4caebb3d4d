"""Profiles of the columns of a found table: a type that ingest reads, and the number and kind of the values.

Rows are sampled evenly over all files. A cell reads as a type if ingest's own SQL (`Cell`) reads it, so that `init`,
`check` and `ingest` agree, on `inf` and on spaces too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from duckdb import DuckDBPyConnection as Connection

from feature_jobs.expressions.compiler import literal
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.discover import FileGroup, day_in
from feature_jobs.proposals.vocabulary import clean, unique, words_of
from feature_jobs.schema import Column
from feature_jobs.schema.base import LARGEST_WIDTH
from feature_jobs.sources.casts import Cell, quote

SAMPLE_ROWS = 200_000
FEW_TEXTS = 20  # so few different texts are categories, however long they are
_MAX_UNREAD = 0.002  # share of cells that need not read as the type: ingest quarantines their rows
_PLAIN = {
    "text": ("int", "float", "bool", "time"),
    "int": ("int",),
    "float": ("int", "float"),
    "bool": ("bool",),
    "list": ("list[int]", "list[string]"),
    "moment": ("time",),
}
"""The types that are tried on what a file holds (`Cell.kind`), the narrowest first."""
# Where every day is below 13, month first and day first both read: `_likeliest_date` decides.
_LONG_DIGITS = ("%Y%m%d%H%M%S", "%Y%m%d%H%M", "%Y%m%d%H")
_DIGITS = [*_LONG_DIGITS, "%Y%m%d", "%y%m%d%H"]  # 2024030110 is a second of 2034 too, and these come before units
_DATES = (
    "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y", "%d-%m-%Y", "%d-%b-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y",
    "%B %d, %Y", "%b %d %Y", "%m %d, %Y", "%Y.%m.%d", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%d-%b-%y", "%y-%m-%d",
)  # fmt: skip
_CLOCKS = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p")
_FORMATS = [
    *(form for date in _DATES for form in (*(f"{date} {clock}" for clock in _CLOCKS), date)),
    *_DIGITS, "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%SZ", "%Y-%m-%d-%H", "%d/%b/%Y:%H:%M:%S %z", "%a %b %d %H:%M:%S %Y",
    "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S GMT",
]  # fmt: skip
_UNITS = ("s", "ms", "us", "ns")
# Their quotient is far below 1,000, the factor between units: so a number is a recent time in one unit at most.
EARLIEST_S, LATEST_S = 631_152_000, 2_145_916_800  # 1990, 2038
_HEADER_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")  # RecBole's `user_id:token`


@dataclass(frozen=True)
class Profile(Cell):
    """A column: how ingest reads it, and facts about its values. `low` and `high` are of numbers, without the outermost
    thousandth on either side; `top` are its twelve most frequent values. `is_whole`: of all rows, not of a sample."""

    known: int = 0
    distinct: int = 0
    mean_length: float = 0.0
    low: float | None = None
    high: float | None = None
    top: tuple[str, ...] = ()
    is_whole: bool = False

    @property
    def type(self) -> str:
        """Its declared type."""
        return self.column.type

    @property
    def sql(self) -> str:
        """Reads it from the files."""
        return self.value(quote(self.source))

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

    @property
    def is_split(self) -> bool:
        """True where its name or all of its values say that it splits the rows into those to train and to test on."""
        is_read = self.type == "string" and all(vocabulary.SPLIT_VALUE.fullmatch(value.lower()) for value in self.top)
        return self.distinct <= len(self.top) and bool(is_read or self.words & vocabulary.SPLIT)

    @property
    def row_id(self) -> str:
        """The reason why it identifies rows, visits or purchases, its name or another value in each row; empty where it
        does not."""
        is_named = self.words & vocabulary.ROW and (self.is_id or self.distinct > 100)
        # In a sample of a large log a user hardly ever comes twice, so the name decides before the values do.
        is_other_each_time = self.is_id and self.known > 100 and self.distinct > 0.95 * self.known
        trusted = vocabulary.PEOPLE if self.is_whole else vocabulary.PEOPLE_AND_THINGS
        if not is_named and (not is_other_each_time or self.words & trusted):
            return ""
        if self.distinct <= 0.05 * self.known:
            return f"by its name it numbers rows or visits, and its {self.distinct:,} values come again"
        return "an id of a row or a visit: it never comes again"

    def declared(self, kind: str, **fields: object) -> Profile:
        """The column with another type."""
        return replace(self, column=Column.model_validate({"type": kind, "source": self.source, **fields}))

    def fields(self, name: str, required: bool) -> dict[str, object]:
        """The column as a scenario declares it under a name."""
        renamed = {"from": self.source} if self.source != name else {}
        declared = self.column.model_dump(exclude={"source"}, exclude_defaults=True)
        return renamed | declared | ({"required": True} if required else {})


def figures(connection: Connection, rows: str, *what: str) -> tuple[Any, ...]:
    """Aggregates over all rows of a table or of SQL in parentheses."""
    found: tuple[Any, ...] = connection.execute(f"SELECT {', '.join(what)} FROM {rows}").fetchall()[0]
    return found


@dataclass(frozen=True)
class Table:
    """A found table: its rows, evenly sampled, are the table `name` of a connection; its columns by clean names."""

    connection: Connection
    name: str
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


def profile(connection: Connection, group: FileGroup, number: int, names: dict[str, str]) -> Table:
    """Samples a table and describes its columns. `names` are those of the tables before for columns whose names in the
    files have other letters than expressions allow: a column of one name is the same one in all tables.

    Raises duckdb.Error where its files can't be read.
    """
    num_rows = int(figures(connection, group.scan, "count(*)")[0])
    every = -(-num_rows // SAMPLE_ROWS) or 1
    # Evenly over all files: a prefix would hold one day, or a few users.
    numbered = f"(SELECT *, row_number() OVER () AS _nth FROM {group.scan})"
    connection.execute(
        f"CREATE OR REPLACE TABLE raw AS SELECT * EXCLUDE (_nth) FROM {numbered} WHERE _nth % {every} = 0"
    )
    columns: dict[str, Profile] = {}
    notes: list[str] = []
    described = connection.execute("DESCRIBE SELECT * EXCLUDE (_file) FROM raw").fetchall()
    # SUMMARIZE averages each column, and DuckDB can't average nanoseconds with a zone, which pandas writes.
    nanos = [quote(source) for source, raw_type, *_ in described if raw_type == "TIMESTAMPTZ_NS"]
    replaced = f"REPLACE ({', '.join(f'{name}::TIMESTAMPTZ AS {name}' for name in nanos)})" if nanos else ""
    summary = f"SELECT approx_unique FROM (SUMMARIZE SELECT * EXCLUDE (_file) {replaced} FROM raw)"
    for (source, raw_type, *_), (distinct,) in zip(described, connection.execute(summary).fetchall(), strict=True):
        named = _HEADER_TYPE.sub("", source)
        name = clean(named)
        if not named.isascii():
            name = names.setdefault(named, unique(name, names.values()))
        name = unique(name, columns)
        column = Column.model_validate({"type": "string", "source": source})
        typed, note = _typed(connection, Profile(name, column, raw_type, distinct=distinct))
        notes += [f"{group.path}: column {source} {note}"] if note else []
        columns |= {name: typed} if typed else {}
    if all(column.type != "time" for column in columns.values()):
        columns |= _unnamed_time(connection, columns)
    values = ", ".join(f"{column.sql} AS {quote(name)}" for name, column in columns.items())
    connection.execute(f"CREATE TABLE t{number} AS SELECT {values or 'NULL AS nothing'} FROM raw")
    columns = _with_figures(connection, f"t{number}", columns)
    columns = {name: replace(column, is_whole=every == 1) for name, column in columns.items()}
    return Table(connection, f"t{number}", group, columns, num_rows, num_rows // every, notes)


def _typed(connection: Connection, text: Profile) -> tuple[Profile | None, str]:
    """The column with the first type that its cells read as, or None where ingest has no use for it; and a note."""
    shape = text.kind
    plain = [text.declared(name) for name in _PLAIN.get(shape, ())]
    if text.raw_type.startswith(("FLOAT[", "DOUBLE[", "DECIMAL[")):
        plain = _vectors(connection, text)  # not ids
    elif shape == "float" and text.distinct > 1000 and not text.is_id:
        plain = [text.declared("float")]  # 17850.0 is an id with gaps, but 12.0 among many others is a measure
    # 20240301 and 1709251200 read as numbers too: only the name can say that they are times.
    is_named = bool(text.words & (vocabulary.ALL_TIMES | vocabulary.CLOCK)) and not text.is_id
    forms = {"text": _FORMATS, "int": _DIGITS}.get(shape, [])
    written = [text.declared("time", date_format=form) for form in forms]
    if is_named and shape in ("text", "int", "float"):
        written += [text.declared("time", unit=unit) for unit in _UNITS]
    # The first cells rule out most formats; only what is left is tried on all cells.
    head = f"(FROM raw WHERE CAST({quote(text.source)} AS VARCHAR) <> '' LIMIT 200)"
    times = _recent(connection, head, written, least=1)
    # So many digits of an id would hardly all read.
    is_moment = any(time.column.date_format in _LONG_DIGITS for time in times)
    shares = _unread(connection, text, times + plain if is_named or is_moment else plain + times)
    read = [column for column, share in shares if share <= _MAX_UNREAD]
    rivals = [column for column in read if column.column.date_format]
    if read:
        return _likeliest_date(connection, rivals) if rivals[1:] and read[0] is rivals[0] else (read[0], "")
    if text.distinct and shape not in ("text", "int", "float", "bool"):
        return None, f"is left out: {text.raw_type} can't be a feature"
    if shape == "text" and (example := _in_thousands(connection, text)):
        plain_number = re.sub(r"[^-+0-9]", "", example)
        return text, f"is declared as text: numbers such as {example}; write them without a mark: {plain_number}"
    if shape == "text" and (example := _decimal_comma(connection, text)):
        note = f"is read as numbers with a decimal comma, such as {example}; declare it as a list if it is one"
        thousands = f"; write {example.replace(',', '')} if the comma marks thousands" if example[-4:-3] == "," else ""
        return text.declared("float", decimal=","), note + thousands
    what = "of its cells are not finite numbers, and ingest would quarantine their rows"
    nearly = (f"is declared as text: {share:.1%} {what}" for c, share in shares if c.type == "float" and share < 0.1)
    return (_list_column(connection, text) if shape == "text" else None) or text, next(nearly, "")


def _vectors(connection: Connection, text: Profile) -> list[Profile]:
    """The column as vectors, where its lists have one width."""
    size = f"len({quote(text.source)})"
    least, most = figures(connection, "raw", f"min({size})", f"max({size})")
    is_vector = least == most and 2 <= (most or 0) <= LARGEST_WIDTH
    return [text.declared("list[float]", width=most)] if is_vector else []


def _in_thousands(connection: Connection, text: Profile) -> str | None:
    """The longest cell, where all are whole numbers and some have a mark between thousands, as in 1,250,000."""
    cell = f"trim({quote(text.source)})"
    for mark in ",. '":
        parts = f"([{mark}][0-9]{{3}})"
        # A list of ids of three digits has no part of fewer; a decimal comma is in each cell, and once.
        patterns = (f"([1-9][0-9]{{0,2}}{parts}+|[0-9]+)", f"[0-9]{{1,2}}{parts}+", f"([0-9]+|[0-9]+{parts}{{2,}})")
        matches = [f"regexp_full_match({cell}, {literal(f'[-+]?{pattern}')})" for pattern in patterns]
        every, *some = (f"bool_{kind}({one})" for kind, one in zip(("and", "or", "or"), matches, strict=True))
        known = f"{cell} <> ''"
        holds, example = figures(
            connection,
            f"(FROM raw WHERE {known})",
            " AND ".join([every, *some]),
            f"max_by({cell}, (length({cell}), {cell}))",
        )
        if holds:
            return str(example)
    return None


def _decimal_comma(connection: Connection, text: Profile) -> str | None:
    """A cell, where each one has digits on both sides of one comma."""
    cell = f"trim({quote(text.source)})"
    is_one = f"bool_and(regexp_full_match({cell}, '[-+]?[0-9]+,[0-9]+'))"
    holds, example = figures(connection, "raw", f"{is_one} FILTER ({cell} <> '')", f"max({cell})")
    return str(example) if holds else None


def _unnamed_time(connection: Connection, columns: Mapping[str, Profile]) -> dict[str, Profile]:
    """The first full column of numbers that are recent times, as such, though its name does not say so."""
    for name, column in columns.items():
        if column.is_number and not column.is_id and not column.words & vocabulary.PEOPLE_AND_THINGS:
            units = [column.declared("time", unit=unit) for unit in _UNITS]
            if fits := _recent(connection, "raw", units, least=1 - _MAX_UNREAD):
                return {name: fits[0]}
    return {}


def _recent(connection: Connection, rows: str, ways: list[Profile], least: float) -> list[Profile]:
    """The ways to write a time in which at least this share of the cells is one between 1990 and 2038."""
    years = f"BETWEEN {EARLIEST_S}e6::BIGINT AND {LATEST_S}e6::BIGINT"
    num, *nums = figures(connection, rows, "count(*)", *(f"count(*) FILTER ({way.sql} {years})" for way in ways))
    return [way for way, recent in zip(ways, nums, strict=True) if num and recent >= least * num]


def _unread(connection: Connection, text: Profile, ways: list[Profile]) -> list[tuple[Profile, float]]:
    """Each way with the share of the known cells that ingest could not read like this; none without known cells."""
    name = quote(text.source)
    # As a number 007 would become 7, and no longer match the ids of another table.
    is_padded = f"bool_or(regexp_full_match(trim(CAST({name} AS VARCHAR)), '0[0-9]+'))"
    known, padded, *nums = figures(
        connection, "raw", f"count({name})", is_padded, *(f"count({w.reason(name, w.sql)})" for w in ways)
    )
    shares = [(way, num / known) for way, num in zip(ways, nums, strict=True) if known]
    return [(way, share) for way, share in shares if not (padded and way.is_number)]


def _likeliest_date(connection: Connection, rivals: list[Profile]) -> tuple[Profile, str]:
    """Chooses among formats that all read: the one whose days are in the names of their files, or follow each other
    most closely. Also returns a note that others read too."""
    found = []
    for place, column in enumerate(rivals):
        day = f"CAST(make_timestamp({column.sql}) AS DATE) AS day"
        rows = connection.execute(
            f"SELECT _file, {day}, count(*) FROM raw GROUP BY ALL HAVING day IS NOT NULL"
        ).fetchall()
        days = {day for _, day, _ in rows}
        num_elsewhere = sum(num for file, day, num in rows if day_in(file) != day)
        found.append((num_elsewhere, ((max(days) - min(days)).days + 1) / len(days), place))
    (*best, first), (*next_best, second) = sorted(found)[:2]
    whys = ("as the files' names have its days", "as its days follow each other")
    better = (why for why, a, b in zip(whys, best, next_best, strict=True) if a < b)
    formats = " and ".join(str(rivals[place].column.date_format) for place in (first, second))
    return rivals[
        first
    ], f"reads as {formats}; the first is taken, {next(better, 'a guess, as nothing decides')}: check it"


def _list_column(connection: Connection, text: Profile) -> Profile | None:
    """A list column, where cells hold values that occur again and again between separators; words of titles don't."""
    cells = f"(SELECT trim({quote(text.source)}) AS c FROM raw WHERE c <> '')"
    for separator in (" ",) if text.source.endswith(":token_seq") else ("|", ";", ","):
        is_list = f"contains(c, {literal(separator)}) AND NOT regexp_matches(c, '[.!?] |[][(){{}}]')"
        (share,) = figures(connection, cells, f"avg(CAST({is_list} AS INT))")
        parts = f"(SELECT trim(unnest(string_split(c, {literal(separator)}))) AS p FROM {cells})"
        num, distinct, is_whole = figures(
            connection, parts, "count(*)", "count(DISTINCT p)", "bool_and(regexp_full_match(p, '[0-9]*'))"
        )
        if (share or 0) >= 0.2 and num > 5 * distinct:
            return text.declared("list[int]" if is_whole else "list[string]", separator=separator)
    return None


def _with_figures(connection: Connection, typed: str, columns: Mapping[str, Profile]) -> dict[str, Profile]:
    """Exact figures: so far the number of values is an estimate, and whether a key is unique depends on it."""
    texts = ", ".join(f"CAST({quote(name)} AS VARCHAR) AS {quote(name)}" for name in columns)
    found = connection.execute(
        f"WITH cells AS (UNPIVOT (SELECT {texts or 'NULL AS nothing'} FROM {typed}) ON * INTO NAME name VALUE v), "
        "counted AS (SELECT name, v, count(*) AS n FROM cells GROUP BY ALL), "
        "bounds AS (SELECT name, quantile_disc(TRY_CAST(v AS DOUBLE), [0.001, 0.999]) AS ends FROM cells GROUP BY ALL) "
        "SELECT name, CAST(sum(n) AS BIGINT), count(*), sum(n * length(v)) / sum(n), any_value(ends[1]), "
        "any_value(ends[2]), list(v ORDER BY n DESC, v)[:12] FROM counted JOIN bounds USING (name) GROUP BY name",
    ).fetchall()
    names = ("known", "distinct", "mean_length", "low", "high", "top")
    by_name = {name: dict(zip(names, (*values, tuple(top)), strict=True)) for name, *values, top in found}
    return {name: replace(column, **by_name.get(name, {})) for name, column in columns.items()}
