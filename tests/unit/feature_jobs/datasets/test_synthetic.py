"""The generator: deterministic, alone or in a row, and its planted truths are there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from feature_jobs.datasets.synthetic import SyntheticOptions, generate, write_day
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.days import day_window
from tests.paths import ROOT, SCENARIOS

DAYS = [f"2024-03-0{day}" for day in range(1, 7)]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(SCENARIOS / "synthetic.yaml")


@pytest.fixture(scope="module")
def folder(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    assert len(list(generate(scenario, folder))) == len(DAYS)
    return folder


def test_a_day_alone_is_the_day_in_a_row(scenario: Scenario, folder: Path, tmp_path: Path) -> None:
    write_day(scenario, SyntheticOptions.of(scenario), DAYS[4], tmp_path)
    for part in ("events", "truth", "users", "items"):
        name = f"{part}/{DAYS[4]}.parquet"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_day_of_several_chunks_is_in_order_of_time(scenario: Scenario, tmp_path: Path) -> None:
    write_day(scenario, SyntheticOptions(rows=600_001), DAYS[1], tmp_path)  # three chunks
    events = pq.read_table(tmp_path / "events" / f"{DAYS[1]}.parquet")
    times = events["time_ms"].to_numpy()
    start, end = day_window(scenario, DAYS[1])
    assert len(events) == 600_001
    assert (np.diff(times) >= 0).all()
    assert start // 1000 <= times[0] and times[-1] < end // 1000


def test_second_call_finds_all_there_and_other_settings_are_refused(scenario: Scenario, folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}
    assert all(line.endswith("is there") for line in generate(scenario, folder))
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}
    with pytest.raises(BadInputError, match="holds days of other settings; delete"):
        list(generate(scenario, folder, {"seed": 8}))
    assert json.loads((folder / "synthetic.json").read_text())["seed"] == 7
    assert not list(folder.rglob(".*.part"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 5}, "the generator has no such option; did you mean rows?"),
        ({"rows": "many"}, "data.options.rows: 'many': is not a number"),
        ({"rows": 0}, "must be a whole number from 1 to 1e9"),
        ({"seed": 1.5}, "must be a whole number"),
        ({"drift": "nan"}, "must be a number from 0"),
    ],
)
def test_wrong_options_are_named(scenario: Scenario, options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        SyntheticOptions.of(scenario, options)
    assert message in str(caught.value)
    assert "synthetic.yaml:" in str(caught.value)


def test_options_override_the_scenario(scenario: Scenario) -> None:
    assert SyntheticOptions.of(scenario, {"rows": "1e3"}).rows == 1000
    assert SyntheticOptions.of(scenario).rows == 20_000


def test_new_users_and_items_come_every_day(folder: Path) -> None:
    seen_users: set[int] = set()
    for day, ds in enumerate(DAYS):
        events = pq.read_table(folder / "events" / f"{ds}.parquet")
        users = set(events["user_id"].to_pylist())
        known = set(pq.read_table(folder / "users" / f"{ds}.parquet")["user_id"].to_pylist())
        assert len(known) == (3000 if day == 0 else 100)
        seen_users |= known
        assert users <= seen_users
        assert day == 0 or len(users & known) > 50
    items = pq.read_table(folder / "items", columns=["item_id"])["item_id"].to_pylist()
    assert sorted(items) == list(range(2000 + 5 * 50))


def test_popularity_is_zipf(folder: Path) -> None:
    items = pq.read_table(folder / "events", columns=["item_id"])["item_id"].to_numpy()
    counts = np.sort(np.bincount(items))[::-1]
    assert counts[:20].sum() > 0.3 * len(items)  # a short head
    assert (counts > 0).sum() > 2000  # a long tail


def test_truth_is_calibrated_and_planted_things_are_there(scenario: Scenario, tmp_path: Path) -> None:
    write_day(scenario, SyntheticOptions(rows=400_000), DAYS[2], tmp_path)
    events = pq.read_table(tmp_path / "events" / f"{DAYS[2]}.parquet")
    truth = pq.read_table(tmp_path / "truth" / f"{DAYS[2]}.parquet")
    assert events.select(["time_ms", "user_id", "item_id"]).equals(truth.select(["time_ms", "user_id", "item_id"]))
    click, p_click = events["click"].to_numpy(), truth["p_click"].to_numpy()
    for low in np.arange(0, 1, 0.1):
        inside = (p_click >= low) & (p_click < low + 0.1)
        if inside.sum() > 500:
            assert abs(click[inside].mean() - p_click[inside].mean()) < 0.02
    assert events["like"].to_numpy()[click == 0].sum() == 0

    def auc_of(column: np.ndarray) -> float:
        """AUC of the click rate by value of a column, on the rows it was not counted on."""
        half = len(column) // 2
        rate = np.bincount(column[:half], click[:half], 1000) / np.maximum(
            np.bincount(column[:half], minlength=1000), 1
        )
        return float(roc_auc_score(click[half:], rate[column[half:]]))

    screen, style = events["screen"].to_numpy(), events["style"].to_numpy()
    assert 0.70 < roc_auc_score(click, p_click) < 0.90
    assert abs(auc_of(events["lottery"].to_numpy()) - 0.5) < 0.01
    assert abs(auc_of(screen) - 0.5) < 0.02 and abs(auc_of(style) - 0.5) < 0.02
    assert auc_of(screen * 8 + style) > 0.55
    assert auc_of(events["position"].to_numpy()) > 0.52


def test_quality_drifts(scenario: Scenario, tmp_path: Path) -> None:
    still, walking = SyntheticOptions(rows=1, drift=0.0), SyntheticOptions(rows=1, drift=0.5)
    from feature_jobs.datasets.synthetic import _world

    assert np.array_equal(_world(still, 0).quality_I, _world(still, 9).quality_I[:2000])
    assert np.std(_world(walking, 9).quality_I[:2000] - _world(walking, 0).quality_I) == pytest.approx(1.5, abs=0.1)


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from feature_jobs.schema import load_scenario
from feature_jobs.datasets.synthetic import SyntheticOptions, write_day
options = SyntheticOptions(rows=int(sys.argv[1]))
write_day(load_scenario("scenarios/synthetic.yaml"), options, "2024-03-02", Path(sys.argv[2]))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss would begin with the parent's
print(status["VmHWM"].split()[0])
"""
    peaks = []
    for rows in ("500000", "4000000"):
        command = [sys.executable, "-c", code, rows, str(tmp_path / rows)]
        peaks.append(int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] * 1.25, peaks
