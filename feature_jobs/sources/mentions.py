"""Ids inside longer texts: a comment, a URL, a joined list, JSON.

An id counts where it is a word of its own. A word goes on over letters, digits and underscores of ASCII, and over one
of `.`, `@` and `-` between them: 7 is in `ids=5,7` and `/u/7?x`, and not in 17, 7.5, -7, 2024-12-07, u_7 or 7@b.c.
Letters of other scripts end a word, as some are written without spaces. Escapes of URLs and of JSON are read, too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote

Id = int | str

# Not where %20 is an escape: it does not name user 20.
_WORD = re.compile(r"(?<!\w)(?<!\w[.@-])(?!(?<=%)[0-9a-fA-F]{2})[-.]?\w+(?:[.@-]\w+)*", re.ASCII)
_ENDS = re.compile(r"(?<!\w)|(?![.@-]?\w)", re.ASCII)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")  # 7.0, as some programs write the integer 7


class IdFinder:
    """Finds some ids in texts; the time does not depend on their number. `by_text`: the ids by their text."""

    def __init__(self, ids: Iterable[Id]) -> None:
        self.by_text: Mapping[str, Id] = {str(one): one for one in ids}
        # By their first word: an id of several words is compared as a whole where a text has that one.
        self._by_word: dict[str, list[tuple[str, int, Id]]] = defaultdict(list)
        self._without_words: list[tuple[str, Id]] = []
        for text, one in self.by_text.items():
            if first := _WORD.search(text):
                self._by_word[first.group()].append((text, first.start(), one))
            elif text.strip():
                self._without_words.append((text, one))

    def find(self, text: str) -> set[Id]:
        """The ids that the text names."""
        return {one for reading in _readings(text) for one in self._in(reading)}

    def _in(self, text: str) -> Iterator[Id]:
        yield from (one for named, one in self._without_words if named in text)
        for match in _WORD.finditer(text):
            for word, begin in _words(match):
                for named, offset, one in self._by_word.get(word, ()):
                    is_there = begin >= offset and text.startswith(named, begin - offset)
                    if named == word or (is_there and _ENDS.match(text, begin - offset + len(named))):
                        yield one


def _words(match: re.Match[str]) -> Iterator[tuple[str, int]]:
    """A word with its place; also without the sign before it, where that does not make it another number."""
    word, begin = match.group(), match.start()
    yield word, begin
    if word[0] in "-." and not word[1:].replace(".", "").isdigit():
        yield word[1:], begin + 1
    if whole := _WHOLE.fullmatch(word):
        yield whole[1], begin


def _readings(text: str) -> Iterator[str]:
    """The text, and with its escapes replaced."""
    yield text
    if "%" in text:
        yield unquote(text)
    if "\\" in text:
        # A line break in JSON is \n, which must not become the first letter of a word.
        yield _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else " " if m[2] in "nrtbf" else m[2], text)
