"""Ids inside texts: what counts as the id, and what is another one."""

import json
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.sources.mentions import Id, IdFinder


@pytest.mark.parametrize(
    ("one", "texts"),
    [
        (7, ["7", "seen by 7.", "@7", "(7)", "5,7,9", "5|7", "a=7&b=8", "/u/7?x", '{"user": 7.0}', "x\\n7", "5%2C7"]),
        (-7, ["-7", "[-7]", "x=-7"]),
        ("s777", ["ask s777", "-s777", "von s777ä", "用户s777的", '{"by": "\\u00737\\u00377"}', "s777's", "s777@"]),
        ("a.b@x.com", ["<a.b@x.com>", "mailto:a.b@x.com.", "a.b%40x.com"]),
        ("a+b@x.com", ["to a+b@x.com, c"]),
        ("Ann Lee", ["by Ann Lee!"]),
        ("https://x.io/7", ["see https://x.io/7?y"]),
        ("7f3a-11", ["-7f3a-11"]),
        ("a%40x.com", ["u=a%40x.com&b"]),
        ("用户", ["给用户的"]),
        (" s 3 ", ["x s 3 y"]),
    ],
)
def test_an_id_is_found_between_spaces_and_punctuation(one: Id, texts: list[str]) -> None:
    for text in texts:
        assert IdFinder([one, "other"]).find(text) == {one}, text


@pytest.mark.parametrize(
    ("one", "texts"),
    [
        (7, ["17", "7.5", "3.7", ".7", "-7", "2024-12-7", "7e3", "0x7", "u_7", "7@b.c", "007", "3.7.1", "", "7-8"]),
        (-7, ["7", "3-7", "-77"]),
        (20, ["a%20b", "%201"]),
        ("s777", ["s7777", "xs777", "S777", "s777.com", "s777-b", "bob@s777"]),
        ("a.b@x.com", ["xa.b@x.com", "a.b@x.com.au", "b@x.com"]),
        ("a+b@x.com", ["a+b@x.comx", "xa+b@x.com", "a b@x.com"]),
        ("Ann Lee", ["Joann Lee", "Ann Leeds"]),
        ("", ["", "x"]),
    ],
)
def test_a_part_of_another_word_is_another_id(one: Id, texts: list[str]) -> None:
    for text in texts:
        assert IdFinder([one]).find(text) == set(), text


@given(st.sets(st.integers(-999, 999), min_size=1, max_size=4), st.lists(st.integers(-9999, 9999), max_size=6))
def test_numbers_are_found_in_every_kind_of_list_and_never_inside_others(ids: set[int], listed: list[int]) -> None:
    finder, wanted = IdFinder(ids), ids & {*listed}
    for text in (json.dumps(listed), json.dumps({"ids": list(map(str, listed))}), ",".join(map(str, listed))):
        assert finder.find(text) == wanted
        assert finder.find(quote(text, safe="")) == wanted
        assert finder.find(json.dumps({"payload": text})) == wanted


@given(st.text(min_size=1, max_size=6), st.text(" \n,;:|/?&=\"'()[]{}<>!#$*~`^", min_size=1, max_size=2))
def test_any_id_is_found_between_punctuation(one: str, mark: str) -> None:
    if re.search(r"\S", one):
        for text in (one, f"x{mark}{one}", f"{one}{mark}x", f"x{mark}{one}{mark}y"):
            assert one in IdFinder([one]).find(text), text
