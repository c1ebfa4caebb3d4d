"""A day that is judged by a sample: no wrong value is missed, and the result says what saw a sample."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.validation.day_samples import DaySamples, read_samples
from feature_jobs.validation.run_suite import Failure, run_suite

SCENARIO = """
name: tiny
data:
  path: .
  events:
    path: events.csv
    format: csv
    time: {column: t}
    columns: {t: {type: int}, user: {type: int}, item: {type: int}, age: {type: int}, path: {type: "list[int]"},
      sex: {type: string}, liked: {type: int, required: true}}
  user: user
  item: item
  days: {first: 1970-01-01}
labels: {like: liked == 1}
features: {item: {kind: id}, age: {kind: number}, sex: {kind: id}, path: {kind: ids}}
"""
NUM_ROWS, SAMPLE_ROWS, BAD = 3_000, 300, 1_234  # one of ten rows is in the sample, and this one is not


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    file = tmp_path_factory.mktemp("scenario") / "tiny.yaml"
    file.write_text(SCENARIO)
    return load_scenario(file)


def _day(folder: Path, scenario: Scenario, sample_rows: int = SAMPLE_ROWS, **bad: Any) -> DaySamples:
    """Samples whose row BAD has these values."""
    columns: dict[str, list[Any]] = {
        "key.event_time": list(range(NUM_ROWS)),
        "key.event_row": list(range(NUM_ROWS)),
        "key.user": [row % 40 for row in range(NUM_ROWS)],
        "key.item": [row % 50 for row in range(NUM_ROWS)],
        "item": [row % 50 for row in range(NUM_ROWS)],
        "age": [float(20 + row % 7) for row in range(NUM_ROWS)],
        "sex": ["FM"[row % 2] for row in range(NUM_ROWS)],
        "path": [[1] * (row % 4) for row in range(NUM_ROWS)],
        "label.like": [row % 3 // 2 for row in range(NUM_ROWS)],
    }
    for name, value in bad.items():
        columns[name.replace("__", ".")][BAD] = value
    pq.write_table(pa.table(columns), folder / "samples.parquet", row_group_size=700)
    return read_samples(folder, scenario, sample_rows)


def _failures(day: DaySamples, *expectations: dict[str, Any], docs: Path | None = None) -> tuple[list[Failure], int]:
    suite = {"name": "tiny", "meta": {}, "expectations": list(expectations)}
    result = run_suite(day, {}, suite, "tiny.json", ds="1970-01-01", docs=docs)  # type: ignore[arg-type]
    return result.failures, result.num_sampled


def _expect(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "kwargs": kwargs, "severity": "critical", "meta": {}}


def test_the_sample_has_one_row_of_each_ten_and_no_period(tmp_path: Path, scenario: Scenario) -> None:
    day = _day(tmp_path, scenario)
    assert day.is_sampled and day.num_rows == NUM_ROWS
    rows = day.frame["key.event_row"]
    assert (rows // 10).tolist() == list(range(SAMPLE_ROWS)) and BAD not in set(rows)
    assert 0.4 < (day.frame["sex"] == "F").mean() < 0.6  # of every tenth row it would be 1
    assert day.frame["path.length"].tolist() == [len(one) for one in day.lists["path"].to_pylist()]
    whole = _day(tmp_path, scenario, NUM_ROWS)
    assert not whole.is_sampled and len(whole.frame) == NUM_ROWS
    assert whole.frame.iloc[rows].reset_index(drop=True).equals(day.frame)


@pytest.mark.parametrize(
    ("bad", "expectation"),
    [
        ({"age": 900.0}, _expect("column_values_to_be_between", column="age", max_value=99)),
        ({"age": -1.0}, _expect("column_min_to_be_between", column="age", min_value=0)),
        ({"age": None}, _expect("column_values_to_not_be_null", column="age")),
        ({"sex": "X"}, _expect("column_values_to_be_in_set", column="sex", value_set=["F", "M"])),
        ({"label__like": 2}, _expect("column_distinct_values_to_be_in_set", column="label.like", value_set=[0, 1])),
        ({"path": [1] * 9}, _expect("column_max_to_be_between", column="path.length", max_value=3)),
        ({"key__event_row": 7}, _expect("column_values_to_be_unique", column="key.event_row")),
        ({"key__event_time": 7}, _expect("column_values_to_be_increasing", column="key.event_time")),
        (
            {"key__item": 7, "item": 8},
            _expect("column_pair_values_to_be_equal", column_A="key.item", column_B="item"),
        ),
        ({"age": 0.0}, _expect("table_row_count_to_be_between", max_value=NUM_ROWS - 1)),
    ],
)  # fmt: skip
def test_one_wrong_row_that_the_sample_lacks_is_found(
    tmp_path: Path, scenario: Scenario, bad: dict[str, Any], expectation: dict[str, Any]
) -> None:
    if not expectation["type"].startswith("expect_table"):
        assert _failures(_day(tmp_path, scenario), expectation)[0] == []
    (failure,), _ = _failures(_day(tmp_path, scenario, **bad), expectation)
    assert failure.expectation == expectation["type"] and failure.severity == "blocking"


def test_shares_and_means_are_of_the_sample_alone_and_the_result_says_so(tmp_path: Path, scenario: Scenario) -> None:
    day = _day(tmp_path, scenario, age=1e12)  # in a mean of the sample it would be ten times as heavy
    mean, share = (
        _expect("column_mean_to_be_between", column="age", max_value=22),
        _expect("column_values_to_be_in_set", column="sex", value_set=["F"], mostly=0.9),
    )
    (first, second), num_sampled = _failures(
        day, mean, share, _expect("column_values_to_be_unique", column="key.event_row"), docs=tmp_path / "docs"
    )
    seen = "300 of 3,000 rows"
    expected = round(float(np.mean([20 + row % 7 for row in day.frame["key.event_row"]])), 6)
    assert first.value == f"{expected} (a sample: {seen})"
    assert re.fullmatch(rf"\d+ of 300 rows failing, such as M \(a sample: {seen}\)", second.value)
    assert num_sampled == 2 and f"2 of them saw a sample: {seen}." in (tmp_path / "docs/index.html").read_text()


def test_a_small_day_says_nothing_of_samples(tmp_path: Path, scenario: Scenario) -> None:
    (failure,), num_sampled = _failures(
        _day(tmp_path, scenario, NUM_ROWS), _expect("column_mean_to_be_between", column="age", max_value=22)
    )
    assert isinstance(failure.value, float) and num_sampled == 0


@pytest.mark.parametrize("sample_rows", [NUM_ROWS, SAMPLE_ROWS])
def test_expectations_of_the_table_see_all_its_columns(tmp_path: Path, scenario: Scenario, sample_rows: int) -> None:
    failures, _ = _failures(
        _day(tmp_path, scenario, sample_rows),
        _expect("table_columns_to_match_ordered_list", column_list=["age", "sex"]),
        _expect("column_to_exist", column="city"),
        _expect("column_to_exist", column="age", column_index=5),
        _expect("table_column_count_to_equal", value=9),
    )
    assert [(failure.expectation, failure.column) for failure in failures] == [
        ("expect_table_columns_to_match_ordered_list", None),
        ("expect_column_to_exist", "city"),
    ]


def test_facts_are_expected_like_columns(tmp_path: Path, scenario: Scenario) -> None:
    day = _day(tmp_path, scenario)
    suite = {
        "name": "tiny",
        "meta": {},
        "expectations": [
            _expect("column_values_to_be_between", column="day.rows", min_value=10),
            _expect("column_values_to_be_between", column="day.rows_by_weekday", min_value=0.5),
        ],
    }
    facts = {"day.rows": 9.0, "day.rows_by_weekday": None}
    (failure,) = run_suite(day, facts, json.loads(json.dumps(suite)), "tiny.json", ds="1970-01-01").failures
    assert str(failure) == "expect_column_values_to_be_between: column day.rows: expected at least 10.0, found 9.0"
