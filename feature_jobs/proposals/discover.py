"""Finds the tables among files that nobody has described: CSV of any delimiter, Parquet and JSON lines.

Files of one folder with equal columns are one table. A date in their paths (2024-03-01, 20240301, 2024/03/01 or
year=2024/month=03/day=01) makes it a table of daily partitions. A file that is not a table is reported, not raised.
"""

from __future__ import annotations

import csv
import datetime
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.sources.files import TextFile, duckdb_path, open_text

MAX_FILES = 20_000
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_NOT_TABLES = (".md", ".yaml", ".yml", ".py", ".html", ".pdf", ".png", ".jpg", ".zip", ".tar", ".ipynb")
_PARTITION = re.compile(
    r"(?<!\d)(?P<ds>(?:19|20)\d\d-\d\d-\d\d)(?!\d)"
    r"|(?<!\d)(?P<yyyymmdd>(?:19|20)\d{6})(?!\d)"
    r"|(?P<y>(?:19|20)\d\d)(?P<to_month>/(?:m(?:onth)?=)?)(?P<m>\d\d?)(?P<to_day>/(?:d(?:ay)?=)?)(?P<d>\d\d?)(?=/|$)"
)
_HOUR = re.compile(r"(?<=/)(?P<name>h(?:our)?=)?(?P<hour>[01]\d|2[0-3])(?=/|$)")


@dataclass(frozen=True)
class Dialect:
    """How a file is read, and the names of its columns. `options` of DuckDB say how its text is stored."""

    format: str
    delimiter: str
    columns: tuple[str, ...]
    options: str = ""


@dataclass(frozen=True)
class FileGroup:
    """Files of one table. `path` is relative to the root: a file, a glob, or with placeholders for the day."""

    files: list[Path]
    path: str
    dialect: Dialect

    @property
    def is_daily(self) -> bool:
        """Whether the path names days."""
        return "{" in self.path

    @property
    def glob(self) -> str:
        """The path with a star for each placeholder."""
        return re.sub(r"\*+", "*", re.sub(r"\{\w+\}", "*", self.path))


def find_tables(root: Path) -> tuple[list[FileGroup], list[str]]:
    """The tables below a folder (or in one file), and why other files were left out.

    Raises BadInputError where none of the files is a table.
    """
    if not root.exists():
        raise BadInputError(f"{root}: no such file or folder; name the folder of the log files")
    base, files = (root.parent, [root]) if root.is_file() else (root, _files_below(root))
    notes: list[str] = []
    known: dict[tuple[str, str], Dialect | str] = {}
    members: dict[tuple[str, str], dict[Dialect, list[Path]]] = defaultdict(lambda: defaultdict(list))
    folders = {file.parent: with_placeholders(file.parent.relative_to(base).as_posix()) for file in files}
    if any("{m}" in folder or "{d}" in folder for folder in folders.values()):  # month=4, and so month=12 too
        folders = {path: text.replace("{mm}", "{m}").replace("{dd}", "{d}") for path, text in folders.items()}
    with duckdb.connect() as connection:
        for file in files:
            found = _sniff(connection, file, known)
            if isinstance(found, Dialect):
                members[(folders[file.parent], _suffix(file))][found].append(file)
            elif found:
                notes.append(f"left out {file.relative_to(base)}: {found}")
    if not members:
        raise BadInputError("\n".join([f"{root}: no table (CSV with a header, Parquet or JSON lines)", *notes[:10]]))
    groups = [
        FileGroup(some, path, dialect)
        for (folder, _), tables in members.items()
        for dialect, group in tables.items()
        for path, some in _patterns(base, folder, group, is_all=len(tables) == 1)
    ]
    return sorted(groups, key=lambda group: group.path), notes


def _files_below(root: Path) -> list[Path]:
    paths = (path for path in root.rglob("*") if path.is_file())
    shown = (path for path in paths if not re.search(r"(^|/)[._]", path.relative_to(root).as_posix()))
    # Stops early: a folder that holds a whole disk must be refused at once, not after it was listed.
    found = list(islice(shown, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise BadInputError(f"{root}: more than {MAX_FILES} files; name the folder of one data set")
    return sorted(found)


def _suffix(file: Path) -> str:
    """`.csv.gz` of part-1.csv.gz, `.parquet` of part-1.snappy.parquet."""
    return (Path(file.stem).suffix + file.suffix) if file.suffix == ".gz" else file.suffix


def _sniff(
    connection: duckdb.DuckDBPyConnection, file: Path, known: dict[tuple[str, str], Dialect | str]
) -> Dialect | str:
    """How the file is read, or why it is not a table; an empty text for files that nobody expects to be one.

    `known` are results by suffix and header, as thousands of daily files are sniffed once.
    """
    suffix = _suffix(file).lower().removesuffix(".gz")
    if suffix in _NOT_TABLES:
        return ""
    try:
        with file.open("rb") as stream:
            # By the content: files are often named without an ending, or with a wrong one.
            is_parquet = stream.read(4) == b"PAR1"
        if is_parquet:
            return Dialect("parquet", "", tuple(pq.read_schema(file).names))
        text = open_text(file, "csv")
        with text.lines() as lines:
            first = lines.readline(1_000_000)  # a file without line breaks must not fill the memory
    except (BadInputError, OSError, EOFError, pa.ArrowException) as error:
        return f"not readable ({str(error).splitlines()[0].removeprefix(f'{file}: ')[:120]})"
    if suffix in _JSON_LINES:
        # A key may be absent in all rows of a file, so files of one name are one table, whatever their keys.
        is_object = re.fullmatch(r"\s*\{.*\}\s*", first)
        columns = (re.sub(r"\d+", "", file.name),)
        return Dialect("jsonl", "", columns) if is_object else "not JSON lines; write one object a line"
    if (suffix, first) not in known:
        known[(suffix, first)] = _sniff_csv(connection, text, first) if first else "empty"
    return known[(suffix, first)]


def _sniff_csv(connection: duckdb.DuckDBPyConnection, text: TextFile, first: str) -> Dialect | str:
    stored = f", compression = '{text.compression}', encoding = '{text.encoding}'"
    try:
        delimiter, skipped, has_header, names = connection.execute(
            "SELECT Delimiter, SkipRows, HasHeader, [c.name for c in Columns] "
            f"FROM sniff_csv({duckdb_path(text.path)}, ignore_errors = true, sample_size = 2048{stored})"
        ).fetchall()[0]
        header = next(csv.reader([first], delimiter=delimiter), [])
    except (duckdb.Error, csv.Error):
        return "not text with the same number of cells in each line"
    # DuckDB skips lines until the cells agree, and so takes a report with a title for a table.
    if skipped or len(names) != len(header):
        return "not a table: its first line has another number of cells than the others"
    if len(names) < 2:
        return "it has a single column"
    if not has_header or any(re.fullmatch(r"[-+.\deE]*", name.strip()) for name in header):
        return "its first line is not a header of names; add one"
    if names != header:
        return "its header uses a name twice (perhaps in other capitals), or not at all; rename it"
    return Dialect("csv", delimiter, tuple(header), stored)


def _patterns(root: Path, folder: str, files: list[Path], *, is_all: bool) -> list[tuple[str, list[Path]]]:
    """Paths that lead to the files and to no other: with placeholders, a glob, or each file by its name."""
    prefix, suffix = "" if folder == "." else f"{folder}/", _suffix(files[0])
    if is_all and "{" in folder:  # a folder a day, whatever the names of its files
        return [(f"{prefix}*{suffix}", files)]
    names = {with_placeholders(file.name) for file in files}
    if len(names) == 1 and len(files) > 1:
        return [(prefix + names.pop(), files)]
    low, high = min(f.name for f in files), max(f.name for f in files)
    # A glob is kept only where it finds these files alone; files of another shape may lie beside them.
    same = 0 if is_all else next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    pattern = f"{prefix}{low[:same]}*{suffix}"
    if len(files) > 1 and (is_all or {*root.glob(re.sub(r"\{\w+\}", "*", pattern))} == {*files}):
        return [(pattern, files)]
    return [(file.relative_to(root).as_posix(), [file]) for file in files]


def with_placeholders(path: str) -> str:
    """The path with {ds}, {yyyymmdd} or {yyyy}, {mm}, {dd} for its date, and a star for an hour's folder below it."""
    replaced = _PARTITION.sub(_placeholder, path)
    return _HOUR.sub(lambda m: f"{m['name'] or ''}*", replaced) if replaced != path else path


def _placeholder(match: re.Match[str]) -> str:
    if _date(match) is None:  # digits that are no date, such as an id
        return match.group()
    if not match["y"]:
        return "{ds}" if match["ds"] else "{yyyymmdd}"
    month, day = ("{mm}" if len(match["m"]) > 1 else "{m}"), ("{dd}" if len(match["d"]) > 1 else "{d}")
    return "{yyyy}" + match["to_month"] + month + match["to_day"] + day


def day_in(path: str) -> datetime.date | None:
    """The last date that a path names."""
    dates = [date for match in _PARTITION.finditer(path) if (date := _date(match))]
    return dates[-1] if dates else None


def _date(match: re.Match[str]) -> datetime.date | None:
    text = f"{match['y']}-{match['m']:0>2}-{match['d']:0>2}" if match["y"] else match.group()
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None
