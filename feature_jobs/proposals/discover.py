"""Finds the tables among files that nobody has described: CSV of any delimiter, Parquet and JSON lines.

Files of one folder with equal columns are one table. A date in their paths (2024-03-01, 20240301, 2024/03/01 or
year=2024/month=03/day=01) makes it a table of daily partitions. A file that is not a table is reported, not raised.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import itertools
import re
import tempfile
import zlib
from collections import Counter, defaultdict
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.proposals.encodings import guess_encoding
from feature_jobs.sources.casts import quote
from feature_jobs.sources.encodings import copy_as_utf8
from feature_jobs.sources.files import duckdb_path, open_bytes, open_text

MAX_FILES = 20_000
_MORE_LETTERS = 65_536  # read after the header to see if they are UTF-8
_MAX_UNREAD = 0.01  # share of lines; ingest quarantines single ones
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_NOT_TABLES = (".md", ".yaml", ".yml", ".py", ".html", ".pdf", ".png", ".jpg", ".zip", ".tar", ".ipynb")
_DATE = re.compile(
    r"(?<!\d)(?P<y>(?:19|20)\d\d)(?P<to_month>-|/(?:m(?:onth)?=)?|)(?P<m>\d\d?)"
    r"(?P<to_day>-|/(?:d(?:ay)?=)?|)(?P<d>\d\d?)(?!\d)"
)
_HOUR = re.compile(r"(?<=/)(h(?:our)?=)?([01]\d|2[0-3])(?=/|$)")


@dataclass(frozen=True)
class Dialect:
    """The format of a file and the names of its columns. `options` of DuckDB describe the storage of its text."""

    format: str
    delimiter: str
    columns: tuple[str, ...]
    options: str = ""
    encoding: str = field(default="", compare=False)  # a guess; a file of a table may have ASCII alone


_DIFFERENCES = (
    "another format",
    "another delimiter",
    "other columns",
    "another encoding or compression",
    "another encoding",
)
_PLAIN = ", compression = 'none', encoding = 'utf-8'"
Sniffed = dict[tuple[str, str], Dialect | str]


@dataclass(frozen=True)
class FileGroup:
    """Files of one table. `path` is relative to the root: a file, a glob, or with placeholders for the day."""

    files: list[Path]
    path: str
    dialect: Dialect
    encoding: str = ""  # a guess, of files that are not UTF-8
    copies: tuple[Path, ...] = ()

    @property
    def is_daily(self) -> bool:
        """True where the path names days."""
        return "{" in self.path

    @property
    def glob(self) -> str:
        """The path with a star for each placeholder."""
        return re.sub(r"\*+", "*", re.sub(r"\{\w+\}", "*", self.path))

    @property
    def scan(self) -> str:
        """SQL that reads all rows, CSV as text as ingest does; `_file` is the file of a row. Lines that are not rows
        are left out."""
        # Without Hive's columns: a name of a folder is not a column of the file, and its day is read from the path.
        read = self.copies or self.files
        files = f"[{', '.join(map(duckdb_path, read))}], filename = '_file', hive_partitioning = false"
        if self.dialect.format == "parquet":
            return f"read_parquet({files})"
        if self.dialect.format == "jsonl":
            return f"read_json({files}, ignore_errors = true, format = 'newline_delimited', union_by_name = true)"
        columns = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in self.dialect.columns)
        stored = _PLAIN if self.copies else self.dialect.options
        written = f"delim = {literal(self.dialect.delimiter)}, quote = '\"', escape = '\"'{stored}"
        options = f"header = true, auto_detect = false, columns = {{{columns}}}, {written}"
        return f"read_csv({files}, ignore_errors = true, {options})"

    def in_utf8(self, folder: Path) -> FileGroup:
        """The group with copies of its files in UTF-8 below `folder`, if they have another encoding; the last folders
        and names are kept, as they may hold days. Raises BadInputError for a file that is not in its encoding."""
        if not self.encoding:
            return self
        copies = tuple(folder / str(number) / Path(*file.resolve().parts[1:]) for number, file in enumerate(self.files))
        copies = tuple(copy.with_suffix("") if copy.suffix == ".gz" else copy for copy in copies)
        for file, copy in zip(self.files, copies, strict=True):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_as_utf8(file, self.encoding, copy, file_format=self.dialect.format, place="the encoding")
        return replace(self, copies=copies)


def find_tables(root: Path) -> tuple[list[FileGroup], list[str]]:
    """The tables below a folder (or in one file), and why other files were left out.

    Raises BadInputError where none of the files is a table.
    """
    if not root.exists():
        raise BadInputError(f"{root}: no such file or folder; name the folder of the log files")
    base, files = (root.parent, [root]) if root.is_file() else (root, _files_below(root))
    notes: list[str] = []
    members: dict[tuple[str, Dialect], list[Path]] = defaultdict(list)
    folders = {file.parent: with_placeholders(file.parent.relative_to(base).as_posix()) for file in files}
    if any("{m}" in folder or "{d}" in folder for folder in folders.values()):  # month=4, and so month=12 too
        folders = {path: text.replace("{mm}", "{m}").replace("{dd}", "{d}") for path, text in folders.items()}
    sniffed: Sniffed = {}
    guesses: dict[Path, str] = {}
    for file in files:
        found = _sniff(file, sniffed)
        if isinstance(found, Dialect):
            guesses[file] = found.encoding
            members[(folders[file.parent], found)].append(file)
        elif found:
            notes.append(f"left out {file.relative_to(base)}: {found}")
    if not members:
        raise BadInputError("\n".join([f"{root}: no table (CSV with a header, Parquet or JSON lines)", *notes[:10]]))
    tables = {file for group in members.values() for file in group}
    groups = [group for key, files in members.items() for group in _groups(base, *key, files, tables)]
    largest: dict[str, FileGroup] = {}
    for group in sorted(groups, key=lambda group: (len(group.files), group.files[0]), reverse=True):
        # Where other files have its name but for the day, a file is a day of theirs, and not a table of its own.
        usual = largest.setdefault(with_placeholders(group.path).removesuffix(".gz"), group)
        if usual is not group:
            few = str(group.files[0].relative_to(base))
            few += f" and the files like it ({len(group.files):,})" if group.files[1:] else ""
            pairs = zip(_DIFFERENCES, astuple(group.dialect), astuple(usual.dialect), strict=True)
            what = next((what for what, own, other in pairs if own != other), "another name")
            notes.append(f"left out {few}: {what} than most at {usual.path}")
    return [_encoded(group, guesses) for group in sorted(largest.values(), key=lambda group: group.path)], notes


def _encoded(group: FileGroup, guesses: dict[Path, str]) -> FileGroup:
    """The group with the encoding that most of its files seem to have, of those with letters beyond ASCII."""
    found = Counter(guesses[file] for file in group.files if guesses[file])
    return replace(group, encoding=found.most_common(1)[0][0]) if found else group


def _files_below(root: Path) -> list[Path]:
    # Names with _ are Spark's notes beside the data, such as _SUCCESS.
    shown = (path for path in root.rglob("*") if not re.search(r"(^|/)[._]", path.relative_to(root).as_posix()))
    found = list(itertools.islice((path for path in shown if path.is_file()), MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise BadInputError(f"{root}: more than {MAX_FILES} files; name the folder of one data set")
    # A folder is listed in the order of its disk, but equal files must give equal proposals.
    return sorted(found)


def _suffix(file: Path) -> str:
    """`.csv.gz` of part-1.csv.gz, `.parquet` of part-1.snappy.parquet."""
    return (Path(file.stem).suffix + file.suffix) if file.suffix == ".gz" else file.suffix


def _sniff(file: Path, sniffed: Sniffed) -> Dialect | str:
    """Returns the format of the file, or the reason why it is not a table: an empty text where nobody expects one.

    `sniffed` are results by storage and header, as thousands of daily files are sniffed once.
    """
    suffix = _suffix(file).lower().removesuffix(".gz")
    if suffix in _NOT_TABLES:
        return ""
    try:
        with file.open("rb") as stream:
            # By the content: files are often named without an ending, or with a wrong one.
            if stream.read(4) == b"PAR1":
                return Dialect("parquet", "", tuple(pq.read_schema(file).names))
        text = open_text(file, "csv")
        with text.lines() as lines:
            first = lines.readline(1_000_000)  # a file without line breaks must not fill the memory
            others = lines.read(_MORE_LETTERS)
        encoding = ""
        beyond_ascii = [letter for letter in first + others if not letter.isascii()]
        # UTF-8 with a few damaged letters stays UTF-8.
        if text.encoding == "utf-8" and 2 * beyond_ascii.count("\ufffd") > len(beyond_ascii):
            with open_bytes(file) as raw:
                start = raw.read(_MORE_LETTERS)
            if encoding := guess_encoding(start):
                first, end, others = codecs.getincrementaldecoder(encoding)().decode(start).partition("\n")
                first += end
    except (BadInputError, OSError, EOFError, zlib.error, pa.ArrowException) as error:
        return f"not readable ({str(error).splitlines()[0].removeprefix(f'{file}: ')[:120]})"
    if suffix in _JSON_LINES:
        # A key may be absent in all rows of a file, so files of one name are one table, whatever their keys.
        dialect = Dialect("jsonl", "", (re.sub(r"\d+", "", file.name),))
        is_object = re.fullmatch(r"\s*\{.*\}\s*", first)
        return replace(dialect, encoding=encoding) if is_object else "not JSON lines; write one object a line"
    stored = f", compression = '{text.compression}', encoding = '{text.encoding}'"
    if (stored, first) not in sniffed:
        sniffed[(stored, first)] = _sniff_csv(file, first, others, stored, encoding) if first else "empty"
    found = sniffed[(stored, first)]
    return replace(found, encoding=encoding) if isinstance(found, Dialect) else found


def _sniff_csv(file: Path, first: str, others: str, stored: str, encoding: str) -> Dialect | str:
    if encoding:
        with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8", newline="") as sample:
            # Without the last line, which may be cut.
            sample.write(first + others[: others.rfind("\n") + 1])
            sample.flush()
            found = _sniff_csv(Path(sample.name), first, others, _PLAIN, "")
        return replace(found, options=stored) if isinstance(found, Dialect) else found
    lines = [first, *others.split("\n")]
    unread = [number for number, line in enumerate(lines, 1) if "\ufffd" in line]
    if len(unread) > _MAX_UNREAD * len(lines):
        return f"line {unread[0]} is not UTF-8, and its encoding is not known; save it as UTF-8"
    try:
        delimiter, skipped, has_header, names = duckdb.execute(
            "SELECT Delimiter, SkipRows, HasHeader, [c.name for c in Columns] "
            f"FROM sniff_csv({duckdb_path(file)}, ignore_errors = true, sample_size = 2048{stored})"
        ).fetchall()[0]
        header = next(csv.reader([first], delimiter=delimiter), [])
    except (duckdb.Error, csv.Error):
        return "not text with the same number of cells in each line"
    is_named = has_header and not any(re.fullmatch(r"[-+.\deE]*", name.strip()) for name in header)
    faults = {
        "not a table: its first line has another number of cells than the others": skipped or len(names) != len(header),
        "it has a single column, or a delimiter that is not found by itself: use a comma, ; | or a tab": len(names) < 2,
        "its first line is not a header of names; add one": not is_named,
        "its header has spaces around names; remove them": names != header and names == [n.strip() for n in header],
        "its header uses a name twice (perhaps in other capitals), or not at all; rename it": names != header,
    }
    return next((fault for fault, holds in faults.items() if holds), Dialect("csv", delimiter, tuple(header), stored))


def _groups(base: Path, folder: str, dialect: Dialect, files: list[Path], tables: set[Path]) -> list[FileGroup]:
    """The files as one group, if a path leads to them and to none of the other `tables`; else each by itself."""
    prefix, suffix = "" if folder == "." else f"{folder}/", _suffix(files[0])
    names = {with_placeholders(file.name) for file in files}
    same = itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*(file.name for file in files), strict=False))
    globs = [f"*{suffix}", "".join(letters[0] for letters in same) + f"*{suffix}"]
    common = [*names] if len(names) == 1 else []
    is_dated = "{" in folder  # the files of a day's folder may have any names
    names_tried = [*globs, *common] if is_dated else [*common, *globs]
    for group in (FileGroup(files, prefix + name, dialect) for name in names_tried if is_dated or len(files) > 1):
        # Files of other days at a path of days may have other columns: `find_tables` keeps the largest group.
        is_daily = group.is_daily and group.path in {prefix + name for name in common}
        if is_daily or {*base.glob(group.glob)} & tables == {*files}:
            return [group]
    return [FileGroup([file], file.relative_to(base).as_posix(), dialect) for file in files]


def with_placeholders(path: str) -> str:
    """The path with {ds}, {yyyymmdd} or {yyyy}, {mm}, {dd} for its date, and a star for an hour's folder below it."""
    replaced = _DATE.sub(_placeholder, path)
    return _HOUR.sub(r"\1*", replaced) if replaced != path else path


def _placeholder(match: re.Match[str]) -> str:
    if _date(match) is None:  # digits that are no date, such as an id
        return match.group()
    if "/" not in match["to_month"]:
        return "{ds}" if match["to_month"] else "{yyyymmdd}"
    month, day = ("{m}" if len(match["m"]) == 1 else "{mm}"), ("{d}" if len(match["d"]) == 1 else "{dd}")
    return "{yyyy}" + match["to_month"] + month + match["to_day"] + day


def day_in(path: str) -> datetime.date | None:
    """The last date that a path names."""
    dates = [date for match in _DATE.finditer(path) if (date := _date(match))]
    return dates[-1] if dates else None


def _date(match: re.Match[str]) -> datetime.date | None:
    is_nested = "/" in match["to_month"] and "/" in match["to_day"]
    is_padded = match["to_month"] == match["to_day"] and len(match["m"] + match["d"]) == 4
    try:
        return datetime.date(int(match["y"]), int(match["m"]), int(match["d"])) if is_nested or is_padded else None
    except ValueError:
        return None
