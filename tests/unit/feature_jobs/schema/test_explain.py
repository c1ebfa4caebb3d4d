"""Every refusal of the schema names file, line, field, value, the allowed values, and a fix."""

import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from feature_jobs.schema.allowed import FEATURES, Rule, allowed, rule_at
from feature_jobs.schema.base import Section
from feature_jobs.schema.data import Column, Entity
from feature_jobs.schema.explain import explain, shown
from feature_jobs.schema.sections import Scenario, SearchRange
from tests.paths import ROOT

SOUND = ROOT / "tests" / "golden" / "sound_scenario.yaml"
WRONG = ["xyzzy", -1e300, 1e300, 2.5, True, [], ["a"], {}, {"a": 1}, None, -1, 0, [[1]], datetime.date(2022, 4, 25)]
PLAIN = YAML(typ="safe").load(SOUND.read_text())


def put(document: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy of the document with the value at the path; sections in between are made."""
    head, *rest = path
    inner = document.get(head) if isinstance(document.get(head), dict) else {}
    return {**document, head: put(inner, tuple(rest), value) if rest else value}


def lines(document: Any) -> list[str]:
    try:
        Scenario.model_validate(document)
    except ValidationError as error:
        return [explain(SOUND, document, one) for one in error.errors(include_url=False)]
    return []


def fields(section: type[Section], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Rule]]:
    """Every field below a section, with its rule; names that are free are given one."""
    found = []
    for name, field in section.model_fields.items():
        here = (*path, field.alias or name)
        rule = Rule.of(field.annotation, field.metadata)
        found.append((here, rule))
        if rule.section is not None:
            found += fields(rule.section, here)
    return found


def all_fields() -> list[tuple[tuple[str, ...], Any]]:
    """Every field, and a document in which a section of its kind stands."""
    named = [
        *fields(Scenario, ()),
        *fields(Column, ("data", "events", "columns", "rating")),
        *fields(Entity, ("data", "entities", "user")),
        *fields(SearchRange, ("tune", "space", "train.seed")),
    ]
    found = [(path, PLAIN) for path, _ in named]
    for kind, feature in FEATURES.items():
        sound = {"kind": kind, "of": ["a", "b"] if kind == "cross" else "a", "by": "a" if kind == "sequence" else ["a"]}
        document = put(PLAIN, ("features", "f"), {name: sound[name] for name in sound.keys() & feature.model_fields})
        found += [(path, document) for path, _ in fields(feature, ("features", "f"))]
    return found


def test_wrong_values_of_every_field_are_refused_with_place_value_what_is_allowed_and_a_fix() -> None:
    refused = 0
    for path, document in all_fields():
        name = ".".join(path)
        for value in WRONG:
            changed = put(document, path, value)
            for line in lines(changed):
                if f": {name}: " not in line:
                    continue
                refused += 1
                assert line.startswith(f"{SOUND}: "), line
                found, _, fix = line.rpartition("; ")
                assert len(fix) > 5, line
                assert re.search(r": must be \S", found) or "not a time of day" in found, line
                assert shown(value) in found, line
                assert "should be" not in line, line
    assert refused > 1000


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.batch_size", "many", "'many': must be a whole number above 0 and at most 10,000,000; write 512, "),
        ("train.batch_size", 12.5, "12.5: must be a whole number above 0 and at most 10,000,000; write 12"),
        ("train.holdout_share", 1, "1: must be a number above 0 and below 1; write 0.2, the default"),
        ("model.dropout", 1.0, "1.0: must be a number at least 0 and below 1; write 0.0, the default"),
        ("model.bottom", 64, "64: must be a list of at least 1 and at most 50, each a whole number above 0 and at "),
        ("model.architecture", "dcn", "must be one of: shared_bottom, mmoe, deepfm, dcnv2, dlrm; did you mean dcnv2?"),
        ("model.dropout", None, "null: must be a number at least 0 and below 1; give it a value, or remove the line"),
        ("train.learning_rate", float("inf"), "inf: must be a number above 0 and at most 1,000; write 0.001, "),
        ("join.lookback_days", 1_000_000, "must be a whole number above 0 and at most 3,650; write 30, the default"),
        ("store.keep_days", True, "true: must be a whole number above 0 and at most 3,650; write a number such as"),
        ("train.learning_rate", "0.1", "'0.1': must be a number above 0 and at most 1,000; write 0.001, the default"),
        ("quantize.embedding_bits", 5, "5: must be one of: 4, 8; write 8"),
        ("train.clip_norm", 0, "0: must be a number above 0 and at most 1,000,000,000; write a number such as"),
        ("data.days.first", "soon", "'soon': must be a day; write it as \"2022-04-25\""),
        ("data.user", 7, "7: must be text; write text, in quotes where it looks like something else: \"7\""),
        ("features.age.enabled", "maybe", "'maybe': must be true or false; write true or false"),
        ("features.age.kind", "nmber", "sequence, request, match; did you mean number?"),
        ("features.age", 3, "3: must be a section with a kind, one of: id, ids,"),
        ("features.age", {"of": "age"}, "kind: missing, must be one of: id, ids, cross,"),
        ("labels", {}, "{}: must be names with a value each: text, or a section with the keys source, on, where"),
        ("labels.Like", "a", "'Like': must be a name of small letters, digits and _, beginning with a letter"),
        ("data.events.columns.rating.values", [1.5], "1.5: must be text or a whole number of 64 bits"),
        ("tune.space", [1], "[1]: must be names with a value each: a section with the keys low, high, log"),
        ("schedule", 5, "5: must be a section with the keys"),
    ],
)  # fmt: skip
def test_messages(path: str, value: Any, message: str) -> None:
    found = lines(put(PLAIN, tuple(path.split(".")), value))
    assert any(message in line for line in found), found


def test_the_line_is_that_of_the_field(tmp_path: Path) -> None:
    file = tmp_path / "sound.yaml"
    file.write_text(SOUND.read_text() + "\nquantize:\n  embedding_bits: 5\n")
    with pytest.raises(BadInputError) as caught:
        load_scenario(file)
    number = file.read_text().splitlines().index("  embedding_bits: 5") + 1
    assert str(caught.value) == f"{file}:{number}: quantize.embedding_bits: 5: must be one of: 4, 8; write 8"


def numbers(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The numbers of a JSON schema, with their places."""
    if isinstance(node, dict):
        if node.get("type") in ("integer", "number") and "enum" not in node:
            yield place, node
        for key, inner in node.items():
            yield from numbers(inner, f"{place}/{key}")
    elif isinstance(node, list):
        for inner in node:
            yield from numbers(inner, place)


def test_every_number_of_a_scenario_has_a_least_and_a_largest_value() -> None:
    found = dict(numbers(Scenario.model_json_schema()))
    ends = ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"})
    assert [place for place, number in found.items() if not all(number.keys() & end for end in ends)] == []
    assert len(found) > 60


def test_a_number_is_neither_true_nor_a_text() -> None:
    tried = 0
    for path, document in all_fields():
        kinds = {option.type for option in rule_at(document, path)[0].options}
        if kinds & {int, float} and not kinds & {str, bool}:
            tried += 1
            for value in (True, "1", 10**400):  # the last is larger than any float
                assert any(f": {'.'.join(path)}: " in line for line in lines(put(document, path, value))), path
    assert tried > 60


def test_every_rule_has_words() -> None:
    assert {allowed(rule) for _, rule in fields(Scenario, ())} & {"", "a value"} == set()


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        ("model.architecture", "ple", "--set model.architecture=ple: model.architecture: 'ple': must be one of: "),
        ("train.epochs_", 1, "--set train.epochs_=1: train.epochs_: unknown key; "),
        ("modle.x", 1, "--set modle.x=1: modle: unknown key; did you mean model?"),
        ("model", {"tower": [0]}, '--set model={"tower": [0]}: model.tower.0: 0: must be '),
    ],
)
def test_a_value_of_the_command_line_is_not_blamed_on_the_file(path: str, value: Any, place: str) -> None:
    with pytest.raises(BadInputError) as raised:
        load_scenario(SOUND, overrides={path: value})
    assert str(raised.value).startswith(place)


def test_a_date_of_the_command_line_is_printed_so_that_it_reads_again() -> None:
    scenario = load_scenario(SOUND, overrides={"data.days.first": datetime.date(1970, 1, 1)})
    assert scenario.option.endswith("--set 'data.days.first=\"1970-01-01\"'")
    assert load_scenario(SOUND, overrides={"data.days.first": "1970-01-01"}) == scenario


def test_what_a_later_check_refuses_names_the_option_too() -> None:
    scenario = load_scenario(SOUND, overrides={"schedule.daily": "often"})
    assert scenario.place_of("schedule", "daily") == "--set schedule.daily=often"
    assert scenario.place_of("data", "user").startswith(f"{SOUND}:")
