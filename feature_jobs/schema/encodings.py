"""Names of encodings of text, as Python knows them."""

from __future__ import annotations

import codecs
import difflib
import encodings
import pkgutil
from typing import Annotated

from pydantic import AfterValidator

UTF_8 = "utf-8"
# Python calls them text, but they write other things than the text of a file, or read any bytes.
_NO_TEXT = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "charmap"}
_NO_BYTE_ORDER = {"utf-16", "utf-32"}
EXAMPLES = "gb18030, big5, shift_jis, cp1252 or latin-1"


def _find(name: str) -> str | None:
    """Python's own name of an encoding of text, by any of its names."""
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):  # zero characters, halves of surrogate pairs
        return None
    is_text = getattr(codec, "_is_text_encoding", False) and codec.name not in _NO_TEXT
    return codec.name if is_text else None


def _encoding(name: str) -> str:
    found = _find(name)
    if found is None:
        known = [module.name for module in pkgutil.iter_modules(encodings.__path__) if _find(module.name)]
        close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"write a name that Python knows, such as {EXAMPLES}"
        raise ValueError(f"must be an encoding of text; {remedy}")
    if found in _NO_BYTE_ORDER:
        by_itself = " UTF-16 with a byte order mark is found without this key" if found == "utf-16" else ""
        raise ValueError(f"must say the order of bytes; write {found}-le or {found}-be.{by_itself}")
    return UTF_8 if found == "utf-8-sig" else found  # a byte order mark is found by itself


Encoding = Annotated[str, AfterValidator(_encoding)]
"""The name of an encoding; all names of one encoding become the same."""
