"""A day without the rows of some users is the day that ingest would have written if they had never been there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.leave_out import find, leave_out
from feature_jobs.sources.user_ids import Users, users_of
from tests.small import write_csv
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DS = "1970-01-02"
USERS = {
    "path": "users.csv",
    "format": "csv",
    "key": "user",
    "columns": {"user": {"type": "int"}, "age": {"type": "int"}},
}
EVENT = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.sampled_from(["1", "3.5", "9", "", "x"]), st.integers(DAY_S, DAY_S + 99)
)
PEOPLE = st.dictionaries(st.integers(1, 4), st.sampled_from(["20", "31", "old"]), min_size=2)
KEPT = [(5, 1, "4", DAY_S + 7)]  # of another user, so that the day is never empty


def _users(scenario: Scenario, *ids: object, columns: tuple[str, ...] = ()) -> Users:
    return users_of(scenario, map(str, ids), columns)


def _day(folder: Path, events: list[tuple[object, ...]], people: dict[int, str]) -> tuple[Scenario, Path]:
    scenario = scenario_in(folder, {"data.entities": {"person": USERS}, "ingest.max_quarantined_share": 1.0})
    write_lines(folder / "data/events.csv", [HEADER, *(",".join(map(str, event)) for event in events)])
    write_lines(folder / "data/users.csv", ["user,age", *(f"{user},{age}" for user, age in people.items())])
    ingest_day(scenario, DS, folder / "out")
    return scenario, folder / "out"


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENT, unique=True, min_size=1, max_size=12), PEOPLE, st.sets(st.integers(1, 4), min_size=1))
def test_what_is_left_is_what_the_others_did(tmp_path_factory, events, people, gone):
    folder = tmp_path_factory.mktemp("day")
    people = {**people, 5: "44"}
    scenario, whole = _day(folder / "whole", [*events, *KEPT], people)
    _, others = _day(
        folder / "others",
        [event for event in [*events, *KEPT] if event[0] not in gone],
        {user: age for user, age in people.items() if user not in gone},
    )
    users = _users(scenario, *gone)
    assert find(scenario, whole, users).rows == sum(event[0] in gone for event in events) + sum(
        user in gone for user in people
    )
    leave_out(scenario, whole, users, folder / "left")
    names = sorted(path.relative_to(others) for path in others.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(folder / "left") for path in (folder / "left").rglob("*") if path.is_file())
    for name in names:
        if name.name != "landed.json":  # describes the source, which still has these users
            assert (folder / "left" / name).read_bytes() == (others / name).read_bytes(), name
    left = find(scenario, folder / "left", users)
    assert (left.rows, left.ids) == (0, frozenset())


MORE_COLUMNS = {
    "data.events.columns.sender": {"type": "int"},
    "data.events.columns.to": {"type": "int", "required": True},
    "data.events.columns.pals": {"type": "list[int]", "separator": "|"},
    "features.sender": {"kind": "id", "table": "user"},
    "features.to": {"kind": "id", "of": "coalesce(to, sender)", "table": "user"},
    "features.pals": {"kind": "ids", "table": "user"},
    "data.entities.person": {**USERS, "columns": {**USERS["columns"], "boss": {"type": "int"}}},
    "features.boss": {"kind": "id", "of": "person.boss", "table": "user"},
}
USER = st.integers(1, 6)
NAMING = st.tuples(USER, st.one_of(st.just(""), USER), USER, st.lists(USER, max_size=3))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMING, max_size=12), st.lists(USER, min_size=9, max_size=9), st.sets(st.integers(1, 4), min_size=1))
def test_ids_are_taken_out_of_every_column_that_names_users(tmp_path_factory, events, bosses, gone):
    folder = tmp_path_factory.mktemp("day")
    events = [*events, (5, "", 6, [])]

    def day(name: str, gone: set[int]) -> tuple[Scenario, Path]:
        scenario = scenario_in(folder / name, {**MORE_COLUMNS, "ingest.max_quarantined_share": 1.0})
        rows = [
            f"{user},{user},4,{DAY_S + place},{'' if sender in gone else sender},{to},"
            f"{'|'.join(str(pal) for pal in pals if pal not in gone)}"
            for place, (user, sender, to, pals) in enumerate(events)
            if user not in gone and to not in gone
        ]
        write_lines(folder / name / "data/events.csv", [f"{HEADER},sender,to,pals", *rows])
        people = [f"{n},30,{'' if b in gone else b}" for n, b in enumerate(bosses) if n not in gone]
        write_lines(folder / name / "data/users.csv", ["user,age,boss", *people])
        ingest_day(scenario, DS, folder / name / "out")
        return scenario, folder / name / "out"

    (scenario, whole), (_, others) = day("whole", set()), day("others", gone)
    users = _users(scenario, *gone)
    leave_out(scenario, whole, users, folder / "left")
    for file in ("events.parquet", "entities/person.parquet", "quarantine.parquet", "counts.json"):
        assert (folder / "left" / file).read_bytes() == (others / file).read_bytes(), file
    assert find(scenario, folder / "left", users).rows == 0
    named = {n for user, sender, to, pals in events for n in (user, sender, to, *pals)} | {*range(9), *bosses}
    assert find(scenario, whole, users).ids == gone & named


def test_other_columns_with_an_equal_value_are_counted_and_stay(tmp_path):
    scenario = scenario_in(
        tmp_path, {"ingest.max_quarantined_share": 1.0, "data.events.columns.note": {"type": "string"}}
    )
    lines = [f"7,1,4,{DAY_S},x", f"8,7,4,{DAY_S},7", f"8,7,x,{DAY_S},y", f"9,1,4,{DAY_S},17"]
    write_lines(tmp_path / "data/events.csv", [f"{HEADER},note", *lines])
    ingest_day(scenario, DS, tmp_path / "out")
    found = find(scenario, tmp_path / "out", _users(scenario, 7, 3))
    assert (found.rows, found.ids, found.elsewhere) == (1, {7}, {"item": 2, "note": 1})
    named = find(scenario, tmp_path / "out", _users(scenario, 7, columns=("note",)))
    assert (named.rows, named.elsewhere) == (2, {"item": 2})


TEXTS = ["ask 7!", '{"by": 7, "to": [8]}', "https://x.io/u/7?from=9", "9,7", "17 of 7.5 on 2024-07-07", "8"]
NAMED = 4  # of the texts


def _with_texts(folder: Path, texts: list[str]) -> tuple[Scenario, Path]:
    """A day of user 5 with texts in a column, in lists of a column, and of an entity."""
    notes = {**USERS, "columns": {**USERS["columns"], "bio": {"type": "string"}}}
    columns = {"note": {"type": "string"}, "tags": {"type": "list[string]", "separator": "|"}}
    scenario = scenario_in(
        folder,
        {f"data.events.columns.{name}": column for name, column in columns.items()} | {"data.entities.person": notes},
    )
    rows = [[5, 1, 4, DAY_S + place, text, f"x|{text}"] for place, text in enumerate(texts)]
    write_csv(folder / "data/events.csv", [*HEADER.split(","), *columns], rows)
    write_csv(folder / "data/users.csv", ["user", "age", "bio"], [[20 + n, 30, text] for n, text in enumerate(texts)])
    ingest_day(scenario, DS, folder / "out")
    return scenario, folder / "out"


def test_ids_inside_longer_texts_are_counted_and_taken_out_of_named_columns(tmp_path):
    scenario, out = _with_texts(tmp_path / "whole", TEXTS)
    found = find(scenario, out, _users(scenario, 7))
    assert (found.rows, found.elsewhere) == (0, {"note": NAMED, "tags": NAMED, "person.bio": NAMED})
    users = _users(scenario, 7, columns=("note", "tags", "person.bio"))
    found = find(scenario, out, users)
    assert (found.rows, found.ids, found.elsewhere) == (2 * NAMED, {7}, {})
    leave_out(scenario, out, users, tmp_path / "left")
    # As if the cells had been empty, and the lists without the element, in the source.
    _, others = _with_texts(tmp_path / "others", ["", "", "", "", *TEXTS[NAMED:]])
    for file in ("events.parquet", "entities/person.parquet", "counts.json"):
        assert (tmp_path / "left" / file).read_bytes() == (others / file).read_bytes(), file


def test_a_text_in_a_column_that_shares_the_users_table_is_counted_and_stays(tmp_path):
    changes = {"data.events.columns.sender": {"type": "string"}, "features.sender": {"kind": "id", "table": "user"}}
    scenario = scenario_in(tmp_path, changes)
    write_lines(tmp_path / "data/events.csv", [f"{HEADER},sender", f"8,1,4,{DAY_S},7", f"8,2,4,{DAY_S},7 for 9"])
    ingest_day(scenario, DS, tmp_path / "out")
    found = find(scenario, tmp_path / "out", _users(scenario, 7))
    assert (found.rows, found.elsewhere) == (1, {"sender": 1})
    leave_out(scenario, tmp_path / "out", _users(scenario, 7), tmp_path / "left")
    assert pq.read_table(tmp_path / "left/events.parquet")["sender"].to_pylist() == [None, "7 for 9"]


def test_a_column_that_is_not_declared_any_more_is_counted_too(tmp_path):
    _, out = _day(tmp_path, [*KEPT, (7, 1, "4", DAY_S)], {1: "7", 2: "30"})
    changed = scenario_in(
        tmp_path, {"ingest.max_quarantined_share": 1.0, "data.events.columns.seller": {"type": "int"}}
    )
    found = find(changed, out, _users(changed, 7))
    assert (found.rows, found.elsewhere) == (1, {"person.age": 1})


def test_a_table_of_computed_ids_says_nothing_of_users(tmp_path):
    scenario = scenario_in(
        tmp_path,
        {
            "features.item": {"kind": "id"},
            "features.group": {"kind": "id", "of": "user % 10"},
            "features.seller": {"kind": "id", "of": "item + 1", "table": "group"},
        },
    )
    users = _users(scenario, 7)
    assert (users.columns, users.tables, users.others) == ({"user"}, {"user"}, {"item": {"item"}})


def test_first_and_last_and_most_frequent_users_name_users(tmp_path):
    scenario = scenario_in(
        tmp_path,
        {
            "features.buyer": {"kind": "last", "of": "user", "by": ["item"]},
            "features.fans": {"kind": "top_k", "of": "user", "by": ["item"]},
            "features.last": {"kind": "sequence", "of": "item", "by": "user", "sides": {"ago": "seconds_ago"}},
        },
    )
    users = _users(scenario, 7)
    assert (users.columns, users.tables) == ({"user"}, {"user", "buyer", "fans"})
    assert users.others == {"last": {"item"}}


def test_a_line_without_cells_goes_where_it_names_the_user(tmp_path):
    lines = ['7,1,"4', "8,2,4"]  # a quote that never closes
    scenario = scenario_in(tmp_path, {"ingest.max_quarantined_share": 1.0})
    write_lines(tmp_path / "data/events.csv", [HEADER, f"5,1,4,{DAY_S}", "7,1,4,1,2,3", "8,1,4,1,2,3"])
    ingest_day(scenario, DS, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/quarantine.parquet").num_rows == len(lines)
    leave_out(scenario, tmp_path / "out", _users(scenario, 7), tmp_path / "left")
    (row,) = pq.read_table(tmp_path / "left/quarantine.parquet")["row"].to_pylist()
    assert json.loads(row)["text"].startswith("8,")
    assert json.loads((tmp_path / "left/counts.json").read_text())["undated"] == 1


def test_a_day_of_these_users_alone_is_refused(tmp_path):
    scenario, out = _day(tmp_path, [(1, 1, "4", DAY_S)], {1: "20", 2: "30"})
    with pytest.raises(BadInputError, match=r"data\.days\.skip"):
        leave_out(scenario, out, _users(scenario, 1), tmp_path / "left")


def test_ids_are_read_as_the_events_hold_them(tmp_path):
    scenario = scenario_in(tmp_path)
    assert users_of(scenario, ["7", "+8", " 7 "]).ids == (7, 8)
    for bad in ("7.5", "seven", "", str(2**63)):
        with pytest.raises(BadInputError, match=r"data\.events\.columns\.user is int"):
            users_of(scenario, [bad])
