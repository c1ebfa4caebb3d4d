"""Checks against data: each problem of the files is one line, and facts come with a sound scenario."""

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check
from feature_jobs.checks.data import check_data
from feature_jobs.checks.facts import fact_lines
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.sources.ingest import ingest_day

SCENARIO = """
name: shop
data:
  path: data
  events:
    path: "{path}"
    format: csv
    time: {{column: at, unit: iso, zone: {zone}}}
    columns:
      at: {{type: string, required: true}}
      user: {{type: int, required: true}}
      item: {{type: string, required: true}}
      bought: {{type: bool, required: true}}
      price: {{type: float}}
      coupon: {{type: string}}
  entities:
    person: {{path: people.csv, format: csv, key: user, columns: {{user: {{type: int}}, age: {{type: int}}}}}}
  user: user
  item: item
  days: {{first: 2024-03-02, last: 2024-03-05}}
labels:
  buy: bought
  young_buy: bought and person.age < 30
features:
  user: {{kind: id}}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., Scenario]:
    """Five days of ten rows each from 2024-03-01 on, changed as the keywords say."""

    def make(path: str = "log.csv", zone: str = "UTC", **files: str | None) -> Scenario:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        head, rows = "at,user,item,bought,price,coupon", []
        for i in range(50):
            at = datetime.datetime(2024, 3, 1, 12) + datetime.timedelta(hours=24 * (i // 10), minutes=i)
            rows.append(f"{at},{i % 7},i{i % 3},{str(i % 4 == 0).lower()},{i / 2},")
        if "{ds}" in path:
            for day in range(5):
                name = path.replace("{ds}", f"2024-03-0{day + 1}")
                (data / name).write_text("\n".join([head, *rows[10 * day : 10 * day + 10]]))
        else:
            (data / path).write_text("\n".join([head, *rows]))
        (data / "people.csv").write_text("user,age\n" + "".join(f"{i},{20 + i}\n" for i in range(5)))
        for name, text in files.items():
            target = data / name.replace("__", ".")
            target.unlink() if text is None else target.write_text(text)
        file = tmp_path / "shop.yaml"
        file.write_text(SCENARIO.format(path=path, zone=zone))
        return load_scenario(file)

    return make


def messages(scenario: Scenario) -> str:
    with pytest.raises(BadInputError) as caught:
        check(scenario)
    text = str(caught.value)
    assert all("; " in line for line in text.splitlines()), text
    return text


def test_facts_of_sound_data(shop: Callable[..., Scenario]) -> None:
    facts: dict[str, Any] = check(shop())
    assert facts["log"] == "50 rows, 2024-03-01 to 2024-03-05"
    assert facts["days"] == {f"2024-03-0{day}": 10 for day in range(2, 6)}
    assert facts["labels"] == {"buy": 0.2}  # rows 10 to 19, those of the first day
    assert facts["entities"] == {"person": {"rows": 5, "keys_found": round(5 / 7, 4)}}
    (warning,) = facts["warnings"]
    assert "shop.yaml:9: data.events.columns: the sample of 2024-03-02 has no value for coupon; correct" in warning
    assert check(shop(), with_data=False) == {"warnings": []}


def test_days_are_those_of_the_zone(shop: Callable[..., Scenario]) -> None:
    scenario = shop(zone="Pacific/Kiritimati")  # 14 hours ahead; text without an offset is read there
    assert check_data(scenario)[1]["log"] == "50 rows, 2024-03-01 to 2024-03-05"
    log = Path(scenario.data.path) / "log.csv"
    log.write_text(log.read_text().replace(":00,", ":00Z,"))  # noon in Greenwich is tomorrow in Kiritimati
    assert check_data(scenario)[1]["log"] == "50 rows, 2024-03-02 to 2024-03-06"


def test_days_without_rows(shop: Callable[..., Scenario], tmp_path: Path) -> None:
    scenario = shop()
    file = tmp_path / "shop.yaml"
    file.write_text(file.read_text().replace("last: 2024-03-05", "last: 2024-03-14"))
    text = messages(load_scenario(scenario.file))
    assert "no rows on 2024-03-06, 2024-03-07, 2024-03-08, 2024-03-09, 2024-03-10, ... (9 days)" in text
    assert "the log has 2024-03-01 to 2024-03-05; narrow data.days" in text
    assert f"{file}:20: data.days: " in text


def test_missing_files_are_all_named(shop: Callable[..., Scenario]) -> None:
    text = messages(shop(log__csv=None, people__csv=None))
    assert "log.csv: no such file, folder or match" in text
    assert "people.csv: no such file, folder or match" in text


def test_missing_partitions(shop: Callable[..., Scenario]) -> None:
    path = "{ds}.csv"
    assert check(shop(path))["days"] == {f"2024-03-0{day}": 10 for day in range(2, 6)}
    one = {"2024-03-04__csv": None}
    assert "no partition of 2024-03-04" in messages(shop(path, **one))
    two = messages(shop(path, **one, **{"2024-03-03__csv": None}))
    assert "data.days: no partition of 2024-03-03, 2024-03-04; narrow data.days, name them in data.days.skip" in two


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log__csv", "at,user,item,bought,cost,coupon\n", "no column 'price'"),
        ("log__csv", "at;user;item;bought;price;coupon\n", "delimiter ',' wrong?"),
        ("log__csv", "at,user,item,bought,price,coupon\nx,1,a,true,1,\n", "no row has a time; correct time.column"),
        ("people__csv", "user,age\n100,20\n101,30\n", "knows none of the log's user (0, 1, 2, ...); name the column"),
        ("people__csv", "user,age\n" + "1,x\n" * 5, "people.csv: column 'age' is text, and no cell of it reads as int"),
        ("people__csv", "", "people.csv: empty, without even a header"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit(shop: Callable[..., Scenario], name: str, text: str, message: str) -> None:
    assert message in messages(shop(**{name: text}))


def test_a_few_malformed_rows_are_reported_not_refused(shop: Callable[..., Scenario]) -> None:
    scenario = shop()
    log = Path(scenario.data.path) / "log.csv"
    rows = "\n".join(f"2024-03-02 13:00:{i % 60:02},1,i1,true,{'x' if i == 7 else 1},c" for i in range(200))
    log.write_text(log.read_text() + "\n" + rows)
    assert check(scenario)["malformed"] == {"events": {"price: 'x' is not a float": 1}}


def test_a_label_that_never_holds_is_reported(shop: Callable[..., Scenario]) -> None:
    scenario = shop()
    log = Path(scenario.data.path) / "log.csv"
    log.write_text(log.read_text().replace("true", "false"))
    assert any(
        "labels.buy: 'bought': never holds in the sample of 2024-03-02; correct" in line
        for line in check(scenario)["warnings"]
    )


def leaky(shop: Callable[..., Scenario], share: float, features: str = "price: {kind: number}") -> Scenario:
    """A thousand rows on the first day, `price` on `share` of the bought rows alone."""
    scenario = shop()
    rows = []
    for i in range(1000):
        price = str(i % 17) if i % 4 == 0 and (i // 4) % 100 < 100 * share else ""
        rows.append(f"2024-03-02 13:{i % 60:02}:00,{i % 7},i{i % 3},{str(i % 4 == 0).lower()},{price},")
    log = Path(scenario.data.path) / "log.csv"
    log.write_text(log.read_text() + "\n" + "\n".join(rows))
    scenario.file.write_text(scenario.file.read_text() + f"  {features}\n")
    return load_scenario(scenario.file)


def test_a_column_that_only_positives_have_is_refused_or_a_warning(shop: Callable[..., Scenario]) -> None:
    found = re.search(
        r"features\.price: alone predicts label buy with AUC (\S+), by (.*), in", messages(leaky(shop, 1))
    )
    assert found is not None
    assert float(found[1]) > 0.98
    assert found[2] == "where it is null"
    (warning,) = [line for line in check(leaky(shop, 0.9))["warnings"] if "price" in line]
    assert "by where it is null, in the sample of 2024-03-02; if it is known only after the event" in warning
    assert not any("price" in line for line in check(leaky(shop, 0.5))["warnings"])
    off = leaky(shop, 1, "price: {kind: number, enabled: false}")
    assert any("features.price: alone predicts" in line for line in check(off)["warnings"])


def test_other_kinds_of_features_are_judged_too(shop: Callable[..., Scenario]) -> None:
    text = messages(leaky(shop, 1, "paid: {kind: id, of: 'bucket(coalesce(price, -1), 100)'}"))
    assert "features.paid: alone predicts label buy" in text
    text = messages(leaky(shop, 1, "paid: {kind: cross, of: [user, price >= 0]}"))
    assert "features.paid: alone predicts label buy" in text


def test_a_part_of_a_cross_that_only_positives_have_is_refused(shop: Callable[..., Scenario]) -> None:
    """The cross as a whole has too many values to be judged."""
    text = messages(leaky(shop, 1, "paid: {kind: cross, of: ['bucket(price, 1)', user]}"))
    found = re.search(r"features\.paid: alone predicts label buy with AUC (\S+), by where (.*), in", text)
    assert found is not None
    assert float(found[1]) > 0.98
    assert found[2] == "its part 'bucket(price, 1)' is null"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_nan_is_null_and_infinity_is_malformed(shop: Callable[..., Scenario], kind: str) -> None:
    scenario = shop()
    log = Path(scenario.data.path) / "log.csv"
    rows = "\n".join(f"2024-03-02 13:00:{i % 60:02},1,i1,true,1,c" for i in range(200))
    text = f"{log.read_text()}\n{rows}\n"
    text += "2024-03-02 13:00:00,1,i1,true,nan,c\n2024-03-02 13:00:00,1,i1,true,inf,c\n"
    log.write_text(text)
    if kind == "parquet":
        query = f"SELECT * REPLACE (price::DOUBLE AS price) FROM read_csv('{log}', all_varchar=true, header=true)"
        duckdb.sql(f"COPY ({query}) TO '{log.with_suffix('.parquet')}' (FORMAT parquet)")
        file = scenario.file
        file.write_text(file.read_text().replace('log.csv"\n    format: csv', 'log.parquet"\n    format: parquet'))
    assert check(load_scenario(scenario.file))["malformed"] == {"events": {"price: 'inf' is not a float": 1}}


def test_an_entity_with_two_rows_of_a_key_is_refused_as_ingest_refuses_it(shop: Callable[..., Scenario]) -> None:
    scenario = shop(people__csv="user,age\n0,20\n1,21\n1,21\n0,30\n2,22\n")
    assert "data.entities.person: 1 of 5 rows are conflicting: other values of the same key before, such as 0;" in (
        messages(scenario)
    )
    with pytest.raises(BadInputError, match="conflicting: other values before"):
        ingest_day(scenario, "2024-03-02", scenario.file.parent / "out")


def test_a_quote_that_never_closes_is_named_with_its_file_and_line(shop: Callable[..., Scenario]) -> None:
    scenario = shop("{ds}.csv")
    file = scenario.file.parent / "data" / "2024-03-04.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3].replace(",i", ',"i'), *lines[4:]]) + "\n")
    found = messages(scenario)
    assert f"{file}: " in found and "lines are malformed: line: " in found and "first at line 4" in found
    with pytest.raises(BadInputError, match=r"are quarantined|no readable time"):
        ingest_day(scenario, "2024-03-04", scenario.file.parent / "out")


def test_a_parquet_column_that_becomes_text_on_a_later_day_is_refused_by_name(shop: Callable[..., Scenario]) -> None:
    scenario = shop("{ds}.parquet")
    file = scenario.file
    text = file.read_text().replace("format: csv", "format: parquet", 1)
    file.write_text(text.replace("item: {type: string", "item: {type: int"))
    assert "item: {type: int," in file.read_text()
    for day in range(5):
        at = [f"2024-03-0{day + 1} 12:{minute:02}:00" for minute in range(30)]
        items = [f"00{'0123456789abcdef'[i % 16]}" for i in range(30)] if day == 3 else list(range(30))
        rows = {"at": at, "user": list(range(30)), "item": items, "bought": [i % 4 == 0 for i in range(30)]}
        table = pa.table({**rows, "price": [float(i) for i in range(30)], "coupon": pa.nulls(30, pa.string())})
        pq.write_table(table, file.parent / "data" / f"2024-03-0{day + 1}.parquet")
    scenario = load_scenario(file)
    place = str(file.parent / "data" / "2024-03-04.parquet")
    wanted = f"{place}: column 'item' is string, and not every cell of it reads as int"
    assert wanted in messages(scenario)
    with pytest.raises(BadInputError) as caught:
        ingest_day(scenario, "2024-03-04", file.parent / "out")
    assert wanted in str(caught.value)


def test_all_mistakes_of_expectations_are_named_at_once(shop: Callable[..., Scenario]) -> None:
    scenario = shop()
    given = [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "gone"}},
        {"type": "expect_nothing", "kwargs": {}},
    ]
    scenario.suite_file.parent.mkdir(parents=True, exist_ok=True)
    scenario.suite_file.write_text(json.dumps({"name": "shop", "expectations": given}))
    found = messages(scenario)
    assert "no column 'gone' in the samples" in found and "no such expectation in Great Expectations" in found


def test_rows_of_the_warm_up_are_named_beside_the_first_days_own(shop: Callable[..., Scenario]) -> None:
    scenario = shop()
    file = scenario.file
    file.write_text(file.read_text().replace("days: {first:", "days: {warm_up_from: 2024-03-01, first:"))
    lines = fact_lines(check(load_scenario(file)))
    assert lines[0] == "log: 50 rows, 2024-03-01 to 2024-03-05"
    assert lines[1].startswith("rows by day: 2024-03-02: 10;")
    assert lines[2] == "the first day also ingests and learns 10 rows before it (data.days.warm_up_from)"


def test_rows_of_clocks_that_are_years_off_are_counted(shop: Callable[..., Scenario]) -> None:
    scenario = shop()
    before = check(scenario)["rows_of_no_day"]
    assert before == 10  # of the day before the first
    log = Path(scenario.data.path) / "log.csv"
    lines = log.read_text().splitlines()
    off = [lines[1].replace("2024-", year) for year in ("2004-", "2044-", "2044-")]
    assert off[0] != lines[1]
    log.write_text("\n".join([*lines, *off]) + "\n")
    facts = check(scenario)
    assert facts["rows_of_no_day"] == before + 3
    assert f"rows of no day of data.days, which are never read: {before + 3}" in fact_lines(facts)


def test_requests_of_the_log_are_counted_and_doubtful_ones_warned_of(shop: Callable[..., Scenario]) -> None:
    """Five rows in each request, half a minute apart; a session that goes on after two hours; one row a request."""

    def check_requests(name: Callable[[int], str], seconds: int) -> tuple[Any, list[str]]:
        scenario = shop()
        start = datetime.datetime(2024, 3, 2, 12)
        rows = [
            f"{start + datetime.timedelta(seconds=seconds * i)},{i // 5},{name(i)},{str(i % 4 == 0).lower()},{i},c"
            for i in range(10)
        ]
        log = Path(scenario.data.path) / "log.csv"
        log.write_text("\n".join([*log.read_text().splitlines()[:1], *rows]))
        text = scenario.file.read_text()
        scenario.file.write_text(
            text.replace("  item: item\n", "  item: coupon\n  request: item\n").replace("-05", "-02")
        )
        facts = check(load_scenario(scenario.file))
        return facts["requests"], [line.partition("; ")[0] for line in facts["warnings"] if "data.request" in line]

    assert check_requests(lambda _: "one", 30) == ({"num": 2, "rows": 5.0, "longest_s": 120.0}, [])
    (requests, (warning,)) = check_requests(lambda _: "one", 1800)
    assert requests["longest_s"] == 7200
    assert "'item': has rows that are 2.0 hours apart in one request in the sample of 2024-03-02" in warning
    (requests, (warning,)) = check_requests(str, 30)
    assert requests == {"num": 10, "rows": 1.0, "longest_s": 0.0}
    assert "'item': holds one row in each request" in warning
    facts: Any = {"requests": {"num": 1200, "rows": 5.25, "longest_s": 61.0}, "sample_of": "2024-03-02"}
    assert fact_lines(facts) == [
        "requests in the sample of 2024-03-02: 1,200 of 5.2 rows on average, at most 61 s long"
    ]


def test_a_column_that_only_later_files_have_is_a_warning(shop: Callable[..., Scenario]) -> None:
    scenario = shop("{ds}.csv")
    before = check(scenario)["warnings"]
    for ds in ("2024-03-04", "2024-03-05"):
        log = Path(scenario.data.path) / f"{ds}.csv"
        head, *rows = log.read_text().splitlines()
        log.write_text("\n".join([f"{head},shop", *(f"{row},1" for row in rows)]) + "\n")
    (new,) = [line for line in check(scenario)["warnings"] if line not in before]
    assert "data.events.columns: " in new and "2024-03-04.csv: new column 'shop', which no earlier day has; to" in new
