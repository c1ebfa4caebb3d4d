"""`recloop init`: what it proposes loads, passes the check, and trains two days unedited, on data it has never seen."""

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from feature_jobs.checks.check import check
from feature_jobs.datasets.fetch import fetch
from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_from_events
from feature_jobs.proposals import propose as proposals
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.sources.ingest import ingest_day
from models.training.day import train_day
from models.training.job import TrainJob
from tasks.commands.cli import main
from tests.paths import KUAIRAND, ROOT, SCENARIOS, needs_kuairand
from tests.unit.feature_jobs import fabricated
from tests.unit.feature_jobs.proposals import shapes
from tests.unit.feature_jobs.proposals.proposing import HOURS, csv_file, lines_of, proposed

MOVIELENS = ROOT / "data" / "movielens"


def train_two_days(scenario: Scenario, root: Path) -> dict[str, Any]:
    """Ingest, join and train on the first two days; the second day's progressive metrics."""
    history: dict[str, Path] = {}
    parent = None
    metrics: Mapping[str, Any] = {}
    for ds in (str(scenario.data.days.first + datetime.timedelta(days=i)) for i in range(2)):
        events, samples, checkpoint = (root / ds / part for part in ("events", "samples", "checkpoint"))
        for folder in (events, samples, checkpoint):
            folder.mkdir(parents=True)
        ingest_day(scenario, ds, events)
        join_from_events(scenario, ds, events, history, samples)
        metrics = train_day(TrainJob(scenario, ds, samples, parent, checkpoint))
        history[ds], parent = events, checkpoint
    progressive: dict[str, Any] = metrics["progressive"]
    return progressive


EXPECTED: dict[str, dict[str, Any]] = {
    "shop": {
        "path": "events/{ds}.csv",
        "time": "time",
        "keys": ("customer_id", "product_id"),
        "labels": {"cart": "event_type == 'cart'", "purchase": "event_type == 'purchase'"},
        "outcomes": (),
        "entities": {"user": "customers.csv", "item": "products.csv"},
        "absent": {"session_token", "title", "event_type"},
    },
    "library": {
        "path": "reads.csv",
        "time": "time",
        "keys": ("Reader_ID", "Article"),
        "labels": {"finished": "Finished"},
        "outcomes": ("Scrolled",),
        "entities": {"item": "meta/articles.csv"},
        "absent": {"scrolled", "finished", "title"},
    },
    "ads": {
        "path": "logs/*.parquet",
        "time": "time",
        "keys": ("cookie", "creative_id"),
        "labels": {"clicked": "clicked"},
        "outcomes": ("charged",),
        "entities": {},
        "absent": {"charged", "clicked"},
    },
    "lake": {
        "path": "ratings/dt={ds}/*.parquet",
        "time": "time",
        "keys": ("userId", "movieId"),
        "labels": {"like": "rating >= 8", "love": "rating >= 10"},
        "outcomes": (),
        "entities": {"profiles": "profiles.parquet"},
        "absent": {"rating"},
        "vectors": {"vector"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_unknown_data_is_found_out_and_trains_unedited(name: str, tmp_path: Path) -> None:
    data, expected = tmp_path / name, EXPECTED[name]
    data.mkdir()
    getattr(fabricated, name)(data)
    fabricated.junk(data)
    scenario = proposed(data, tmp_path)
    assert scenario.data.events.path == expected["path"]
    time = scenario.data.events.time
    assert scenario.data.events.columns[time.column].type == expected["time"]
    assert (scenario.data.user, scenario.data.item) == expected["keys"]
    assert scenario.labels == expected["labels"]
    assert scenario.outcomes == expected["outcomes"]
    assert {n: e.path for n, e in scenario.data.entities.items()} == expected["entities"]
    assert not expected["absent"] & scenario.features.keys()
    assert {name for name, one in scenario.features.items() if one.form == "vector"} == expected.get("vectors", set())
    facts = check(scenario)
    assert facts["days"].keys() == {f"2024-03-0{day}" for day in range(2, 7)}
    assert "malformed" not in facts
    progressive = train_two_days(scenario, tmp_path / "out")
    assert all(progressive[task]["auc"] > 0.65 for task in scenario.tasks), progressive


@pytest.mark.slow
@pytest.mark.skipif(not MOVIELENS.is_dir(), reason="no MovieLens; recloop fetch brings it")
def test_movielens_unedited(tmp_path: Path) -> None:
    scenario = proposed(MOVIELENS, tmp_path)
    assert scenario.labels == {"like": "rating >= 4", "love": "rating >= 5"}
    assert (scenario.data.user, scenario.data.item) == ("user_id", "item_id")
    assert scenario.data.events.columns["rating"].source == "rating:float"
    assert scenario.data.entities["item"].columns["class_"].separator == " "
    check(scenario)
    assert train_two_days(scenario, tmp_path / "out")["like"]["auc"] > 0.65


@pytest.mark.slow
@needs_kuairand
def test_kuairand_unedited(tmp_path: Path) -> None:
    scenario = proposed(KUAIRAND, tmp_path)
    assert set(scenario.labels) == {"is_click", "long_view", "is_like", "is_profile_enter"}
    assert {"play_time_ms", "profile_stay_time", "comment_stay_time", "is_hate"} <= set(scenario.outcomes)
    assert (scenario.data.user, scenario.data.item) == ("user_id", "video_id")
    assert scenario.features["long_watch_seq"].model_dump()["table"] == "video_id"
    check(scenario)
    assert train_two_days(scenario, tmp_path / "out")["is_click"]["auc"] > 0.7


def test_synthetic_unedited_and_the_truth_is_not_a_source(tmp_path: Path) -> None:
    list(fetch(load_scenario(SCENARIOS / "synthetic.yaml"), tmp_path / "data", {"rows": 3000}))
    scenario = proposed(tmp_path / "data", tmp_path)
    assert scenario.data.events.path == "events/{ds}.parquet"
    assert {n: e.path for n, e in scenario.data.entities.items()} == {
        "user": "users/*.parquet",
        "item": "items/*.parquet",
    }
    assert scenario.outcomes == ("watch_s",)
    check(scenario)
    assert train_two_days(scenario, tmp_path / "out")["click"]["auc"] > 0.55


@pytest.mark.slow
@pytest.mark.parametrize("make", [shapes.invoices, shapes.news, shapes.json_lines, shapes.nested])
def test_a_proposal_runs_a_day_unedited(make: Callable[[Path], None], tmp_path: Path) -> None:
    """From init's own last line, as a person would copy it."""
    _, said = lines_of(make, tmp_path)
    options = said.rpartition("recloop run ")[2].split()
    store = ["--store", str(tmp_path / "store"), "--no-track", "--json"]
    result = CliRunner().invoke(main, ["run", *options, *store])
    assert result.exit_code == 0, result.output


def test_the_file_is_commented_and_its_suite_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.ads(tmp_path / "data")
    lines = write_proposal(tmp_path / "data", tmp_path / "scenarios", "ad_log")
    text = (tmp_path / "scenarios" / "ad_log.yaml").read_text()
    assert (
        "charged" in text and "# predicts clicked alone with an AUC of 1.000, by its value: it knows the answer" in text
    )
    assert "path: ../data" in text
    assert (
        "never a feature: charged, predicts clicked alone with an AUC of 1.000, by its value: it knows the answer"
        in lines
    )
    suite = json.loads((tmp_path / "scenarios" / "ad_log.expectations.json").read_text())
    assert suite["name"] == "ad_log"


def test_it_proposes_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.shop(tmp_path / "data")
    texts = []
    for out in ("a", "b"):
        write_proposal(tmp_path / "data", tmp_path / out, "same")
        texts.append((tmp_path / out / "same.yaml").read_text())
    assert texts[0] == texts[1]


def test_a_scenario_that_exists_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("kept")
    fabricated.ads(tmp_path / "data")
    with pytest.raises(BadInputError, match=r"mine.yaml: exists already, and is left as it is; give another --name"):
        write_proposal(tmp_path / "data", tmp_path, "mine")
    assert (tmp_path / "mine.yaml").read_text() == "kept"


def test_a_proposal_that_fails_its_own_check_leaves_nothing(tmp_path: Path) -> None:
    """Expectations that stayed behind, of a feature that the proposal doesn't have, make the check fail."""
    fabricated.ads(tmp_path / "data")
    out = tmp_path / "new" / "scenarios"
    out.mkdir(parents=True)
    kept = {
        "name": "mine",
        "expectations": [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "gone"}}],
    }
    (out / "mine.expectations.json").write_text(json.dumps(kept))
    with pytest.raises(BadInputError, match=r"(?s)fails its own check; nothing was written.*mine.expectations.json"):
        write_proposal(tmp_path / "data", out, "mine")
    assert [file.name for file in out.iterdir()] == ["mine.expectations.json"]
    assert json.loads((out / "mine.expectations.json").read_text()) == kept


def test_a_scenario_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabricated.ads(tmp_path / "data")
    out = tmp_path / "new" / "scenarios"
    check_of_proposal = proposals._checked

    def another_comes(path: Path, file: Path, *rest: Any) -> Any:
        result = check_of_proposal(path, file, *rest)
        file.write_text("kept")
        return result

    monkeypatch.setattr(proposals, "_checked", another_comes)
    with pytest.raises(BadInputError, match=r"mine.yaml: exists already, and is left as it is"):
        write_proposal(tmp_path / "data", out, "mine")
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("mine.yaml", "kept")]


def test_expectations_hold_on_the_data_that_they_were_proposed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column that is null on a third of the rows, and on two thirds of one day's, in rows that the sample passes
    over; and columns of partners, whom 5 % of a day's rows don't have."""
    monkeypatch.setattr("feature_jobs.proposals.profiles.SAMPLE_ROWS", 500)
    rows = []
    for i, at in enumerate(at for at in HOURS for _ in range(10)):
        slot = "" if i % 2 == 0 and i % 3 < 1 + i // 480 else i % 7
        rows.append(f"{at},{i // 2 % 20},{i // 2 % 15},{i // 4 % 2},{slot},{'' if i > 480 and i % 20 == 0 else i % 9}")
    csv_file("at,user,item,click,slot,partner", *rows)(tmp_path / "data")
    (tmp_path / "data" / "partners.csv").write_text("partner,tier\n" + "".join(f"{i},{i % 4}\n" for i in range(9)))
    write_proposal(tmp_path / "data", tmp_path / "out", "found")
    suite = json.loads((tmp_path / "out" / "found.expectations.json").read_text())
    allowed = {e["kwargs"]["column"]: e["kwargs"]["mostly"] for e in suite["expectations"] if "mostly" in e["kwargs"]}
    assert allowed["user"] == 0.95 and allowed.get("slot", 0) <= 2 / 3
    assert allowed["partner"] < 0.95 and allowed["tier"] < 0.95
