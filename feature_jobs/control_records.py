"""Control records: small JSON that another process wrote, such as manifests, commit records and delta.json.

Their writer may have been killed, may be another release, or may be an attacker. So each is read here, and nowhere
else: only from a regular file, at most so many bytes and so deep, with the types that its reader declares. Everything
else raises CorruptError with the place, the problem, and the remedy.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Hashable
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from feature_jobs.errors import CorruptError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

MAX_BYTES = 16 << 20  # a manifest of 100,000 files has about 12 MB
MAX_DEPTH = 64
MAX_NAME = 1024  # bytes of a relative file name; NAME_MAX is the limit of most file systems for each part
NAME_MAX = 255
MAX_SHOWN = 80  # characters of a wrong value in a message
RESTORE = "restore it from a backup, or remove it and run the step that writes it again"

# A string, also one that never ends (so that the scan stays linear), or a bracket.
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def read_record(
    data: bytes, kind: type[T], place: str, remedy: str = RESTORE, *, extra: Literal["forbid", "ignore"] = "forbid"
) -> T:
    """One record of type `kind`: a dataclass or a TypedDict (of typing_extensions, as pydantic needs it).

    Types are strict: "1" is not a number and 1 is not true. Keys that `kind` does not name are an error, or ignored.
    Raises CorruptError with `place` and `remedy`.
    """
    from pydantic import ValidationError

    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes, but a record has at most {MAX_BYTES}")
        _check_depth(data)
        # The first parser refuses what pydantic's accepts (duplicates, infinity), the second one checks the types.
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        if b"\\u" in data:
            _check_text(value)
        record: T = _adapter(cast("Hashable", kind)).validate_json(data, strict=True, extra=extra)
        return record
    # Before ValueError, of which pydantic's error is a kind.
    except ValidationError as error:
        raise CorruptError(f"{place}: {_first_of(error)}; {remedy}") from None
    except ValueError as error:
        raise CorruptError(f"{place}: not a readable record ({str(error) or 'empty'}); {remedy}") from None


def read_record_file(
    path: Path, kind: type[T], remedy: str = RESTORE, *, extra: Literal["forbid", "ignore"] = "forbid"
) -> T:
    """As `read_record`, from a regular file. Raises FileNotFoundError where the file does not exist."""
    return read_record(read_regular(path, MAX_BYTES, remedy), kind, str(path), remedy, extra=extra)


def read_regular(path: Path, limit: int = MAX_BYTES, remedy: str = RESTORE) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises FileNotFoundError where the file does not exist, CorruptError where it is larger or not a regular file.
    """
    with open_regular(path, remedy) as stream:
        # One byte more than allowed shows a longer file; a size from stat would not, for files that grow and in /proc.
        data = stream.read(limit + 1) or b""  # None where a file of /proc has nothing to give yet
    if len(data) > limit:
        raise CorruptError(f"{path}: more than the {limit} bytes that this file may have; {remedy}")
    return data


def open_regular(path: Path, remedy: str = RESTORE) -> BufferedReader:
    """Opens a regular file for reading. It does not follow a symlink in the last component, and a FIFO never blocks it.

    Raises FileNotFoundError where the file does not exist, CorruptError where it is not a regular file.
    """
    return os.fdopen(_regular(path, os.O_RDONLY, remedy), "rb")


def append_to_regular(path: Path, data: bytes, remedy: str = RESTORE) -> None:
    """Adds bytes to a regular file, which is made where there is none. See open_regular."""
    with os.fdopen(_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, remedy), "ab") as stream:
        stream.write(data)


def _regular(path: Path, flags: int, remedy: str) -> int:
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        # O_NOFOLLOW at a symlink: ELOOP on Linux, EMLINK on FreeBSD.
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise CorruptError(f"{path}: a symlink where a regular file belongs; {remedy}") from None
        if error.errno in (errno.ENXIO, errno.EOPNOTSUPP):  # a socket
            raise CorruptError(f"{path}: not a regular file; {remedy}") from None
        raise
    # The open file is asked, not the path, which could be replaced between a look and the open.
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CorruptError(f"{path}: not a regular file; {remedy}")
    return handle


def checked_name(name: str, place: str, remedy: str = RESTORE) -> str:
    """A relative file name that a manifest, a delta, an export or an archive gives, unchanged.

    It has parts between single slashes, none of them empty, "." or "..", without backslashes and characters that
    don't print. So, joined to a folder, it stays inside the folder. Raises CorruptError with `place` and `remedy`.
    """
    parts = name.split("/")
    wrong = next((part for part in parts if part in ("", ".", "..")), None)
    # JSON can hold half of a surrogate pair; it must reach the check below, which refuses what does not print.
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    if not name or sum(sizes) + len(parts) > MAX_NAME or max(sizes) > NAME_MAX:
        what = f"a file name has 1 to {NAME_MAX} bytes in each part and at most {MAX_NAME} in all"
    elif not name.isprintable() or "\\" in name:
        what = "a file name has no backslash, NUL or control character"
    elif wrong is not None:
        what = f"a file name is relative to its folder, without {wrong!r} between its slashes"
    else:
        return name
    raise CorruptError(f"{place}: {_shown(name)}: {what}; {remedy}")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # here, because serving is imported without it

    return TypeAdapter(kind)


def _check_depth(data: bytes) -> None:
    """Before it is parsed: parsers recurse."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:  # as in most records
        return
    depth = 0
    for token in _TOKENS.finditer(data):
        if token[0] in (b"[", b"{"):
            depth += 1
        elif token[0] in (b"]", b"}"):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    # Parsers differ in which of two equal keys counts, so such a record could mean two things.
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {_shown(twice)} occurs twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_shown(text)} is not a finite number")
    return value


def _check_text(value: Any) -> None:
    """Half of a surrogate pair is valid as an escape, but can't be written or printed."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            inner.encode()
        elif isinstance(inner, list):
            waiting += inner
        elif isinstance(inner, dict):
            waiting += [*inner, *inner.values()]


def _first_of(error: ValidationError) -> str:
    """The first wrong value of a record: its place, the expected value and the value found."""
    found = error.errors(include_url=False, include_context=False)
    where = ".".join(str(part) for part in found[0]["loc"])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    what = found[0]["msg"][:1].lower() + found[0]["msg"][1:]
    return f"{_shown(where)[1:-1]}: {what}, not {_shown(found[0]['input'])}{more}" if where else f"{what}{more}"


def _shown(value: Any) -> str:
    """A value in a message: on one line, not endless."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
