"""The logs of a company: each planted fault is counted, and what is left has the features and labels of its files."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from feature_jobs.datasets.company import generate
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.output_files import DayCounts
from tests.paths import SCENARIOS
from tests.unit.feature_jobs.joins.small_log import Carried

DAYS = [f"2024-03-0{day}" for day in range(1, 6)]
Days = tuple[dict[str, DayCounts], dict[str, pd.DataFrame]]
FILES = ("exposures.parquet", "clicks.jsonl", "orders.csv", "users.csv", "planted.json", "items/2024-03-05.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("company")
    assert len(list(generate(_scenario(folder), folder))) == 1
    return folder


def _scenario(folder: Path) -> Scenario:
    return load_scenario(SCENARIOS / "company.yaml", data=str(folder), overrides={"data.days.last": DAYS[-1]})


@pytest.fixture(scope="module")
def days(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Days:
    """Counts and samples of each day."""
    scenario, root = _scenario(folder), tmp_path_factory.mktemp("days")
    carried, events, counts, samples = Carried(root), dict[str, Path](), dict[str, DayCounts](), dict[str, Path]()
    for ds in DAYS:
        before = max(events, default=None)
        events[ds] = root / "events" / ds
        counts[ds] = ingest_day(scenario, ds, events[ds], yesterday=events[before] if before else None)
        carried.add(scenario, ds, events[ds], events)
        samples[ds] = carried.samples(scenario, ds, events[ds], events)
    return counts, {ds: pq.read_table(path).to_pandas() for ds, path in samples.items()}


def test_it_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    list(generate(_scenario(folder), tmp_path))
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in FILES)
    assert not (folder / "items/2024-03-04.csv").exists()
    assert "are there" in next(generate(_scenario(folder), folder))


@pytest.mark.slow
def test_every_planted_fault_is_counted(folder: Path, days: Days) -> None:
    counts, planted = days[0], json.loads((folder / "planted.json").read_text())
    rows = pd.read_parquet(folder / "exposures.parquet")
    good = rows[rows["shown_at"].dt.year > 2004]
    # Of no day, so in no count.
    assert planted["skewed"] <= len(rows) - len(good) < planted["skewed"] + planted["twice"]
    left_out = good[good["is_test"] | good["user"].isna()]
    assert sum(day["left_out"] for day in counts.values()) == len(left_out) > planted["test"]
    kept = good.drop(left_out.index)
    assert sum(day["duplicates"] for day in counts.values()) == len(kept) - len(kept.drop_duplicates()) > 0
    assert sum(day["rows"] for day in counts.values()) == len(kept.drop_duplicates())
    clicks = pd.read_json(folder / "clicks.jsonl", lines=True, convert_dates=False)
    twice = len(clicks) - len(clicks.drop_duplicates())
    found = sum(day["logs"]["clicks"]["duplicates"] for day in counts.values())
    assert 0 < twice - 5 < found <= twice  # some come after the last day
    assert all(day["logs"]["orders"]["late"] > 0 for ds, day in counts.items() if ds > DAYS[0])
    assert [day["entities"]["items"].get("age_days") for day in counts.values()] == [None, None, None, 1, None]


@pytest.mark.slow
def test_orders_are_learned_on_the_third_day_after(folder: Path, days: Days) -> None:
    samples = days[1]
    assert [samples[ds]["label.order"].notna().sum() for ds in DAYS[:3]] == [0, 0, 0]
    first = samples[DAYS[0]]
    for ds, shown in ((DAYS[3], first), (DAYS[4], samples[DAYS[1]])):
        mature = samples[ds][samples[ds]["label.order"].notna()]
        assert len(mature) == len(shown) and mature["label.click"].isna().all()
        # The features are those of the row's own day.
        features = ["clicks_kind", "spent_3d", "rank_of_price"]
        pd.testing.assert_frame_equal(mature[features].reset_index(drop=True), shown[features].reset_index(drop=True))
    orders = pd.read_csv(folder / "orders.csv", sep=";", decimal=",", parse_dates=["ordered_at", "received_at"])
    known = orders[(orders["received_at"] < "2024-03-05") & (orders["ordered_at"] < "2024-03-05")]
    mature = samples[DAYS[3]][samples[DAYS[3]]["label.order"].notna()].sort_values("key.event_time", kind="stable")
    ordered = {(user, item) for user, item in known[["user", "item"]].itertuples(index=False)}
    # Nearly all events are the only one of their user and item in a day, so that most orders find theirs.
    found = {(row["key.user"], row["key.item"]) for _, row in mature[mature["label.order"] == 1].iterrows()}
    assert found <= ordered
    assert len(found) > 0.8 * len(known[known["ordered_at"] < "2024-03-02"].drop_duplicates(["user", "item"]))
    assert samples[DAYS[4]]["clicks_kind"].max() > 1 and samples[DAYS[4]]["spent_3d"].max() > 0


@pytest.mark.slow
def test_init_finds_the_exposures_and_the_logs_of_what_became_of_them(folder: Path, tmp_path: Path) -> None:
    said = "\n".join(write_proposal(folder, tmp_path, "found"))
    found = load_scenario(tmp_path / "found.yaml")
    data = found.data
    assert (data.events.path, data.user, data.item, data.request) == ("exposures.parquet", "user", "item", "request")
    assert {name: log.arrival.column for name, log in data.logs.items() if log.arrival} == {
        "clicks": "received",
        "orders": "received_at",
    }
    items, users = data.entities["item"], data.entities["users"]
    assert (items.path, items.max_age_days, users.time.column if users.time else "") == (
        "items/{ds}.csv",
        1,
        "changed_at",
    )
    # Clicks come within half an hour, orders within half a day, and their rows up to two hours and three days later.
    labels = {
        name: (one.source, one.on, one.window_hours, one.maturity_days) for name, one in found.outcome_labels.items()
    }
    assert labels == {"click": ("clicks", ("user", "item"), 1, 1), "order": ("orders", ("user", "item"), 13, 4)}
    assert "request" not in found.features
    assert {"user_clicks", "item_orders", "click_items"} <= found.features.keys()
    assert "such as" in said and data.logs["orders"].columns["price"].decimal == ","
