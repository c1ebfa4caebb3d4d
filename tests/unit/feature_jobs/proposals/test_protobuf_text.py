"""Protobuf text without a schema, and JSON: what is read, and that bad input is refused with its line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.protobuf_text import Setting, parse_protobuf_text


def read(text: str) -> object:
    return plain(parse_protobuf_text(text, "a.config"))


def plain(settings: tuple[Setting, ...]) -> list[tuple[str, object]]:
    return [(one.name, plain(one.value) if isinstance(one.value, tuple) else one.value) for one in settings]


def test_values_are_read() -> None:
    text = """
    a: 1  b: -2.5f, c: 1e-7; d: 0x1F e: inf f: -inf   # a comment { "
    g: "x" 'y'
       "z"
    h: ENUM_VALUE i: true j: False
    """
    infinite = float("inf")
    assert read(text) == [
        *[("a", 1), ("b", -2.5), ("c", 1e-7), ("d", 31), ("e", infinite), ("f", -infinite), ("g", "xyz")],
        *[("h", "ENUM_VALUE"), ("i", True), ("j", False)],
    ]


def test_messages_lists_and_extensions_are_read() -> None:
    text = 'a { b: [1, 2,] c < d: "x" > } e: { } f: [{g: 1}, {g: 2}] [my.ext/one] { } h: []'
    below = [("b", 1), ("b", 2), ("c", [("d", "x")])]
    assert read(text) == [("a", below), ("e", []), ("f", [("g", 1)]), ("f", [("g", 2)]), ("[my.ext/one]", [])]


def test_escapes_are_read() -> None:
    text = r"""a: '\x1d\001\'\"\n\\' b: "\u001d\ud83d\ude00" c: "\303\251 é" d: "\U0001F600" """
    assert read(text) == [("a", "\x1d\x01'\"\n\\"), ("b", "\x1d😀"), ("c", "é é"), ("d", "😀")]


def test_lines_are_those_of_the_values() -> None:
    first, second = parse_protobuf_text("a: 1\n\n# b\nb {\n  c: 2 }", "a.config")
    assert (first.line, second.line) == (1, 4)
    assert isinstance(second.value, tuple)
    assert second.value[0].line == 5


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb", 2, "'the end of the file' after 'b'"),
        ("a: 1\nb 2", 2, "'2' after 'b'"),
        ("a {\n b: 1\n", 3, "'the end of the file' where a name is expected"),
        ("a: 1 }", 1, "'}' where a name is expected"),
        ("a: [1\n2]", 2, "'2' in a list"),
        ("a: 'x\n'", 1, "can't be read"),
        ("\n\na: 12abc", 3, "can't be read"),
        (r"a: '\q'", 1, "is not a text"),
        (r"a: '\ud800'", 1, "is not a text"),
        (r"a: '\377'", 1, "is not a text"),
        (r"a: '\U99999999'", 1, "is not a text"),
        (r"a: '\0'", 1, "zero character"),
        ("a: " + "9" * 5_000, 1, "a number of 5,000 characters"),
        ("a" * 300 + ": 1", 1, "a name of 300 characters"),
        ("a { " * 3_000, 1, "more than 50 messages"),
        ("a: " + "[" * 3_000, 1, "after 'a'"),
        ('{"a": 1} {"b": 2}', 1, "a second value"),
        ("\x00", 1, "can't be read"),
    ],
)
def test_bad_text_is_refused_with_its_line_and_a_remedy(text: str, line: int, said: str) -> None:
    with pytest.raises(BadInputError) as raised:
        read(text)
    message = str(raised.value)
    assert message.startswith(f"a.config:{line}: ")
    assert said in message
    assert "; " in message


TOKENS = [
    "a",
    "b_1",
    ":",
    "{",
    "}",
    "[",
    "]",
    "<",
    ">",
    ",",
    ";",
    "1",
    "-2.5",
    "0x",
    '"x"',
    "'",
    '"',
    "\\",
    "#",
    "\n",
    " ",
    ".",
]


@given(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_protobuf_text(text, "a.config")
    except BadInputError as error:
        assert str(error).startswith("a.config:")


_LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])  # half of a letter is not a text
_JSON = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.text(_LETTERS, max_size=8),
    lambda below: st.dictionaries(st.text("abc é", min_size=1, max_size=5), below, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', '{"a": "\ud800"}'])
def test_half_of_a_letter_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"a\.config:1: .* is not a text"):
        parse_protobuf_text(text, "a.config")


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), _JSON, max_size=4))
def test_json_is_read_as_python_reads_it(document: dict[str, object]) -> None:
    def pairs(value: object) -> object:
        return [(key, pairs(below)) for key, below in value.items()] if isinstance(value, dict) else value

    text = json.dumps(document, ensure_ascii=len(document) % 2 == 0, indent=1)
    # An empty text is text; only words without quotes are constants.
    assert read(text) == pairs(document)
