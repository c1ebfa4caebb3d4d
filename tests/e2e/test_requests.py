"""Days of a log whose rows are shown in requests, from the source to the evaluation."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from feature_jobs.checks.check import check
from feature_jobs.schema import Scenario, load_scenario
from tasks.commands.cli import main
from tasks.run.runner import run_step
from tasks.steps import STEPS
from tasks.store.scenario_store import ScenarioStore, open_store
from tasks.tracking.values import headline
from tests.small import days, write_csv, write_small

DAYS = days(2)
COMPARING: dict[str, dict[str, Any]] = {
    "size": {"kind": "request", "operation": "size"},
    "place": {"kind": "request", "operation": "position"},
    "dearest": {"kind": "request", "operation": "rank", "of": "product.price"},
    "rate_share": {"kind": "request", "operation": "share", "of": "buy_rate", "buckets": 10},
    "again": {"kind": "match", "of": "product", "sequence": "bought_before"},
}
OVERRIDES: dict[str, Any] = {
    "data.request": "shown",
    "data.events.columns.shown": {"type": "string", "required": True},
    **{f"features.{name}": feature for name, feature in COMPARING.items()},
    "evaluate.ndcg_k": 3,
    "evaluate.segments": {},
    "train.learning_rate": 0.02,
}


def _write_requests(folder: Path, ds: str) -> None:
    """Four products in each request; the shopper mostly buys the dearest of them, whatever its price."""
    rng, rows = random.Random(ds), []
    begin = datetime.datetime.fromisoformat(ds)
    for number in range(250):
        at, shopper = begin + datetime.timedelta(seconds=300 * number), f"s{rng.randrange(40)}"
        products = rng.sample(range(30), 4)
        for product in products:
            bought = int((product == max(products)) != (rng.random() < 0.05))
            rows.append([shopper, product, bought, rng.choice([1, 5]), f"{ds}-{number}", at.isoformat(sep=" ")])
    header = ["shopper", "product", "bought", "rated", "shown", "at"]
    write_csv(folder / "data" / "events" / f"{ds}.csv", header, rows)


def _run(scenario: Scenario, store: ScenarioStore) -> dict[str, float]:
    """Metrics that the last evaluation shows in MLflow."""
    for ds in DAYS:
        for name in ("ingest", "summarize", "join", "validate", "train", "evaluate"):
            done = run_step(name, scenario, ds, store, track=False)
    return dict(headline(done.metrics, STEPS["evaluate"].headline))


@pytest.mark.slow
def test_a_scenario_with_requests_is_trained_and_judged_per_request(tmp_path: Path) -> None:
    file = write_small(tmp_path, num_days=2)
    for ds in DAYS:
        _write_requests(tmp_path, ds)
    scenario, store = load_scenario(file, overrides=OVERRIDES), open_store(tmp_path / "store", "shop")
    check(scenario)
    shown = _run(scenario, store)
    evaluated, trained = store.find("evaluate", DAYS[1]), store.find("train", DAYS[1])
    assert evaluated and trained
    result = json.loads((evaluated.folder / "evaluation.json").read_text())
    found = result["overall"]["buy"]["challenger"]
    # Only the place among the four decides, which no feature of a row alone knows.
    assert found["per_request"]["requests"] > 20
    assert found["per_request"]["auc"] > 0.95
    assert found["per_request"]["ndcg"] > 0.95
    assert found["per_request"]["mrr"] > 0.95
    assert shown["challenger_ndcg/buy"] == pytest.approx(found["per_request"]["ndcg"])
    (of_day,) = [point["per_request"] for point in result["history"] if point["task"] == "buy"]
    assert [shown[f"request_{name}/buy"] for name in ("auc", "ndcg", "mrr")] == pytest.approx(
        [of_day[name] for name in ("auc", "ndcg", "mrr")]
    )
    assert "NDCG@3" in (evaluated.folder / "report.html").read_text()
    settings = [text for path, value in OVERRIDES.items() for text in ("--set", f"{path}={json.dumps(value)}")]
    command = ["compare", "-s", str(file), "--store", str(tmp_path / "store"), *settings]
    compared = CliRunner().invoke(main, [*command, "committed", DAYS[1]], catch_exceptions=False)
    figures = {"request AUC": "auc", "NDCG": "ndcg", "MRR": "mrr"}
    of_requests = ", ".join(f"{title} = {of_day[name]:.4f}" for title, name in figures.items())
    assert of_requests in compared.stdout  # in words, as both are the same day
    predictions = pq.read_table(trained.folder / "predictions.parquet")
    assert predictions["key.request"][0].as_py().startswith(DAYS[1])
    assert predictions["key.item"].null_count == 0
