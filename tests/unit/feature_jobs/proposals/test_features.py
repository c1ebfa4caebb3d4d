"""Columns that are features, and ids from which nothing can be learned."""

import datetime
from pathlib import Path

import numpy as np

from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import load_scenario
from feature_jobs.schema.features import IdFeature
from tests.unit.feature_jobs.fabricated import START
from tests.unit.feature_jobs.proposals.proposing import HOURS, csv_file, lines_of, proposed


def test_features_never_take_the_name_of_another_column(tmp_path: Path) -> None:
    rows = [f"{hour},{i % 20},{i % 15},{int(i % 3 == 0)},a,{i % 7}" for i, hour in enumerate(HOURS)]
    csv_file("at,user,item,click,user_events,hour", *rows)(tmp_path)
    scenario = proposed(tmp_path / "log.csv", tmp_path)
    assert scenario.evaluate.segments == {"new_user": "user_events_2 < 5"}
    assert scenario.features["hour_2"].model_dump()["of"] == "hour(event_time)"
    assert "hour" not in scenario.features


def test_ids_and_counters_are_not_quantities(tmp_path: Path) -> None:
    """By their values, as none of the names says it; true quantities beside them stay."""
    random = np.random.default_rng(7)
    users: dict[int, int] = {}
    header = "at,user_id,item_id,pid,ticket,seen,visitor,account,label_text,price_cents,pause_ms,gap,click"
    rows = []
    for i in range(3000):
        user, item = int(random.integers(0, 300)), int(random.integers(0, 60))
        visit = i // 4  # four rows in a row are of one user and one request
        user = users.setdefault(visit, user)
        rows.append(
            f"{datetime.datetime(2024, 3, 1) + i * datetime.timedelta(minutes=2)},{user},{900 + item},"
            f"{500 + visit},{(i * 7919) % 3001},{visit * 7919 % 751},{'' if i % 5 == 0 else 7 * user + 3},{user // 2},"
            f"Big Green Thing of kind {item},{100 + 7 * item},{(i * 7919) % 3001},{i * 37 % 601},{int(i % 3 == 0)}"
        )
    csv_file(header, *rows)(tmp_path)
    said = "\n".join(write_proposal(tmp_path / "log.csv", tmp_path / "out", "found"))
    features = load_scenario(tmp_path / "out" / "found.yaml").features
    assert "pid (its numbers grow with the event time: an id of rows or requests, or a counter)" in said
    assert "ticket (3,000 whole numbers in 3,000 rows: an id of rows)" in said
    assert "seen (750 values in 3,000 rows, each of one user: an id of requests or visits)" in said
    assert "visitor (one-to-one with user_id, which is a feature already)" in said
    assert "label_text (free text: 60 values, " in said
    assert not {"pid", "ticket", "seen", "visitor", "label_text"} & features.keys()
    assert isinstance(features["account"], IdFeature)  # two users share it: an id, though its name is less likely
    assert {features[name].kind for name in ("price_cents", "pause_ms", "gap")} == {"number"}


def test_short_texts_beside_an_item_are_not_a_second_id(tmp_path: Path) -> None:
    rows = [f"{hour},{i % 20},{i % 15},sku{i % 15},{i % 4},{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file("at,user,item,label,slot,click", *rows)(tmp_path)
    said = write_proposal(tmp_path / "log.csv", tmp_path / "out", "found")
    assert any("label (one-to-one with item, which is a feature already)" in line for line in said)
    assert "slot" in load_scenario(tmp_path / "out" / "found.yaml").features


def test_splits_and_numbers_of_rows_are_known_by_their_values(tmp_path: Path) -> None:
    """No name says it. A column whose values come and go, and one that goes with the user, stay."""
    random = np.random.default_rng(2)
    rows = []
    for i in range(600):
        user, at = int(random.integers(0, 40)), START + i * datetime.timedelta(minutes=7)
        halves = f"{random.choice(['train', 'test'])},{random.choice(['entrenamiento', 'prueba'])},{'aab'[i // 200]}"
        known = f"{random.choice(['web', 'app'])},{'DE' if user < 30 else 'FR'},{i % 5 + 1}"
        rows.append(f"{at},u{user},k{random.integers(0, 30)},{halves},{known},{int(random.random() < 0.3)}")
    header = "at,user,item,particion,conjunto,corte,modo,land,line_no,click"
    scenario, said = lines_of(csv_file(header, *rows), tmp_path)
    for name in ("particion", "conjunto"):
        assert f"{name} (a split into rows to train and to test on, unknown when serving)" in said
    assert "corte (its values follow each other in time, and none comes back: a split, say)" in said
    assert said.count("line_no (by its name it numbers rows or visits, and its 5 values come again)") == 2
    assert not {"particion", "conjunto", "corte", "line_no"} & scenario.features.keys()
    assert {"modo", "land"} <= scenario.features.keys()
