"""Columns that a source has since today: nobody has declared them, and no earlier day had them.

A day keeps the names of all columns that its sources have, declared or not, together with those of the day before. So a
key that only some days of a JSON log have is new once. A new column stops no day: its values are not read.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from typing_extensions import TypedDict

from feature_jobs.control_records import read_record
from feature_jobs.sources.output_files import COLUMNS_FILE
from feature_jobs.sources.source import Source


class ColumnsFile(TypedDict):
    """The names of all columns, and of the new ones among them, by the place of their table in the scenario."""

    columns: dict[str, list[str]]
    new: dict[str, list[str]]


_NONE: ColumnsFile = {"columns": {}, "new": {}}


def read_columns(events: Path) -> ColumnsFile:
    """The columns of a day's folder; none where a release before this one has written it."""
    file = events / COLUMNS_FILE
    if not file.exists():
        return _NONE
    return read_record(file.read_bytes(), ColumnsFile, str(file), "run ingest again for this day")


class KnownColumns:
    """The columns of all tables until a day. `yesterday`: the folder of the day before; one of an older release has no
    columns, and then none is new."""

    def __init__(self, yesterday: Path | None) -> None:
        self._before = (read_columns(yesterday) if yesterday else _NONE)["columns"]
        self._now: ColumnsFile = {"columns": {}, "new": {}}

    def add(self, source: Source, names: Collection[str]) -> None:
        """Adds the columns of a table."""
        before = self._before.get(source.place)
        self._now["columns"][source.place] = sorted({*names, *(before or ())})
        if before is not None and (new := new_columns(source, names, before)):
            self._now["new"][source.place] = new

    @property
    def new(self) -> dict[str, list[str]]:
        """The new columns, by the places of their tables."""
        return self._now["new"]

    def write(self, events: Path) -> None:
        """Writes the columns of the day into its folder."""
        text = json.dumps(self._now, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (events / COLUMNS_FILE).write_text(text, encoding="utf-8")


def new_columns(source: Source, now: Collection[str], before: Collection[str]) -> list[str]:
    """Names of `now` that are not among those of `before`, and that the scenario does not declare."""
    declared = {column.source or name for name, column in source.columns.items()}
    return sorted(set(now) - set(before) - declared)


def new_columns_text(names: Collection[str]) -> tuple[str, str]:
    """New columns in words, and the remedy."""
    listed = ", ".join(map(repr, names))
    them = "it, declare it" if len(names) == 1 else "them, declare them"
    return f"new column{'s' * (len(names) > 1)} {listed}, which no earlier day has", f"to read {them} (optional: true)"
