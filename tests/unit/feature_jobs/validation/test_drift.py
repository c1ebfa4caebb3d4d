"""The index of drift: against the plain formula, and merging as if the days had been one."""

import json
import re

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.schema import load_scenario
from feature_jobs.schema.days import ONE_DAY, day_start
from feature_jobs.validation.drift import GROWING, UNDECIDED, compare, profile_days, window
from feature_jobs.validation.sketches import merge, psi, sketch
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
        ds = f"2022-04-0{day + 1}"
        profile = profile_days(ds, frame, scenario)[ds]
        drift = compare(ds, profile, trailing, scenario)
        found = drift["columns"]
        trailing[ds] = profile
    assert set(found) == {"gender", "occupation", "age", "release_year"}
    assert drift["left_out"] == {"day": GROWING}
    assert [name for name, facts in found.items() if not facts["ok"]] == ["age"]


def test_a_constant_that_changes_is_drift():
    constant = [sketch(pd.Series(["v1"] * 300), "id")] * 3
    profile = {"rows": 300, "labels": {}, "columns": {"gender": constant[0]}}
    today = {"rows": 300, "labels": {}, "columns": {"gender": sketch(pd.Series(["v2"] * 300), "id")}}
    scenario = load_scenario(SCENARIOS / "movielens.yaml")
    found = compare("2022-04-06", today, {"2022-04-04": profile, "2022-04-05": profile}, scenario)
    assert not found["columns"]["gender"]["ok"]


def shop_scenario(folder, rules="trailing_days: 7"):
    text = (SCENARIOS / "movielens.yaml").read_text()
    text = re.sub(r"drift_columns: .*", rules, text)
    text = text.replace(
        "\nmodel:", "  device: {kind: id, of: user.gender}\n  pid: {kind: number, of: user.age}\n\nmodel:"
    )
    (folder / "movielens.yaml").write_text(text)
    return load_scenario(folder / "movielens.yaml")


def shop_day(scenario, number):
    """Ten days from a Thursday on: other devices at weekends, a counter that grows by the row, ages that stay."""
    rng = np.random.default_rng(number)
    frame = pd.DataFrame({name: rng.integers(0, 9, 1000) for name in scenario.features})
    shares = (0.6, 0.35, 0.05) if number % 7 in (2, 3) else (0.35, 0.25, 0.4)
    frame["device"] = rng.choice(["phone", "desk", "tablet"], 1000, p=shares)
    frame["pid"] = 5_000_000 + 1000 * number + rng.integers(0, 1200, 1000)  # a step below two digits
    frame["age"] = rng.normal(40, 5, 1000)
    for task in scenario.tasks:
        frame[f"label.{task}"] = rng.integers(0, 2, 1000)
    return frame


def run_days(scenario, change=lambda frame, number: None, numbers=range(10)):
    """Each day's drift, with the columns that failed."""
    trailing, found = {}, []
    for number in numbers:
        ds = f"2024-03-{7 + number:02}"
        frame = shop_day(scenario, number)
        change(frame, number)
        profile = json.loads(json.dumps(profile_days(ds, frame, scenario)[ds]))
        drift = compare(ds, profile, trailing, scenario)
        found.append((drift, [name for name, facts in drift["columns"].items() if not facts["ok"]]))
        trailing = window({**trailing, ds: profile}, scenario.validate_.trailing_days)
    return found


def test_weekends_and_a_growing_counter_do_not_warn_on_any_day(tmp_path):
    found = run_days(shop_scenario(tmp_path))
    assert [failed for _, failed in found] == [[]] * 10
    assert [drift["left_out"] for drift, _ in found[1:]] == [{"pid": UNDECIDED}] + [{"pid": GROWING}] * 8
    against = [drift["columns"]["device"]["against"] for drift, _ in found[1:]]
    assert against[1] == "no day: none of this kind (weekend or not) in the window"  # the first Saturday
    assert against[2] == "days of a weekend" and against[-1] == "the same weekday"  # Sunday, Saturday of week two


def test_a_jump_on_weekdays_and_a_shift_of_three_deviations_are_found(tmp_path):
    def change(frame, number):
        if number >= 7:
            frame["age"] += 15
        if number in (7, 8):
            frame["device"] = np.where(np.arange(1000) % 3 == 0, "phone", "watch")

    found = run_days(shop_scenario(tmp_path), change)
    assert [failed for _, failed in found[:7]] == [[]] * 7
    assert [sorted(failed) for _, failed in found[7:]] == [["age", "device"], ["age", "device"], ["age"]]
    assert found[7][0]["columns"]["age"]["against"] == "the same weekday"


def test_a_jump_on_the_second_day_is_found_on_the_third(tmp_path):
    def change(frame, number):
        frame["age"] += 30 * (number > 4)

    (_, second), (_, third) = run_days(shop_scenario(tmp_path), change, range(4, 7))[1:]
    assert (second, third) == ([], ["age"])


def test_named_columns_are_always_judged_and_compared_with_the_same_weekday(tmp_path):
    scenario = shop_scenario(tmp_path, "drift_columns: [device, pid]")

    def change(frame, number):
        frame["pid"] -= 4_980_000  # from 20,000 on

    found = [failed for _, failed in run_days(scenario, change)]
    assert all("pid" in failed for failed in found[1:])
    assert "device" in found[2] and "device" not in found[9]  # the first Saturday, the second


def test_a_column_that_the_weekday_decides_never_warns(tmp_path):
    """Names of weekdays, each day with some rows of the next: as where a day begins in another zone."""
    names = np.array(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])

    def change(frame, number):
        frame["device"] = names[(number + 3 + (np.arange(1000) % 5 == 0)) % 7]

    found = run_days(shop_scenario(tmp_path), change)
    assert [failed for _, failed in found[2:]] == [[]] * 8  # with one day before, nothing shows the cause
    assert found[-1][0]["columns"]["device"]["against"] == "the same weekday"


def test_the_warm_ups_days_are_profiles_of_their_own(tmp_path):
    scenario = shop_scenario(tmp_path)
    days = scenario.data.days
    assert days.warm_up_from is not None
    numbers = range(3)
    frames = [shop_day(scenario, number) for number in numbers]
    for number, frame in zip(numbers, frames, strict=True):
        ds = str(days.first - (2 - number) * ONE_DAY)
        frame["key.event_time"] = day_start(scenario, ds) + np.arange(1000)
        frame["device"] = f"day {number}"
    profiles = profile_days(str(days.first), pd.concat(frames), scenario)
    assert list(profiles) == [str(days.first - back * ONE_DAY) for back in (0, 1, 2)]
    assert [profile["rows"] for profile in profiles.values()] == [1000] * 3
    assert [profile["columns"]["device"]["counts"] for profile in profiles.values()] == [
        [[f"day {number}", 1000]] for number in (2, 1, 0)
    ]
