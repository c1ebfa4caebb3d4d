"""The storage of a store: control records by key, and committed folders. All else in this package goes through it.

`LocalObjects` keeps them in a folder, `tasks.store.object_store` in a bucket. Keys are relative, with slashes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from feature_jobs.control_records import RESTORE, append_to_regular, open_regular, read_regular
from feature_jobs.errors import CorruptError
from tasks.store.digests import MANIFEST, sha256_of_file
from tasks.store.records import FileFacts, with_manifest
from tasks.store.scratch import Scratch

T = TypeVar("T")
R = TypeVar("R")

REMOVE = "remove it: no digest depends on it"
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV)  # EXDEV: the log's folder is a mount of its own
IS_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # errors of a rename to a name that is taken


class Objects(Protocol):
    """One scenario's part of a store."""

    @property
    def url(self) -> str:
        """Its path or URL, for messages."""

    @property
    def scratch(self) -> Scratch:
        """Folders on this machine for unfinished work."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes a record whole, or returns False where it exists already. Durable when it returns."""

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces a record that no digest depends on."""

    def append(self, key: str, line: bytes) -> None:
        """Adds a line to a record that no digest depends on."""

    def lines(self, key: str) -> list[bytes]:
        """The lines that were added to it, however many."""

    def read(self, key: str, remedy: str = RESTORE) -> bytes | None:
        """The record, or None. Raises CorruptError, with the remedy, where it is too large or not a regular file."""

    def keys(self, pattern: str) -> list[str]:
        """Keys of the records that match, sorted; `*` stands for characters of one part: `g*/*/*/commit.json`."""

    def each(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of the call for each item, in their order. An object store is asked several at once, and also for
        some items after the one at which the caller stops."""

    def tops(self) -> list[str]:
        """The first parts of all keys, sorted. An empty folder may be among them."""

    def time_of(self, key: str) -> float:
        """Returns the time at which a record was written, in seconds since 1970; 0 where it is not there."""

    def publish(self, folder: Path, key: str, files: Mapping[str, FileFacts]) -> None:
        """Makes the content of a finished scratch folder the content below `key`: `files`, and last the manifest.

        The key of a commit ends with a digest of its manifest, so a folder that is there already is the same; an
        incomplete one is replaced.
        """

    def fetch(self, key: str, files: Mapping[str, FileFacts]) -> Path:
        """A folder on this machine with the files below `key`. It stays there until `release`."""

    def proven(self, key: str, files: Mapping[str, FileFacts]) -> Path:
        """As `fetch`, after a proof of every file in that folder. Raises CorruptError, without a remedy."""

    def release(self) -> None:
        """The folders that were fetched are not read any more."""

    def problems_of(self, key: str, files: Mapping[str, FileFacts], *, partly: bool = False) -> Iterator[str]:
        """Yields a problem for each file below `key` in the store itself: with other content, missing (unless only a
        part of them has to be there), added, or not a regular file."""

    def entries(self, top: str) -> Iterator[tuple[str, str]]:
        """Key and kind of each entry there whose first part matches `top`: "file", "folder", or "other" for anything
        else, such as a symlink. An object store has files only."""

    def delete(self, key: str) -> None:
        """Removes the record, or everything below the key."""

    def delete_files(self, key: str, files: Mapping[str, FileFacts]) -> None:
        """Removes the files of a commit and their copy on this machine. The manifest stays."""


class LocalObjects:
    """A folder. Records and committed folders appear by one link or rename, after an fsync."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scratch = Scratch(root)

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Objects."""
        target = self._place(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            is_new = _linked(self.scratch, target, data)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            # A step in a container may write into the folder of its log alone. Only a try shows it: os.access asks for
            # the real user, and knows no access lists.
            is_new = _linked(Scratch(target.parent), target, data)
        if is_new:
            self._fsync_above(target)
        return is_new

    def put(self, key: str, data: bytes) -> None:
        """See Objects."""
        target = self._place(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.scratch.folder() as aside:
            record = aside / target.name
            record.write_bytes(data)
            record.rename(target)

    def append(self, key: str, line: bytes) -> None:
        """See Objects."""
        self.root.mkdir(parents=True, exist_ok=True)
        append_to_regular(self._place(key), line, REMOVE)

    def lines(self, key: str) -> list[bytes]:
        """See Objects."""
        try:
            with open_regular(self._place(key), REMOVE) as stream:
                return stream.read().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, key: str, remedy: str = RESTORE) -> bytes | None:
        """See Objects."""
        try:
            return read_regular(self._place(key, remedy), remedy=remedy)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keys(self, pattern: str) -> list[str]:
        """See Objects."""
        return sorted(_matching(self.root, pattern.split("/")))

    def each(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See Objects."""
        return map(call, items)

    def tops(self) -> list[str]:
        """See Objects."""
        try:
            return sorted(path.name for path in self.root.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def time_of(self, key: str) -> float:
        """See Objects."""
        try:
            return (self.root / key).lstat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return 0.0

    def publish(self, folder: Path, key: str, files: Mapping[str, FileFacts]) -> None:
        """See Objects."""
        target = self._place(key)
        # Before the rename: else a crash of the machine could leave a whole name with empty files.
        for name, mode in _entries(folder):
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                fsync(folder / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        manifest = (folder / MANIFEST).read_bytes() if (folder / MANIFEST).exists() else None
        while not self._moved(folder, target, with_manifest(files, manifest)):
            pass  # another run of equal content moved its folder in or out just now
        self._fsync_above(target)

    def _moved(self, folder: Path, target: Path, files: Mapping[str, FileFacts]) -> bool:
        """Moves the folder; says if the target now has its content, moved by this run or by another one."""
        try:
            folder.rename(target)
            return True
        except OSError as error:
            if error.errno not in IS_THERE:
                raise
        with contextlib.suppress(FileNotFoundError):  # it was moved out in between
            if not any(folder_problems(target, files)):
                return True
        with self.scratch.folder() as aside, contextlib.suppress(FileNotFoundError):
            target.rename(aside / "torn")  # by a crash of the machine
        return False

    def fetch(self, key: str, files: Mapping[str, FileFacts]) -> Path:
        """See Objects."""
        return self._place(key)

    def proven(self, key: str, files: Mapping[str, FileFacts]) -> Path:
        """See Objects."""
        for problem in self.problems_of(key, files):
            raise CorruptError(problem)
        return self._place(key)

    def release(self) -> None:
        """Nothing to do: nobody removes them."""

    def problems_of(self, key: str, files: Mapping[str, FileFacts], *, partly: bool = False) -> Iterator[str]:
        """See Objects."""
        return folder_problems(self._place(key), files, partly=partly)

    def entries(self, top: str) -> Iterator[tuple[str, str]]:
        """See Objects."""
        for place in sorted(self.root.glob(top)):
            mode = place.lstat().st_mode
            yield place.name, _kind(mode)
            for name, below in _entries(place) if stat.S_ISDIR(mode) else ():
                yield f"{place.name}/{name}", _kind(below)

    def delete(self, key: str) -> None:
        """See Objects. A folder is renamed first, so that a reader never sees half of it."""
        with self.scratch.folder() as aside, contextlib.suppress(FileNotFoundError):
            self._place(key).rename(aside / "deleted")

    def _place(self, key: str, remedy: str = RESTORE) -> Path:
        """Its path. Raises CorruptError where a folder on the way is a symlink: that leads out of the store."""
        place = str(self.root)  # pathlib's joins would take a tenth of the time of all that a store does
        for folder in key.split("/")[:-1]:
            place = f"{place}/{folder}"
            try:
                mode = os.lstat(place).st_mode
            except (FileNotFoundError, NotADirectoryError):
                break
            if stat.S_ISLNK(mode):
                raise CorruptError(f"{place}: a symlink where a folder belongs; move the folder back, or {remedy}")
        return self.root / key

    def delete_files(self, key: str, files: Mapping[str, FileFacts]) -> None:
        """See Objects."""
        for name in files:
            self.delete(f"{key}/{name}")

    def _fsync_above(self, target: Path) -> None:
        """Makes the entry durable, and the folders on its way, which may be new."""
        for folder in target.parents:
            fsync(folder)
            if folder == self.root:
                return


def _linked(scratch: Scratch, target: Path, data: bytes) -> bool:
    """Writes a record aside and links it to its place; False where one is there."""
    with scratch.folder() as aside:
        record = aside / target.name
        record.write_bytes(data)
        record.chmod(0o644)  # with any umask: other users of a shared store must read it
        fsync(record)
        try:
            # A link, because a rename would replace a record that another run has written meanwhile.
            os.link(record, target)
        except FileExistsError:
            return False
    return True


def files_of(folder: Path) -> dict[str, FileFacts]:
    """Digest and size of every file below `folder`, the manifest left out.

    Raises CorruptError where something is neither a folder nor a regular file.
    """
    found: dict[str, FileFacts] = {}
    for name, mode in _entries(folder):
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise CorruptError(f"{folder / name}: not a regular file; a step writes regular files only")
        if name != MANIFEST:
            with open_regular(folder / name) as stream:
                found[name] = {"sha256": sha256_of_file(stream), "bytes": os.fstat(stream.fileno()).st_size}
    return found


def folder_problems(folder: Path, files: Mapping[str, FileFacts], *, partly: bool = False) -> Iterator[str]:
    """See Objects.problems_of. Nothing but regular files is read."""
    # In a store the manifest lies beside the files that it lists; in the cache it is one of the files.
    seen: set[str] = set() if MANIFEST in files else {MANIFEST}
    wanted_folders = {part.as_posix() for name in files for part in Path(name).parents}
    try:
        entries = list(_entries(folder))
    except (FileNotFoundError, NotADirectoryError):
        yield f"{folder}: not a folder"
        return
    for name, mode in entries:
        seen.add(name)
        if stat.S_ISDIR(mode):
            if name not in wanted_folders:
                yield f"{folder / name}: a folder that was not committed"
        elif not stat.S_ISREG(mode):
            yield f"{folder / name}: not a regular file"
        elif name != MANIFEST or MANIFEST in files:
            yield from _file_problem(folder / name, files.get(name))
    for name in sorted(files.keys() - seen) if not partly else ():
        yield f"{folder / name}: missing; committed with digest {files[name]['sha256'][:12]}"


def _file_problem(path: Path, committed: FileFacts | None) -> Iterator[str]:
    if committed is None:
        yield f"{path}: was not committed"
        return
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != committed["bytes"]:  # before it is read: it may have become very large
            yield f"{path}: {size} bytes, but {committed['bytes']} were committed"
        elif (digest := sha256_of_file(stream)) != committed["sha256"]:
            yield f"{path}: digest {digest[:12]} is not the committed {committed['sha256'][:12]}"


def _entries(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative name and mode of everything below a folder, sorted; no symlink is followed."""
    if folder.is_symlink():
        raise NotADirectoryError(str(folder))
    waiting, above = [str(folder)], len(str(folder)) + 1
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                mode = entry.stat(follow_symlinks=False).st_mode
                yield entry.path[above:], mode
                if stat.S_ISDIR(mode):
                    waiting.append(entry.path)


def _kind(mode: int) -> str:
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _matching(folder: Path, parts: list[str], before: str = "") -> Iterator[str]:
    """Keys of matching entries that are not folders, part by part; no symlink is followed."""
    part, *deeper = parts
    if "*" not in part and deeper:  # as most folders of a pattern are: no need to list its siblings
        if not (folder / part).is_symlink():
            yield from _matching(folder / part, deeper, f"{before}{part}/")
        return
    try:
        with os.scandir(folder) as entries:
            found = [(one.name, one.is_dir(follow_symlinks=False)) for one in entries if matches(part, one.name)]
    except (FileNotFoundError, NotADirectoryError):  # or another process moved the folder out just now
        return
    for name, is_folder in found:
        if is_folder and deeper:
            yield from _matching(folder / name, deeper, f"{before}{name}/")
        elif not is_folder and not deeper:
            yield f"{before}{name}"


def remove_empty_folders(folder: Path) -> None:
    """Below `folder`: an object store has none, and no digest would name them."""
    # Reversed, so that a folder comes after those within it; one that holds files refuses to go.
    for name, mode in sorted(_entries(folder), reverse=True):
        if stat.S_ISDIR(mode):
            with contextlib.suppress(OSError):
                (folder / name).rmdir()


def fsync(path: Path) -> None:
    """Makes a file, or the entries of a folder, durable."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def matches(pattern: str, key: str) -> bool:
    """Says if a key matches a pattern of `Objects.keys`."""
    return _compiled(pattern).fullmatch(key) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", "[^/]*"), re.DOTALL)
