"""Malformed rows in words: column, file, row, number and remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow.parquet as pq

from feature_jobs.expressions.compiler import literal
from feature_jobs.sources.files import File, encoding_remedy, spoken
from feature_jobs.sources.tables import OTHER_DAY, Reader

KIND = "regexp_replace(reason, '''.*''', '...', 's')"
"""SQL of a reason without the cell's value."""
# The sign of an infinite cell says which computation went wrong, so both signs are counted apart.
_KIND_AND_SIGN = f"CASE WHEN regexp_matches(reason, '''\\s*[+-]?inf(inity)?\\s*''', 'i') THEN reason ELSE {KIND} END"
_OUT_OF_BOUNDS = re.compile(r" is (below|above) \S+$")
_BEYOND_INT64 = re.compile(r"(\w+): '([+-]?\d{19,})' is not an int")


@dataclass(frozen=True)
class Kind:
    """Malformed rows of one kind; reason, file and row are those of the first. A negative row is a line's number.

    `remedy`: what to do about this kind, where there is something better than to correct the rows.
    """

    reason: str
    file: File
    row: int
    num: int
    remedy: str | None = None

    @property
    def place(self) -> str:
        """Line or row of the first one in its file."""
        return f"line {-self.row}" if self.row < 0 else f"row {self.row + 1}"


def _remedy(reader: Reader, reason: str) -> str | None:
    encoding = reader.source.table.encoding
    if reason == f"line: not {spoken(encoding)}":
        return encoding_remedy(encoding)
    if (found := _BEYOND_INT64.fullmatch(reason)) and not -(2**63) <= int(found[2]) < 2**63:
        return f"{found[1]} is beyond 64-bit integers: declare it as string"
    if reason.endswith(OTHER_DAY):
        # More often the file's day is another one than the scenario's, than that a row is in the wrong file.
        source, day_starts = reader.source, reader.scenario.data.days.day_starts
        if source.arrival:  # a partition of the day on which rows happened has those that came later, too
            return f"write * instead of the day in {source.place}.path: rows are then chosen by when they arrived"
        return (
            f"set {source.place}.time.zone (now {source.zone}) and data.days.day_starts (now {day_starts}) to those of"
            f" the files, or let each day read all files: write * instead of the day in {source.place}.path"
        )
    change = _change(reader, reason)
    return f"{change}, or raise ingest.max_quarantined_share" if change else None


def _change(reader: Reader, reason: str) -> str | None:
    """The rule of the column that the cell breaks, where the rule may be wrong."""
    name = reason.partition(":")[0]
    place = f"{reader.source.place}.columns.{name}"
    if reason.endswith(": missing"):
        return "bring these values" + ("" if name in reader.source.keys else f", take `required` out of {place}")
    if " is not one of " in reason:
        return f"add the value to {place}.values"
    if found := _OUT_OF_BOUNDS.search(reason):
        return f"correct {place}.{'min' if found[1] == 'below' else 'max'}"
    return None


def kinds_of(reader: Reader, condition: str = "true", limit: int = 3) -> list[Kind]:
    """The most frequent kinds of malformed rows among the staged ones."""
    # abs(row): a broken line has a negative number, but its place is between its neighbours.
    rows = reader.connection.execute(
        f"SELECT arg_min(reason, (file, abs(row))), arg_min(file, (file, abs(row))), arg_min(row, (file, abs(row))), "
        f"count(*) AS num FROM staged WHERE reason IS NOT NULL AND ({condition}) GROUP BY {_KIND_AND_SIGN} "
        f"ORDER BY num DESC, 1 LIMIT {limit}"
    ).fetchall()
    return [Kind(reason, reader.files[file], row, num, _remedy(reader, reason)) for reason, file, row, num in rows]


def retyped_columns(reader: Reader, allowed: float) -> list[str]:
    """A message for each file and column of another type than the declared one, where more than the share `allowed` of
    the staged rows are malformed by it: no cell reads, or a Parquet file holds text where a number is declared."""
    messages = []
    for i, (name, column) in enumerate(reader.source.columns.items()):
        unread = f"starts_with(reason, {literal(name + ': ')}) AND regexp_matches(reason, ' is not an? [a-z0-9]+$')"
        files = reader.connection.execute(
            f"SELECT file, arg_min(reason, row) FILTER ({unread}), min(row) FILTER ({unread}), count(c{i}) FROM staged "
            f"GROUP BY file HAVING count(*) FILTER ({unread}) > {allowed} * count(*) ORDER BY file"
        ).fetchall()
        for number, reason, row, num_read in files:
            file = reader.files[number]
            found = _type_in(reader, file, column.source or name)
            is_retyped = not reader.source.is_text and "string" in found
            # Rows that are not staged may read well.
            if not is_retyped and (num_read or reader.num_values(number, i)):
                continue
            first = Kind(reason, file, row, 1, _remedy(reader, reason))
            remedy = first.remedy or f"write the column as {column.type} in this file too, or declare it as string"
            cells = "not every cell" if num_read else "no cell"
            declared = f"{reader.scenario.file}: {reader.source.place}.columns.{name}.type"
            messages.append(
                f"{file}: column {column.source or name!r} is {found}, and {cells} of it reads as {column.type}, the "
                f"type declared ({declared}); {first.place}: {reason}; {remedy}"
            )
    return messages


def _type_in(reader: Reader, file: File, column: str) -> str:
    if reader.source.is_text:
        return "text"
    schema = pq.read_schema(file)
    return str(schema.field(column).type) if column in schema.names else "text"


def columns_without_value(staged: Reader) -> list[str]:
    """Declared columns that are null in all staged rows."""
    columns = list(staged.source.columns)
    counts = ", ".join(f"count(c{i})" for i in range(len(columns)))
    found = staged.connection.execute(f"SELECT {counts} FROM staged").fetchall()[0]
    return [name for name, num in zip(columns, found, strict=True) if num == 0]
