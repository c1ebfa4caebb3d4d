"""Wrong contents for a file that a command reads: torn, empty, nested, wrongly typed, endless, or not a file."""

import contextlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_jobs.control_records import MAX_BYTES
from feature_jobs.errors import CorruptError

Change = Callable[[Path], None]
ELSEWHERE = "elsewhere"
"""Target of a symlink: a file in the folder above, with the right bytes."""
VALUES = {
    "null": None,
    "true": True,
    "-1": -1,
    "large": 10**30,
    "float": 0.5,
    "text": "x",
    "list": [[]],
    "object": {"../../x": {"y": []}},
}
NAMES = [
    "../escaped", "a/../../escaped", "/escaped", "..", ".", "", "a//b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "~/../x",
    "a" * 300, "/".join("a" * 600), "folder/file",
]  # fmt: skip


def write(data: bytes) -> Change:
    def change(file: Path) -> None:
        file.write_bytes(data)

    return change


def texts() -> Iterator[tuple[str, Change]]:
    """Yields changes to a text that a JSON record may not have, by name."""
    for name, data in {
        "empty": b"", "zeros": bytes(64), "bracket": b"{", "null": b"null", "list": b"[]", "number": b"5",
        "text": b'"x"', "empty object": b"{}", "not UTF-8": b'{"a": "\xff"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
        "mark": b"\xef\xbb\xbf{}", "NaN": b'{"format": NaN}', "infinity": b'{"format": 1e999}',
        "twice": b'{"format": 1, "format": 1}', "half a pair": b'{"format": "\\ud800"}',
        "digits": b'{"format": ' + b"9" * 100_000 + b"}", "deep lists": b"[" * 200_000,
        "deep objects": b'{"a":' * 100_000, "quotes": b'"' + b'\\"' * 500_000, "large": b" " * (MAX_BYTES + 1),
        "two": b"{}{}", "comment": b"{} // x", "YAML": b"a: &a [1]\nb: *a\n",
    }.items():  # fmt: skip
        yield name, write(data)


def torn(whole: bytes) -> Iterator[tuple[str, Change]]:
    """The file as a full disk leaves it."""
    for size in sorted({1, len(whole) // 3, len(whole) // 2, len(whole) - 2}):
        yield f"first {size} bytes", write(whole[:size])


def mistyped(whole: bytes) -> Iterator[tuple[str, Change]]:
    """Each key is missing once, and has a value of each type, where that is not its own type."""
    document: dict[str, Any] = json.loads(whole)
    for key, right in document.items():
        yield f"without {key}", write(json.dumps({k: v for k, v in document.items() if k != key}).encode())
        for name, value in VALUES.items():
            if type(value) is not type(right) or name in ("-1", "large", "object"):
                yield f"{key} is {name}", write(json.dumps({**document, key: value}).encode())


def special() -> Iterator[tuple[str, Change]]:
    """Yields changes after which the path is not a regular file, by name."""

    def link(file: Path) -> None:
        target = Path(shutil.move(file, file.parent.parent / ELSEWHERE))
        file.symlink_to(target)

    def loop(file: Path) -> None:
        file.unlink()
        file.symlink_to(file.name)

    def fifo(file: Path) -> None:
        file.unlink()
        os.mkfifo(file)

    def folder(file: Path) -> None:
        file.unlink()
        file.mkdir()

    def sparse(file: Path) -> None:
        with file.open("r+b") as stream:
            stream.truncate(1 << 26)

    yield from {"symlink": link, "loop": loop, "FIFO": fifo, "folder": folder, "missing": Path.unlink}.items()
    yield "64 MiB of zeros", sparse


def headers(whole: bytes) -> Iterator[tuple[str, Change]]:
    """Wrong headers of a safetensors file."""
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    for length in (0, 1, size - 1, size + 8, len(whole), 2**31, 2**63, 2**64 - 1):
        yield f"a header of {length} bytes", write(length.to_bytes(8, "little") + whole[8:])
    for change, data in {"deep": b"[" * 50_000, "not JSON": b"x" * 100, "list": b"[]"}.items():
        yield f"a header that is {change}", write(len(data).to_bytes(8, "little") + data + body)
    for name in (n for n in header if n != "__metadata__"):
        facts = header[name]
        for key, values in {
            "dtype": ["F64", "I8", "x", None],
            "shape": [[2**62], [2**62, 2**62, 4], [-1], [-1, -1], [0], ["x"], {}, [[]]],
            "data_offsets": [[0, 2**63], [2**62, 2**62 + 8], [-8, 0], [8, 0], [0, 10**9], [0], ["0", "8"], None],
        }.items():
            for value in values:
                text = json.dumps({**header, name: {**facts, key: value}}).encode()
                yield f"{key} of {name} is {value}", write(len(text).to_bytes(8, "little") + text + body)


@dataclass
class Used:
    """Cost of a block: seconds of this process, and the rise of its memory above the highest before."""

    seconds: float = 0.0
    bytes: int = 0


@contextlib.contextmanager
def peak_of() -> Iterator[Used]:
    used, began, before = Used(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield used
    finally:
        used.seconds = time.process_time() - began
        used.bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def is_refused(load: Callable[[], object], name: str, *texts: str) -> bool:
    """Says if `load` raises CorruptError; its message then has the texts. It costs under 10 s and 1 GiB either way."""
    refused = False
    with peak_of() as used:
        try:
            load()
        except CorruptError as error:
            refused = True
            for text in texts:
                assert text in str(error), name
    assert used.seconds < 10, name
    assert used.bytes < 1 << 30, name
    return refused
