"""Folders to write into before a commit: scratch folders, and folders that a killed run leaves to the next one.

WORK/.scratch/<uuid>, <uuid>.lock    of one run; its lock is held while the run is alive
WORK/.resume/NAME/KEY, NAME.lock     progress of a resumable step; KEY is a digest of its inputs, config and code
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from feature_jobs.errors import CorruptError

SCRATCH, RESUME = ".scratch", ".resume"
_NAME = re.compile("[0-9a-f]{32}")


class Scratch:
    """The folders of unfinished work below `work`. Where the store is local, they are on its file system."""

    def __init__(self, work: Path) -> None:
        self.work = work

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder, removed with the block. Leftovers of killed runs are removed first."""
        self.remove_abandoned()
        folder = _own_folder(self.work / SCRATCH) / uuid.uuid4().hex
        with FileLock(_lock_of(folder)):
            folder.mkdir(0o700)  # under the lock: before it, others would take the folder for a leftover
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)

    def remove_abandoned(self) -> None:
        """Removes the scratch folders whose lock is free: their run was killed."""
        top = self.work / SCRATCH
        _refuse_symlink(top)
        for old in top.iterdir() if top.is_dir() else ():
            # A kill can leave a folder, its lock's file, or both.
            folder = old.with_name(old.name.removesuffix(".lock"))
            if _NAME.fullmatch(folder.name) is None:  # somebody else's
                continue
            # A lock of another user can't be opened; that user's next run removes it.
            with contextlib.suppress(Timeout, OSError), FileLock(_lock_of(folder), blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)

    @contextlib.contextmanager
    def resume_folder(self, name: str, key: str) -> Iterator[Path | None]:
        """A folder that a killed run leaves to the next one of equal `key`; a run that ends removes it, and so does one
        of another key. None where another process uses it, since two processes do not share it, and where it is
        another user's."""
        top = _own_folder(_own_folder(self.work / RESUME) / name)
        lock = FileLock(_lock_of(top))
        try:
            if (top / key).is_symlink():
                (top / key).unlink()
            lock.acquire(blocking=False)
        except (Timeout, PermissionError):
            yield None
            return
        with contextlib.ExitStack() as held:
            held.callback(lock.release)
            for other in top.iterdir():
                if other.name != key:
                    shutil.rmtree(other, ignore_errors=True)
            yield top / key
            # Not in a `finally`: a run that fails leaves its progress to the next one, as a killed one does.
            shutil.rmtree(top, ignore_errors=True)
            _lock_of(top).unlink(missing_ok=True)  # FileLock checks that the file it has locked is still there

    def resumable(self) -> list[str]:
        """Names of the folders that killed runs left to a next one. A kill can leave the lock's file alone."""
        found = (self.work / RESUME).glob("*") if not (self.work / RESUME).is_symlink() else ()
        left = (path for path in found if not path.is_symlink() and (path.is_dir() or path.suffix == ".lock"))
        return sorted({path.name.removesuffix(".lock") for path in left})

    def remove_resumable(self, name: str) -> None:
        """Removes such a folder, unless a run is at it, or it is another user's."""
        top = self.work / RESUME / name
        with contextlib.suppress(Timeout, PermissionError), FileLock(_lock_of(top), blocking=False):
            shutil.rmtree(top, ignore_errors=True)
            _lock_of(top).unlink(missing_ok=True)

    def resume_place(self, name: str, key: str) -> Path:
        """Returns the path of that folder, which may not exist yet."""
        return self.work / RESUME / name / key


def _own_folder(folder: Path) -> Path:
    """The folder, made where it is missing. Raises CorruptError where it is a symlink."""
    _refuse_symlink(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _refuse_symlink(folder: Path) -> None:
    """Files below the folder are removed, and must not be somebody else's."""
    if folder.is_symlink():
        raise CorruptError(f"{folder}: a symlink where the store's own folder belongs; remove the symlink")


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
