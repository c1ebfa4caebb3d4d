"""Reads protobuf text (prototxt) without a schema, and JSON, which differs from it only in quoted names.

    train_config { sparse_optimizer { adagrad_optimizer { lr: 0.001 } } }    # comments, ':' before '{' or not
    hidden_units: [256, 128]        label_fields: 'clk'        fg_mode: FG_DAG        separator: "\\x1d"

A text is bounded in size and depth. Everything else that the format does not allow is refused with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from feature_jobs.errors import BadInputError

MAX_BYTES = 2_000_000  # a config of 1,000 features has about 200,000
MAX_DEPTH = 50  # each message takes a few calls of Python's stack of 1,000
_MAX_NAME = 200
_MAX_NUMBER = 400  # characters: Python refuses to read whole numbers of thousands of digits
_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>-?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)(?![\w.]))
    |(?P<word>-?[A-Za-z_]\w*|\[[A-Za-z_][\w./-]*[./][\w./-]*\])
    |(?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(
    r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.ASCII | re.DOTALL
)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v", **{c: c for c in "\\'\"?/"}}
_CONSTANTS: dict[str, bool | float] = {"true": True, "false": False}
_CONSTANTS |= {sign + name: float(sign + name) for name in ("inf", "nan", "infinity") for sign in ("", "-")}
_CLOSING = {"{": "}", "<": ">"}
Scalar = str | int | float | bool


# Not equal by value: what was taken is a set of settings, and two lines can say the same.
@dataclass(frozen=True, eq=False)
class Setting:
    """A name with a value, or with the settings of a message, and its line. A list is one setting for each element."""

    name: str
    value: Scalar | tuple[Setting, ...]
    line: int


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def parse_protobuf_text(text: str, place: str) -> tuple[Setting, ...]:
    """The settings of the outermost message. Raises BadInputError `PLACE:LINE: problem; remedy`."""
    reader = _Reader(text, place)
    is_json = reader.next.text == "{"
    found = reader.message("{", 1) if is_json else tuple(reader.settings("", 0))
    if reader.next.kind != "end":
        reader.refuse("a second value after the end of the first", "write one message")
    return found


class _Reader:
    def __init__(self, text: str, place: str) -> None:
        self.place = place
        self.tokens = self._split(text)
        self.next = next(self.tokens)

    def refuse(self, what: str, remedy: str, line: int = 0) -> NoReturn:
        raise BadInputError(f"{self.place}:{line or self.next.line}: {what}; {remedy}")

    def settings(self, closing: str, depth: int) -> Iterator[Setting]:
        """The settings up to the closing mark, or up to the end."""
        if depth > MAX_DEPTH:
            self.refuse(f"more than {MAX_DEPTH} messages inside one another", "is this a config of EasyRec?")
        while self.next.text != closing:
            name = self._take()
            if name.kind not in ("word", "text"):
                shown = name.text or "the end of the file"
                self.refuse(f"{shown!r} where a name is expected", "write NAME: VALUE or NAME { ... }", name.line)
            has_colon = self._skip(":")
            key = self._unescaped(name) if name.kind == "text" else name.text
            if len(key) > _MAX_NAME:
                self.refuse(f"a name of {len(key):,} characters", "shorten it", name.line)
            yield from self._values(key, depth, has_colon=has_colon)
            self._skip(",", ";")

    def message(self, opening: str, depth: int) -> tuple[Setting, ...]:
        """The settings between the opening mark and its closing one."""
        self._take()
        found = tuple(self.settings(_CLOSING[opening], depth))
        self._take()
        return found

    def _values(self, name: str, depth: int, *, has_colon: bool) -> Iterator[Setting]:
        token = self.next
        if token.kind == "mark" and token.text in _CLOSING:
            yield Setting(name, self.message(token.text, depth + 1), token.line)
        elif token.kind == "mark" and token.text == "[" and depth < MAX_DEPTH:
            self._take()
            while not self._skip("]"):
                yield from self._values(name, depth + 1, has_colon=True)
                if self.next.text != "]" and not self._skip(","):
                    self.refuse(f"{self.next.text[:40]!r} in a list", "separate the values with commas, end with ]")
        elif has_colon and token.kind in ("text", "number", "word"):
            yield Setting(name, self._scalar(self._take()), token.line)
        else:
            shown = token.text or "the end of the file"
            self.refuse(f"{shown[:40]!r} after {name[:40]!r}", "write NAME: VALUE or NAME { ... }")

    def _scalar(self, token: _Token) -> Scalar:
        if token.kind == "word":
            return _CONSTANTS.get(token.text.lower(), token.text)
        if token.kind == "number":
            if len(token.text) > _MAX_NUMBER:
                self.refuse(f"a number of {len(token.text):,} characters", "correct it", token.line)
            digits = token.text.lower().lstrip("-")
            if digits.startswith("0x"):
                return int(token.text, 16)
            return int(token.text) if digits.isdigit() else float(token.text.rstrip("fF"))
        text = self._unescaped(token)
        while self.next.kind == "text":  # as in C, texts beside each other are one
            text += self._unescaped(self._take())
        return text

    def _unescaped(self, token: _Token) -> str:
        """The text that a token in quotes means; \\x and octal numbers are bytes of UTF-8."""

        def meant(found: re.Match[str]) -> bytes:
            octal, hexadecimal, short, long, letter = found.groups()
            if octal or hexadecimal:
                return bytes([int(octal, 8) & 255 if octal else int(hexadecimal, 16)])
            plain = chr(int(short or long, 16)) if short or long else _LETTERS[letter]
            return plain.encode(errors="surrogatepass")

        try:
            body, parts, end = token.text[1:-1], [], 0
            for found in _ESCAPE.finditer(body):
                parts += [body[end : found.start()].encode(), meant(found)]
                end = found.end()
            text = b"".join([*parts, body[end:].encode()]).decode(errors="surrogatepass")
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")  # JSON writes 😀 as two halves
        except (KeyError, ValueError, OverflowError):
            self.refuse(f"{token.text[:40]!r} is not a text", "correct what follows the backslash", token.line)
        if "\0" in text:
            self.refuse(f"{token.text[:40]!r} holds a zero character", "leave it out", token.line)
        return text

    def _take(self) -> _Token:
        token = self.next
        if token.kind != "end":
            self.next = next(self.tokens)
        return token

    def _skip(self, *marks: str) -> bool:
        found = self.next.kind == "mark" and self.next.text in marks
        if found:
            self._take()
        return found

    def _split(self, text: str) -> Iterator[_Token]:
        position, line = 0, 1
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                shown = text[position : position + 20].splitlines()[0] or text[position]
                remedy = "write names, numbers and texts in quotes as protobuf text or JSON does"
                self.refuse(f"{shown!r} can't be read", remedy, line)
            kind = str(found.lastgroup)
            if kind != "space":
                yield _Token(kind, found.group(), line)
            position, line = found.end(), line + found.group().count("\n")
        yield _Token("end", "", line)
