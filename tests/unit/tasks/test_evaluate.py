"""Evaluate on real checkpoints of a very small recommender: comparisons, messages, equal bytes."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from models.metrics.comparison import Groups, compare
from models.training.day import score, train_day
from models.training.job import TrainJob
from tasks.contract import DayConfig
from tasks.evaluate import evaluate
from tasks.evaluation.comparison import judge_scores
from tests.unit.tasks.little import DAYS, little_scenario, write_samples, write_validation


@dataclass
class Days:
    """Folders of trained days."""

    root: Path
    scenario: Scenario
    trained: list[Path] = field(default_factory=list)
    num_rows: int = 1500

    def day(self, number: int) -> dict[str, Path]:
        return {name: self.root / DAYS[number] / name for name in ("samples", "validation", "checkpoint")}

    def train(self, number: int, parent: Path | None, **how) -> Path:
        folders = self.day(number)
        write_samples(folders["samples"], DAYS[number], self.num_rows, **how)
        write_validation(folders["validation"])
        folders["checkpoint"].mkdir()
        train_day(TrainJob(self.scenario, DAYS[number], folders["samples"], parent, folders["checkpoint"]))
        return folders["checkpoint"]

    def evaluate(self, number: int, out: str = "evaluation", **others) -> tuple[dict, dict, Path]:
        folder = self.root / DAYS[number] / out
        folder.mkdir()
        given = {"champion": None, "former_champion": None, "yesterday": None, **others}
        metrics = evaluate(DayConfig(self.scenario, DAYS[number]), **self.day(number), **given, evaluation=folder)
        return metrics, json.loads((folder / "evaluation.json").read_text()), folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Days:
    root = tmp_path_factory.mktemp("days")
    days, parent = Days(root, little_scenario(root)), None
    for number in range(4):
        parent = days.train(number, parent)
        days.trained.append(parent)
    return days


@pytest.fixture
def days(trained: Days, tmp_path: Path) -> Days:
    """A copy that a test may change."""
    shutil.copytree(trained.root, tmp_path / "days")
    copied = Days(tmp_path / "days", trained.scenario)
    copied.trained = [copied.root / path.relative_to(trained.root) for path in trained.trained]
    return copied


def test_the_first_day_has_the_challengers_numbers_only(days):
    metrics, result, _ = days.evaluate(0)
    for facts in result["overall"].values():
        assert facts["champion"] is None
        assert facts["difference"] is None
        assert facts["challenger"]["auc"] > 0.4
    assert result["champion"] is None
    assert result["comparison"] == {"verdict": "no_champion", "reasons": [], "unknown": []}
    assert result["next_day"]["verdict"] == "ok"
    assert result["history"] == []
    assert "not_worse" not in metrics and "next_day_ok" not in metrics  # nothing was compared
    assert metrics["no_champion_yet"] is True


def test_challenger_and_champion_meet_on_the_holdout_alone(days):
    _, result, _ = days.evaluate(2, champion=days.trained[1])
    predictions = pq.read_table(days.trained[2] / "predictions.parquet").to_pandas()
    holdout = predictions[predictions["gate.like"].notna() & predictions["label.like"].notna()]
    samples = pq.read_table(days.day(2)["samples"] / "samples.parquet")
    theirs = score(days.trained[1], samples)["like"][holdout.index]
    expected = compare(
        holdout["label.like"].to_numpy(float),
        theirs,
        holdout["gate.like"].to_numpy(),
        Groups(holdout["key.user"].to_numpy()),
        resamples=50,
        confidence=0.95,
        seed=20240103,
    )
    facts = result["overall"]["like"]
    assert result["rows"] == {"day": 1500, "holdout": 600}
    assert facts["rows"] == len(holdout) < 600
    assert facts["challenger"]["auc"] == expected["challenger"]["auc"]
    assert facts["champion"]["auc"] == pytest.approx(expected["champion"]["auc"], abs=1e-6)
    assert facts["difference"]["low"] <= facts["difference"]["auc"] <= facts["difference"]["high"]


def test_a_champion_that_is_not_the_parent_scores_the_rows_itself(days):
    _, result, _ = days.evaluate(3, champion=days.trained[1], former_champion=days.trained[0])
    samples = pq.read_table(days.day(3)["samples"] / "samples.parquet")
    theirs = score(days.trained[1], samples)["love"]
    labels = samples["label.love"].to_numpy().astype(float)
    chain = result["next_day"]["chain_against_champion"]["love"]
    users = samples["key.user"].to_numpy()
    expected = compare(labels, None, theirs, Groups(users), resamples=1, confidence=0.95, seed=0)
    expected = expected["challenger"]
    low_high = pytest.approx(expected.pop("calibration_interval"))
    assert chain["champion"].pop("calibration_interval") == low_high
    assert chain["champion"] == pytest.approx(expected)
    assert set(result["next_day"]["champion_against_former"]["love"]) >= {"champion", "former", "difference", "rows"}


def test_segments_are_judged_on_their_own_where_they_are_large_enough(days):
    _, result, _ = days.evaluate(1, champion=days.trained[0])
    north, rare = result["segments"]["north"]["like"], result["segments"]["rare"]["like"]
    assert north["judgement"]["verdict"] in ("better", "not_worse")
    assert 150 < north["rows"] < 300
    assert rare["rows"] < 50
    assert rare["judgement"] == {"verdict": "unknown", "reason": f"{rare['rows']} rows where 50 are needed"}
    assert result["comparison"]["unknown"] == []  # a small segment is normal


def test_a_worse_challenger_is_reported_with_numbers(days):
    spoiled = pq.read_table(days.trained[1] / "predictions.parquet")
    position = spoiled.column_names.index("gate.like")
    upside_down = pa.array(1 - spoiled["gate.like"].to_numpy(), pa.float32(), from_pandas=True)
    pq.write_table(spoiled.set_column(position, "gate.like", upside_down), days.trained[1] / "predictions.parquet")
    _, result, folder = days.evaluate(1, champion=days.trained[0])
    assert result["comparison"]["verdict"] == "worse"
    assert any(
        r.startswith("like: AUC -") and "at most -0.0100 is allowed" in r for r in result["comparison"]["reasons"]
    )
    assert any("like in segment north" in r for r in result["comparison"]["reasons"])
    assert "should not be promoted" in (folder / "report.html").read_text()


def test_a_challenger_without_scores_is_not_as_good(days):
    diverged = pq.read_table(days.trained[1] / "predictions.parquet")
    for name, known in (("gate.like", 0), ("gate.love", 1200)):
        values = np.where(np.arange(1500) < known, diverged[name].to_numpy(), np.nan)
        position = diverged.column_names.index(name)
        diverged = diverged.set_column(position, name, pa.array(values, pa.float32(), from_pandas=True))
    pq.write_table(diverged, days.trained[1] / "predictions.parquet")
    _, result, _ = days.evaluate(1, champion=days.trained[0])
    assert result["comparison"]["verdict"] == "worse"
    assert "love: the challenger has no score on 300 rows of the holdout" in result["comparison"]["reasons"]
    assert result["overall"]["like"]["rows"] > 0


def test_the_new_day_can_propose_a_rollback_and_hold_a_promotion(tmp_path, capsys):
    days = Days(tmp_path, little_scenario(tmp_path))
    first = days.train(0, None)
    second = days.train(1, first)
    spoiled = days.train(2, second, flip=1.0)  # learns a day that lies
    days.train(3, spoiled)
    _, result, folder = days.evaluate(3, champion=spoiled, former_champion=second)
    assert result["next_day"]["verdict"] == "rollback_proposed"
    assert "Rollback proposed" in (folder / "report.html").read_text()
    assert f"warning: a rollback is proposed: {result['next_day']['reasons'][0]}" in capsys.readouterr().err
    _, result, _ = days.evaluate(3, "again", champion=second, former_champion=first)
    assert result["next_day"]["verdict"] == "hold"
    assert "the chain against the champion" in result["next_day"]["reasons"][0]


def test_equal_days_give_equal_bytes_and_history_is_carried_on(days):
    others = {"champion": days.trained[0]}
    _, yesterday, folder = days.evaluate(1, **others)
    days.evaluate(1, "again", **others)
    for file in ("evaluation.json", "report.html"):
        assert (folder / file).read_bytes() == (folder.parent / "again" / file).read_bytes()
    _, result, _ = days.evaluate(2, champion=days.trained[1], yesterday=folder)
    assert [(p["ds"], p["task"]) for p in result["history"]] == [(d, t) for d in DAYS[1:3] for t in ("like", "love")]
    assert result["history"][:2] == yesterday["history"]
    own = json.loads((days.trained[2] / "metrics.json").read_text())["progressive"]["like"]["auc"]
    assert result["history"][2]["auc"] == pytest.approx(own, abs=1e-6)


def test_the_report_stands_alone_and_escapes_what_it_quotes(days):
    days.scenario = little_scenario(days.root, description="<script>alert(1)</script>")
    _, _, folder = days.evaluate(2, champion=days.trained[1])
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "city == &#39;north&#39;" in page
    assert str(days.root) not in page


def test_predictions_of_other_rows_are_refused(days):
    folder = days.day(1)["samples"]
    write_samples(folder, DAYS[1], 1400)
    with pytest.raises(BadInputError, match="1,500 rows, which are not the 1,400"):
        days.evaluate(1)


def test_thirty_four_rows_are_not_judged(tmp_path, capsys):
    """The case of a new user: the interval is narrow by accident, the calibration far from 1, and nothing is known."""
    days = Days(tmp_path, little_scenario(tmp_path))
    days.num_rows = 34
    first = days.train(0, None)
    days.train(1, first)
    metrics, result, folder = days.evaluate(1, champion=first)
    assert result["comparison"]["verdict"] == "unknown"
    assert result["comparison"]["unknown"][1] == "love: 14 rows where 200 are needed"
    assert result["next_day"]["verdict"] == "ok"  # the parent is the champion: nothing to compare
    assert "not_worse" not in metrics
    assert (metrics["judged"], metrics["warnings"]) == (False, 2)
    page = (folder / "report.html").read_text()
    assert "Unknown: too little data to judge" in page
    assert "not worse" not in page
    printed = capsys.readouterr().err
    assert "unknown (14 rows where 200 are needed)" in printed
    assert "warning: love is rare: " in printed


def test_rare_labels_are_named_with_their_calibration(days):
    days.scenario = little_scenario(days.root, evaluate={"bootstrap": 50, "rare_positives": 500})
    _, result, folder = days.evaluate(1, champion=days.trained[0])
    assert len(result["warnings"]) == 1  # like has about 730 positives a day, love about 400
    found = re.match(
        r"love is rare: (\d+) positives on 2024-01-02, (\d+) a day on average over 1 day,", result["warnings"][0]
    )
    assert found and int(found[1]) == int(found[2]) < 500
    low, high = result["overall"]["love"]["challenger"]["calibration_interval"]
    assert f"[{low:.2f}, {high:.2f}])" in result["warnings"][0]
    assert result["warnings"][0] in (folder / "report.html").read_text()


def test_a_history_of_an_older_release_is_read(days):
    _, result, folder = days.evaluate(1, champion=days.trained[0])
    for point in result["history"]:
        del point["positives"]
    (folder / "evaluation.json").write_text(json.dumps(result))
    _, later, _ = days.evaluate(2, champion=days.trained[1], yesterday=folder)
    assert len(later["history"]) == 4


def test_a_first_day_with_few_rows_is_not_called_good(tmp_path, capsys):
    days = Days(tmp_path, little_scenario(tmp_path))
    days.num_rows = 7
    days.train(0, None)
    metrics, _, folder = days.evaluate(0)
    verdicts = {name: value for name, value in metrics.items() if isinstance(value, bool)}
    assert verdicts == {"no_champion_yet": True, "calibration_unknown": True}
    printed = capsys.readouterr().err
    assert "no champion yet; calibration" in printed
    assert " not judged: 3 rows where 200 are needed" in printed
    page = (folder / "report.html").read_text()
    assert page.count(">unknown</td>") == 6  # calibration of two labels: overall and in two segments
    for text in (printed, page):
        assert not re.search(r"\bnan\b|\binf\b|\b1 (rows|positives|days)\b", text)


def with_scores(days: Days, number: int, task: str, value: float, positives: int) -> None:
    """The challenger scores every row of the holdout with `value`, and that many of its labels are 1."""
    path = days.trained[number] / "predictions.parquet"
    table = pq.read_table(path)
    holdout = ~np.isnan(table[f"gate.{task}"].to_numpy())
    labels = (np.cumsum(holdout) <= positives) & holdout
    scores = pa.array(np.where(holdout, value, np.nan), pa.float32(), from_pandas=True)
    for name, column in ((f"gate.{task}", scores), (f"label.{task}", pa.array(labels.astype(np.int8)))):
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)


@pytest.mark.parametrize("positives", [0, 2])
def test_scores_many_times_too_high_are_refused_on_few_positives(days, capsys, positives):
    with_scores(days, 1, "love", 0.5, positives)
    metrics, result, folder = days.evaluate(1, champion=days.trained[0])
    assert metrics["calibrated"] is False
    found = judge_scores(days.scenario, result["overall"]["love"])
    times = {0: r"8\d\.\d", 2: r"4\d\.\d"}[positives]  # 300 promised; at most 3.7, or 7.2, expected
    assert found.verdict == "worse"
    assert re.search(f"scores are at least {times} times too high$", found.reason), found.reason
    printed, page = capsys.readouterr().err, (folder / "report.html").read_text()
    assert f"; {found.reason}\n" in printed  # the same words on the screen, in the report and in deploy's verdict
    assert f"love: {found.reason}" in page
    assert re.search(f"warning: love is rare: {positives} positives .*{found.reason[-40:]} \\(calibration", printed)
    if not positives:
        assert "love: AUC –, champion's –: unknown (0 positives where 30 are needed); calibration – where" in printed
        assert "nan" not in printed and "nan" not in page
