"""What the columns of a found table hold: a type that ingest reads, how many values, which ones.

Rows are sampled evenly over all files. A cell reads as a type if ingest's own SQL (`Cell`) reads it, so that `init`,
`check` and `ingest` agree, on `inf` and on spaces too.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from feature_jobs.expressions.compiler import literal
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.discover import FileGroup
from feature_jobs.schema import Column
from feature_jobs.sources.casts import Cell, quote
from feature_jobs.sources.files import duckdb_path

SAMPLE_ROWS = 200_000
_READS = 0.998  # share of cells that must read as a type: ingest quarantines the rows of the others
_SEPARATORS = ("|", ";", ",")
_CANDIDATES = {
    "text": ("int", "float", "bool", "time"),
    "int": ("int",),
    "float": ("int", "float"),
    "bool": ("bool",),
    "list": ("list[int]", "list[string]"),
    "moment": ("time",),
}
# Month first stands before day first: where every day is below 13, both read.
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
    """What a column holds. `source` is its name in the file; `low` and `high` are of numbers, without the outermost
    thousandth on either side; `top` are its twelve most frequent values; `sql` reads it from the files."""

    source: str
    name: str
    type: str
    separator: str | None
    known: int
    distinct: int
    low: float | None = None
    high: float | None = None
    mean_length: float = 0.0
    top: tuple[str, ...] = ()
    sql: str = ""
    date_format: str | None = None

    @property
    def words(self) -> set[str]:
        """The parts of the name and the name: `userId`, `user_id` and `userid` have user and id."""
        parts = {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", self.name)}
        joined = _ONE_WORD.fullmatch(self.name.lower())
        return parts | {self.name.lower()} | set(joined.groups() if joined else ())

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
        return self.type == "bool" or (
            self.is_number and self.distinct == 2 and set(self.top) <= {"0", "1", "0.0", "1.0"}
        )

    @property
    def is_text(self) -> bool:
        """Whether it holds sentences or titles."""
        return self.type == "string" and self.mean_length > 12 and any(" " in value for value in self.top)


@dataclass(frozen=True)
class Table:
    """A found table. `relation` is its sample in the connection, with columns by their clean names."""

    group: FileGroup
    relation: str
    columns: dict[str, Profile]
    num_rows: int
    num_sampled: int
    notes: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """A name for it, from its path."""
        parts = [re.sub(r"[{*].*", "", part) for part in self.group.path.split("/")]
        words = [part.split(".")[0].strip("_-=") for part in parts]
        named = [word for word in words if len(word) > 1 and word not in ("year", "dt", "date", "part")]
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
    described = connection.execute(f"DESCRIBE SELECT * EXCLUDE _file FROM {scan}").fetchall()
    types = {row[0]: str(row[1]) for row in described}
    num_rows = int(connection.execute(f"SELECT count(*) FROM {scan}").fetchall()[0][0])
    every = -(-num_rows // SAMPLE_ROWS) or 1
    connection.execute(
        f"CREATE TABLE {raw} AS SELECT * EXCLUDE (_nth, _file) FROM "
        f"(SELECT *, row_number() OVER () AS _nth FROM {scan}) WHERE _nth % {every} = 0"
    )
    table = Table(group, relation, {}, num_rows, num_rows // every)
    cells: dict[str, Cell] = {}
    for source, kind in types.items():
        column = _column(connection, table, raw, source, kind)
        if column is None:
            table.notes.append(f"{group.path}: column {source} is left out: {kind} can't be a feature")
        else:
            name = unique(clean(_HEADER_TYPE.sub("", source)), cells)
            cells[name] = Cell(name, column.model_copy(update={"source": source}), kind)
    values = ", ".join(f"{cell.value(quote(cell.source))} AS {quote(name)}" for name, cell in cells.items())
    connection.execute(f"CREATE TABLE {relation} AS SELECT {values or 'NULL AS nothing'} FROM {raw}")
    connection.execute(f"DROP TABLE {raw}")
    return replace(table, columns=_figures(connection, relation, cells))


def scan_of(group: FileGroup) -> str:
    """SQL that reads all rows of a table, CSV as text as ingest does; `_file` is the file of a row. Lines that are not
    rows are left out."""
    files = "[" + ", ".join(duckdb_path(file) for file in group.files) + "]"
    if group.dialect.format == "parquet":
        return f"read_parquet({files}, filename = '_file', hive_partitioning = false)"
    if group.dialect.format == "jsonl":
        options = "format = 'newline_delimited', ignore_errors = true, union_by_name = true, hive_partitioning = false"
        return f"read_json({files}, {options}, filename = '_file')"
    columns = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in group.dialect.columns)
    return (
        f"read_csv({files}, auto_detect = false, header = true, delim = {literal(group.dialect.delimiter)}, "
        f"quote = '\"', escape = '\"', columns = {{{columns}}}, ignore_errors = true, hive_partitioning = false, "
        f"filename = '_file'{group.dialect.options})"
    )


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


def _column(connection: duckdb.DuckDBPyConnection, table: Table, raw: str, source: str, kind: str) -> Column | None:
    """The column with the first type that its cells read as, or None where ingest has no use for it."""
    cell, shape = quote(source), Cell(source, _typed("string"), kind).kind
    if kind.startswith(("FLOAT[", "DOUBLE[", "DECIMAL[")):
        return None  # an embedding, not ids
    named = Profile(source, clean(_HEADER_TYPE.sub("", source)), "string", None, 0, 0)
    candidates = [_typed(name) for name in _CANDIDATES.get(shape, ())]
    fit = _date_formats(connection, raw, source) if shape == "text" else []
    if fit:
        # 20240301 reads as a number too: only the name can say that it is a date.
        candidates = fit + candidates if named.words & vocabulary.TIME else candidates + fit
    known, distinct, is_padded = connection.execute(
        f"SELECT count({cell}), count(DISTINCT {cell}), "
        f"bool_or(regexp_full_match(trim(CAST({cell} AS VARCHAR)), '0[0-9]+')) FROM {raw}"
    ).fetchall()[0]
    for column in candidates if known else []:
        # Whole numbers with gaps are often written as fractions: 17850.0 is an id, 12.0 may be a price.
        is_measure = shape == "float" and column.type == "int" and distinct > 1000 and not named.is_id
        is_text = is_padded and column.type in ("int", "float")
        share = 0.0 if is_measure or is_text else _share_read(connection, raw, source, column, kind)
        if share >= _READS:
            if column in fit[:1] and len(fit) > 1:
                both = f"{fit[0].date_format} and {fit[1].date_format}"
                table.notes.append(f"{table.group.path}: column {source} reads as {both}; the first is taken: check it")
            return column
        if column.type == "float" and share > 0.9:
            what = f"{1 - share:.1%} of its cells are not finite numbers, and ingest would quarantine their rows"
            table.notes.append(f"{table.group.path}: column {source} is declared as text: {what}")
    if shape == "text":
        return _list_column(connection, raw, source) or _typed("string")
    return _typed("string") if shape in ("int", "float", "bool") or not known else None


def _date_formats(connection: duckdb.DuckDBPyConnection, raw: str, source: str) -> list[Column]:
    """The formats of times in which the first cells read, all of them."""
    counts = ", ".join(f"count(*) FILTER (try_strptime(c, {literal(text)}) IS NULL)" for text in _FORMATS)
    head = f"(SELECT trim({quote(source)}) AS c FROM {raw} WHERE {quote(source)} <> '' LIMIT 200)"
    unread = connection.execute(f"SELECT {counts} FROM {head}").fetchall()[0]
    return [_typed("time", date_format=text) for text, num in zip(_FORMATS, unread, strict=True) if num == 0]


def _typed(kind: str, **fields: str) -> Column:
    return Column.model_validate({"type": kind, **fields})


def _share_read(connection: duckdb.DuckDBPyConnection, rows: str, source: str, column: Column, kind: str) -> float:
    cell = Cell(source, column, kind)
    raw = quote(source)
    known, unread = connection.execute(
        f"SELECT count({raw}), count({cell.reason(raw, cell.value(raw))}) FROM {rows}"
    ).fetchall()[0]
    return 1 - unread / known if known else 0.0


def _list_column(connection: duckdb.DuckDBPyConnection, raw: str, source: str) -> Column | None:
    """A list column, where cells hold values that occur again and again between separators; words of titles don't."""
    cell = quote(source)
    for separator in (" ",) if source.endswith(":token_seq") else _SEPARATORS:
        has = f"contains(c, {literal(separator)}) AND NOT regexp_matches(c, '[.!?] |[][(){{}}]')"
        share, num, distinct, whole = connection.execute(
            f"WITH cells AS (SELECT trim({cell}) AS c FROM {raw} WHERE {cell} <> ''), "
            f"parts AS (SELECT trim(unnest(string_split(c, {literal(separator)}))) AS p FROM cells) "
            f"SELECT (SELECT avg(CAST({has} AS INT)) FROM cells), count(*), count(DISTINCT p), "
            "bool_and(regexp_full_match(p, '[0-9]*')) FROM parts"
        ).fetchall()[0]
        if (share or 0) >= 0.2 and num > 5 * distinct:
            return _typed("list[int]" if whole else "list[string]", separator=separator)
    return None


def _figures(connection: duckdb.DuckDBPyConnection, relation: str, cells: dict[str, Cell]) -> dict[str, Profile]:
    """Exact figures: SUMMARIZE only estimates how many values there are, and whether a key is unique depends on it."""
    found = {}
    for name, cell in cells.items():
        quoted, kind = quote(name), cell.column.type
        number = f"CAST({quoted} AS DOUBLE)" if kind in ("int", "float") else "NULL::DOUBLE"
        known, distinct, low, high, length = connection.execute(
            f"SELECT count({quoted}), count(DISTINCT {quoted}), quantile_disc({number}, 0.001), "
            f"quantile_disc({number}, 0.999), avg(length(CAST({quoted} AS VARCHAR))) FROM {relation}"
        ).fetchall()[0]
        top = connection.execute(
            f"SELECT CAST({quoted} AS VARCHAR), count(*) FROM {relation} WHERE {quoted} IS NOT NULL "
            "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 12"
        ).fetchall()
        found[name] = Profile(
            source=cell.source,
            name=name,
            type=kind,
            separator=cell.column.separator,
            known=known,
            distinct=distinct,
            low=low,
            high=high,
            mean_length=length or 0.0,
            top=tuple(value for value, _ in top),
            sql=cell.value(quote(cell.source)),
            date_format=cell.column.date_format,
        )
    return found


def connect(scratch: Path) -> duckdb.DuckDBPyConnection:
    """A database that reads text times in UTC and spills to `scratch`."""
    connection = duckdb.connect(config={"threads": 2, "memory_limit": "2GB", "temp_directory": str(scratch)})
    connection.execute("SET TimeZone = 'UTC'")
    return connection
