"""States of key sets whose features have changed, or are many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.online.materialize import materialize_day, read_state
from feature_jobs.schema import Scenario
from tests.unit.feature_jobs.joins.small_log import CHANGES, Carried, Event, folder_of
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

DAYS = ("1970-01-02", "1970-01-03", "1970-01-04")
SEEN = {"kind": "count", "by": ["user"], "window_hours": 30}


def with_features(root: Path, features: dict[str, Any]) -> Scenario:
    days = {"first": DAYS[0], "last": DAYS[-1]}
    return scenario_in(root, {**CHANGES, "evaluate": {}, "features": features, "data.days": days})


def materialized(root: Path, scenarios: list[Scenario]) -> Path:
    """The state after days that were each summarized by a scenario of their own."""
    carried = Carried(root)
    for day, (ds, scenario) in enumerate(zip(DAYS, scenarios, strict=False), 1):
        own = [Event(day * DAY_S + n, 1 + n % 2, 1, float(n), "a") for n in range(5)]
        carried.add(scenario, ds, folder_of(root, ds, own))
    last = max(carried.outputs)
    past = {ds: folder for ds, folder in carried.outputs.items() if ds != last}
    materialize_day(scenarios[-1], last, summaries=carried.outputs[last], past=past, output=root / "state")
    return root / "state"


def test_earlier_days_may_have_columns_of_features_that_are_gone(tmp_path: Path) -> None:
    liked, disliked = ({**SEEN, "where": where} for where in ("rating >= 4", "rating < 2"))
    both = with_features(tmp_path, {"liked": liked, "disliked": disliked})
    one = with_features(tmp_path, {"liked": liked})
    for name, scenarios, flags in (
        ("both", [both, both, both], ["where rating >= 4", "where rating < 2"]),
        ("one", [both, both, one], ["where rating >= 4"]),
    ):
        [of_user] = read_state(materialized(tmp_path / name, scenarios))["key_sets"].values()
        assert of_user["flags"] == flags


def test_more_conditions_than_a_row_has_bits_are_refused(tmp_path: Path) -> None:
    def features(num: int) -> dict[str, Any]:
        return {f"above_{n}": {**SEEN, "where": f"rating > {n}"} for n in range(num)}

    [of_user] = read_state(materialized(tmp_path / "64", [with_features(tmp_path, features(64))]))["key_sets"].values()
    assert len(of_user["flags"]) == 64
    with pytest.raises(BadInputError, match="features by user look at 65 conditions"):
        materialized(tmp_path / "65", [with_features(tmp_path, features(65))])
