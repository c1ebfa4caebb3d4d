"""What the columns of a found table hold: a type that ingest reads, how many values, which ones.

Rows are sampled evenly over all files. A cell reads as a type if ingest's own SQL (`Cell`) reads it, so that `init`,
`check` and `ingest` agree, on `inf` and on spaces too.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from feature_jobs.expressions.compiler import literal
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.discover import FileGroup, day_in
from feature_jobs.schema import Column
from feature_jobs.sources.casts import Cell, quote
from feature_jobs.sources.files import duckdb_path

SAMPLE_ROWS = 200_000
FEW_TEXTS = 20  # so few different texts are categories, however long they are
_READS = 0.998  # share of cells that must read as a type: ingest quarantines the rows of the others
_CANDIDATES = {
    "text": ("int", "float", "bool", "time"),
    "int": ("int",),
    "float": ("int", "float"),
    "bool": ("bool",),
    "list": ("list[int]", "list[string]"),
    "moment": ("time",),
}
# Where every day is below 13, month first and day first both read: `_likeliest_date` decides.
_FORMATS = [
    f"{date}{clock}"
    for date in ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y", "%d-%m-%Y", "%d-%b-%Y", "%d %b %Y", "%m/%d/%y")
    for clock in (" %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "")
] + ["%Y%m%d%H%M%S", "%Y%m%d", "%d/%b/%Y:%H:%M:%S %z", "%a %b %d %H:%M:%S %Y"]
_RESERVED = {"null", "none", "nan", "nil", "true", "false", "event_time"}  # they mean something in expressions
_HEADER_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")  # RecBole's `user_id:token`
_NOUNS = "|".join(sorted({*vocabulary.USER, *vocabulary.ITEM, *vocabulary.ROW}))
_ONE_WORD = re.compile(f"({_NOUNS})({'|'.join(sorted(vocabulary.ID_ENDINGS))})")


@dataclass(frozen=True)
class Profile:
    """What a column holds. `column` is how ingest reads it; `low` and `high` are of numbers, without the outermost
    thousandth on either side; `top` are its twelve most frequent values; `sql` reads it from the files."""

    name: str
    column: Column
    sql: str
    known: int = 0
    distinct: int = 0
    mean_length: float = 0.0
    top: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

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
        """Whether it is int or float."""
        return self.type in ("int", "float")

    @property
    def is_id(self) -> bool:
        """Whether the name says that it identifies something."""
        return not self.words.isdisjoint(vocabulary.ID_ENDINGS)

    @property
    def is_flag(self) -> bool:
        """Whether it holds yes or no."""
        is_01 = self.is_number and self.distinct == 2 and {*self.top} <= {"0", "1", "0.0", "1.0"}
        return is_01 or self.type == "bool"

    @property
    def is_text(self) -> bool:
        """Whether it holds sentences or titles: long, of several words, and many. Names of countries are not."""
        num_words = sum(len(value.split()) for value in self.top) / max(len(self.top), 1)
        return self.type == "string" and self.mean_length > 12 and num_words > 1.5 and self.distinct > FEW_TEXTS

    def fields(self, name: str, required: bool) -> dict[str, object]:
        """The column as a scenario declares it under a name."""
        renamed = {"from": self.column.source} if self.column.source != name else {}
        declared = self.column.model_dump(exclude={"source"}, exclude_defaults=True)
        return renamed | declared | ({"required": True} if required else {})


@dataclass(frozen=True)
class Table:
    """A found table. `relation` is its sample in the connection, with columns by their clean names."""

    group: FileGroup
    relation: str
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
        """How many rows there are, and how many were looked at."""
        looked = "all" if self.num_sampled == self.num_rows else f"{self.num_sampled:,} of them, evenly taken,"
        files = len(self.group.files)
        return f"{self.num_rows:,} rows in {files:,} file{'s' * (files > 1)}, {looked} looked at"

    def missing(self, column: Profile) -> float:
        """Share of the sample's rows without a value."""
        return 1 - column.known / max(self.num_sampled, 1)


def profile(connection: duckdb.DuckDBPyConnection, group: FileGroup, number: int) -> Table:
    """Samples a table and describes its columns. Raises duckdb.Error where its files can't be read."""
    scan, raw, relation = scan_of(group), f"raw{number}", f"t{number}"
    num_rows = int(row_of(connection, f"SELECT count(*) FROM {scan}")[0])
    every = -(-num_rows // SAMPLE_ROWS) or 1
    connection.execute(
        f"CREATE TABLE {raw} AS SELECT * EXCLUDE (_nth) FROM "
        f"(SELECT *, row_number() OVER () AS _nth FROM {scan}) WHERE _nth % {every} = 0"
    )
    columns: dict[str, Profile] = {}
    notes: list[str] = []
    summary = connection.execute(
        f"SELECT column_name, column_type, approx_unique FROM (SUMMARIZE SELECT * EXCLUDE (_file) FROM {raw})"
    ).fetchall()
    for source, kind, distinct in summary:
        column, note = _column(connection, raw, source, kind, distinct)
        if note:
            notes.append(f"{group.path}: column {source} {note}")
        if column is not None:
            name = unique(clean(_HEADER_TYPE.sub("", source)), columns)
            column = column.model_copy(update={"source": source})
            columns[name] = Profile(name, column, Cell(name, column, kind).value(quote(source)))
    values = ", ".join(f"{column.sql} AS {quote(name)}" for name, column in columns.items())
    connection.execute(f"CREATE TABLE {relation} AS SELECT {values or 'NULL AS nothing'} FROM {raw}")
    connection.execute(f"DROP TABLE {raw}")
    return Table(group, relation, _with_figures(connection, relation, columns), num_rows, num_rows // every, notes)


def scan_of(group: FileGroup) -> str:
    """SQL that reads all rows of a table, CSV as text as ingest does; `_file` is the file of a row. Lines that are not
    rows are left out."""
    dialect = group.dialect
    files = "[" + ", ".join(duckdb_path(file) for file in group.files) + "], filename = '_file'"
    if dialect.format == "parquet":
        return f"read_parquet({files}, hive_partitioning = false)"
    options = f"{files}, ignore_errors = true, hive_partitioning = false"
    if dialect.format == "jsonl":
        return f"read_json({options}, format = 'newline_delimited', union_by_name = true)"
    columns = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in dialect.columns)
    written = f"header = true, delim = {literal(dialect.delimiter)}, quote = '\"', escape = '\"'{dialect.options}"
    return f"read_csv({options}, auto_detect = false, columns = {{{columns}}}, {written})"


def words_of(name: str) -> set[str]:
    """The parts of a name and the name: `userId`, `user_id` and `userid` have user and id."""
    parts = {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}
    joined = _ONE_WORD.fullmatch(name.lower())
    return parts | {name.lower()} | set(joined.groups() if joined else ())


def clean(name: str) -> str:
    """A name that can stand in expressions."""
    text = re.sub(r"\W+", "_", name.strip(), flags=re.ASCII).strip("_") or "column"
    if keyword.iskeyword(text) or text.lower() in _RESERVED:
        return f"{text}_"
    return f"c_{text}" if text[0].isdigit() else text


def unique(name: str, taken: Iterable[str]) -> str:
    """The name, numbered where another differs from it in capitals only."""
    lowered = {other.lower() for other in taken}
    return next(c for c in (name, *(f"{name}_{n}" for n in range(2, 10_000))) if c.lower() not in lowered)


def _column(
    connection: duckdb.DuckDBPyConnection, raw: str, source: str, kind: str, distinct: int
) -> tuple[Column | None, str]:
    """The column with the first type that its cells read as, or None where ingest has no use for it; and a note."""
    cell, shape = quote(source), Cell(source, _typed("string"), kind).kind
    candidates = [_typed(name) for name in _CANDIDATES.get(shape, ())]
    dates = _date_formats(connection, raw, cell) if shape == "text" else []
    # 20240301 reads as a number too: only the name can say that it is a date.
    words = words_of(_HEADER_TYPE.sub("", source))
    candidates = dates + candidates if words & vocabulary.TIME else candidates + dates
    if shape == "float" and distinct > 1000 and not words & vocabulary.ID_ENDINGS:
        candidates = [_typed("float")]  # 17850.0 is an id with gaps, but 12.0 among many others is a measure
    if kind.startswith(("FLOAT[", "DOUBLE[", "DECIMAL[")):
        candidates = []  # an embedding, not ids
    cells = [Cell(source, column, kind) for column in candidates]
    known, is_padded, *unread = row_of(
        connection,
        f"SELECT count({cell}), bool_or(regexp_full_match(trim(CAST({cell} AS VARCHAR)), '0[0-9]+'))"
        + "".join(f", count({one.reason(cell, one.value(cell))})" for one in cells)
        + f" FROM {raw}",
    )
    note = ""
    read = [column for column, num in zip(candidates, unread, strict=True) if known and num <= (1 - _READS) * known]
    for column, num in zip(candidates if known else [], unread, strict=False):
        is_text = is_padded and column.type in ("int", "float")
        if column in read and not is_text:
            rivals = [date for date in dates if date in read]
            return _likeliest_date(connection, raw, cell, rivals) if column in rivals[:-1] else (column, note)
        if column.type == "float" and num < 0.1 * known and not is_text:
            what = f"{num / known:.1%} of its cells are not finite numbers, and ingest would quarantine their rows"
            note = f"is declared as text: {what}"
    if shape == "text":
        return _list_column(connection, raw, source) or _typed("string"), note
    if shape in ("int", "float", "bool") or not known:
        return _typed("string"), note
    return None, f"is left out: {kind} can't be a feature"


def _typed(kind: str, **fields: str) -> Column:
    return Column.model_validate({"type": kind, **fields})


def _date_formats(connection: duckdb.DuckDBPyConnection, raw: str, cell: str) -> list[Column]:
    """The formats of times in which the first cells read, all of them."""
    counts = ", ".join(f"bool_and(try_strptime(c, {literal(text)}) IS NOT NULL)" for text in _FORMATS)
    head = f"(SELECT trim({cell}) AS c FROM {raw} WHERE {cell} <> '' LIMIT 200)"
    reads = row_of(connection, f"SELECT {counts} FROM {head}")
    return [_typed("time", date_format=text) for text, fits in zip(_FORMATS, reads, strict=True) if fits]


def _likeliest_date(
    connection: duckdb.DuckDBPyConnection, raw: str, cell: str, rivals: list[Column]
) -> tuple[Column, str]:
    """Of formats that all read: the one whose days are in the names of their files, or follow each other most closely;
    and a note that others read too."""
    found = []
    for place, column in enumerate(rivals):
        rows = connection.execute(
            f"SELECT _file, CAST(try_strptime(trim({cell}), {literal(str(column.date_format))}) AS DATE) AS day, "
            f"count(*) FROM {raw} GROUP BY ALL HAVING day IS NOT NULL"
        ).fetchall()
        days = {day for _, day, _ in rows}
        num_in_file = sum(num for file, day, num in rows if day_in(file) == day)
        found.append((-num_in_file, ((max(days) - min(days)).days + 1) / len(days), place))
    found.sort()
    (in_file, spread, first), (in_other, other_spread, second) = found[:2]
    why = "as the files' names have its days" if in_file < in_other else "as its days follow each other"
    why = why if (in_file, spread) != (in_other, other_spread) else "a guess, as nothing decides"
    formats = f"{rivals[first].date_format} and {rivals[second].date_format}"
    return rivals[first], f"reads as {formats}; the first is taken, {why}: check it"


def _list_column(connection: duckdb.DuckDBPyConnection, raw: str, source: str) -> Column | None:
    """A list column, where cells hold values that occur again and again between separators; words of titles don't."""
    for separator in (" ",) if source.endswith(":token_seq") else ("|", ";", ","):
        share, num, distinct, whole = row_of(
            connection,
            f"WITH cells AS (SELECT trim({quote(source)}) AS c FROM {raw} WHERE {quote(source)} <> ''), "
            f"parts AS (SELECT trim(unnest(string_split(c, {literal(separator)}))) AS p FROM cells) SELECT "
            f"(SELECT count_if(contains(c, {literal(separator)}) AND NOT regexp_matches(c, '[.!?] |[][(){{}}]')) "
            "/ count(*) FROM cells), count(*), count(DISTINCT p), bool_and(regexp_full_match(p, '[0-9]*')) FROM parts",
        )
        if (share or 0) >= 0.2 and num > 5 * distinct:
            return _typed("list[int]" if whole else "list[string]", separator=separator)
    return None


def _with_figures(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: dict[str, Profile]
) -> dict[str, Profile]:
    """Exact figures: SUMMARIZE only estimates how many values there are, and whether a key is unique depends on it."""
    texts = ", ".join(f"CAST({quote(name)} AS VARCHAR) AS {quote(name)}" for name in columns)
    numbers = [name for name, column in columns.items() if column.is_number]
    bounds = [f"quantile_disc(CAST({quote(name)} AS DOUBLE), [0.001, 0.999])" for name in numbers]
    ends = dict(
        zip(numbers, row_of(connection, f"SELECT {', '.join([*bounds, 'count(*)'])} FROM {relation}"), strict=False)
    )
    counted = connection.execute(
        f"WITH cells AS (UNPIVOT (SELECT {texts or 'NULL AS nothing'} FROM {relation}) ON * INTO NAME name VALUE v), "
        "counted AS (SELECT name, v, count(*) AS n FROM cells GROUP BY ALL) SELECT name, CAST(sum(n) AS BIGINT), "
        "count(*), sum(n * length(v)) / sum(n), list(v ORDER BY n DESC, v)[:12] FROM counted GROUP BY name"
    ).fetchall()
    found = {}
    for name, known, distinct, length, top in counted:
        low, high = ends.get(name) or (None, None)
        figures = {"known": known, "distinct": distinct, "mean_length": length, "top": tuple(top)}
        found[name] = replace(columns[name], **figures, low=low, high=high)
    return columns | found


def row_of(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """The first row of a query's result."""
    row: tuple[Any, ...] = connection.execute(sql).fetchall()[0]
    return row


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    """A database that reads text times in UTC and spills to `scratch`."""
    connection = duckdb.connect(config={"threads": 2, "memory_limit": "2GB", "temp_directory": str(scratch)})
    connection.execute("SET TimeZone = 'UTC'")
    return connection
