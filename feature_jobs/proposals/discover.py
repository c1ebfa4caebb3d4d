"""Finds tables among files that nobody has described: CSV of any delimiter and Parquet, in one file or in many.

Text is taken for a table where nine lines in ten have as many cells as the first; files of one folder with equal
columns are one table, and dates in their paths make it a table of daily partitions. What is no table is told, not
raised.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError

DELIMITERS = ("\t", ",", ";", "|", "\x01")
MAX_FILES = 20_000
_HEAD_BYTES = 256 * 1024
_NO_TABLES = {".json", ".jsonl", ".md", ".yaml", ".yml", ".py", ".html", ".pdf", ".png", ".jpg", ".zip", ".gz", ".tar"}
_DAY = re.compile(r"(?<!\d)(?:19|20)\d\d-\d\d-\d\d(?!\d)")
_COMPACT_DAY = re.compile(r"(?<!\d)(?:19|20)\d{6}(?!\d)")


@dataclass(frozen=True)
class Sniffed:
    """One file that holds a table. `columns` are names and, in Parquet, types."""

    file: Path
    format: Literal["csv", "parquet"]
    delimiter: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FileGroup:
    """Files of one table. `path` is relative to the root, a glob, or holds {ds} or {yyyymmdd}."""

    files: tuple[Path, ...]
    path: str
    format: Literal["csv", "parquet"]
    delimiter: str
    columns: tuple[tuple[str, str], ...]
    days: tuple[datetime.date, ...] = field(default=())

    @property
    def glob(self) -> str:
        """The path with a star for the day."""
        return re.sub(r"\*+", "*", self.path.replace("{ds}", "*").replace("{yyyymmdd}", "*"))


def find_tables(root: Path) -> tuple[list[FileGroup], list[str]]:
    """Tables below a folder (or in one file), and why other files are none. Raises BadInputError where none is."""
    if not root.exists():
        raise BadInputError(f"{root}: no such file or folder; name the folder of the log files")
    files = [root] if root.is_file() else _walk(root)
    notes, sniffed = [], []
    for file in files:
        found = sniff(file)
        if isinstance(found, Sniffed):
            sniffed.append(found)
        elif found:
            notes.append(f"left out {file.relative_to(root) if file != root else file.name}: {found}")
    if not sniffed:
        raise BadInputError("\n".join([f"{root}: holds no table (CSV with a header, or Parquet)", *notes[:10]]))
    base = root.parent if root.is_file() else root
    return _group(base, sniffed), notes


def _walk(root: Path) -> list[Path]:
    found = []
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(root).parts)
        if path.is_file() and not hidden:
            found.append(path)
        if len(found) > MAX_FILES:
            raise BadInputError(f"{root}: more than {MAX_FILES} files; name the folder of one data set")
    return found


def sniff(file: Path) -> Sniffed | str:
    """The file as a table, or why it is none; an empty text for what nobody expects to be one."""
    try:
        with file.open("rb") as lines:
            head = lines.read(4)
        if head == b"PAR1":
            schema = pq.read_schema(file)
            return Sniffed(file, "parquet", "", tuple((f.name, str(f.type)) for f in schema))
    except (OSError, pa.ArrowException) as error:
        return f"not readable as Parquet ({str(error).splitlines()[0][:80]})"
    if file.suffix.lower() in _NO_TABLES and not file.name.endswith((".csv.gz", ".tsv.gz")):
        return ""
    return _sniff_text(file)


def _sniff_text(file: Path) -> Sniffed | str:
    try:
        with gzip.GzipFile(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, EOFError) as error:
        return f"not readable ({error})"
    cut = head[: head.rfind(b"\n") + 1] if len(head) == _HEAD_BYTES else head
    try:
        lines = cut.decode("utf-8-sig").splitlines()[:200]
    except UnicodeDecodeError:
        return "not UTF-8 text"
    if not cut.strip() or b"\0" in cut:
        return "not text" if cut.strip() else "empty"
    best: tuple[int, str, list[str]] | None = None
    for delimiter in DELIMITERS:
        header, *rows = csv.reader(lines, delimiter=delimiter)
        even = sum(len(row) == len(header) for row in rows)
        if len(header) > 1 and rows and even >= 0.9 * len(rows) and (best is None or len(header) > best[0]):
            best = (len(header), delimiter, header)
    if best is None:
        return "" if file.suffix.lower() in ("", ".txt", ".log") else "no table: lines of unequal numbers of cells"
    return _with_header(file, best[1], best[2])


def _with_header(file: Path, delimiter: str, header: list[str]) -> Sniffed | str:
    if any(not name.strip() or _is_number(name) for name in header) or len(set(header)) < len(header):
        return "its first line is no header of distinct names; add one"
    return Sniffed(file, "csv", delimiter, tuple((name, "") for name in header))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _group(root: Path, sniffed: list[Sniffed]) -> list[FileGroup]:
    """Files of equal columns in one folder (dates in its path aside) make one table."""
    buckets: dict[tuple[Any, ...], list[Sniffed]] = defaultdict(list)
    neighbours: dict[tuple[str, str], int] = defaultdict(int)
    for found in sniffed:
        folder = _template(found.file.parent.relative_to(root).as_posix())
        buckets[(folder, found.file.suffix, found.format, found.delimiter, found.columns)].append(found)
        neighbours[(folder, found.file.suffix)] += 1
    groups = []
    for (folder, suffix, *_), members in buckets.items():
        groups += _patterns(root, folder, members, is_all=neighbours[(folder, suffix)] == len(members))
    return sorted(groups, key=lambda group: group.path)


def _patterns(root: Path, folder: str, members: list[Sniffed], *, is_all: bool) -> list[FileGroup]:
    names = {_template(found.file.name) for found in members}
    prefix = "" if folder == "." else f"{folder}/"
    if is_all and "{" in folder:  # a folder a day: whatever its files are called
        return [_as_group(members, f"{prefix}*{members[0].file.suffix}")]
    if len(members) == 1:
        only = members[0].file.relative_to(root).as_posix()
        return [_as_group(members, only)]
    if len(names) == 1:
        return [_as_group(members, prefix + names.pop())]
    start = "" if is_all else _common_start(found.file.name for found in members)
    pattern = f"{prefix}{start}*{members[0].file.suffix}"
    if is_all or set(root.glob(pattern)) == {found.file for found in members}:
        return [_as_group(members, pattern)]
    return [_as_group([found], found.file.relative_to(root).as_posix()) for found in members]


def _as_group(members: list[Sniffed], path: str) -> FileGroup:
    first = members[0]
    is_daily = "{ds}" in path or "{yyyymmdd}" in path
    days = sorted({day for found in members if (day := day_in(found.file.as_posix()))}) if is_daily else []
    files = tuple(found.file for found in members)
    return FileGroup(files, path, first.format, first.delimiter, first.columns, tuple(days))


def _template(path: str) -> str:
    """The path with {ds} or {yyyymmdd} for its dates."""
    path = _DAY.sub(lambda match: "{ds}" if _date(match.group()) else match.group(), path)
    return _COMPACT_DAY.sub(lambda match: "{yyyymmdd}" if _date(match.group()) else match.group(), path)


def day_in(path: str) -> datetime.date | None:
    """The last date that a path names."""
    dates = [_date(text) for text in _DAY.findall(path) + _COMPACT_DAY.findall(path)]
    return next((date for date in reversed(dates) if date), None)


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def _common_start(names: Iterable[str]) -> str:
    listed = sorted(names)
    first, last = listed[0], listed[-1]
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]
