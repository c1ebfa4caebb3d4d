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
from feature_jobs.sources.leave_out import find, leave_out, names_one_of
from feature_jobs.sources.user_ids import Users, users_of
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
    assert find(scenario, whole, users).rows == sum(event[0] in gone for event in events) + sum(user in gone for user in people)
    leave_out(scenario, whole, users, folder / "left")
    names = sorted(path.relative_to(others) for path in others.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(folder / "left") for path in (folder / "left").rglob("*") if path.is_file())
    for name in names:
        assert (folder / "left" / name).read_bytes() == (others / name).read_bytes(), name
    left = find(scenario, folder / "left", users)
    assert (left.rows, left.ids) == (0, frozenset())


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


@pytest.mark.parametrize(("text", "is_named"), [("row 3: 'a@b.c' is", True), ("xa@b.c", False), ("a@b.cd", False)])
def test_a_text_names_a_user_between_punctuation(text, is_named):
    assert names_one_of(text, Users(("a@b.c",), frozenset())) is is_named
