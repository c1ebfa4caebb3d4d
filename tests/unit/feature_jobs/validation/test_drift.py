"""The index of drift: against the plain formula, and merging as if the days had been one."""

import json
import re

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.schema import load_scenario
from feature_jobs.validation.drift import compare, merge, profile_day, psi, sketch
from tests.paths import SCENARIOS

numbers = st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=1, max_size=50)
ids = st.lists(st.one_of(st.none(), st.integers(0, 20), st.sampled_from("abc")), min_size=1, max_size=50)


@settings(max_examples=60)
@given(days=st.lists(numbers, min_size=1, max_size=4))
def test_merged_number_sketches_are_the_sketch_of_all_rows(days):
    whole = sketch(pd.Series([v for day in days for v in day], dtype="float64"), "number")
    assert merge([sketch(pd.Series(day, dtype="float64"), "number") for day in days]) == whole
    assert json.loads(json.dumps(whole)) == whole


@settings(max_examples=60)
@given(a=ids, b=ids)
def test_index_is_zero_for_the_same_day_and_never_negative(a, b):
    a, b = (sketch(pd.Series(values, dtype="object"), "id") for values in (a, b))
    assert psi(a, a) == 0
    assert psi(a, b) >= 0
    assert merge([a, b])["nulls"] == a["nulls"] + b["nulls"]


def test_a_sketched_value_is_within_five_percent():
    values = np.random.default_rng(0).lognormal(3, 4, 2000)
    kept = np.repeat(*map(np.array, zip(*sketch(pd.Series(values), "number")["counts"], strict=True)))
    assert np.abs(kept / np.sort(values) - 1).max() <= 0.05 + 1e-9


def test_index_agrees_with_the_plain_formula_on_deciles():
    rng = np.random.default_rng(1)
    before, after = rng.normal(100, 10, 50_000), rng.normal(105, 10, 50_000)
    edges = np.quantile(before, np.arange(1, 10) / 10)
    q, p = (np.bincount(np.searchsorted(edges, x), minlength=10) / len(x) for x in (before, after))
    expected = ((p - q) * np.log(p / q)).sum()
    found = psi(sketch(pd.Series(before), "number"), sketch(pd.Series(after), "number"))
    assert abs(found - expected) < 0.03 and 0.2 < expected < 0.3


def test_new_ids_and_nulls_are_drift():
    base = sketch(pd.Series(["a", "b"] * 500), "id")
    assert psi(base, sketch(pd.Series(["a", "b"] * 300 + ["new"] * 400), "id")) > 0.25
    assert psi(base, sketch(pd.Series(["a", "b"] * 300 + [None] * 400), "id")) > 0.25
    assert psi(base, sketch(pd.Series(["b", "a"] * 450), "id")) < 0.01


def test_many_ids_are_kept_as_the_fifty_most_frequent_and_a_rest():
    kept = sketch(pd.Series([*range(200), 7, 9]), "id")
    assert len(kept["counts"]) == 50 and [7, 2] in kept["counts"] and kept["other"] == 202 - 52


def test_weekdays_clocks_and_trailing_features_are_not_watched_by_default(tmp_path):
    text = (SCENARIOS / "movielens.yaml").read_text()
    text = re.sub(r"drift_columns: .*", "trailing_days: 3", text)
    text = text.replace(
        "\nmodel:", "  hour: {kind: id, of: hour(event_time)}\n  day: {kind: number, of: user.age}\n\nmodel:"
    )
    (tmp_path / "movielens.yaml").write_text(text)
    scenario = load_scenario(tmp_path / "movielens.yaml")
    trailing, found = {}, {}
    for day in range(5):
        rng = np.random.default_rng(day)
        frame = pd.DataFrame({name: rng.integers(0, 9, 500) for name in scenario.features})
        frame["item_like_rate"] += day * 100
        frame["day"] = day  # one value a day
        frame["age"] += 100 * (day == 4)
        for task in scenario.tasks:
            frame[f"label.{task}"] = rng.integers(0, 2, 500)
        profile = profile_day(frame, scenario)
        found = compare(profile, trailing, scenario)["columns"]
        trailing[f"2022-04-0{day + 1}"] = profile
    assert set(found) == {"gender", "occupation", "age", "release_year", "day"}
    assert found["day"] == {"psi": None, "limit": 0.25, "severity": "warning", "ok": True}
    assert [name for name, facts in found.items() if not facts["ok"]] == ["age"]


def test_a_constant_that_changes_is_drift():
    constant = [sketch(pd.Series(["v1"] * 300), "id")] * 3
    profile = {"rows": 300, "labels": {}, "columns": {"gender": constant[0]}}
    today = {"rows": 300, "labels": {}, "columns": {"gender": sketch(pd.Series(["v2"] * 300), "id")}}
    scenario = load_scenario(SCENARIOS / "movielens.yaml")
    found = compare(today, {"a": profile, "b": profile}, scenario)
    assert not found["columns"]["gender"]["ok"]
