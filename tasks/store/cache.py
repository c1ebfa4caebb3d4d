"""The local cache of committed outputs, for stores that are not on this machine's disk.

    CACHE/entries/<digest>/       the files of a committed output; the name is the digest of their names and bytes
    CACHE/locks/<digest>.lock     shared while a process uses the entry, exclusive while one changes it; its time is the
                                  entry's last use
    CACHE/incoming/<digest>/      being fetched or removed, by the process that has the exclusive lock
    CACHE/work/<store>/           scratch of the runs on this machine

A process proves the files of an entry against their digests before it uses them, once. A damaged or incomplete entry is
fetched again. The kernel frees the locks of a process that is killed. The bound holds for entries that are not in use:
one in use is never removed, so a step whose inputs are larger than the bound still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from feature_jobs.errors import BadInputError, CorruptError, RetryLaterError
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.objects import folder_problems
from tasks.store.records import FileFacts

FOLDER, BOUND = "RECLOOP_CACHE", "RECLOOP_CACHE_GIB"
DEFAULT_FOLDER = "~/.cache/recloop"
DEFAULT_GIB = 50.0
GIB = 1 << 30
WAIT_S = 600.0  # for another process that fetches the same output
PAUSE_S = 0.05
Files = Mapping[str, FileFacts]


class Cache:
    """The cache in a folder; by default as the environment says. Used by several processes and threads at once."""

    def __init__(self, folder: Path | None = None, max_bytes: int | None = None) -> None:
        self.root = (folder or Path(os.environ.get(FOLDER) or DEFAULT_FOLDER)).expanduser().resolve()
        self.max_bytes = _bound() if max_bytes is None else max_bytes
        self._held: dict[str, int] = {}  # digest → file descriptor of its shared lock
        # While it is free, each digest in `_held` has one open descriptor with a shared lock.
        self._threads = threading.RLock()
        for name in ("entries", "locks", "incoming", "work"):
            try:
                # For this user alone: outputs hold rows of a recommender's users.
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise BadInputError(f"{self.root / name}: {error.strerror}; set {FOLDER} to a folder") from None
        # Killed processes left these: one that lives holds the lock.
        for leftover in self._names("incoming"):
            self._remove(leftover)

    def work_for(self, url: str) -> Path:
        """The folder for scratch of a scenario's runs, on the file system of the entries."""
        store, _, scenario = url.rpartition("/")
        return self.root / "work" / sha256_of(store.encode())[:16] / scenario

    def entry(self, files: Files, fetch: Callable[[Path], None]) -> Path:
        """A folder with exactly these files; where it is not here, `fetch` writes them into an empty folder.

        It stays until `release`. Raises CorruptError where the fetched files have other digests.
        """

        def make(target: Path) -> None:
            self.make_room(_bytes_of(files))
            fetch(target)
            if (problem := next(folder_problems(target, files), None)) is not None:
                raise CorruptError(problem)

        return self._held_entry(files, make)

    def adopt(self, folder: Path, files: Files) -> Path:
        """Makes an entry of a finished folder, by hard links where that is possible. It stays until `release`."""

        def make(target: Path) -> None:
            self.make_room(_bytes_of(files))
            for name in files:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                _link(folder / name, target / name)

        return self._held_entry(files, make)

    def discard(self, files: Files) -> None:
        """Removes the entry with exactly these files, which this process uses no more; one that another uses stays."""
        digest = sha256_of(canonical_json(files))
        with self._threads:
            if (handle := self._held.pop(digest, None)) is not None:
                os.close(handle)
        self._remove(digest)

    def release(self) -> None:
        """Entries that this process used may be removed again."""
        with self._threads:
            for handle in self._held.values():
                os.close(handle)
            self._held.clear()

    def make_room(self, num_bytes: int) -> None:
        """Removes the entries that were not used for the longest time, until `num_bytes` more are within the bound."""
        sizes = {digest: _size(self._entry(digest)) for digest in self._names("entries")}
        left = sum(sizes.values())
        for digest in sorted(sizes, key=self._last_use):
            if left + num_bytes <= self.max_bytes:
                return
            if self._remove(digest):
                left -= sizes[digest]

    def _held_entry(self, files: Files, make: Callable[[Path], None]) -> Path:
        """Proves the entry under a shared lock, which is kept; makes it under an exclusive one."""
        digest, deadline = sha256_of(canonical_json(files)), time.monotonic() + WAIT_S
        place = self._entry(digest)
        with self._threads:
            while digest not in self._held:
                if self._is_proven(digest, files) or self._is_made(digest, files, make):
                    break
                # Another process makes it now, or still uses an entry that has been damaged since.
                if time.monotonic() > deadline:
                    raise RetryLaterError(f"{place}: damaged, and in use by another process; end that, or try later")
                time.sleep(PAUSE_S)
        return place

    def _is_proven(self, digest: str, files: Files) -> bool:
        """Says if the entry is as committed; it is then held."""
        # Waits here while another process fetches the entry.
        lock = self._lock(digest, fcntl.LOCK_SH)
        return lock is not None and self._hold_if(digest, lock, lambda: self._is_whole(digest, files))

    def _is_made(self, digest: str, files: Files, make: Callable[[Path], None]) -> bool:
        """Makes the entry and says if that succeeded; it is then held. False where another process has it."""
        lock = self._lock(digest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False

        def is_made() -> bool:
            # Looked at once more: another process may have made it before this one got the lock.
            if not self._is_whole(digest, files):
                target = self._emptied(digest)
                make(target)
                target.rename(self._entry(digest))
            fcntl.flock(lock, fcntl.LOCK_SH)
            # The kernel does not do this in one step: another process can have removed the entry in between.
            return self._is_current(digest, lock) and self._entry(digest).is_dir()

        return self._hold_if(digest, lock, is_made)

    def _is_whole(self, digest: str, files: Files) -> bool:
        try:
            return not any(folder_problems(self._entry(digest), files))
        except (OSError, CorruptError):
            return False

    def _hold_if(self, digest: str, lock: int, is_whole: Callable[[], bool]) -> bool:
        whole = False
        try:
            whole = is_whole()
        finally:
            if whole:
                os.utime(lock, ns=(time.time_ns(),) * 2)  # its last use
                self._held[digest] = lock
            else:
                os.close(lock)
        return whole

    def _remove(self, digest: str) -> bool:
        """Removes an entry and its leftovers; False where a process uses it."""
        lock = self._lock(digest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            shutil.rmtree(self._emptied(digest))
            self._lock_file(digest).unlink(missing_ok=True)
        finally:
            os.close(lock)
        return True

    def _emptied(self, digest: str) -> Path:
        """An empty folder for the files that are being fetched, and no entry: under the exclusive lock only."""
        aside = self.root / "incoming" / digest
        _remove(aside)
        with contextlib.suppress(FileNotFoundError):
            self._entry(digest).rename(aside)  # in one move: nobody sees half an entry
        _remove(aside)
        aside.mkdir()
        return aside

    def _lock(self, digest: str, kind: int) -> int | None:
        """A file descriptor that holds the lock until it is closed; None where it can't be had at once (LOCK_NB)."""
        while True:
            handle = os.open(self._lock_file(digest), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, kind)
            except BlockingIOError:
                os.close(handle)
                return None
            if self._is_current(digest, handle):
                return handle
            os.close(handle)  # the holder before us removed the entry, and the lock's file with it

    def _is_current(self, digest: str, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self._lock_file(digest).stat())
        except FileNotFoundError:
            return False

    def _last_use(self, digest: str) -> int:
        try:
            return self._lock_file(digest).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _lock_file(self, digest: str) -> Path:
        return self.root / "locks" / f"{digest}.lock"

    def _entry(self, digest: str) -> Path:
        return self.root / "entries" / digest

    def _names(self, part: str) -> list[str]:
        return sorted(path.name for path in (self.root / part).iterdir())


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    try:
        return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    except FileNotFoundError:  # another process removes it
        return 0


def _bytes_of(files: Files) -> int:
    return sum(facts["bytes"] for facts in files.values())


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _bound() -> int:
    text = os.environ.get(BOUND, str(DEFAULT_GIB))
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < float("inf"):
        raise BadInputError(f"{BOUND}: {text!r} is not a number of GiB; give one, such as {DEFAULT_GIB:g}")
    return int(gib * GIB)
