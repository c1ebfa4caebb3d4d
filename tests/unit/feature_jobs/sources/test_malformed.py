"""Rows and files that do not read as declared: counted once, and named with the file, the row and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.output_files import DayCounts
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DAYS = ("1970-01-02", "1970-01-03")
BY_DAY = {"data.events.path": "{ds}.csv", "data.days.last": DAYS[1], "ingest.max_quarantined_share": 0.1}
PARQUET = BY_DAY | {"data.events.path": "{ds}.parquet", "data.events.format": "parquet"}


def rows(day: int) -> list[str]:
    """Twenty good rows of a day."""
    return [f"{i},{i % 3},{1 + i % 5},{(day + 1) * DAY_S + i}" for i in range(20)]


def land(folder: Path, changes: dict[str, Any], ds: str = DAYS[0]) -> DayCounts:
    return ingest_day(scenario_in(folder, changes), ds, folder / "out" / ds)


def refusal(folder: Path, changes: dict[str, Any], ds: str = DAYS[0]) -> str:
    with pytest.raises(BadInputError) as caught:
        land(folder, changes, ds)
    return str(caught.value)


def checked(folder: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(BadInputError) as caught:
        check(scenario_in(folder, changes))
    return str(caught.value)


def test_a_row_without_a_time_belongs_to_the_day_of_its_file(tmp_path: Path) -> None:
    write_lines(tmp_path / f"data/{DAYS[0]}.csv", [HEADER, *rows(0), "1,2,3"])
    write_lines(tmp_path / f"data/{DAYS[1]}.csv", [HEADER, *rows(1)])
    first, second = (land(tmp_path, BY_DAY, ds) for ds in DAYS)
    assert (first["rows_read"], first["rows"], first["quarantined"], first["undated"]) == (21, 20, 1, 0)
    assert (second["quarantined"], second["undated"]) == (0, 0)
    facts = check(scenario_in(tmp_path, BY_DAY))
    assert facts["malformed"] == {"events": {"line: fewer cells than the header": 1}}
    assert "undated" not in facts


def test_check_says_that_each_day_quarantines_a_row_of_no_day(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/events.csv", [HEADER, *rows(0), *rows(1), "1,2,3"])
    facts = check(scenario_in(tmp_path, {"data.days.last": DAYS[1]}))
    assert facts["undated"] == {"events": 1}


def write_parquet(folder: Path, day: int, ratings: pa.Array, users: pa.Array | None = None) -> None:
    num = len(ratings)
    columns = {"user": users or list(range(num)), "item": list(range(num)), "rating": ratings}
    columns["t"] = [(day + 1) * DAY_S + i for i in range(num)]
    pq.write_table(pa.table(columns), folder / f"data/{DAYS[day]}.parquet")


def test_a_column_of_another_type_on_a_later_day_is_refused_by_name(tmp_path: Path) -> None:
    scenario_in(tmp_path, PARQUET)
    write_parquet(tmp_path, 0, pa.array([3.0] * 20))
    write_parquet(tmp_path, 1, pa.array(["t0"] * 20))
    expected = (
        f"{DAYS[1]}.parquet: column 'rating' is string, and no cell of it reads as float, the type declared "
        f"({tmp_path}/small.yaml: data.events.columns.rating.type); row 1: rating: 't0' is not a float; write the "
        f"column as float in this file too, or declare it as string"
    )
    assert expected in refusal(tmp_path, PARQUET, DAYS[1])
    assert expected in checked(tmp_path, PARQUET)
    assert expected in checked(tmp_path, PARQUET | {"data.days.last": None})
    write_parquet(tmp_path, 1, pa.array(["x"] + ["4.5"] * 19))  # text that reads as numbers is fine
    assert land(tmp_path, PARQUET, DAYS[1])["quarantined"] == 1
    check(scenario_in(tmp_path, PARQUET))


def test_ids_beyond_64_bits_are_named_with_file_row_and_remedy(tmp_path: Path) -> None:
    scenario_in(tmp_path, PARQUET)
    for day in range(2):
        write_parquet(tmp_path, day, pa.array([3.0] * 20), pa.array([2**63 + 1 + i for i in range(20)], pa.uint64()))
    message = checked(tmp_path, PARQUET)
    assert (
        f"(20; {tmp_path}/data/{DAYS[0]}.parquet, row 1); user is beyond 64-bit integers: declare it as str" in message
    )
    assert "column 'user' is uint64" in refusal(tmp_path, PARQUET)


def test_lines_that_are_not_utf8_are_counted_once(tmp_path: Path) -> None:
    changes = {"data.events.columns.item.type": "string", "ingest.max_quarantined_share": 0.1}
    scenario_in(tmp_path, changes)
    lines = [HEADER, *(f"1,caf\xe9,3,{DAY_S + i}" for i in range(600))]
    (tmp_path / "data/events.csv").write_bytes("\n".join(lines).encode("latin-1"))
    message = refusal(tmp_path, changes)
    assert "600 of the 600 rows have no readable time" in message
    assert message.endswith("save the file as UTF-8") and "max_quarantined_share" not in message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_one_message(tmp_path: Path, encoding: str) -> None:
    scenario_in(tmp_path)
    (tmp_path / "data/events.csv").write_bytes("\n".join([HEADER, *rows(0)]).encode(encoding))
    assert "row 1 holds zero bytes" in refusal(tmp_path, {})


def test_names_equal_but_for_case_and_sentences_that_end(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/events.csv", ["USER,item,rating,t", *rows(0)])
    assert "the file writes it 'USER': add `from: USER` to the column. Where" in refusal(tmp_path, {})
    write_lines(tmp_path / "data/events.csv", ["zzz,item,rating,t", *rows(0)])
    assert "there are: 'zzz', 'item', 'rating', 't'. Where" in refusal(tmp_path, {})


def test_csv_named_parquet(tmp_path: Path) -> None:
    write_lines(tmp_path / f"data/{DAYS[0]}.parquet", [HEADER, *rows(0)])
    assert "not readable as parquet: it is CSV; set format: csv" in refusal(tmp_path, PARQUET)


def test_infinite_cells_keep_their_sign(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/events.csv", [HEADER, *rows(0), f"1,1,inf,{DAY_S}", f"2,1,-inf,{DAY_S}"])
    facts = check(scenario_in(tmp_path, {"data.days.last": DAYS[0]}))
    assert facts["malformed"] == {"events": {"rating: '-inf' is not a float": 1, "rating: 'inf' is not a float": 1}}


@pytest.mark.parametrize(
    ("changes", "row", "remedy"),
    [
        (
            {"data.days.day_starts": "07:00"},
            f"1,2,3,{DAY_S}",
            "set data.events.time.zone (now UTC) and data.days.day_starts (now 07:00) to those of the files",
        ),
        ({"data.events.columns.rating.max": 4}, f"1,2,5,{DAY_S}", "correct data.events.columns.rating.max, or raise"),
        ({"data.events.columns.item.values": [3]}, f"1,2,3,{DAY_S}", "add the value to data.events.columns.item.val"),
        ({"data.events.columns.item.required": True}, f"1,,3,{DAY_S}", "take `required` out of data.events.columns"),
    ],
)  # fmt: skip
def test_the_remedy_goes_with_the_reason(tmp_path: Path, changes: dict[str, Any], row: str, remedy: str) -> None:
    changes = BY_DAY | {"data.days.last": DAYS[0], "ingest.max_quarantined_share": 0.0} | changes
    scenario_in(tmp_path, changes)
    write_lines(tmp_path / f"data/{DAYS[0]}.csv", [HEADER, row])
    for message in (refusal(tmp_path, changes), checked(tmp_path, changes)):
        assert remedy in message


def test_a_column_with_another_name_on_a_later_day_can_be_read_by_both(tmp_path: Path) -> None:
    changes = BY_DAY | {"labels.liked": "rating > 3"}
    scenario_in(tmp_path, changes)
    write_lines(tmp_path / f"data/{DAYS[0]}.csv", [HEADER, *rows(0)])
    write_lines(tmp_path / f"data/{DAYS[1]}.csv", [HEADER.replace("rating", "stars"), *rows(1)])
    for message in (refusal(tmp_path, changes, DAYS[1]), checked(tmp_path, changes)):
        assert "declare both names as optional and write coalesce(rating, OTHER_NAME) instead of rating" in message
    changes |= {f"data.events.columns.{name}": {"type": "float", "optional": True} for name in ("rating", "stars")}
    changes["labels.liked"] = "coalesce(rating, stars) > 3"
    assert check(scenario_in(tmp_path, changes))["warnings"] == []  # of `stars`, too, which the first day lacks
    assert [land(tmp_path, changes, ds)["rows"] for ds in DAYS] == [20, 20]
    misspelt = changes | {"data.events.columns.colour": {"type": "string", "optional": True}}
    [warning] = check(scenario_in(tmp_path, misspelt))["warnings"]
    assert "no file has a value for the optional colour" in warning


def test_a_time_of_another_name_is_renamed_in_its_file(tmp_path: Path) -> None:
    scenario_in(tmp_path, BY_DAY)
    write_lines(tmp_path / f"data/{DAYS[0]}.csv", [HEADER.replace(",t", ",time"), *rows(0)])
    assert "Where only files of some days name it otherwise, rename it there" in refusal(tmp_path, BY_DAY)
