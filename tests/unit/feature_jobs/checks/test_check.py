"""A corpus of broken scenarios: each is a sound one with one edit, and each has one message that helps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from feature_jobs.checks.check import check, check_scenario, cron_problem, expand
from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from tests.paths import ROOT, SCENARIOS

GOLDEN = ROOT / "tests" / "golden"
GOOD = (GOLDEN / "sound_scenario.yaml").read_text()

BROKEN: list[dict[str, str]] = YAML(typ="safe").load(GOLDEN / "broken_scenarios.yaml")

SEARCHES = [
    ("train.learning_rat: {low: 1, high: 2}", "learning_rat: unknown key; did you mean learning_rate?"),
    ("train.learning_rate: {low: 2, high: 1}", "low 2.0 is not below high 1.0; swap them"),
    ("train.learning_rate: {low: 0, high: 1, log: true}", "low 0.0 has no logarithm"),
    ("train.learning_rate: {low: 1}", "has no range; give low and high, or choices"),
    ("train.learning_rate: {low: 1, high: 2, choices: [1]}", "has choices and a range"),
    ("train.learning_rate: {choices: []}", "has no choice"),
    ("train.learning_rate: {low: 0.1, high: 2, log: true, step: 0.1}", "step is for ranges without log"),
    (
        "train.learning_rate: {low: -1, high: 2}",
        "-1: train.learning_rate: -1: must be a number above 0 and at most 1,000; write 0.001, the default",
    ),
    (
        "model.embedding_dim: {low: 0.5, high: 2}",
        "0.5: must be a whole number above 0 and at most 4,096; write 16, the default",
    ),
    ("model.architecture: {choices: [mmoe, moe]}", "did you mean mmoe?"),
    ("features.agee.enabled: {choices: [true, false]}", "'agee': no such feature; did you mean age?"),
    ("features.age.enabld: {choices: [true, false]}", "unknown key; did you mean enabled?"),
    ("data.user: {choices: [user_id]}", "a trial cannot change it; search in model, train, features, join"),
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def to_file(text: str) -> Path:
        file = tmp_path / "broken.yaml"
        file.write_text(text)
        return file

    return to_file


def line_of(text: str, new: str) -> int:
    """The line where the edit is."""
    return text[: text.index(new) + len(new)].count("\n") + 1


def test_the_unbroken_scenarios_have_no_problems() -> None:
    for file in [GOLDEN / "sound_scenario.yaml", *sorted(SCENARIOS.glob("*.yaml"))]:
        assert check_scenario(load_scenario(file)) == [], file


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{b['field']}-{i}" for i, b in enumerate(BROKEN)])
def test_each_problem_is_named_with_its_place(write: Callable[[str], Path], broken: dict[str, str]) -> None:
    field, message = broken["field"], broken["message"]
    assert broken["old"] in GOOD
    file = write(GOOD.replace(broken["old"], broken["new"], 1))
    try:
        found = check_scenario(load_scenario(file))
    except BadInputError as error:
        found = str(error).splitlines()
    assert any(f": {field}: " in line and message in line for line in found), "\n".join(found)
    named = next(line for line in found if f": {field}: " in line and message in line)
    assert named.startswith(f"{file}:")
    assert named.split(": ")[0].removeprefix(f"{file}:").isdigit()
    assert "; " in named
    assert "\n" not in named


def test_the_line_is_that_of_the_field(write: Callable[[str], Path]) -> None:
    text = GOOD.replace("like: rating >= 4", "like: ratng >= 4", 1)
    (message,) = check_scenario(load_scenario(write(text)))
    assert f"broken.yaml:{line_of(text, 'ratng')}: labels.like: " in message


@pytest.mark.parametrize(("space", "message"), SEARCHES)
def test_search_space(write: Callable[[str], Path], space: str, message: str) -> None:
    file = write(GOOD + f"\ntune:\n  space:\n    {space}\n")
    (found,) = check_scenario(load_scenario(file))
    path = space.partition(": ")[0]
    assert f"{file}:{line_of(file.read_text(), space)}: tune.space.{path}: " in found
    assert message in found


def test_a_sound_search_space_passes_and_a_star_means_all(write: Callable[[str], Path]) -> None:
    file = write(
        GOOD
        + """
tune:
  space:
    train.learning_rate: {low: 0.0001, high: 0.1, log: true}
    model.embedding_dim: {low: 8, high: 32, step: 8}
    model.bottom: {choices: [[64], [128, 64]]}
    features.*.enabled: {choices: [true, false]}
    features.age.buckets: {low: 0, high: 8}
"""
    )
    scenario = load_scenario(file)
    assert check_scenario(scenario) == []
    assert expand(scenario, "features.*.enabled") == [f"features.{name}.enabled" for name in scenario.features]
    assert expand(scenario, "train.seed") == ["train.seed"]


def test_all_problems_come_at_once(write: Callable[[str], Path]) -> None:
    text = GOOD.replace("like: rating >= 4", "like: ratng >= 4").replace("of: user.gender", "of: gendr")
    with pytest.raises(BadInputError) as caught:
        check(load_scenario(write(text)), with_data=False)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(("table", "problems"), [("item_id", []), ("gender", ["holds string ids, hits has int ids"])])
def test_ids_of_true_and_false_are_integers(write: Callable[[str], Path], table: str, problems: list[str]) -> None:
    sequence = f"hits: {{kind: sequence, by: user_id, of: 'item_id < 9', length: 3, table: {table}}}"
    found = check_scenario(load_scenario(write(GOOD.replace("  user_events:", f"  {sequence}\n  user_events:"))))
    assert len(found) == len(problems) and all(part in line for part, line in zip(problems, found, strict=True))


def test_outcomes_of_earlier_events_are_no_leak(write: Callable[[str], Path]) -> None:
    text = GOOD.replace("\njoin:", "\noutcomes: [rating]\n\njoin:")
    text = text.replace("of: item_id, by: user_id", "of: 'bucket(rating, 1)', by: user_id").replace(
        ", table: item_id", ""
    )
    assert check_scenario(load_scenario(write(text))) == []


@pytest.mark.parametrize(
    "cron", ["0 3 * * *", "*/15 0-6,20 1 jan-mar mon", "@daily", "0 6 * * 1", "59 23 31 12 7", "0 0 * * sun"]
)
def test_cron_lines_that_are_well(cron: str) -> None:
    assert cron_problem(cron) is None


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "60 * * * *", "x * * * *", "* * 0 * *", "*/0 * * * *", "1- * * * *", "0 0 30 2 *", "0 0 * * * *"],
)
def test_cron_lines_that_are_not(cron: str) -> None:
    assert cron_problem(cron) is not None


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=12), st.text("0123456789*/-,LW#@ RH", max_size=14)))
def test_no_text_breaks_the_check_of_schedules(cron: str) -> None:
    assert cron_problem(cron) is None or cron_problem(cron) != ""


def test_expectations_of_a_removed_feature_are_reported_without_data(write: Callable[[str], Path]) -> None:
    file = write(GOOD)
    suite = file.parent / f"{load_scenario(file).name}.expectations.json"
    expectations = [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "height"}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "liked"}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "segment.women"}},
    ]
    suite.write_text(json.dumps({"expectations": expectations}))
    height, liked = check_scenario(load_scenario(file))
    assert f"{suite}: expectations[0] expect_column_values_to_not_be_null: no column 'height'" in height
    assert "remove the expectation if its feature was removed" in height
    assert "no column 'liked' in the samples; did you mean liked.length?" in liked
    suite.write_text("{")
    (message,) = check_scenario(load_scenario(file))
    assert f"{suite}:1: not readable as JSON" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "age: {kind: number,",
            "age: {kind: number, enabld: true,",
            "features.age.enabld: unknown key; did you mean enabled?",
        ),
        ("      key: user_id", "      kay: user_id", "data.entities.user.kay: unknown key; did you mean key?"),
        (
            "age: {kind: number,",
            "count: {kind: number, scle: log,",
            "features.count.scle: unknown key; did you mean scale?",
        ),
        ("of: user.gender}", "of: bucket(user.age, 5)}", "features.gender.5): unknown key; a comma ends an expression"),
    ],
)
def test_unknown_keys_within_named_sections(write: Callable[[str], Path], old: str, new: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        load_scenario(write(GOOD.replace(old, new, 1)))
    assert message in str(caught.value)
