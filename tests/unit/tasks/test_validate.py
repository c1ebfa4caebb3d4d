"""validate on small frames, with the real Great Expectations."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError, GateError
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.days import day_start
from feature_jobs.validation.day_facts import fact_names
from feature_jobs.validation.expectations import load_suite, propose_suite, suite_text
from tasks.contract import DayConfig
from tasks.validate import validate
from tests.paths import SCENARIOS

SCENARIO = """
name: tiny
data:
  path: .
  events:
    path: events.csv
    format: csv
    time: {column: t}
    columns:
      {t: {type: int}, user: {type: int}, item: {type: int}, age: {type: int}, sex: {type: string},
       liked: {type: int, required: true}}
  user: user
  item: item
  days: {first: 2022-04-01}
labels: {like: liked == 1}
features:
  item: {kind: id}
  sex: {kind: id}
  age: {kind: number}
  rate: {kind: rate, by: [user], of: liked == 1}
  last: {kind: sequence, of: item, by: user, length: 3}
"""


def scenario_in(folder: Path, extra: str = "", suite: list | None = None) -> Scenario:
    (folder / "tiny.yaml").write_text(SCENARIO + extra)
    if suite is not None:
        (folder / "tiny.expectations.json").write_text(json.dumps({"name": "tiny", "expectations": suite}))
    return load_scenario(folder / "tiny.yaml")


def columns(num_rows: int = 1000, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "key.event_time": np.arange(num_rows, dtype=np.int64),
        "key.event_row": np.arange(num_rows, dtype=np.int64),
        "key.user": rng.integers(0, 100, num_rows),
        "key.item": rng.integers(0, 500, num_rows),
        "item": rng.integers(0, 500, num_rows),
        "sex": pa.array(rng.choice(["F", "M"], num_rows).tolist(), pa.string()),
        "age": rng.normal(40, 10, num_rows),
        "rate": rng.random(num_rows),
        "last": pa.array([list(range(n)) for n in rng.integers(0, 4, num_rows)], pa.list_(pa.int64())),
        "label.like": rng.integers(0, 2, num_rows).astype(np.int8),
    }


def run(
    folder: Path,
    scenario: Scenario,
    data: dict,
    ds: str = "2022-04-01",
    yesterday: Path | None = None,
    new_columns=None,
    **counts,
):
    """Writes the inputs, runs the step; returns the output folder, and its metrics or the GateError."""
    samples, events, output = (folder / name / ds for name in ("samples", "events", "validation"))
    for place in (samples, events, output):
        place.mkdir(parents=True)
    pq.write_table(pa.table(data), samples / "samples.parquet")
    (events / "counts.json").write_text(json.dumps({"rows": len(data["age"]), **counts}))
    pq.write_table(pa.table({"key.event_time": data["key.event_time"]}), events / "events.parquet")
    (events / "columns.json").write_text(json.dumps({"columns": {}, "new": new_columns or {}}))
    try:
        config = DayConfig(scenario, ds)
        return output, validate(config, samples=samples, events=events, yesterday=yesterday, validation=output)
    except GateError as error:
        return output, error


def verdict_of(output: Path) -> dict:
    return json.loads((output / "verdict.json").read_text())


def expectation(kind: str, severity: str | None = None, **kwargs) -> dict:
    return {"type": kind, "kwargs": kwargs, **({"severity": severity} if severity else {})}


def test_a_good_day_passes_with_docs_and_says_that_its_suite_is_the_built_in_one(tmp_path):
    output, metrics = run(tmp_path, scenario_in(tmp_path), columns())
    verdict = verdict_of(output)
    assert verdict["ok"] and verdict["failures"] == [] and metrics["rows"] == 1000
    assert [(w["expectation"], w["expected"]) for w in verdict["warnings"]] == [
        ("suite", "a suite file tiny.expectations.json beside the scenario")
    ]
    assert verdict["drift"] == {} and "first day" in verdict["drift_note"]
    pages = [p.relative_to(output).as_posix() for p in sorted(output.rglob("*.html"))]
    assert pages == [
        "docs/expectations/tiny.html",
        "docs/index.html",
        "docs/validations/tiny/2022-04-01/samples/index.html",
    ]
    assert "2022-04-01" in (output / "docs/index.html").read_text()


def test_a_source_that_changes_its_columns_and_its_clock_is_reported(tmp_path):
    """As warnings; a suite of one's own may block the day."""
    first, second = "2022-04-01", "2022-04-02"
    scenario = scenario_in(tmp_path)
    begin, data = day_start(scenario, first), columns()
    hours = np.random.default_rng(3).choice(24, 1000, p=np.arange(24) / 276)
    data["key.event_time"] = begin + np.sort(hours) * 3_600_000_000
    yesterday, _ = run(tmp_path, scenario, data, first)
    facts = verdict_of(yesterday)["facts"]
    assert facts["day.shifted_hours"] is None and facts["day.new_columns"] == 0
    profile = json.loads((yesterday / "profile.json").read_text())
    profile["days"] |= {f"2022-03-{day}": profile["days"][first] for day in (29, 30, 31)}
    (yesterday / "profile.json").write_text(json.dumps(profile))
    data["key.event_time"] = np.sort(data["key.event_time"] + (24 - 8) * 3_600_000_000)
    output, _ = run(tmp_path, scenario, data, second, yesterday, {"data.events": ["a", "b"]})
    found = {w["column"]: (w["expected"], w["value"]) for w in verdict_of(output)["warnings"]}
    assert found["day.shifted_hours"] == ("at least 0.0, at most 0.0", -8), found
    assert found["day.new_columns"] == ("at most 0.0", 2), found
    critical = expectation("expect_column_values_to_be_between", column="day.shifted_hours", min_value=0, max_value=0)
    _, error = run(tmp_path / "critical", scenario_in(tmp_path, suite=[critical]), data, second, yesterday)
    assert isinstance(error, GateError) and "day.shifted_hours" in str(error)


def test_data_docs_open_without_a_network(tmp_path):
    suite = [expectation("expect_column_mean_to_be_between", "warning", column="age", max_value=3)]
    output, _ = run(tmp_path, scenario_in(tmp_path, suite=suite), columns())
    pages = sorted((output / "docs").rglob("*.html"))
    for page in [*pages, output / "docs" / "style.css"]:
        assert not re.search(r"//|<script|url\(", page.read_text()), page
    for page in pages:
        links = re.findall(r'(?:href|src)="([^"#]+)"', page.read_text())
        assert links and all((page.parent / link).is_file() for link in links), (page, links)
    index = pages[1].read_text()
    assert pages[1].name == "index.html" and 'href="validations/tiny/2022-04-01/samples/index.html"' in index
    assert "2022-04-01" in index and "not all met" in index
    assert "mean must be less than or equal to" in pages[2].read_text()


def test_quantiles_are_judged_and_shown(tmp_path):
    ranges = {"quantiles": [0.1, 0.5], "value_ranges": [[0, 100], [90, 100]]}
    suite = [
        expectation("expect_column_quantile_values_to_be_between", "warning", column="age", quantile_ranges=ranges)
    ]
    output, _ = run(tmp_path, scenario_in(tmp_path, suite=suite), columns())
    (failure,) = verdict_of(output)["warnings"]
    median = np.quantile(columns()["age"], 0.5)
    assert failure["column"] == "age" and failure["expected"] == "each quantile in its range"
    found = re.fullmatch(r"0\.5-quantile of age is (\S+), expected 90 to 100", failure["value"])
    assert found and float(found[1]) == pytest.approx(median, abs=0.1)
    assert "Quantile" in (output / "docs/validations/tiny/2022-04-01/samples/index.html").read_text()


def test_a_blocking_failure_names_expectation_column_expected_and_found_after_writing_everything(tmp_path):
    suite = [
        expectation("expect_column_values_to_be_between", column="age", min_value=0, max_value=120),
        expectation("expect_column_mean_to_be_between", "critical", column="label.like", min_value=0.9, max_value=1),
        expectation("expect_column_values_to_be_in_set", column="sex", value_set=["F"]),
        expectation("expect_column_max_to_be_between", column="last.length", max_value=1),
        expectation("expect_table_row_count_to_be_between", min_value=5000),
    ]
    data = columns()
    data["age"][3] = 999
    output, error = run(tmp_path, scenario_in(tmp_path, suite=suite), data)
    lines = str(error).splitlines()
    assert lines[0] == "2022-04-01: the day is not fit to learn from: 5 blocking (5 expectations checked)"
    assert lines[1] == (
        "  expect_column_values_to_be_between: column age: expected at least 0.0, at most 120.0,"
        " found 1 of 1,000 rows failing, such as 999.0"
    )
    assert "column label.like: expected at least 0.9, at most 1.0, found 0." in lines[2]
    assert "column sex: expected value_set ['F']" in lines[3] and "such as M" in lines[3]
    assert lines[4] == "  and 2 more in verdict.json" and "docs/index.html" in lines[5]
    assert isinstance(error, GateError) and error.exit_code == 3
    assert (output / "docs/index.html").is_file() and len(verdict_of(output)["failures"]) == 5


def test_a_warning_is_reported_and_does_not_stop_the_day(tmp_path):
    suite = [expectation("expect_column_mean_to_be_between", "warning", column="age", max_value=10)]
    output, metrics = run(tmp_path, scenario_in(tmp_path, suite=suite), columns())
    verdict = verdict_of(output)
    assert verdict["ok"] and metrics["warnings"] == 1
    assert verdict["warnings"][0]["column"] == "age" and 38 < verdict["warnings"][0]["value"] < 42


def test_equal_days_give_equal_bytes_in_any_time_zone(tmp_path, monkeypatch):
    suite = [
        expectation("expect_column_values_to_be_between", "warning", column="age", min_value=30),
        expectation("expect_column_values_to_be_in_set", "warning", column="sex", value_set=["F"]),
    ]
    for name, zone in (("a", "UTC"), ("b", "Asia/Shanghai")):
        monkeypatch.setenv("TZ", zone)
        (tmp_path / name).mkdir()
        run(tmp_path / name, scenario_in(tmp_path / name, suite=suite), columns())
    files = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a/validation").rglob("*")) if p.is_file()]
    assert len(files) == 6
    for file in files:
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes(), file
        assert str(tmp_path).encode() not in content and b"site-packages" not in content


def test_drift_and_label_shift_are_flagged_against_the_trailing_days(tmp_path):
    scenario = scenario_in(tmp_path, "validate: {trailing_days: 2}\n")
    first, _ = run(tmp_path, scenario, columns(seed=1), "2022-04-01")
    second, _ = run(tmp_path, scenario, columns(seed=2), "2022-04-02", yesterday=first)
    calm = verdict_of(second)
    assert all(facts["ok"] and facts["psi"] < 0.1 for facts in calm["drift"].values())
    assert set(calm["drift"]) == {"sex", "age"} and calm["label_shift"]["like"]["ok"]
    moved = columns(seed=3)
    moved["age"] += 25
    moved["sex"] = ["F"] * 990 + ["X"] * 10
    moved["label.like"][:] = np.arange(1000) % 10 == 0
    third, metrics = run(tmp_path, scenario, moved, "2022-04-03", yesterday=second)
    verdict = verdict_of(third)
    assert verdict["ok"] and metrics["warnings"] == 4  # with the missing suite
    assert not verdict["drift"]["age"]["ok"] and not verdict["drift"]["sex"]["ok"]
    shift = verdict["label_shift"]["like"]
    assert not shift["ok"] and shift["mean"] == 0.1 and 0.7 < shift["shift"] < 0.9
    assert verdict["drift_days"] == ["2022-04-01", "2022-04-02"]
    assert list(json.loads((third / "profile.json").read_text())["days"]) == ["2022-04-02", "2022-04-03"]


def test_warnings_are_printed_a_short_line_each(tmp_path, capsys):
    scenario = scenario_in(tmp_path, suite=[expectation("expect_column_to_exist", column="age")])
    first, _ = run(tmp_path, scenario, columns(), "2022-04-04")
    assert "warning" not in capsys.readouterr().err
    moved = columns(seed=1)
    moved["sex"] = ["X" * 40] * 1000
    moved["age"] = moved["label.like"] + np.where(np.arange(1000) % 12 == 0, 1, 0.0)
    run(tmp_path, scenario, moved, "2022-04-05", yesterday=first)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    starts = ["likely leak: column age: expected", "drift: column sex: expected psi at most 0.25, found "]
    assert len(lines) == 2 and all(len(line) <= 200 for line in lines)
    assert all(line.startswith(f"warning: 2022-04-05: {s}") for line, s in zip(lines, starts, strict=True)), lines
    assert lines[1].endswith(" against all trailing days") or "against days from Monday to Friday" in lines[1]


def test_drift_blocks_where_the_scenario_says_so(tmp_path):
    scenario = scenario_in(tmp_path, "validate: {drift_severity: blocking, drift_columns: [age]}\n", suite=[])
    first, _ = run(tmp_path, scenario, columns(), "2022-04-01")
    moved = columns(seed=1)
    moved["age"] *= 2
    _, error = run(tmp_path, scenario, moved, "2022-04-02", yesterday=first)
    assert "drift: column age: expected psi at most 0.25, found" in str(error)


@pytest.mark.parametrize("planted", ["copy", "inverse", "noisy_monotone", "hump", "null", "id"])
def test_a_feature_that_knows_the_label_is_a_likely_leak(tmp_path, planted):
    data = columns()
    label = data["label.like"]
    rng = np.random.default_rng(9)
    if planted == "id":
        data["sex"] = np.where(label == 1, "late", "early").tolist()
    else:
        data["age"] = {
            "copy": label.astype(float),
            "inverse": -3.0 * label,
            "noisy_monotone": label + rng.normal(0, 0.2, 1000),
            "hump": np.where(label == 1, rng.normal(0, 1, 1000), rng.choice([-9, 9], 1000) + rng.normal(0, 1, 1000)),
            "null": pa.array(np.where(label == 1, 5.0, np.nan), from_pandas=True),
        }[planted]
    output, error = run(tmp_path, scenario_in(tmp_path, suite=[]), data)
    feature = "sex" if planted == "id" else "age"
    assert f"likely leak: column {feature}: expected a column that does not know a label, found AUC" in str(error)
    assert [(leak["feature"], leak["label"]) for leak in verdict_of(output)["leaks"]] == [(feature, "like")]


@pytest.mark.parametrize(("planted", "feature"), [("element", "path"), ("parity", "item")])
def test_a_leak_in_one_element_or_in_many_values_is_found(tmp_path, planted, feature):
    """All lists have the same length; the parity of a number says nothing in its size."""
    scenario_in(tmp_path, suite=[])
    text = (tmp_path / "tiny.yaml").read_text().replace("sex: {type: string}", "path: {type: 'list[string]'}")
    (tmp_path / "tiny.yaml").write_text(text.replace("sex: {kind: id}", "path: {kind: ids}"))
    data = columns()
    rows = list(zip(data["label.like"], data["item"], strict=True))
    hint = {1: "detail", 0: "back"} if planted == "element" else {1: "back", 0: "back"}
    data["path"] = pa.array([[hint[label], f"page {item % 40}"] for label, item in rows], pa.list_(pa.string()))
    if planted == "parity":
        data["item"] = np.array([item % 80 * 2 + label for label, item in rows])
    del data["sex"]
    output, error = run(tmp_path, load_scenario(tmp_path / "tiny.yaml"), data)
    assert f"likely leak: column {feature}: expected a column that does not know a label, found AUC" in str(error)
    assert [leak["feature"] for leak in verdict_of(output)["leaks"]] == [feature]


def test_a_leak_that_the_model_does_not_see_is_a_warning_and_small_days_are_not_judged(tmp_path):
    off = scenario_in(tmp_path, suite=[]).features
    assert all(feature.enabled for feature in off.values())
    text = (tmp_path / "tiny.yaml").read_text().replace("age: {kind: number}", "age: {kind: number, enabled: false}")
    (tmp_path / "tiny.yaml").write_text(text)
    data = columns()
    data["age"] = data["label.like"].astype(float)
    output, _ = run(tmp_path, load_scenario(tmp_path / "tiny.yaml"), data)
    assert [w["expectation"] for w in verdict_of(output)["warnings"]] == ["likely leak"]
    small = {name: values[:400] for name, values in data.items()}
    output, _ = run(tmp_path, load_scenario(tmp_path / "tiny.yaml"), small, "2022-04-02")
    assert verdict_of(output)["leaks"] == []


def test_unknown_labels_are_left_out(tmp_path):
    data = columns()
    labels = data["label.like"].astype(object)
    labels[::20] = None
    data["label.like"] = pa.array(labels.tolist(), pa.int8())
    output, _ = run(tmp_path, scenario_in(tmp_path), data)
    assert json.loads((output / "profile.json").read_text())["days"]["2022-04-01"]["labels"]["like"]["known"] == 950
    labels[:500] = None
    data["label.like"] = pa.array(labels.tolist(), pa.int8())
    _, error = run(tmp_path, scenario_in(tmp_path), data, "2022-04-02")
    assert "column label.like: expected in 0.9 of the rows, found 525 of 1,000 rows failing" in str(error)


def test_a_join_that_lost_rows_and_an_empty_day_block(tmp_path):
    _, error = run(tmp_path, scenario_in(tmp_path), columns(), rows=1001)
    assert "one sample for each event: the whole day: expected 1,001 rows, found 1,000 rows" in str(error)
    _, error = run(tmp_path, scenario_in(tmp_path), {k: v[:0] for k, v in columns().items()}, "2022-04-02")
    assert "expect_table_row_count_to_be_between: the whole day: expected at least 1, found 0" in str(error)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            [expectation("expect_column_value_to_be_in_set", column="sex")],
            "did you mean expect_column_values_to_be_in_set?",
        ),
        ([expectation("expect_column_to_exist")], "expectations[0] expect_column_to_exist: column: field required"),
        ([expectation("expect_column_to_exist", "blocking", column="age")], "critical blocks the day"),
        ([{**expectation("expect_column_to_exist", column="age"), "sevrity": "info"}], "did you mean severity?"),
        (
            [expectation("expect_column_values_to_be_null", column="agee")],
            "no column 'agee' in the samples; did you mean age?",
        ),
        ([expectation("expect_column_values_to_be_null", column="last")], "did you mean last.length?"),
        ([expectation("expect_column_mean_to_be_between", column="sex", max_value=1)], "column sex: can't be computed"),
        (["age"], "expectations[0]: not an expectation; write"),
    ],
)
def test_a_wrong_suite_is_refused_in_a_line_that_helps(tmp_path, suite, message):
    with pytest.raises(BadInputError) as caught:
        run(tmp_path, scenario_in(tmp_path, suite=suite), columns())
    assert message in str(caught.value) and "tiny.expectations.json" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_broken_suite_file_is_refused_with_its_line(tmp_path):
    scenario = scenario_in(tmp_path)
    scenario.suite_file.write_text('{"expectations": [\n  {"type": }\n]}')
    with pytest.raises(BadInputError, match=r"tiny.expectations.json:2: not readable as JSON"):
        load_suite(scenario)
    scenario.suite_file.write_text("[]")
    with pytest.raises(BadInputError, match="not a suite; write"):
        load_suite(scenario)


def test_a_drift_column_that_is_not_there_is_refused(tmp_path):
    scenario = scenario_in(tmp_path, "validate: {drift_columns: [last]}\n", suite=[])
    with pytest.raises(BadInputError, match=r"validate.drift_columns: no column 'last' .* did you mean last.length"):
        run(tmp_path, scenario, columns())


def test_the_proposed_suite_is_one_that_loads_and_covers_every_feature_and_label(tmp_path):
    scenario = scenario_in(tmp_path)
    proposed = propose_suite(scenario)
    scenario.suite_file.write_text(json.dumps(proposed))
    assert load_suite(scenario) == (proposed, "tiny.expectations.json")
    named = {e["kwargs"].get("column", "").removesuffix(".length") for e in proposed["expectations"]}
    assert {"label.like", *scenario.features} <= named


@pytest.mark.parametrize("name", ["movielens", "kuairand"])
def test_the_shipped_suites_load_and_name_columns_of_their_samples(name):
    scenario = load_scenario(SCENARIOS / f"{name}.yaml")
    suite, source = load_suite(scenario)
    assert source == f"{name}.expectations.json" and scenario.suite_file.read_text() == suite_text(suite)
    lists = ("ids", "sequence")
    columns = {f"{n}.length" if f.kind in lists else n for n, f in scenario.features.items()}
    columns |= {"key.event_time", "key.event_row", "key.user", "key.item", *(f"label.{t}" for t in scenario.tasks)}
    assert {e["kwargs"]["column"] for e in suite["expectations"] if "column" in e["kwargs"]} <= columns | fact_names(
        scenario
    ).keys()
    assert {e["severity"] for e in suite["expectations"]} == {"critical", "warning"}
