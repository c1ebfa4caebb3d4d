"""Labels from other logs against a comparison of every event with every row, over days that build on one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.checks.check import check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.joins.outcomes import days_of_outcomes
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import maturing_days, trailing_days
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.joins.small_log import Carried
from tests.unit.feature_jobs.joins.test_logs import CHANGES, CLICK, EVENT, FEATURES, ORDER, small_source, write_source
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

DAYS = [f"1970-01-{day:02}" for day in range(2, 8)]
HOUR_S = 3600
LABELS: dict[str, Any] = {
    "like": "rating >= 4",
    "buy": {"source": "orders", "on": ["user", "item"], "value": "price"},
    "spend": {
        "source": "orders",
        "on": ["user"],
        "where": "price > 2",
        "window_hours": 30,
        "attribution": "all",
        "value": "price * 2",
    },
    "click": {"source": "clicks", "on": ["user", "item"], "window_hours": 2, "maturity_days": 0},
}
MATURITY = {"buy": 1, "spend": 2, "click": 0}
OWN = ["orders", "seen", "bought"]
PAUSE = "1970-01-05"


def _scenario(folder: Path, changes: dict[str, Any]) -> Scenario:
    features = {name: FEATURES[name] for name in OWN}
    days = {"first": DAYS[0], "last": DAYS[-1], "skip": [PAUSE], "warm_up_from": "1970-01-01"}
    return scenario_in(folder, {**CHANGES, "features": features, "labels": LABELS, "data.days": days, **changes})


def _wanted(task: str, event: Any, events: list[Any], orders: list[Any], clicks: list[Any], end_s: int) -> list[float]:
    """The values of an event's outcomes, with all rows that are known before `end_s`."""
    label = LABELS[task]
    window = label.get("window_hours", 24) * HOUR_S
    rows = (
        clicks
        if task == "click"
        else [
            (user, item, at, price * (2 if task == "spend" else 1))
            for user, item, price, at, late in orders
            if max(at, at + late) < end_s and (task == "buy" or price > 2)
        ]
    )
    same, found = len(label["on"]), list[float]()
    for row in rows:
        shown = [e for e in events if e[:same] == row[:same] and e[2] <= row[2] < e[2] + window and e[2] < end_s]
        if event in shown and row[2] < end_s and (task == "spend" or event == shown[-1]):
            found.append(row[-1])
    return found


def _carried(root: Path, scenario: Scenario) -> tuple[dict[str, Path], dict[str, Path]]:
    """All days ingested, summarized and joined; events and samples by day."""
    carried, events, samples = Carried(root), dict[str, Path](), dict[str, Path]()
    for ds in (day for day in DAYS if day != PAUSE):
        events[ds] = root / "events" / ds
        ingest_day(scenario, ds, events[ds])
        carried.add(scenario, ds, events[ds], events)
        samples[ds] = carried.samples(scenario, ds, events[ds], events)
        assert set(days_of_outcomes(scenario, ds)) <= set(trailing_days(scenario, ds, maturing_days(scenario)))
    return events, samples


@pytest.mark.slow
@settings(max_examples=8)
@given(
    events=st.lists(EVENT, max_size=25, unique=True),
    orders=st.lists(ORDER, max_size=20, unique_by=lambda order: max(order[3], order[3] + order[4])),
    clicks=st.lists(CLICK, min_size=1, max_size=15, unique=True),
)
def test_each_label_is_learned_once_on_the_day_it_matures(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], orders: list[Any], clicks: list[Any]
) -> None:
    root = tmp_path_factory.mktemp("outcomes")
    some = [(1, 1, day * DAY_S + 50_000) for day in range(len(DAYS) + 1)]
    # Days without data have none; each event has a time of its own.
    events = sorted({(u, i, t) for u, i, t in [*events, *some] if t // DAY_S != 4}, key=lambda e: e[2])
    events = list({event[2]: event for event in events}.values())
    write_source(root, events, orders, clicks)
    scenario = _scenario(root, {})
    assert check_scenario(scenario) == []
    folders, samples = _carried(root, scenario)
    chain = [int(ds[-2:]) - 1 for ds in folders]  # days since 1970
    for ds, day in zip(folders, chain, strict=True):
        before = max((other for other in chain if other < day), default=-1)
        end_s = (day + 1) * DAY_S
        expected: dict[Any, dict[str, int]] = {}
        values: dict[Any, float] = {}
        for event in events:
            own = event[2] // DAY_S
            outcomes = {
                task: _wanted(task, event, events, orders, clicks, end_s)
                for task, after in MATURITY.items()
                if before < own + after <= day
            }
            learned = {task: int(bool(values)) for task, values in outcomes.items()}
            sums = {f"value.{task}": sum(values) for task, values in outcomes.items() if task != "click"}
            if before < own <= day:
                expected[event[2], 0] = {"like": 1} | ({"click": learned["click"]} if "click" in learned else {})
            for task in ("buy", "spend"):
                # A row of the day itself (a warm-up's, say) has its mature labels at once.
                at = (event[2], 0 if before < own <= day else MATURITY[task])
                if task in learned:
                    expected.setdefault(at, {})[task] = learned[task]
                    values[at, task] = sums[f"value.{task}"]
        table = pq.read_table(samples[ds])
        worth = {
            ((time := row["key.event_time"] // 10**6), 0 if before < time // DAY_S <= day else MATURITY[task], task): v
            for row in table.to_pylist()
            for task in ("buy", "spend")
            if (v := row[f"value.{task}"]) is not None
        }
        assert worth == {(*at, task): value for (at, task), value in values.items()}
        found = [
            (row["key.event_time"] // 10**6, {t: row[f"label.{t}"] for t in LABELS if row[f"label.{t}"] is not None})
            for row in table.to_pylist()
        ]
        order = sorted(expected, key=lambda at: (at[0] + at[1] * DAY_S, at[1]))
        assert sorted(map(str, found)) == sorted(str((at[0], _in_order(expected[at]))) for at in order)
        moments = [at[0] + at[1] * DAY_S for at in order]
        assert [time for time, _ in found] == [at[0] for at in order] or len(set(moments)) < len(moments)
        assert table["key.event_row"].to_pylist() == list(range(len(table)))
    past = {earlier: folder for earlier, folder in folders.items() if earlier < ds}
    join_from_events(scenario, ds, folders[ds], past, root / "again")
    assert (root / "again/samples.parquet").read_bytes() == samples[ds].read_bytes()


def test_samples_of_an_earlier_day_that_no_longer_fit_are_refused(tmp_path: Path) -> None:
    days = [day for day in range(len(DAYS) + 1) if day != 4]
    write_source(tmp_path, [(1, 1, day * DAY_S + 50_000 + i) for day in days for i in range(3)], [], [(1, 1, DAY_S)])
    scenario = _scenario(tmp_path, {})
    events, samples = _carried(tmp_path, scenario)
    carried = Carried(tmp_path)
    carried.outputs = {ds: tmp_path / "summaries" / ds for ds in DAYS[:2]}
    table = pq.read_table(samples[DAYS[0]])
    at = table.column_names.index("orders")
    for other, message in (
        (table.slice(1), r"5 rows, but 1970-01-02 has another number of events; join it again: .* --from 1970-01-02"),
        (
            table.set_column(at, "orders", table["orders"].cast("string")),
            "orders was string on 1970-01-02 and is double",
        ),
    ):
        pq.write_table(other, samples[DAYS[0]])
        with pytest.raises(BadInputError, match=message):
            carried.samples(scenario, DAYS[1], events[DAYS[1]], events)


def _in_order(labels: dict[str, int]) -> dict[str, int]:
    return {task: labels[task] for task in LABELS if task in labels}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"labels.buy.source": "order"}, "'order': is not a log of data.logs; did you mean orders?"),
    ({"labels.buy.on": ["user", "rating"]}, "'rating': no such column of orders"),
    ({"labels.buy.where": "rating > 3"}, "no column rating"),
    ({"labels.buy.where": "items.kind == 'book'"}, "reads items.kind of an entity"),
    ({"labels.buy.where": "user"}, ""),
    ({"labels.buy.value": "rating"}, "no column rating"),
    ({"labels.buy.value": "items.kind"}, "reads items.kind of an entity"),
    ({"labels.buy.value": "[item]"}, "labels.buy.value"),
    ({"train": {"value_weights": ["click"]}}, "'click': no label with a `value`; there are: buy, spend"),
    ({"data.logs.orders.columns.item.type": "string"}, "is int in events and string in orders"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_decides_no_label_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    small_source(tmp_path)
    assert message in "\n".join(check_scenario(_scenario(tmp_path, changes)))
