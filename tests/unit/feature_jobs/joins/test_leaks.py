"""Planted leaks: features and lookups that see a value too early are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.joins.audit import NO_SOURCE, audit_point_in_time
from feature_jobs.joins.entity_rows import EntityRows
from feature_jobs.joins.join import join_from_events
from feature_jobs.windows.days import Window
from tests.unit.feature_jobs.joins.small_log import (
    CHANGES,
    DS,
    US,
    Event,
    entities_of,
    folder_of,
    two_days,
)
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in


def test_a_future_snapshot_is_not_used(tmp_path: Path) -> None:
    """User 1's state at 00:20 is unknown to the event of 00:20, known to the next."""
    scenario = scenario_in(tmp_path, CHANGES)
    events = [Event(3 * DAY_S + s, 1, 1, 4.0, "a") for s in (1199, 1200, 1201)]
    today = folder_of(tmp_path, DS, events, entities_of(rows=[(1, 3 * DAY_S + 1200, 9), (2, 1, 7)]))
    join_from_events(scenario, DS, today, {}, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/samples.parquet")["level"].to_pylist() == [None, None, 9]


def test_a_history_that_reaches_into_the_day_is_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = two_days(tmp_path)
    leaky = folder_of(tmp_path / "leak", "1970-01-03", [Event(3 * DAY_S, 1, 1, 5.0, "a")])
    with pytest.raises(BadInputError, match=r"1970-01-03 holds an event at .* not in the day .*run ingest again"):
        join_from_events(scenario, DS, today, {**history, "1970-01-03": leaky}, tmp_path / "out")
    assert not (tmp_path / "out/samples.parquet").exists()


def test_events_out_of_order_are_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    shuffled = [Event(3 * DAY_S + s, 1, 1, 5.0, "a") for s in (5, 4)]
    today = folder_of(tmp_path, DS, shuffled, entities_of())
    with pytest.raises(BadInputError, match="not in time order"):
        join_from_events(scenario, DS, today, {}, tmp_path / "out")


def test_a_lookup_that_sees_ties_is_caught_by_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "join": {"lookback_days": 2}})
    events = [Event(3 * DAY_S + s, 1, 1, 5.0, "a") for s in (1, 2, 2)]
    today = folder_of(tmp_path, DS, events, entities_of())

    monkeypatch.setattr(Window, "high", lambda self, times: times + 1)
    with pytest.raises(BadInputError, match=r"feature user_events: row 0: uses a value known at 1970-01-04T00:00:01Z"):
        join_from_events(scenario, DS, today, {}, tmp_path / "out")
    assert not (tmp_path / "out/samples.parquet").exists()


@pytest.mark.parametrize(
    "feature",
    [
        {"kind": "sum", "of": "rating"},
        {"kind": "variance", "of": "item"},
        {"kind": "percentile", "of": "item", "percent": 50},
        {"kind": "unique_count", "of": "tag"},
        {"kind": "first", "of": "item"},
        {"kind": "top_k", "of": "tag"},
    ],
)
def test_the_audit_covers_every_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: dict[str, Any]
) -> None:
    features = {"x": {**feature, "by": ["user"]}}
    scenario = scenario_in(tmp_path, {**CHANGES, "features": features, "evaluate": {}})
    today, history = two_days(tmp_path)
    facts = join_from_events(scenario, DS, today, history, tmp_path / "out")
    assert (facts["smallest_gap_us"]["features"]["x"] or 0) >= (3600 if feature["of"] == "rating" else 600) * US
    monkeypatch.setattr(Window, "least_age_us", 0)
    with pytest.raises(BadInputError, match=r"feature x: row \d+: uses a value known at"):
        join_from_events(scenario, DS, today, history, tmp_path / "leak")


def test_a_lookup_that_forgets_the_label_delay_is_caught_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = two_days(tmp_path)

    monkeypatch.setattr(Window, "high", lambda self, times: times)
    with pytest.raises(BadInputError, match=r"feature user_liked: row \d+: .* or not 3600 s old"):
        join_from_events(scenario, DS, today, history, tmp_path / "out")


def test_an_entity_lookup_that_sees_the_future_is_caught_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    today, history = two_days(tmp_path)

    def broken(self: EntityRows, codes: Any, times: Any) -> Any:
        return np.where(codes >= 0, len(self.valid_from) - 1, -1)  # the newest of all time

    monkeypatch.setattr(EntityRows, "newest_before", broken)
    with pytest.raises(BadInputError, match=r"entity state: row \d+: uses a value known at 1970-01-04T00:20:00Z"):
        join_from_events(scenario, DS, today, history, tmp_path / "out")


def test_the_audit_asks_for_strictly_earlier() -> None:
    times = np.array([5, 6, 7])
    assert audit_point_in_time(times, {"a": np.array([4, NO_SOURCE, 5])}, place="x") == {"a": 1}
    assert audit_point_in_time(times, {"a": np.full(3, NO_SOURCE)}, place="x") == {"a": None}
    with pytest.raises(BadInputError, match="x a: row 1: "):
        audit_point_in_time(times, {"a": np.array([4, 6, 5])}, place="x")
    with pytest.raises(BadInputError, match="x a: row 0: "):
        audit_point_in_time(times, {"a": np.array([4, 4, 5])}, place="x", delays_us={"a": 2})


@pytest.mark.parametrize(
    "feature",
    [
        {"kind": "number", "of": "rating"},
        {"kind": "id", "of": "rating >= 3 and item == 1"},
        {"kind": "cross", "of": ["item", "rating"]},
        {"kind": "count", "by": ["user", "rating"]},
        {"kind": "number", "of": "t - 1"},
    ],
)
def test_a_feature_of_its_own_rows_outcome_is_refused(tmp_path: Path, feature: dict[str, Any]) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "outcomes": ["t"], "features.leak": feature})
    today, history = two_days(tmp_path)
    with pytest.raises(BadInputError, match=r"features\.leak\..*: (rating|t) is an outcome"):
        join_from_events(scenario, DS, today, history, tmp_path / "out")
