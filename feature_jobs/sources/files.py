"""Files of a source table: selection of a day's files, detection of formats by first bytes, and a CSV's header."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast
from urllib.parse import unquote

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import literal
from feature_jobs.object_client import is_url
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_range, parse_ds, paused_before
from feature_jobs.schema.encodings import EXAMPLES, UTF_8
from feature_jobs.sources.readers.kafka import KafkaTopic
from feature_jobs.sources.readers.objects import StoredObject, objects_at
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.sources.readers.tables import KINDS, open_table
from feature_jobs.sources.source import Source

_ENDINGS = {"csv": (".csv",), "parquet": (".parquet",), "jsonl": (".jsonl", ".ndjson", ".json")}
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_FOREIGN = {
    b"PAR1": "a Parquet file; set format: parquet, or bring the file as text",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or compress it with gzip",
    b"BZh91AY&": "compressed with bzip2; unpack it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it, or compress it with gzip",
}
_HIGH_FIRST = b"\xfe\xff"
_BLOCK_BYTES = 2**20
_UTF_32 = b"\xff\xfe\0\0"  # begins like UTF-16


@dataclass(frozen=True)
class LocalCopy(os.PathLike[str]):
    """A copy of an object, of rows of a table, or in UTF-8 of a file in another encoding, which is read like a file;
    messages name what it is a copy of."""

    path: Path
    origin: Path | StoredObject | RemoteTable | KafkaTopic

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.origin)

    @property
    def name(self) -> str:
        """The last part of the origin's name."""
        return str(self).rpartition("/")[2]

    def open(self, mode: str) -> IO[Any]:
        """Opens the copy, as Path.open does."""
        return self.path.open(mode)


File = Path | LocalCopy


@dataclass(frozen=True)
class TextFile:
    """Compression and encoding of a text file, found from its first bytes, not from its name."""

    path: File
    compression: Literal["none", "gzip"]
    encoding: Literal["utf-8", "utf-16"]

    @contextmanager
    def lines(self) -> Iterator[IO[str]]:
        """The file as text; bytes that do not decode become the replacement character."""
        # -sig leaves out a byte order mark, which would otherwise become part of the first column's name.
        codec = "utf-8-sig" if self.encoding == "utf-8" else "utf-16"
        with _open(self.path, self.compression) as raw:
            yield io.TextIOWrapper(raw, codec, errors="replace", newline="")

    def prove(self) -> None:
        """Reads a gzip file to its end, where its checksum is: DuckDB does not look at it, and one changed bit changes
        many rows. Raises what gzip raises."""
        if self.compression == "gzip":
            with _open(self.path, self.compression) as raw:
                while raw.read(_BLOCK_BYTES):
                    pass

    def num_lines(self) -> int:
        """Lines that are not blank."""
        with self.lines() as lines:
            return sum(1 for line in lines if line.strip())


Place = Path | StoredObject | RemoteTable | KafkaTopic
"""The place of a source's rows; `feature_jobs.sources.bring` copies those that are not files of this machine."""


def files_of(scenario: Scenario, source: Source, ds: str) -> Sequence[Place]:
    """The files of a table for one day, sorted: a file, a folder's, or those that match a pattern. A table of a
    database or a lake is one.

    Raises BadInputError for a path that leads to no file, naming the day where the path names one.
    """
    root, pattern = Path(scenario.data.path), source.table.path
    place = f"{scenario.file}: {source.place}.path: {pattern}"
    if not source.is_partitioned and any(part in pattern for part in ("{yyyy}", "{mm}", "{m}")):
        raise BadInputError(
            f"{place}: names a month or year, but not the day; add {{dd}} (or {{d}}), or write * to read all files: "
            f"rows are then chosen by their time"
        )
    if source.table.format in KINDS and not source.is_partitioned:
        return [open_table(scenario, source, pattern)]
    days, warm_up = [ds], scenario.data.days.warm_up_from
    if source.is_partitioned and not source.keys and ds == str(scenario.data.days.first) and warm_up:
        days = day_range(scenario, str(warm_up), ds)
    if source.keys and source.is_partitioned:
        days = [partition_day(scenario, source, ds)]
    found: list[Place] = []
    if source.is_further and source.is_partitioned:
        for day in paused_before(scenario, ds):  # which may have rows of it, though the chain passes over them
            found += _expand(scenario, source, path_of_day(pattern, day))
    for day in days:
        path = path_of_day(pattern, day)
        files = _expand(scenario, source, path)
        if not files:
            what = f"no partition of {day}" if source.is_partitioned else "no such file, folder or match"
            at, remedy = str(root / path), "bring the data there (recloop fetch), or correct data.path or --data"
            if is_url(path):
                at, remedy = path, "bring the data there, or correct the path"
            raise BadInputError(f"{at}: {what} ({place}); {remedy}")
        found += files
    return list(dict.fromkeys(found))


def partition_day(scenario: Scenario, source: Source, ds: str) -> str:
    """The day whose partition of an entity is read: the newest that there is, of at most `max_age_days` days before.

    Where there is none, the day itself.
    """
    pattern = source.table.path
    days = (str(parse_ds(ds) - ONE_DAY * back) for back in range(scenario.data.entities[source.name].max_age_days + 1))
    return next((day for day in days if _expand(scenario, source, path_of_day(pattern, day))), ds)


def path_of_day(pattern: str, ds: str) -> str:
    """The path with its placeholders replaced: {ds} {yyyymmdd} {yyyy} {mm} {dd}, and {m} {d} without leading zeros."""
    year, month, day = ds.split("-")
    values = {"ds": ds, "yyyymmdd": year + month + day, "yyyy": year, "mm": month, "dd": day}
    for name, value in (values | {"m": str(int(month)), "d": str(int(day))}).items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern


def _expand(scenario: Scenario, source: Source, path: str) -> Sequence[Place]:
    """The places that a path means. A partition of a table may turn out to have no rows."""
    if source.table.format in KINDS:
        return [open_table(scenario, source, path)]
    root = Path(scenario.data.path)
    ends = tuple(end + more for end in _ENDINGS[source.table.format] for more in ("", ".gz"))
    if is_url(path):
        return objects_at(path, ends)
    whole = root / path
    # A path that exists is itself, even where its name holds characters of a pattern, such as data[x] or e*.csv.
    if whole.is_dir():
        return sorted(p for p in whole.iterdir() if p.is_file() and p.name.endswith(ends))
    if whole.is_file():
        return [whole]
    base, parts = (Path(whole.anchor), whole.parts[1:]) if Path(path).is_absolute() else (root, Path(path).parts)
    # The same holds for its folders: those that exist are taken as they are, the pattern begins after them.
    while len(parts) > 1 and (base / parts[0]).is_dir():
        base, parts = base / parts[0], parts[1:]
    return sorted(p for p in base.glob("/".join(parts)) if p.is_file()) if parts else []


def duckdb_path(file: File) -> str:
    """The SQL literal of one existing file; DuckDB would read a name such as e*.csv as a pattern."""
    return literal("".join(f"[{c}]" if c in "*?[" else c for c in os.fspath(file)))


def open_text(file: File, file_format: str) -> TextFile:
    """Finds a text file's compression and encoding. Raises BadInputError for another format or encoding."""
    compression = _compression(file)
    with _open(file, compression) as raw:
        start = raw.read(4096)
    refuse_foreign(file, file_format, start)
    if start.startswith(_HIGH_FIRST):
        what = "UTF-16 with the high byte first; declare `encoding: utf-16-be` at the table, or save it as UTF-8"
        raise BadInputError(f"{file}: not readable as {file_format}: it is {what}")
    if start.startswith(b"\xff\xfe") and not start.startswith(_UTF_32):
        return TextFile(file, compression, "utf-16")
    first_line = start.split(b"\n")[0]
    if b"\0" in first_line:
        raise BadInputError(
            f"{file}: not readable as {file_format}: row 1 holds zero bytes, as in UTF-16 without a byte order mark, "
            f"in UTF-32 or in a binary file; declare its `encoding` at the table (utf-16-le), or save it as UTF-8"
        )
    return TextFile(file, compression, "utf-8")


def refuse_foreign(file: File, file_format: str, start: bytes) -> None:
    """Raises BadInputError for a file that begins as one of another format, or of a compression other than gzip."""
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise BadInputError(f"{file}: not readable as {file_format}: it is {what}")


def refuse_text(file: File) -> None:
    """Raises BadInputError for CSV or JSON lines where Parquet is expected."""
    with file.open("rb") as raw:
        start = raw.read(4096)
    if start.startswith(b"PAR1"):  # Parquet that is cut off is not text
        return
    compressed = start.startswith(b"\x1f\x8b")
    if compressed:
        try:
            with _open(file, "gzip") as raw:
                start = raw.read(4096)
        except (OSError, EOFError, zlib.error):  # damaged: the reader's own message stands
            return
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff")
    if not text.strip() or not all(char.isprintable() or char.isspace() for char in text):
        return
    what, file_format = ("JSON lines", "jsonl") if text.lstrip().startswith("{") else ("CSV", "csv")
    gzipped = " compressed with gzip" if compressed else ""
    raise BadInputError(
        f"{file}: not readable as parquet: it is {what}{gzipped}; set format: {file_format}, or bring the file as "
        f"Parquet"
    )


def _compression(file: File) -> Literal["none", "gzip"]:
    with file.open("rb") as raw:
        return "gzip" if raw.read(2) == b"\x1f\x8b" else "none"


def open_bytes(file: File) -> AbstractContextManager[IO[bytes]]:
    """Opens a file whose content may be compressed with gzip."""
    return _open(file, _compression(file))


@contextmanager
def _open(file: File, compression: str) -> Iterator[IO[bytes]]:
    with file.open("rb") as raw:
        yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compression == "gzip" else raw


def csv_header(text: TextFile, delimiter: str, encoding: str = UTF_8) -> list[str]:
    """Names of the columns of a CSV file; a column without a name is ''.

    Raises BadInputError for a file without a header, one whose header is not in its `encoding`, or one that uses a name
    twice.
    """
    with text.lines() as lines:
        header = next(csv.reader(lines, delimiter=delimiter), [])
        is_empty = not header and not any(line.strip() for line in lines)
    if is_empty:
        raise BadInputError(f"{text.path}: empty, without even a header; bring the file again")
    if not header:
        raise BadInputError(f"{text.path}: row 1 is blank, where the names of the columns belong; delete the row")
    broken = [name for name in header if "\ufffd" in name]
    if broken:
        what = f"{text.path}: row 1: the column name {broken[0]!r} is not {spoken(encoding)}"
        raise BadInputError(f"{what}; {encoding_remedy(encoding)}")
    refuse_repeated(text.path, header)
    return header


def spoken(encoding: str) -> str:
    """The name of an encoding in messages."""
    return "UTF-8" if encoding == UTF_8 else encoding


def encoding_remedy(encoding: str) -> str:
    """The remedy for a text that is not in its `encoding`, as declared or by default."""
    if encoding == UTF_8:
        return f"declare its `encoding` at the table, such as {EXAMPLES}, or save the file as UTF-8"
    return "correct the table's `encoding`, or save the file in it"


def unread_csv(file: File, error: Exception) -> str | None:
    """The cause and the remedy of DuckDB's error, where its own words hide them."""
    if "utf-16" in str(error):
        what = "it is UTF-16 with characters of 32 bits, such as emoji, or cut off"
        return f"{what}; declare `encoding: utf-16-le` at the table, or save it as UTF-8"
    if "invalid state" in str(error) and (row := _another_line_end(open_text(file, "csv"))):
        return f"line {row} ends in another way than line 1 (LF, CR LF or CR); save the file with one line end"
    return None


def _another_line_end(text: TextFile) -> int | None:
    """The first line (from 1) whose end is not that of the first; line ends between quotes do not count."""
    first, is_quoted = None, False
    with text.lines() as lines:
        for row, line in enumerate(lines, 1):
            is_quoted ^= line.count('"') % 2 == 1
            end = line[len(line.rstrip("\r\n")) :]
            if is_quoted or not end:
                continue
            first = first or end
            if end != first:
                return row
    return None


def refuse_repeated(file: File, names: list[str]) -> None:
    """Raises BadInputError where two columns of a file have the same name."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise BadInputError(f"{file}: the header names {twice[0]!r} twice; rename one")


def folder_values(file: File, root: Path) -> dict[str, str | None]:
    """Values that folders below `root` give to all rows of a file, as in country=DE/part-0.parquet (Hive's layout).

    Of a URL all folders count.
    """
    if isinstance(file, LocalCopy) and isinstance(file.origin, Path):
        file = file.origin
    if isinstance(file, LocalCopy):
        parts = PurePosixPath(str(file)).parts[:-1] if isinstance(file.origin, StoredObject) else ()
    else:
        try:
            parts = file.relative_to(root).parts[:-1]
        except ValueError:
            return {}
    pairs = [part.partition("=") for part in parts if "=" in part]
    return {name: None if value == _HIVE_NULL else unquote(value) for name, _, value in pairs}
