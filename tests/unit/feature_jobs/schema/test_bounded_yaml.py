"""YAML whose text is short and whose meaning is not, and other texts that ruamel is slow for or breaks on."""

from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from feature_jobs.schema.bounded_yaml import MAX_ALIASED, MAX_BYTES, parse_yaml
from tests.unit.tasks.little import SCENARIO

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
REFUSED = {
    "aliases of aliases": (BOMB, f"aliases stand for more than {MAX_ALIASED:,} values"),
    "many aliases": ("a: &a [x, y]\nb: [" + "*a, " * 20_000 + "*a]", "aliases stand for more than"),
    "an alias inside of its anchor": ("a: &x {b: [*x]}", "an alias stands inside the value that it names"),
    "brackets": ("[" * 100_000, "more than 50 levels"),
    "mappings in mappings": ("\n".join(" " * i + "a:" for i in range(300)), "more than 50 levels"),
    "a long comment": ("#" * 10_000_000, f"holds more than {MAX_BYTES:,} characters; shorten it"),
    "a number of many digits": ("a: " + "1" * 6000, "Exceeds the limit"),
    "a tag with another value": ("a: !!int x", "invalid literal for int()"),
    "a date that is none": ("b: 1\na: 2024-13-45", "PLACE:2: not readable as YAML: '2024-13-45': month must"),
    "a merge of text": ("<<: a", "expected a mapping"),
    "a zero character": ("a: \0", "not readable as YAML"),
    "an escaped zero character": ('a: b\n"\\0": c', "PLACE:2: not readable as YAML: a zero character"),
    "half of a surrogate pair": ('a: "\\ud800"', "half of a surrogate pair; leave it out"),
    "an open quote": ("name: x\na: 'b", "PLACE:2: not readable as YAML"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("round_trip", [True, False])
@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_each_is_refused_with_its_place_and_a_remedy(text: str, message: str, round_trip: bool) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_yaml(text, "PLACE", round_trip=round_trip)
    assert str(caught.value).startswith("PLACE")
    assert message in str(caught.value)
    assert "; " in str(caught.value)


def test_aliases_and_merges_that_mean_little_are_read() -> None:
    text = "base: &base {kind: count, by: [a]}\nmore: [*base, *base]\nother: {<<: *base, kind: rate}"
    assert parse_yaml(text, "PLACE")["other"] == {"kind": "rate", "by": ["a"]}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", [BOMB, "[" * 100_000, "#" * 10_000_000], ids=["aliases", "brackets", "comment"])
def test_a_scenario_file_is_read_by_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "little.yaml").write_text(SCENARIO + "\n" + text)
    with pytest.raises(BadInputError, match=r"little\.yaml"):
        load_scenario(tmp_path / "little.yaml")
