"""Warns of columns that only later files of a source have."""

from __future__ import annotations

import os

from feature_jobs.checks.problems import Problems
from feature_jobs.sources.new_columns import new_columns, new_columns_text
from feature_jobs.sources.source import Source
from feature_jobs.sources.tables import Reader


def check_new_columns(problems: Problems, source: Source, reader: Reader) -> None:
    """`reader` has read the files of all days, in their order."""
    known = set[str]()
    files = {os.fspath(file): file for file in reader.files}  # of a copy, the message names its origin
    for number, (file, names) in enumerate(reader.columns.items()):
        # The first file has no file before it: its columns are what the source began with.
        if number and (new := new_columns(source, names, known)):
            what, remedy = new_columns_text(new)
            problems.warn((*source.place.split("."), "columns"), None, f"{files[file]}: {what}", remedy)
        known.update(names)
