"""Expectations proposed from days: their bounds, and what happens to those that a person wrote."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.proposals.expectations import (
    FAR,
    NEAR,
    SeenColumn,
    SeenDay,
    diff_of,
    propose_expectations,
)
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.validation.day_facts import fact_names
from feature_jobs.validation.expectations import Suite, is_as_proposed, load_suite, suite_text
from tests.unit.tasks.test_validate import scenario_in

BETWEEN = "expect_column_values_to_be_between"


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return scenario_in(tmp_path)


DAYS = ["2022-04-01", "2022-04-02", "2022-04-03"]


def three(
    scenario: Scenario, rows: float = 1000.0, mean_age: float = 40.0, **columns: list[SeenColumn]
) -> list[SeenDay]:
    """Three days, of which the last has these rows and this mean age; and further columns."""
    days = [seen(scenario, DAYS[0]), seen(scenario, DAYS[1]), seen(scenario, DAYS[2], rows, mean_age)]
    for name, of_days in columns.items():
        for day, column in zip(days, of_days, strict=True):
            day.columns[name] = column
    return days


def seen(scenario: Scenario, ds: str, rows: float = 1000.0, age: float = 40.0) -> SeenDay:
    facts = {**dict.fromkeys(fact_names(scenario), 0.0), "day.rows": rows, "day.rows_by_weekday": None}
    columns = {
        "sex": SeenColumn(0.1, values=frozenset(["F", "M"])),
        "age": SeenColumn(0.0, 18.0, 80.0, age),
        "rate": SeenColumn(0.0, 0.0, 1.0, 0.3),
        "label.like": SeenColumn(0.0, 0.0, 1.0, 0.4, frozenset([0, 1])),
    }
    return SeenDay(ds, 1000, facts, columns)


def of(suite: Suite, column: str, kind: str = BETWEEN) -> dict[str, dict]:
    """The arguments of the expectations of a column, by severity."""
    return {
        one["severity"]: {key: value for key, value in one["kwargs"].items() if key != "column"}
        for one in suite["expectations"]
        if one["type"] == kind and one["kwargs"].get("column") == column
    }


def test_bounds_lie_around_what_was_seen(scenario: Scenario) -> None:
    suite = propose_expectations(scenario, three(scenario, rows=1200.0, mean_age=44.0), None)
    rows = {"warning": {"min_value": 666, "max_value": 1800}, "critical": {"min_value": 333, "max_value": 3600}}
    assert of(suite, "day.rows") == rows
    range_of_age = {"min_value": 0, "max_value": 142}
    assert of(suite, "age") == {"warning": range_of_age, "critical": {**range_of_age, "mostly": 0.99}}
    means = {"warning": {"min_value": 26.6, "max_value": 66}, "critical": {"min_value": 13.3, "max_value": 132}}
    assert of(suite, "age", "expect_column_mean_to_be_between") == means
    known = {"warning": {"mostly": 0.83}, "critical": {"mostly": 0.6}}
    assert of(suite, "sex", "expect_column_values_to_not_be_null") == known
    values = {"value_set": ["F", "M"], "mostly": 0.99}
    assert of(suite, "sex", "expect_column_values_to_be_in_set")["warning"] == values
    assert of(suite, "day.out_of_order_rows") == {"critical": {"max_value": 0}}
    why = next(one["meta"]["proposed"] for one in suite["expectations"] if one["kwargs"].get("column") == "day.rows")
    assert (why["from"], why["seen"]) == ("3 days, 2022-04-01 to 2022-04-03", [1000, 1200])


def test_the_proposal_is_a_suite_that_great_expectations_knows_and_is_the_same_each_time(scenario: Scenario) -> None:
    suite = propose_expectations(scenario, three(scenario), None)
    scenario.suite_file.write_text(suite_text(suite))
    assert load_suite(scenario)[0] == suite
    assert suite_text(propose_expectations(scenario, three(scenario), None)) == suite_text(suite)


def test_a_second_proposal_changes_only_the_lines_whose_bounds_moved(scenario: Scenario) -> None:
    before = propose_expectations(scenario, three(scenario), None)
    assert propose_expectations(scenario, three(scenario)[:2], before) != before
    assert propose_expectations(scenario, [seen(scenario, f"2022-05-0{day}") for day in (1, 2, 3)], before) == before
    after = propose_expectations(scenario, three(scenario, rows=1100.0), before)
    diff = diff_of(suite_text(before), after, "tiny.expectations.json").splitlines()
    changed = [line for line in diff if line[0] in "+-" and not line.startswith(("+++", "---"))]
    assert len(changed) == 4 and all('"day.rows"' in line for line in changed)


def test_what_a_person_wrote_or_changed_stays_and_nothing_is_proposed_beside_it(scenario: Scenario) -> None:
    written = {"type": BETWEEN, "kwargs": {"column": "age", "max_value": 110}, "severity": "info"}
    suite = propose_expectations(scenario, three(scenario), None)
    changed = next(one for one in suite["expectations"] if one["kwargs"].get("column") == "day.rows")
    changed["severity"] = "info"
    present = Suite(name="tiny", meta={}, expectations=[written, *suite["expectations"]])
    again = propose_expectations(scenario, three(scenario, rows=2000.0), json.loads(json.dumps(present)))
    assert again["expectations"][0] == written and of(again, "age") == {"info": {"max_value": 110}}
    assert of(again, "day.rows") == {"info": {"min_value": 666, "max_value": 1500}}
    assert [one for one in again["expectations"] if not is_as_proposed(one)] == [written, changed]


def test_proposals_of_a_removed_feature_go(scenario: Scenario, tmp_path: Path) -> None:
    suite = propose_expectations(scenario, three(scenario), None)
    text = (tmp_path / "tiny.yaml").read_text().replace("  age: {kind: number}\n", "")
    (tmp_path / "tiny.yaml").write_text(text)
    after = propose_expectations(load_scenario(tmp_path / "tiny.yaml"), three(scenario), suite)
    columns = {one["kwargs"].get("column") for one in after["expectations"]}
    assert "age" not in columns and {"sex", "rate", "label.like", "day.rows"} <= columns


def test_of_fewer_than_three_days_a_proposal_blocks_nothing_but_what_the_scenario_says(scenario: Scenario) -> None:
    suite = propose_expectations(scenario, three(scenario)[:2], None)
    for one in suite["expectations"]:
        of_days = one["meta"]["proposed"]["from"] != "the scenario"
        assert not (of_days and one["severity"] == "critical") or one["kwargs"]["column"] == "day.out_of_order_rows"


def test_what_is_new_each_day_is_not_bounded(scenario: Scenario) -> None:
    """A date, a weekday of which not all were seen, and a number that counts on."""
    dates = [SeenColumn(0.0, values=frozenset([ds])) for ds in DAYS]
    clock = [SeenColumn(0.0, 100.0 * day, 100.0 * day + 90, 100.0 * day + 45) for day in range(3)]
    suite = propose_expectations(scenario, three(scenario, sex=dates, age=clock), None)
    assert of(suite, "sex", "expect_column_values_to_be_in_set") == {} and of(suite, "age") == {}
    assert of(suite, "age", "expect_column_mean_to_be_between") == {}
    again = [SeenColumn(0.0, values=frozenset(["Monday", "Tuesday"])) for _ in DAYS]
    steady = [SeenColumn(0.0, 0.0, 90.0, 45.0 + day) for day in range(3)]
    suite = propose_expectations(scenario, three(scenario, sex=again, age=steady), None)
    assert of(suite, "sex", "expect_column_values_to_be_in_set") and of(suite, "age").keys() == {"warning", "critical"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=5))
def test_no_day_that_was_seen_would_fail_and_the_far_bounds_hold_the_near_ones(values: list[float]) -> None:
    from feature_jobs.proposals import expectations

    for margin in (NEAR, FAR):
        bounds = expectations._around(min(values), max(values), margin)
        assert bounds["min_value"] <= min(values) <= max(values) <= bounds["max_value"]
    near, far = (expectations._around(min(values), max(values), margin) for margin in (NEAR, FAR))
    assert far["min_value"] <= near["min_value"] and near["max_value"] <= far["max_value"]
