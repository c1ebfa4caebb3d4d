"""Paths that a user gives, and small files at them: read whole or refused, whatever is at the path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from feature_jobs.errors import BadInputError

_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4095  # NAME_MAX and PATH_MAX of Linux


def path_problem(path: str) -> str | None:
    """What is wrong with the text of a path, as `what; remedy`; None where the system can look it up."""
    if not path:
        return "is empty; name a file or folder"
    if "\0" in path:
        return "has a zero character; leave it out"
    try:
        parts = [len(part.encode()) for part in path.split("/")]
    except UnicodeEncodeError:
        return "is not UTF-8; rename it"
    if max(parts) > _MOST_NAME_BYTES or sum(parts) + len(parts) > _MOST_PATH_BYTES:
        return f"is longer than {_MOST_NAME_BYTES} bytes a name or {_MOST_PATH_BYTES} in all; shorten it"
    return None


def resolved(path: str | Path) -> Path:
    """The absolute path without symlinks. Raises BadInputError for one that the system can't look up."""
    problem = path_problem(str(path))
    if problem is None:
        try:
            found = Path(path).resolve()
        except RuntimeError:
            problem = "is a symlink that leads to itself; remove it"
        except OSError as error:
            problem = f"{error.strerror}; choose another path"
        else:
            if (problem := path_problem(str(found))) is None:  # a relative path can become too long
                return found
    raise BadInputError(f"{shortened(path)}: {problem}")


def shortened(path: str | Path) -> str:
    """The path as a message shows it: printable, at most 200 characters."""
    text = str(path)
    text = text if text.isprintable() and text else repr(text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def read_user_text(file: Path, most_bytes: int) -> str:
    """The UTF-8 text of a regular file.

    Raises FileNotFoundError where there is none, and BadInputError for a folder, a FIFO, a device, a socket, a file
    of more than `most_bytes`, one that can't be read, and for other encodings.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # before it is opened: that alone can wait, or act on a device
            raise BadInputError(f"{file}: is a folder, a FIFO, a device or a socket; name a file")
        # Some files of /proc are regular by their mode, have no size, and wait for what comes next.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            data = stream.read(most_bytes + 1) or b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInputError(f"{shortened(file)}: {error.strerror}; name a file that can be read") from None
    if len(data) > most_bytes:
        raise BadInputError(f"{file}: holds more than {most_bytes:,} bytes; is it the right file? Shorten it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInputError(f"{file}: not UTF-8 text; save it as UTF-8") from None
