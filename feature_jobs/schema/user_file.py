"""Paths that a user gives, and small files at them: read whole, or refused where the path is a folder or a pipe."""

from __future__ import annotations

from pathlib import Path

from feature_jobs.control_records import NAME_MAX, read_regular
from feature_jobs.errors import BadInputError

PATH_MAX = 4095  # bytes, on Linux


def path_problem(path: str) -> str | None:
    """Returns the problem with the text of a path as `problem; remedy`; None where the system can look it up."""
    if not path:
        return "is empty; name a file or folder"
    if "\0" in path:
        return "has a zero character; leave it out"
    try:
        parts = [len(part.encode()) for part in path.split("/")]
    except UnicodeEncodeError:  # Python reads a byte that is not UTF-8 as half of a surrogate pair
        return "is not UTF-8; rename it"
    if max(parts) > NAME_MAX or sum(parts) + len(parts) > PATH_MAX:
        return f"is longer than {NAME_MAX} bytes a name or {PATH_MAX} in all; shorten it"
    return None


def resolved(path: str | Path) -> Path:
    """The absolute path without symlinks. Raises BadInputError for one that the system can't look up."""
    problem = path_problem(str(path))
    if problem is None:
        try:
            found = Path(path).resolve()
        except RuntimeError:  # pathlib's error for a loop, up to Python 3.12
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
    """The UTF-8 text of a regular file, or of one that a symlink leads to.

    Raises FileNotFoundError where there is none, and BadInputError for a folder, a FIFO, a device, a socket, a file
    of more than `most_bytes`, one that can't be read, and for other encodings.
    """
    try:
        return read_regular(resolved(file), most_bytes, "name another file").decode()
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise BadInputError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise BadInputError(f"{shortened(file)}: {error.strerror}; name a file that can be read") from None
