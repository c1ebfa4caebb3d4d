"""Types of columns, and how their times are written."""

import datetime
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import load_scenario
from tests.unit.feature_jobs import fabricated
from tests.unit.feature_jobs.proposals import shapes
from tests.unit.feature_jobs.proposals.proposing import HOURS, csv_file, lines_of, proposed


def test_types_and_lists(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.library(tmp_path / "data")
    item = proposed(tmp_path / "data", tmp_path).data.entities["item"]
    assert item.columns["Tags"].type == "list[string]"
    assert item.columns["Tags"].separator == ","
    assert item.columns["Title"].type == "string"  # a comma or a semicolon in a title is not a list
    assert item.columns["Words_count"].source == "Words count"


def test_names_that_expressions_cannot_take_are_renamed(tmp_path: Path) -> None:
    header = "class,event_time,User-Id,2nd item,is,null,Click"
    rows = [f"k{i % 3},{hour},{i % 20},{i % 15},{i % 4},{i % 5},{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file(header, *rows)(tmp_path)
    columns = proposed(tmp_path / "log.csv", tmp_path).data.events.columns
    assert {name: c.source for name, c in columns.items() if c.source} == {
        "class_": "class",
        "event_time_": "event_time",
        "User_Id": "User-Id",
        "c_2nd_item": "2nd item",
        "is_": "is",
        "null_": "null",
    }


def test_inf_is_judged_as_check_does(tmp_path: Path) -> None:
    """A price that is infinite in one row of fifty is not a number for ingest, so it is not proposed as one."""
    scenario, said = lines_of(shapes.compressed, tmp_path)
    assert scenario.data.events.columns["price"].type == "string"
    assert "column price is declared as text: 2.0% of its cells are not finite numbers" in said
    assert "malformed" not in check(scenario)


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("time", lambda hour: 28_488_000 + hour * 60, "minutes since 1970 would fit: multiply them by 60"),
        (
            "x",
            lambda hour: 28_488_000 + hour * 60,
            r"; x \(28488000 to .* minutes since 1970 would fit: multiply them by",
        ),
        ("x", lambda hour: 474_800 + hour, "hours since 1970 would fit: multiply them by 3,600 to get seconds"),
        ("x", lambda hour: hour * 60, "no column of times$"),
        ("time", lambda hour: hour * 60, "is not a recent time in s, ms, us or ns; write seconds since 1970"),
        ("time", lambda hour: f"day {hour // 24} at {hour % 24}", "does not read as a time; write 2024-03-01T10:00:00"),
    ],
)
def test_times_that_nothing_reads_are_named(
    name: str, cell: Callable[[int], int | str], message: str, tmp_path: Path
) -> None:
    csv_file(f"{name},user,item,click", *(f"{cell(i)},{i % 20},{i % 15},{i % 2}" for i in range(100)))(tmp_path)
    with pytest.raises(BadInputError, match=message):
        write_proposal(tmp_path / "log.csv", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "date_format"),
    [
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
        ("%Y%m%d%H%M%S", "%Y%m%d%H%M%S"),
        ("%Y%m%d%H", "%Y%m%d%H"),
        ("%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M %p"),
        ("%Y/%m/%d %H:%M:%S", None),  # read as it is
        ("%y-%m-%d", "%y-%m-%d"),  # not a day of the year 24
    ],
)
def test_formats_of_times(text: str, date_format: str | None, tmp_path: Path) -> None:
    times = [datetime.datetime(2024, 3, 13) + datetime.timedelta(hours=i) for i in range(72)]
    rows = [f"{time.strftime(text)},{i % 20},{i % 15},{int(i % 3 == 0)}" for i, time in enumerate(times)]
    csv_file("at,user,item,click", *rows)(tmp_path)
    column = proposed(tmp_path / "log.csv", tmp_path).data.events.columns["at"]
    assert (column.type, column.date_format) == ("time", date_format)


@pytest.mark.parametrize("form", ["%y%m%d%H", "%Y%m%d%H"])
def test_digits_of_a_date_in_a_parquet_file_are_times(form: str, tmp_path: Path) -> None:
    """2024031301 as a number of seconds would be a time in 2034."""
    times = [datetime.datetime(2024, 3, 13) + datetime.timedelta(minutes=20 * i) for i in range(72)]
    rows = [{"hour": int(time.strftime(form)), "user": i % 20, "item": i % 15} for i, time in enumerate(times)]
    table = pa.Table.from_pylist([{**row, "click": i % 3 == 0} for i, row in enumerate(rows)])
    pq.write_table(table, tmp_path / "log.parquet")
    said = write_proposal(tmp_path / "log.parquet", tmp_path / "out", "found")
    scenario = load_scenario(tmp_path / "out" / "found.yaml")
    assert scenario.data.events.columns["hour"].date_format == form
    assert "days: the log has 72 rows on 1 day, 2024-03-13" in said
    assert "&id" not in (tmp_path / "out" / "found.yaml").read_text()


def test_times_as_pandas_writes_them_and_the_columns_left_out_are_named(tmp_path: Path) -> None:
    ns = pa.array([1_710_000_000_000_000_000 + 10**12 * i for i in range(72)]).cast(pa.timestamp("ns", "Asia/Tokyo"))
    columns = {"at": ns, "user": [i % 20 for i in range(72)], "click": [i % 3 == 0 for i in range(72)]}
    file = tmp_path / "log.parquet"
    pq.write_table(pa.table({**columns, "item": [{"id": i % 15} for i in range(72)]}), file)
    with pytest.raises(BadInputError, match=r"no table can be the log(.|\n)*column item is left out: STRUCT"):
        write_proposal(file, tmp_path / "out", "found")
    pq.write_table(pa.table({**columns, "item": [i % 15 for i in range(72)], "none": pa.nulls(72)}), file)
    declared = proposed(file, tmp_path / "out").data.events.columns
    assert declared["at"].type == "time"
    assert "none" not in declared  # `check` would warn of a column without a value


@pytest.mark.parametrize("name", ["ts", "x"])
@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units_of_times(name: str, unit: str, factor: int, tmp_path: Path) -> None:
    """Of a column that is named like a time, else of one that nothing else explains; ids in the range stay numbers."""
    rows = [f"{1000000007 + i % 15},{(1709251200 + 3600 * i) * factor},{i % 20},{int(i % 3 == 0)}" for i in range(72)]
    scenario, said = lines_of(csv_file(f"item_id,{name},user,click", *rows), tmp_path)
    columns = scenario.data.events.columns
    assert (columns[name].type, columns[name].unit, columns["item_id"].type) == ("time", unit, "int")
    assert f"time: {name}, in {unit} since 1970" in said
    assert "72 rows on 3 days, 2024-03-01 to 2024-03-03" in said


def test_an_ambiguous_date_is_said(tmp_path: Path) -> None:
    rows = [f"{1 + i // 24}/3/2024 {i % 24}:00,{i % 20},{i % 15},{int(i % 3 == 0)}" for i in range(72)]
    csv_file("at,user,item,click", *rows)(tmp_path)
    said = write_proposal(tmp_path / "log.csv", tmp_path / "out")
    both = "%d/%m/%Y %H:%M and %m/%d/%Y %H:%M"
    assert f"log.csv: column at reads as {both}; the first is taken, as its days follow each other: check it" in said


@pytest.mark.parametrize(
    ("date_format", "names", "why"),
    [
        ("%d/%m/%Y", None, "as its days follow each other"),
        ("%m/%d/%Y", None, "as its days follow each other"),
        ("%d/%m/%Y", "%Y-%m-%d.csv", "as the files' names have its days"),
        ("%m/%d/%Y", "%Y-%m-%d.csv", "as the files' names have its days"),
    ],
)
def test_the_reading_of_an_ambiguous_date(date_format: str, names: str | None, why: str, tmp_path: Path) -> None:
    """Day first or month first, 1 to 9 November: by the days that it makes, and by the names of the files."""
    days = [datetime.date(2024, 11, 1) + datetime.timedelta(days=i) for i in range(9)]
    if names:  # far apart in the right reading, and close together in the wrong one: the names decide
        days = [datetime.date(2024, month, 3) for month in range(1, 9)]
    (tmp_path / "data").mkdir()
    for day in days:
        rows = [f"{day.strftime(date_format)},{i % 20},{i % 15},{int(i % 3 == 0)}\n" for i in range(40)]
        file = tmp_path / "data" / (day.strftime(names) if names else "log.csv")
        file.write_text((file.read_text() if file.exists() else "day,user,item,click\n") + "".join(rows))
    said = "\n".join(write_proposal(tmp_path / "data", tmp_path / "out", "found"))
    scenario = load_scenario(tmp_path / "out" / "found.yaml")
    assert scenario.data.events.columns["day"].date_format == date_format
    assert f"the first is taken, {why}: check it" in said
    assert f"on {len(days)} days, {days[0]} to {days[-1]}" in said


def test_a_decimal_comma_is_read_and_reported_and_is_not_a_list(tmp_path: Path) -> None:
    rows = [f"{hour};u{i % 20};{i % 15};{i % 7},5;{i % 2}" for i, hour in enumerate(HOURS)]
    scenario, said = lines_of(csv_file("at;user;item;price;click", *rows), tmp_path)
    price = scenario.data.events.columns["price"]
    assert (price.type, price.decimal) == ("float", ",")
    assert "column price is read as numbers with a decimal comma, such as 6,5; declare it as a list" in said


@pytest.mark.parametrize(
    ("cells", "declared", "note"),
    [
        (["450", "1,200", "1,250,000"], "string", "numbers such as 1,250,000; write them without a mark: 1250000"),
        (["4.500", "-1.250.000"], "string", "numbers such as -1.250.000; write them without a mark: -1250000"),
        (
            ["1,200", "2,500"],
            "float",
            "such as 2,500; declare it as a list if it is one; write 2500 if the comma marks",
        ),
        (["123", "123,456", "456,789,123"], "list[int]", ""),  # ids of three digits
        (["7,12", "12", "300,12"], "list[int]", ""),
    ],
)
def test_numbers_with_marks_between_thousands_are_not_lists(tmp_path, cells, declared, note) -> None:
    rows = [f"{hour};u{i % 20};{i % 15};{cells[i % len(cells)]};{i % 2}" for i, hour in enumerate(HOURS)]
    scenario, said = lines_of(csv_file("at;user;item;price;click", *rows), tmp_path)
    assert scenario.data.events.columns["price"].type == declared
    assert (
        f"column price is {'read' if declared == 'float' else 'declared'} as" in said if note else "price" not in said
    )
    assert note in said
