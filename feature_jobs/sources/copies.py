"""Typed copies of source files that hold many days and cannot be read in part.

A day of a CSV or JSON lines file, or of a Parquet file whose times are text or in any order, costs a scan of the
whole file. So where one process reads such a file for a second day, the scan is kept as Parquet, ordered by time; all
later days read only their row groups of it. A process of one day makes no copy. An object of a store that holds many
days is downloaded once, a file in another encoding than UTF-8 is copied in UTF-8 once; both are then read like such a
file. Copies end with their process: only commits of the store may keep rows of users, because `forget` looks there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from feature_jobs.sources.source import Source

if TYPE_CHECKING:
    from feature_jobs.sources.readers.objects import StoredObject

_LEAST_BYTES = 2**22  # a smaller file is scanned in the time that its copy takes
_MOST_GROUPS = 4  # a day that reads less than a fourth of a file needs no copy, which costs about two scans
SETTLED_S = 10
"""Seconds after its last change from which a file is copied. File systems note changes in steps of up to two seconds;
within one step, a second change would leave size and times as they are, and the copy would be taken for current."""


@dataclass(frozen=True)
class Copy:
    """Parquet files of one scan: `rows`, and `rejects`, the lines that are not rows. `columns` are all of the file."""

    rows: Path
    rejects: Path
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """All that decides the rows of a scan: the declared source, the file and its number among the source's, and the
    state in which it was. `root` is the folder below which the names of folders are columns."""

    source: Source
    root: str
    number: int
    file: Path
    state: tuple[int, ...]

    @staticmethod
    def of(source: Source, root: str, number: int, file: Path) -> Scan:
        """A scan of the file as it is now."""
        return Scan(source, root, number, file, _state_of(file))

    @property
    def key(self) -> tuple[str, Path]:
        """Two sources may read one file."""
        return self.source.place, self.file

    @property
    def is_current(self) -> bool:
        """Says if the file is still as it was."""
        return self == Scan.of(self.source, self.root, self.number, self.file)

    @property
    def is_worth_a_copy(self) -> bool:
        """Says if the file is large, and has not changed just now."""
        return self.state[2] >= _LEAST_BYTES and _is_settled(self.state)


def _state_of(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_settled(state: tuple[int, ...]) -> bool:
    return time.time() - max(state[3:]) / 1e9 > SETTLED_S


class Copies:
    """The copies of one process. `folder` gives the folder for their files; it is asked for when the first is made."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._make_folder = folder
        self._folder: Path | None = None
        self._scans: dict[tuple[str, Path], Scan] = {}
        self._copies: dict[tuple[str, Path], Copy | None] = {}
        self._whole: dict[tuple[Path | StoredObject, str, tuple[int, ...]], Path] = {}
        self._num_made = 0

    def find(self, scan: Scan) -> Copy | None:
        """The copy of an equal scan, if there is one; a copy of the file in another state is removed."""
        copy = self._copies.get(scan.key)
        if copy is not None and (self._scans[scan.key] != scan or not copy.rows.exists() or not copy.rejects.exists()):
            self._remove(copy)
            del self._copies[scan.key]
            copy = None
        return copy

    def is_due(self, scan: Scan) -> bool:
        """Says if a copy is to be made: an equal scan was asked for before, and it was not skipped or failed."""
        known, self._scans[scan.key] = self._scans.get(scan.key), scan
        if known != scan:
            self._copies.pop(scan.key, None)
        return known == scan and scan.key not in self._copies and scan.is_worth_a_copy

    def skip(self, scan: Scan) -> None:
        """Makes no copy of the file in this state."""
        self._copies[scan.key] = None

    def path_of(self, place: Path | StoredObject, encoding: str) -> Path | None:
        """The place of the copy in UTF-8 of an object, or of a file in another `encoding`, which may be still to make;
        copies of it in other states are removed. None: another state would look the same."""
        state = _state_of(place) if isinstance(place, Path) else ()
        if not _is_settled(state) if isinstance(place, Path) else not place.etag:
            return None
        key = (place, encoding, state)
        for other in [one for one in self._whole if (str(one[0]), one[1]) == (str(place), encoding) and one != key]:
            self._whole.pop(other).unlink(missing_ok=True)
        if key not in self._whole:
            self._whole[key] = self._new("text" if isinstance(place, Path) else "object")
        return self._whole[key]

    def make(self, scan: Scan, write: Callable[[Copy], tuple[str, ...]]) -> Copy | None:
        """Makes the copy by `write`, which returns the file's columns; None where that fails, or where the file
        changed meanwhile."""
        self.skip(scan)  # until it is there
        copy = Copy(self._new("rows.parquet"), self._new("rejects.parquet"))
        try:
            copy = replace(copy, columns=write(copy))
            if scan.is_current:
                self._copies[scan.key] = copy
        finally:
            if self._copies[scan.key] is None:
                self._remove(copy)
        return self._copies[scan.key]

    def _new(self, name: str) -> Path:
        self._folder = self._folder or self._make_folder()
        self._num_made += 1
        return self._folder / f"{self._num_made}-{name}"

    def _remove(self, copy: Copy) -> None:
        for file in (copy.rows, copy.rejects):
            file.unlink(missing_ok=True)


def is_ordered(file: str | os.PathLike[str], column: str) -> bool:
    """Says if bounds of a column let a scan pass over most of a Parquet file: by the statistics of its row groups, a
    value lies in a quarter of them at most, on average. Of a file that is not ordered by it, each value lies in all."""
    import pyarrow.parquet as pq  # here, as the declaration of a step imports this module

    widths, low, high = 0, list[int](), list[int]()
    with pq.ParquetFile(file) as parquet:
        metadata = parquet.metadata
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        found = (row_group.column(at) for at in range(row_group.num_columns))
        statistics = next((one.statistics for one in found if one.path_in_schema == column), None)
        if statistics is None or not statistics.has_min_max:
            return False
        low.append(statistics.min_raw)
        high.append(statistics.max_raw)
        widths += high[-1] - low[-1]
    return bool(low) and widths * _MOST_GROUPS <= (max(high) - min(low)) * metadata.num_row_groups
