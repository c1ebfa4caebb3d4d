"""Guesses the encoding of a text that is not UTF-8, from its letters."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable

_LEAST_SHARE = 0.5  # of the letters beyond ASCII; read in a wrong encoding, texts are mostly of rare ones
_WESTERN = "€“”„‘’‚–—…°©®§«»¿¡ß"


def _among(encoding: str, low: int, high: int) -> Callable[[str, int], bool]:
    """Says if a letter is one of the common ones, which these encodings have in rows of their own."""

    def is_common(text: str, at: int) -> bool:
        try:
            first = text[at].encode(encoding)[0]
        except UnicodeEncodeError:
            return False
        return low <= first <= high or unicodedata.category(text[at]).startswith("P")

    return is_common


def _is_western(text: str, at: int) -> bool:
    if text[at] in _WESTERN:
        return True
    around = text[max(at - 1, 0) : at] + text[at + 1 : at + 2]
    return text[at].isalpha() and around.isascii()  # hardly ever two beside each other


def _is_japanese(text: str, at: int) -> bool:
    return "\u3040" <= text[at] <= "\u30ff" or _among("shift_jis", 0x88, 0x97)(text, at)


_COMMON: dict[str, Callable[[str, int], bool]] = {
    "gb18030": _among("gb2312", 0xB0, 0xD7),
    "big5": _among("big5", 0xA4, 0xC6),
    "shift_jis": _is_japanese,
    "cp1252": _is_western,
}


def guess_encoding(start: bytes) -> str:
    """The encoding in which the beginning of a text reads, and most of its letters are common ones; "" if none is."""
    found = [(_share(start, encoding), encoding) for encoding in _COMMON]
    share, encoding = max(found, key=lambda one: one[0])  # of equal ones the first
    return encoding if share >= _LEAST_SHARE else ""


def _share(start: bytes, encoding: str) -> float:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)  # the last letter may be cut
    except UnicodeDecodeError:
        return 0.0
    letters = [at for at, letter in enumerate(text) if not letter.isascii()]
    return sum(_COMMON[encoding](text, at) for at in letters) / len(letters) if letters else 0.0
