"""A day of the source: rows written, quarantined and refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from feature_jobs.schema.days import day_range
from feature_jobs.sources.ingest import ingest_day
from tests.paths import KUAIRAND, ROOT, SCENARIOS, needs_kuairand
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DS = "1970-01-02"
T = DAY_S + 10
STRICT = {"ingest.max_quarantined_share": 0.01}
USERS = {
    "path": "users.csv",
    "format": "csv",
    "key": "user",
    "columns": {"user": {"type": "int"}, "age": {"type": "int"}},
}


def day(folder: Path, lines: list[str], changes: dict[str, Any] | None = None, ds: str = DS) -> dict[str, Any]:
    """Counts of a day of these lines."""
    scenario = scenario_in(folder, changes)
    write_lines(folder / "data/events.csv", [HEADER, *lines])
    return ingest_day(scenario, ds, folder / "out")


def refusal(folder: Path, lines: list[str], changes: dict[str, Any] | None = None, ds: str = DS) -> str:
    with pytest.raises(BadInputError) as caught:
        day(folder, lines, changes, ds)
    return str(caught.value)


def rows_of(folder: Path, name: str = "events") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / f"out/{name}.parquet").to_pylist()
    return rows


def test_a_day_lands_typed_ordered_and_counted(tmp_path: Path) -> None:
    lines = [
        f"3,1,5,{T + 5}",  # later in time
        f"1,1,4.5,{T}",
        f"1,1,4.5,{T}",  # exact duplicate
        f"2,1,,{T}",  # same time: order of the file
        f"1,1,4.5,{T + DAY_S}",  # another day
        f"x,1,3,{T}",  # malformed
        "1,1,3,late",  # no time
        "1,1",  # no row
    ]
    counts = day(tmp_path, lines)
    assert counts == {
        "rows_read": 5,
        "rows": 3,
        "duplicates": 1,
        "quarantined": 1,
        "undated": 2,
        "reasons": {"user: ... is not an int": 1, "t: ... is not an int": 1, "line: fewer cells than the header": 1},
        "entities": {},
    }
    assert json.loads((tmp_path / "out/counts.json").read_text()) == counts
    table = pq.read_table(tmp_path / "out/events.parquet")
    assert table.schema.names == ["user", "item", "rating", "t", "key.event_time", "key.event_row"]
    assert [table.schema.field(n).type for n in table.schema.names] == [pa.int64()] * 2 + [pa.float64()] + [
        pa.int64()
    ] * 3
    assert table["user"].to_pylist() == [1, 2, 3]
    assert table["rating"].to_pylist() == [4.5, None, 5.0]
    assert table["key.event_time"].to_pylist() == [T * 10**6, T * 10**6, (T + 5) * 10**6]
    assert table["key.event_row"].to_pylist() == [0, 1, 2]
    bad = rows_of(tmp_path, "quarantine")
    assert [row["reason"] for row in bad] == [
        "user: 'x' is not an int",
        "t: 'late' is not an int",
        "line: fewer cells than the header",
    ]
    assert json.loads(bad[0]["row"]) == {"user": "x", "item": "1", "rating": "3", "t": str(T)}
    assert json.loads(bad[2]["row"]) == {"line": 9, "text": "1,1"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "columns.json",
        "counts.json",
        "entities",
        "events.parquet",
        "quarantine.parquet",
    ]


def test_equal_sources_give_equal_bytes(tmp_path: Path) -> None:
    lines = [f"{i % 50},{i % 7},{1 + i % 5},{T + (i * 37) % 300}" for i in range(5000)]
    for run in ("a", "b"):
        day(tmp_path / run, lines)
    for file in (tmp_path / "a/out").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


CELL = st.sampled_from(["1", "2", "3", "4.5", "x", "", "nan", "9", '"1"', "1,2"])
MOMENT = st.sampled_from([str(T), str(T + 1), str(T + DAY_S), "0", "soon", ""])


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELL, CELL, CELL, MOMENT), max_size=25))
def test_every_row_ends_in_exactly_one_place(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    """Against a model in plain Python that knows nothing of SQL."""
    folder = tmp_path_factory.mktemp("ingest")
    lines = [",".join(row) for row in rows] + [f"7,7,1,{T + 2}"]
    counts = day(folder, lines)
    texts = [
        line.removesuffix(",") if line.count(",") == 4 else line for line in lines
    ]  # an empty fifth cell is let go
    broken = [text for text in texts if text.count(",") != 3]
    cells = [text.replace('"', "").split(",") for text in texts if text.count(",") == 3]
    undated = [row for row in cells if not row[3].isdigit()]
    dated = [row for row in cells if row[3].isdigit() and DAY_S <= int(row[3]) < 2 * DAY_S]
    good = [row for row in dated if row[0].isdigit() and row[1].isdigit() and _is_rating(row[2])]
    values = [(int(u), int(i), None if r in ("", "nan") else float(r), int(t)) for u, i, r, t in good]
    assert counts["undated"] == len(undated) + len(broken)
    assert counts["rows_read"] == len(dated) == counts["rows"] + counts["duplicates"] + counts["quarantined"]
    assert counts["quarantined"] == len(dated) - len(good)
    expected = sorted(dict.fromkeys(values), key=lambda row: row[3])
    assert [tuple(row.values())[:4] for row in rows_of(folder)] == expected
    assert len(rows_of(folder, "quarantine")) == counts["undated"] + counts["quarantined"]
    assert sum(counts["reasons"].values()) == counts["undated"] + counts["quarantined"]


def _is_rating(cell: str) -> bool:
    return cell in ("", "nan") or (cell != "x" and 1 <= float(cell) <= 5)


def test_too_many_malformed_rows_are_refused_with_the_reasons(tmp_path: Path) -> None:
    good = [f"{i},1,3,{T + i}" for i in range(98)]
    bad = [f"1,2,abc,{T}", f"1,2,7,{T}"]
    assert day(tmp_path, good + bad, {"ingest.max_quarantined_share": 0.02})["quarantined"] == 2
    message = refusal(tmp_path / "strict", good + bad, STRICT)
    assert "events.csv: 2 of the 100 rows of 1970-01-02 are quarantined, 2.0%, allowed 1.0%" in message
    assert "rating: 'abc' is not a float (row 99; 1 such rows)" in message
    assert "rating: '7' is above 5" in message
    assert "ingest.max_quarantined_share" in message


def test_undated_rows_are_measured_against_the_whole_file(tmp_path: Path) -> None:
    lines = [f"1,1,3,{T}", *[f"{i},1,3,{T + DAY_S}" for i in range(98)], "1,1,3,soon"]
    assert day(tmp_path, lines, STRICT)["undated"] == 1  # one of a hundred, though the day has but one row
    message = refusal(tmp_path / "more", [*lines, "1,1,3,", "1"], STRICT)
    assert "3 of the 102 rows have no readable time, 2.9%, allowed 1.0%" in message
    assert "t: an empty cell is not a time" in message and "line: fewer cells than the header (line 103" in message


def test_a_quote_that_never_closes_loses_nothing_silently(tmp_path: Path) -> None:
    lines = [f"{i},1,3,{T + i}" for i in range(50)]
    lines[20] = f'20,1,"3,{T}'
    counts = day(tmp_path, lines)
    assert counts["rows"] == 20 and counts["undated"] == 30
    assert "a quote that never closes" in refusal(tmp_path / "strict", lines, STRICT)


def test_bytes_that_are_not_utf8_are_quarantined(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, {"data.events.columns.item.type": "string"})
    (tmp_path / "data/events.csv").write_bytes(f"{HEADER}\n1,é,3,{T}\n1,e,3,{T}\n".encode("latin-1"))
    counts = ingest_day(scenario, DS, tmp_path / "out")
    assert counts["rows"] == 1 and counts["reasons"] == {"line: not UTF-8": 1}


def test_a_line_beyond_measure_is_quarantined(tmp_path: Path) -> None:
    counts = day(tmp_path, [f"1,1,3,{T}", f"1,1,{'3' * 3_000_000},{T}", f"2,1,3,{T}"])
    assert counts["rows"] + counts["undated"] + counts["quarantined"] == 3


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"1,1,3,{T - DAY_S}", f"1,1,3,{T + 2 * DAY_S}"], "nearest days with events: 1970-01-01, 1970-01-04"),
        ([f"1,1,3,{T + DAY_S}"], "nearest days with events: 1970-01-03"),
        ([], "it holds no events at all"),
        (["1,1,3,9000000000000"], "s after 1970"),
        ([f"x,1,3,{T}"], "all 1 rows are quarantined: user: 'x' is not an int (row 1; 1 such rows)"),
    ],
)
def test_an_empty_day_names_the_nearest_days(tmp_path: Path, lines: list[str], expected: str) -> None:
    message = refusal(tmp_path, lines)
    assert "no events on 1970-01-02 in " in message and "events.csv" in message and expected in message


def test_a_day_outside_the_data_is_refused(tmp_path: Path) -> None:
    assert "outside 1970-01-02..1970-01-05" in refusal(tmp_path, [f"1,1,3,{T}"], ds="1970-02-01")


def test_the_first_day_takes_the_warm_up_along(tmp_path: Path) -> None:
    lines = [f"{d},1,3,{d * DAY_S}" for d in range(6)]
    days = {"data.days": {"warm_up_from": "1970-01-02", "first": "1970-01-04"}}
    day(tmp_path, lines, days, "1970-01-04")
    assert [row["user"] for row in rows_of(tmp_path)] == [1, 2, 3]
    day(tmp_path, lines, days, "1970-01-05")
    assert [row["user"] for row in rows_of(tmp_path)] == [4]


def test_a_day_begins_at_midnight_of_its_zone(tmp_path: Path) -> None:
    lines = [f"{h},1,3,{h * 3600}" for h in range(48)]
    day(tmp_path, lines, {"data.events.time.zone": "Asia/Shanghai"})
    assert [row["user"] for row in rows_of(tmp_path)] == list(range(16, 40))


def test_fault_7_a_day_begins_where_the_scenario_says(tmp_path: Path) -> None:
    changes = {"data.events.time.zone": "Asia/Shanghai", "data.days.day_starts": "07:00"}
    day(tmp_path, [f"{h},1,3,{h * 3600}" for h in range(72)], changes)
    assert [row["user"] for row in rows_of(tmp_path)] == list(range(24 - 8 + 7, 48 - 8 + 7))
    assert "nearest days with events: 1970-01-02" in refusal(
        tmp_path / "x", [f"1,1,3,{23 * 3600}"], changes, "1970-01-03"
    )


@pytest.mark.parametrize("day_starts", ["00:00", "02:30", "07:00"])
def test_all_days_together_are_the_source(tmp_path: Path, day_starts: str) -> None:
    """No row is lost or doubled at the borders of days, across a change to summer time."""
    start = 701_000_000  # 1992-03-19; Berlin's clocks change on 03-29
    lines = [f"{i},1,3,{start + i * 977}" for i in range(1300)]
    changes = {
        "data.events.time.zone": "Europe/Berlin",
        "data.days": {"first": "1992-03-20", "last": "1992-03-31", "day_starts": day_starts},
    }
    scenario = scenario_in(tmp_path, changes)
    seen: list[int] = []
    for ds in day_range(scenario, "1992-03-20", "1992-03-31"):
        day(tmp_path, lines, changes, ds)
        seen += [row["user"] for row in rows_of(tmp_path)]
    assert seen == list(range(seen[0], seen[-1] + 1)) and len(seen) > 1000


def test_entities_are_typed_deduplicated_and_counted(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    write_lines(tmp_path / "data/users.csv", ["user,age", "2,30", "1,40", "1,40", "2,31", "x,1", "3,old", ",5", "4,"])
    counts = day(tmp_path, [f"1,1,3,{T}"], {"data.entities.user": USERS})["entities"]["user"]
    assert rows_of(tmp_path, "entities/user") == [
        {"user": 1, "age": 40},
        {"user": 2, "age": 30},
        {"user": 4, "age": None},
    ]
    assert counts == {
        "rows_read": 8,
        "rows": 3,
        "duplicates": 1,
        "quarantined": 4,
        "undated": 0,
        "reasons": {
            "user: ... conflicting: other values before": 1,
            "user: ... is not an int": 1,
            "age: ... is not an int": 1,
            "user: missing": 1,
        },
    }
    bad = rows_of(tmp_path, "quarantine")
    assert {row["table"] for row in bad} == {"user"}
    assert {"user": 2, "age": 31} in [json.loads(row["row"]) for row in bad]


def test_malformed_entities_are_refused_by_the_same_share(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    write_lines(
        tmp_path / "data/users.csv", ["user,age", *[f"{i},30" for i in range(90)], *[f"1,{i}" for i in range(5)]]
    )
    message = refusal(tmp_path, [f"1,1,3,{T}"], {"data.entities.user": USERS, **STRICT})
    assert "users.csv" in message and "rows of entity user are quarantined" in message and "conflicting" in message
    write_lines(tmp_path / "data/users.csv", ["user,age"])
    assert "entity user has no good row" in refusal(tmp_path, [f"1,1,3,{T}"], {"data.entities.user": USERS})


def test_an_entity_with_time_is_known_until_the_days_end_only(tmp_path: Path) -> None:
    scenario_in(tmp_path)
    entity = {
        **USERS,
        "time": {"column": "since", "unit": "iso"},
        "columns": {"user": {"type": "int"}, "age": {"type": "int"}, "since": {"type": "string"}},
    }
    lines = ["1,40,1970-01-02T12:00:00", "1,39,1960-01-01T00:00:00", "1,41,1970-01-03T00:00:00", "2,7,soon"]
    write_lines(tmp_path / "data/users.csv", ["user,age,since", *lines])
    counts = day(tmp_path, [f"1,1,3,{T}"], {"data.entities.user": entity})["entities"]["user"]
    assert [(row["age"], row["key.valid_from"]) for row in rows_of(tmp_path, "entities/user")] == [
        (39, -315_619_200_000_000),
        (40, 129_600_000_000),
    ]
    assert counts["undated"] == 1 and counts["rows_read"] == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"key": "usr"}, "'usr' is not in data.entities.user.columns; did you mean 'user'?"),
        ({"key": "age"}, "'age' is not in data.events.columns"),
        ({"time": {"column": "age", "zone": "Mars/Base"}}, "'Mars/Base' is not a time zone"),
    ],
)
def test_an_entity_that_cannot_be_joined_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    scenario_in(tmp_path)
    write_lines(tmp_path / "data/users.csv", ["user,age", "1,2"])
    assert expected in refusal(tmp_path, [f"1,1,3,{T}"], {"data.entities.user": {**USERS, **changes}})


@pytest.mark.skipif(not (ROOT / "data/movielens").is_dir(), reason="no MovieLens; recloop fetch brings it")
def test_movielens_days(tmp_path: Path) -> None:
    as_int = {"data.entities.item.columns.release_year.type": "int"}
    scenario = load_scenario(SCENARIOS / "movielens.yaml", overrides=as_int)
    num = {ds: ingest_day(scenario, ds, tmp_path / ds) for ds in ("1997-11-12", "1997-11-13")}
    assert [num[ds]["rows"] for ds in num] == [22756, 3550]
    assert num["1997-11-13"]["entities"]["item"]["quarantined"] == 2  # films whose release year is "V" and "unkonwn"


@pytest.mark.slow
@needs_kuairand
def test_kuairand_duplicates_of_all_days(tmp_path: Path) -> None:
    """The source's README counts 5,460 exact duplicate rows."""
    scenario = load_scenario(SCENARIOS / "kuairand.yaml", data=KUAIRAND)
    total: Counter[str] = Counter()
    for ds in day_range(scenario, "2022-04-25", "2022-05-08"):
        counts = ingest_day(scenario, ds, tmp_path / ds)
        total.update({key: counts[key] for key in ("rows_read", "rows", "duplicates", "quarantined", "undated")})
    # 141 of the 228,329 rows lie, by their time, before the first midnight of Shanghai or after the last.
    assert total == {"rows_read": 228_188, "rows": 222_728, "duplicates": 5_460, "quarantined": 0, "undated": 0}
