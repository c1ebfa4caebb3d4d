"""The online store in a folder of this machine: RocksDB, in the processes that read and write it.

NAME/current            the name of the state that is read
NAME/load.lock          held while a process loads or removes states
NAME/states/STATE/      a database that is never written again
NAME/added/DAY/         the records of a day; one process writes it, others follow it
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    SstFileWriter,
    WriteBatch,
)

from feature_jobs.errors import BadInputError, CorruptError, RetryLaterError
from feature_jobs.online.store import OnlineStore, Pairs, State, joined, parted

_SST_BYTES = 64 << 20
_FOLLOW_S = 0.02
"""Seconds between two looks of a reading process for new rows of the writing one: a look costs about a millisecond."""
_CHANGES = bytes(8)
"""The keys of each append, by its number, begin with it; no layout does."""
_HALF = "half-"
_ADD_AGAIN = "add the rows again; if its files are damaged, remove this folder and add all rows of the day"


class RocksStore(OnlineStore):
    """`writable`: this process appends records; only one may. `kept`: the number of states that stay on disk."""

    def __init__(self, folder: str | Path, name: str, *, writable: bool = False, kept: int = 2) -> None:
        self._folder = Path(folder) / name
        # Reentrant: an append removes old days, which needs the lock too.
        self._writable, self._kept, self._lock = writable, kept, threading.RLock()
        self._states: dict[str, Rdict] = {}
        self._added: dict[str, Rdict] = {}
        self._looked: dict[str, float] = {}
        self._failed: set[str] = set()
        self._follows: list[tempfile.TemporaryDirectory[str]] = []

    @property
    def _states_folder(self) -> Path:
        return self._folder / "states"

    def current(self) -> State | None:
        try:
            with self._usable():
                # Any bytes are read: State.named refuses a damaged name with its place and a remedy.
                name = (self._folder / "current").read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return None
        return State.named(name, str(self._folder / "current"))

    def load(self, state: State, pairs: Iterable[Pairs]) -> None:
        place = self._states_folder / state.name
        with self._loading():
            self._remove_states(self._states_folder.glob(f"{_HALF}*"))  # of loads that were killed
            if not _opens(place):
                # Beside the states, and so on the same disk: only there is a rename one step.
                with tempfile.TemporaryDirectory(dir=self._states_folder, prefix=_HALF) as scratch:
                    with _named(place, "load it again"):
                        _fill(Path(scratch, "db"), Path(scratch), pairs)
                    if place.exists():
                        # A rename can't replace a folder that has files.
                        place.rename(Path(scratch, "damaged"))
                    Path(scratch, "db").rename(place)
                if not _opens(place):
                    raise CorruptError(
                        f"{place}: the state was written, but does not open; free the disk and load it again"
                    )
            self._make_current(state)
            # After the pointer: a kill between them leaves a state too many, and not a pointer to none.
            self._remove_states(self._old(state))

    def _make_current(self, state: State) -> None:
        pointer = self._folder / ".current"
        with self._usable():
            pointer.write_text(state.name, encoding="ascii")
            # Readers find the old name or the new one, and never half of one.
            pointer.replace(self._folder / "current")

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """One process at a time, so that unfinished states which another one finds were left by a kill."""
        lock = FileLock(self._folder / "load.lock")
        with self._usable(errno.ENOENT, errno.EEXIST):  # of /proc; of a file that has the name of a folder
            self._states_folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _usable(self, *more: int) -> Iterator[None]:
        """Paths where nothing can be become BadInputError; other errors of the disk have their remedies elsewhere."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, *more):
                raise
            raise BadInputError(f"online.store: {error.filename}: {error.strerror}; choose another folder") from None

    def _old(self, state: State) -> list[Path]:
        """States that are neither current nor the last ones before it; of a corrected day all others."""
        others = [path for path in sorted(self._states_folder.glob("????-??-??-*")) if path.name != state.name]
        # Rows that were taken out of a day may be in every state that was made before.
        is_corrected = any(path.name.startswith(state.ds) for path in others)
        return others if is_corrected else others[: max(len(others) - self._kept + 1, 0)]

    def _remove_states(self, places: Iterable[Path]) -> None:
        for place in list(places):
            if database := self._states.pop(place.name, None):
                database.close()
            shutil.rmtree(place, ignore_errors=True)

    def keep_only(self, state: State | None) -> None:
        with self._loading():
            if state is None:
                (self._folder / "current").unlink(missing_ok=True)
            elif not _opens(self._states_folder / state.name):
                raise state.not_loaded(str(self._states_folder))
            else:
                self._make_current(state)
            name = state.name if state else ""
            self._remove_states(path for path in self._states_folder.iterdir() if path.name != name)
            self._remove_days(state.ds if state else "9999-12-31")

    def get(self, state: State, keys: Sequence[bytes]) -> list[bytes | None]:
        name = state.name
        place = f"{self._states_folder}/{name}"  # a path takes as long as the read of a key
        # A state that is open can be read on after its removal, since all of its files are open.
        if name not in self._states and not Path(place).exists():
            raise BadInputError(f"{place}: this state was removed; ask the store for the current one")
        with _named(place, "remove it and load it again: recloop materialize"):
            if name not in self._states:
                self._states[name] = Rdict(place, _options(), access_type=AccessType.read_only(False))
            return _values(self._states[name], keys)

    def append(self, day: str, records: Mapping[bytes, bytes]) -> None:
        if not self._writable:
            raise BadInputError(f"{self._folder}: opened to read; the process that appends opens it as writable")
        # Reading, appending and writing are one: two threads that add to a key at once must not lose a record.
        with self._lock:
            if day in self._failed:
                self._failed.remove(day)
                with contextlib.suppress(Exception):  # it says once more what failed
                    self._added.pop(day).close()
            if day not in self._added:
                place = self._place_of(day)
                place.parent.mkdir(parents=True, exist_ok=True)
                self._remove_days(
                    # The oldest state has the rows of its own day and of all before it, so nobody reads these records.
                    min((path.name[:10] for path in self._states_folder.glob("????-??-??-*")), default="")
                )
                self._added[day] = _opened_to_write(place)
            database, keys = self._added[day], list(records)
            number = self._number(database) + 1
            batch = WriteBatch(raw_mode=True)
            # In the batch of the records: who sees the number sees the rows.
            batch.put(_change(number), joined(keys))
            for key, before in zip(keys, _values(database, keys), strict=True):
                batch.put(key, (before or b"") + records[key])
            # After a write that failed it gives what it has, but takes nothing until it is opened again.
            self._failed.add(day)
            with _named(self._place_of(day), _ADD_AGAIN):
                database.write(batch)
            self._failed.remove(day)

    def appended(self, days: Sequence[str], keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = [None] * len(keys)
        for database in map(self._of_day, days):
            if database is not None:
                of_day = _values(database, keys)
                found = [(a or b"") + b if b else a for a, b in zip(found, of_day, strict=True)]
        return found

    def changed(self, day: str, seen: int | None) -> tuple[int, list[bytes]]:
        database = self._of_day(day)
        if database is None:
            return 0, []
        number = self._number(database)
        if seen is None or number == seen:
            return number, []
        found: list[bytes] = []
        rows: Any = database.items(from_key=_change(seen + 1))
        for key, value in rows:
            # Then come appends that the next look finds, and records.
            if key > _change(number):
                break
            found += parted(value)
        return number, found

    def _number(self, database: Rdict) -> int:
        """The number of the last append."""
        last: Any = next(iter(database.keys(backwards=True, from_key=_change(2**64 - 1))), b"")
        return int.from_bytes(last[len(_CHANGES) :], "big") if last.startswith(_CHANGES) else 0

    def _place_of(self, day: str) -> Path:
        return self._folder / "added" / day

    def _of_day(self, day: str) -> Rdict | None:
        """The records of a day as they are by now, None where nobody wrote any."""
        with self._lock:
            if day in self._added and self._writable:
                return self._added[day]
            if time.monotonic() - self._looked.get(day, -_FOLLOW_S) < _FOLLOW_S:
                return self._added.get(day)
            self._looked[day] = time.monotonic()
            place = self._place_of(day)
            if day in self._added:
                self._added[day].try_catch_up_with_primary()
            # Opening would create a database, also to read.
            elif (place / "CURRENT").exists():
                if self._writable:
                    self._added[day] = _opened_to_write(place)
                else:
                    # A follower writes a log of its own, which must not lie in the writer's folder.
                    self._follows.append(tempfile.TemporaryDirectory(prefix="recloop-online-"))
                    access = AccessType.secondary(self._follows[-1].name)
                    self._added[day] = Rdict(str(place), _options(), access_type=access)
            return self._added.get(day)

    def _remove_days(self, last: str) -> None:
        """Removes the records of days up to the last one, but for those that another process has open to write."""
        for path in (self._folder / "added").glob("????-??-??"):
            if path.name <= last:
                with self._lock, contextlib.suppress(RetryLaterError, CorruptError):
                    if database := self._added.pop(path.name, None):
                        database.close()
                    # Takes RocksDB's own lock, which fails while another process still writes the day.
                    _opened_to_write(path).close()
                    shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        for database in self._states.values():
            database.close()
        for day, database in self._added.items():
            with contextlib.suppress(*([Exception] if day in self._failed else [])):
                database.close()
        for folder in self._follows:
            folder.cleanup()
        self._states, self._added, self._follows = {}, {}, []


def _change(number: int) -> bytes:
    return _CHANGES + number.to_bytes(8, "big")


@contextlib.contextmanager
def _named(place: Path | str, remedy: str) -> Iterator[None]:
    """Gives errors of the library their place and a remedy: this one, where the disk has room."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # the library has no other class
            raise
        what = " ".join(str(error).split())
        if any(os.strerror(number) in what for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise RetryLaterError(f"{place}: {what}; make room; the same call then works") from None
        if "lock hold by current process" in what or "While lock file" in what:
            raise RetryLaterError(
                f"{place}: {what}; only one process may add rows: end the other one, or use redis:// for several"
            ) from None
        raise CorruptError(f"{place}: {what}; {remedy}") from None


def _opened_to_write(place: Path) -> Rdict:
    with _named(place, _ADD_AGAIN):
        return Rdict(str(place), _options())


def _opens(place: Path) -> bool:
    """Says if a database is there and whole, as far as opening it shows."""
    if not (place / "CURRENT").exists():
        return False
    try:
        Rdict(str(place), _options(), access_type=AccessType.read_only(False)).close()
    except Exception:  # the library has no other class for a damaged file
        return False
    return True


def _values(database: Rdict, keys: Sequence[bytes]) -> list[bytes | None]:
    """Values of many keys in one call, which is several times as fast as a call for each."""
    wanted: list[Any] = list(keys)
    return list(database[wanted] or ())


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    # A follower, or who holds an old state, must have files open before another process deletes them.
    options.set_max_open_files(-1)
    options.set_compression_type(DBCompressionType.lz4())
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(256 << 20))
    # Many keys that are asked for are not there: 10 bits a key spare 99 % of these reads.
    blocks.set_bloom_filter(10, False)
    # Outside the cache, so that values never push out the filters.
    blocks.set_cache_index_and_filter_blocks(False)
    options.set_block_based_table_factory(blocks)
    return options


def _fill(folder: Path, scratch: Path, pairs: Iterable[Pairs]) -> None:
    """A database of these pairs, from sorted files that it takes as they are."""
    files: list[str] = []
    writer: SstFileWriter | None = None
    for keys, values in pairs:
        for key, value in zip(keys, values, strict=True):
            if writer is None:
                files.append(str(scratch / f"{len(files):06d}.sst"))
                writer = SstFileWriter(_options())
                writer.open(files[-1])
            writer[key] = value
        if writer is not None and writer.file_size() > _SST_BYTES:
            writer.finish()
            writer = None
    if writer is not None:
        writer.finish()
    database = Rdict(str(folder), _options())
    if files:
        database.ingest_external_file(files)
    database.close()
