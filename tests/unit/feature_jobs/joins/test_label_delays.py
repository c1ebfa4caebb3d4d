"""Outcomes that become known at times of their own: a click after minutes, an order after hours."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.joins.rules import refuse_leaks
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in, write_lines

DELAYS = {"like": 600, "order": 7_200, "stay": 1_800}
OF = {"rating": 600, "bought": 7_200, "stay": 1_800, "shared": 3_600}
"""Seconds until each column is known: `shared` is named by none, and waits as the others."""
CHANGES: dict[str, Any] = {
    "data.events.columns": {
        "user": {"type": "int"},
        "item": {"type": "int"},
        "rating": {"type": "int"},
        "t": {"type": "int"},
        **{name: {"type": "int"} for name in ("bought", "stay", "shared")},
    },
    "labels": {"like": "rating >= 4", "order": "bought == 1"},
    "outcomes": ["stay", "shared"],
    "join": {"lookback_days": 1, "label_delay_s": 3_600, "outcome_delay_s": DELAYS},
    "features": {
        "shown": {"kind": "count", "by": ["item"]},
        **{name: {"kind": "sum", "by": ["item"], "of": name} for name in OF},
        "both": {"kind": "count", "by": ["item"], "where": "rating >= 4 and bought == 1"},
    },
}


def test_each_outcome_is_seen_after_its_own_delay(tmp_path: Path) -> None:
    rng = random.Random(7)
    times = sorted(rng.sample(range(DAY_S, 2 * DAY_S), 150))
    rows = [
        {"user": 1, "item": rng.randint(1, 2), "rating": rng.randint(1, 5), "t": t}
        | {name: rng.randint(0, 1) for name in ("bought", "stay", "shared")}
        for t in times
    ]
    lines = [f"{HEADER},bought,stay,shared", *(",".join(map(str, row.values())) for row in rows)]
    write_lines(tmp_path / "data/events.csv", lines)
    scenario = scenario_in(tmp_path, CHANGES)
    ingest_day(scenario, "1970-01-02", tmp_path / "events")
    join_from_events(scenario, "1970-01-02", tmp_path / "events", {}, tmp_path / "out")
    found = pq.read_table(tmp_path / "out/samples.parquet").select(list(CHANGES["features"])).to_pylist()
    for row, values in zip(rows, found, strict=True):
        same = [past for past in rows if past["item"] == row["item"]]
        known = {
            name: [past for past in same if past["t"] < row["t"] and row["t"] - past["t"] >= s]
            for name, s in OF.items()
        }
        assert values == {
            "shown": sum(past["t"] < row["t"] for past in same),
            **{name: sum(past[name] for past in known[name]) for name in OF},
            "both": sum(past["rating"] >= 4 and past["bought"] == 1 for past in known["bought"]),
        }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"lke": 60}, r"join\.outcome_delay_s: .*lke.*: is not a label .*name some of: bought, like, order"),
        ({"item": 60}, r"join\.outcome_delay_s: .*item.*: is not a label "),
        ({"late": 60}, r"join\.outcome_delay_s: .*late.*: is not a label .*its log says when its rows came"),
        ({"like": -1}, r"join\.outcome_delay_s.*-1"),
    ],
)
def test_a_delay_of_nothing_is_refused(tmp_path: Path, said: dict[str, int], message: str) -> None:
    log = {"path": "o.csv", "format": "csv", "time": {"column": "t"}, "columns": CHANGES["data.events.columns"]}
    labels = {**CHANGES["labels"], "late": {"source": "orders", "on": ["user"]}}
    changes = {**CHANGES, "data.logs": {"orders": log}, "labels": labels, "join.outcome_delay_s": said}
    with pytest.raises(BadInputError, match=message):
        refuse_leaks(scenario_in(tmp_path, changes))
    if said and min(said.values()) > 0:
        (problem,) = check_scenario(scenario_in(tmp_path, changes))
        assert re.search(message, problem)
