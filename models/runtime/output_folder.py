"""An output folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from feature_jobs.errors import BadInputError

NAME_LETTERS = 50  # of OUTPUT's name in the one of the folder beside it: at 4 bytes a letter, both fit a file system


@contextlib.contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place at the end of the block; `output` must be empty or absent.

    Folders that killed runs left beside it are removed. One that another run writes at the moment is not: that run
    holds a lock on its folder. Raises BadInputError where `output` is not empty, a symlink or a file.
    """
    _refuse_used(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output.name[:NAME_LETTERS]}.part-"
    for left in output.parent.glob(f"{_literal(prefix)}*"):
        _remove_if_abandoned(left)
    try:
        aside, lock = _locked_folder(output.parent, prefix)
    except OSError as error:  # of a name that nobody gave
        raise OSError(error.errno, error.strerror, str(output)) from None
    try:
        yield aside
        # Before the rename: else a crash of the machine could leave a whole folder of empty files.
        _sync(aside)
        # mkdtemp makes a folder that its owner alone can read.
        aside.chmod(0o755)
        try:
            aside.rename(output)  # onto an empty folder at most
        except OSError:
            _refuse_used(output)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(lock)


def _refuse_used(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise BadInputError(f"{output}: a symlink or a file; name a new folder")
    if output.exists() and any(output.iterdir()):
        raise BadInputError(f"{output}: the folder is not empty; name a new one")


def _literal(text: str) -> str:
    """The text as a pattern that matches itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # taken for a leftover before it had its lock
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The folder may be gone: another run may have locked and removed it just before.
        if folder.exists():
            return folder, lock
        os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    """Removes a folder whose lock nobody holds; the kernel frees the lock of a killed process."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, or not a folder of ours
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
