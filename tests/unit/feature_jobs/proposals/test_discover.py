"""Files that are one table, and days in their paths."""

import gzip
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError
from feature_jobs.proposals.discover import find_tables
from feature_jobs.proposals.profiles import figures
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs import fabricated
from tests.unit.feature_jobs.proposals import shapes
from tests.unit.feature_jobs.proposals.proposing import HOURS, csv_file, lines_of, proposed


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file or folder"):
        write_proposal(tmp_path / "absent", tmp_path)


def test_one_file_will_do(tmp_path: Path) -> None:
    rows = [f"{hour};u{i % 20};{i % 15};{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file("at;user;page;clicked", *rows)(tmp_path)
    scenario = proposed(tmp_path / "log.csv", tmp_path)
    assert scenario.data.events.delimiter == ";"
    assert (scenario.data.user, scenario.data.item, scenario.tasks) == ("user", "page", ("clicked",))
    assert check(scenario)["days"]


def test_partitions_that_hold_other_days_are_read_as_one_table(tmp_path: Path) -> None:
    """Files named after the day of export, not of the events."""
    fabricated.shop(tmp_path / "data")
    events = tmp_path / "data" / "events"
    for day in reversed(range(1, 7)):
        (events / f"2024-03-0{day}.csv").rename(events / f"2024-03-0{day + 1}.csv")
    scenario = proposed(tmp_path / "data", tmp_path)
    assert scenario.data.events.path == "events/*.csv"
    assert set(check(scenario)["days"]) == {f"2024-03-0{day}" for day in range(2, 7)}


def test_files_that_look_alike_are_one_table(tmp_path: Path) -> None:
    for name in ("log_a_20240301.parquet", "log_b_20240302.parquet", "other.parquet"):
        pq.write_table(pa.table({"x" if name.startswith("log") else "y": [1]}), tmp_path / name)
    groups, _ = find_tables(tmp_path)
    assert [group.path for group in groups] == ["log_*.parquet", "other.parquet"]


@pytest.mark.parametrize(
    ("make", "path", "kind"),
    [
        (shapes.compressed, "ads.csv.gz", "csv"),
        (shapes.json_lines, "{yyyy}/{mm}/{dd}/*.jsonl", "jsonl"),
        (shapes.nested, "year={yyyy}/month={m}/day={d}/*.parquet", "parquet"),
    ],
)
def test_ways_to_lay_out_files(make: Callable[[Path], None], path: str, kind: str, tmp_path: Path) -> None:
    scenario, said = lines_of(make, tmp_path)
    assert (scenario.data.events.path, scenario.data.events.format) == (path, kind)
    assert f"log: {path}: 6,000 rows" in said
    facts = check(scenario)
    assert sum(facts["days"].values()) == 4986
    (tmp_path / "events").mkdir()
    ingest_day(scenario, str(scenario.data.days.first), tmp_path / "events")


def test_plain_and_compressed_files_beside_each_other_are_both_read(tmp_path: Path) -> None:
    rows = "".join(f"{hour},{i % 20},{i % 15},{int(i % 3 == 0)}\n" for i, hour in enumerate(HOURS))
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write("at,user,item,click\n" + rows)
    (tmp_path / "a.csv").write_text("at,user,item,click\n2024-03-01T00:00:00,1,2,0\n")
    groups, _ = find_tables(tmp_path)
    with duckdb.connect() as connection:
        counts = [figures(connection, group.scan, "count(*)")[0] for group in groups]
    assert [group.path for group in groups] == ["a.csv", "b.csv.gz"]
    assert counts == [1, 72]


@pytest.mark.parametrize(
    ("written", "difference"),
    [
        (lambda text: text.replace(",", ";").encode(), "another delimiter"),
        (lambda text: text.encode("utf-16"), "another encoding or compression"),
        (lambda text: gzip.compress(text.encode()), "another encoding or compression"),
        (lambda text: text.replace("click", "clicked").encode(), "other columns"),
    ],
)
@pytest.mark.parametrize("name", ["2024-03-02.csv", "2024-03-02.csv.gz"])
def test_a_day_that_is_written_otherwise_is_left_out(
    tmp_path: Path, written: Callable[[str], bytes], difference: str, name: str
) -> None:
    text = "at,user,item,click\n" + "1,2,3,0\n" * 9
    for day in (1, 3, 4):
        (tmp_path / f"2024-03-0{day}.csv").write_text(text)
    (tmp_path / name).write_bytes(written(text))
    groups, notes = find_tables(tmp_path)
    assert [group.path for group in groups] == ["{ds}.csv"]
    assert notes == [f"left out {name}: {difference} than most at {{ds}}.csv"]


def test_days_with_other_columns_are_left_out_of_the_table(tmp_path: Path) -> None:
    for day in (1, 2, 3, 4):
        header = "at,user,item,click" if day < 3 else "at,user,item,click,more"
        (tmp_path / f"2024-03-0{day}.csv").write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    groups, notes = find_tables(tmp_path)
    assert [(group.path, [file.name for file in group.files]) for group in groups] == [
        ("{ds}.csv", ["2024-03-03.csv", "2024-03-04.csv"])  # of equally many the latest
    ]
    assert notes == ["left out 2024-03-01.csv and the files like it (2): other columns than most at {ds}.csv"]


def test_a_folder_of_a_day_with_two_tables(tmp_path: Path) -> None:
    for day in (1, 2):
        folder = tmp_path / f"dt=2024-03-0{day}"
        folder.mkdir()
        (folder / "clicks.csv").write_text("at,user,item,click\n1,2,3,4\n")
        (folder / "users.csv").write_text("user,country\n1,DE\n")
    groups, notes = find_tables(tmp_path)
    assert [group.path for group in groups] == ["dt={ds}/clicks.csv", "dt={ds}/users.csv"]
    assert not notes


@pytest.mark.parametrize(
    ("header", "cell", "separator", "why"),
    [
        ("at,зритель,click", "h", ",", "line 1 is not UTF-8, and its encoding is not known; save it as UTF-8"),
        ("at,user,click", "зритель", ",", "line 2 is not UTF-8"),
        ("at, user, click", "u", ", ", "its header has spaces around names; remove them"),
        ("at^user^click", "u", "^", "a delimiter that is not found by itself"),
    ],
)
def test_a_text_file_that_init_does_not_read_is_reported_with_the_remedy(
    header: str, cell: str, separator: str, why: str, tmp_path: Path
) -> None:
    rows = [separator.join((hour, f"{cell}{i % 9}", str(i % 2))) for i, hour in enumerate(HOURS)]
    (tmp_path / "log.csv").write_bytes("\n".join([header, *rows]).encode("koi8-r"))
    with pytest.raises(BadInputError, match=f"log.csv: .*{why}"):
        find_tables(tmp_path)


def test_letters_with_marks_stay_letters_in_names(tmp_path: Path) -> None:
    rows = [f"{hour};u{i % 20};{i % 15};{'ja' if i % 3 else 'nein'}" for i, hour in enumerate(HOURS)]
    csv_file("Zeit;Hörer;Titel;übersprungen", *rows)(tmp_path)
    with pytest.raises(BadInputError, match=r"ubersprungen \('ja' or 'nein'\)") as caught:
        proposed(tmp_path / "log.csv", tmp_path)
    # Not the rarer value: the label would say the contrary of its name.
    assert """--label 'ubersprungen=ubersprungen == "ja"'""" in str(caught.value)
