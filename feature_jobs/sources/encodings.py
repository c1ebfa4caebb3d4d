"""Copies in UTF-8 of text files in a declared encoding, so that everything else reads UTF-8 alone.

Bytes that the encoding does not have become a byte that UTF-8 does not have either: their line is then quarantined as
one that is not in its encoding, as in a file of UTF-8.
"""

from __future__ import annotations

import codecs
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from feature_jobs.errors import BadInputError
from feature_jobs.schema.encodings import UTF_8
from feature_jobs.sources.files import File, open_bytes, refuse_foreign

_BLOCK_BYTES = 2**20
_LEAST_LETTERS = 20
"""Letters beyond ASCII from which a file that reads as UTF-8 is not one of another encoding that does so by chance."""
_MARKS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_NOT_TEXT = "\udcff"  # half of a surrogate pair, which no encoding gives
_ERRORS = "recloop.not-text"


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeDecodeError):
        # One byte, as the next may be a good line end; units of two or four bytes would be cut.
        return _NOT_TEXT, error.end if error.encoding.startswith("utf") else error.start + 1
    if isinstance(error, UnicodeEncodeError):
        return b"\xff" * (error.end - error.start), error.end
    raise error


codecs.register_error(_ERRORS, _replace)


def copy_as_utf8(file: File, encoding: str, target: Path, *, file_format: str, place: str) -> None:
    """Writes the text of `file`, also where it is compressed with gzip, to `target`, which is there once it is whole.

    `place` says where the encoding is declared. Raises BadInputError for a file of another format, a damaged one, and
    one that is UTF-8 or has another encoding's byte order mark.
    """
    decoder = codecs.getincrementaldecoder(encoding)(_ERRORS)
    encoder = codecs.getincrementalencoder(UTF_8)(_ERRORS)
    as_utf8: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder(UTF_8)()
    part, num_letters = target.with_name(f"{target.name}.part"), 0
    try:
        with part.open("wb") as out:
            for block in _blocks(file, file_format):
                if not out.tell():
                    _refuse_marked(file, block, encoding, place)
                if as_utf8:
                    try:
                        text = as_utf8.decode(block)
                        num_letters += 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))
                    except UnicodeDecodeError:
                        as_utf8 = None
                out.write(encoder.encode(decoder.decode(block)))
            out.write(encoder.encode(decoder.decode(b"", final=True)))
        if as_utf8 and num_letters >= _LEAST_LETTERS:
            raise _other(file, encoding, "UTF-8", place)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _blocks(file: File, file_format: str) -> Iterator[bytes]:
    try:
        with open_bytes(file) as raw:
            block = raw.read(_BLOCK_BYTES)
            refuse_foreign(file, file_format, block)
            while block:
                yield block
                block = raw.read(_BLOCK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        what = str(error).replace(os.fspath(file), file.name)[:200]
        raise BadInputError(f"{file}: not readable as {file_format} ({what}); copy it again") from None


def _refuse_marked(file: File, start: bytes, encoding: str, place: str) -> None:
    for mark, name in _MARKS.items():
        if start.startswith(mark) and not encoding.startswith("utf"):
            raise _other(file, encoding, f"{name} with a byte order mark", place)


def _other(file: File, encoding: str, found: str, place: str) -> BadInputError:
    return BadInputError(f"{file}: it is {found}, not {encoding}; take out {place}, or save the file as {encoding}")
