"""A replay whose scenario changes on its fourth day: `recloop plan` says before what the training will do."""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from feature_jobs.schema import load_scenario
from feature_jobs.transforms import Layout
from tasks.commands.cli import main
from tasks.run.runner import run_step
from tasks.store.scenario_store import Commit, open_store
from tests.small import days, write_day, write_small

DAYS = days(4)
CASES: dict[str, dict[str, Any]] = {
    "feature": {"features.tint": {"kind": "ids", "of": "product.colours", "embedding": {"min_count": 2}}},
    "dimension": {"model.embedding_dim": 6},
    "optimizer": {"train.embedding_optimizer": "adam"},
    "less": {"features.colours.enabled": False, "features.seen.enabled": False},
}


def train(scenario_file: Path, store: Path, ds: str, overrides: dict[str, Any] | None = None) -> None:
    scenario = load_scenario(scenario_file, overrides=overrides)
    for name in ("ingest", "summarize", "join", "validate", "train"):
        run_step(name, scenario, ds, open_store(store, "shop"), track=False)


@pytest.fixture(scope="module")
def three_days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The scenario's file, and a store with three days trained."""
    folder = tmp_path_factory.mktemp("shop")
    scenario = write_small(folder, num_days=4)
    write_day(folder, DAYS[3], rows=20)  # so that most ids have a quiet day
    for ds in DAYS[:3]:
        train(scenario, folder / "store", ds)
    return scenario, folder / "store"


def checkpoint(store: Path, ds: str) -> Commit:
    commit = open_store(store, "shop").find("train", ds)
    assert commit is not None
    return commit


def plan(scenario: Path, store: Path, overrides: dict[str, Any], *more: str) -> str:
    settings = [text for path, value in overrides.items() for text in ("--set", f"{path}={json.dumps(value)}")]
    command = ["plan", "-s", str(scenario), "--store", str(store), "--ds", DAYS[3], *settings, *more]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


class Row(NamedTuple):
    weights: np.ndarray
    state: np.ndarray
    day: int


def rows_of(folder: Path) -> dict[tuple[str, int], Row]:
    """{(table, key): row} of a checkpoint."""
    facts = json.loads((folder / "checkpoint.json").read_text())
    names = Layout.from_json(facts["layout"]).namespaces
    rows = load_file(folder / "embeddings.safetensors")
    sparse = load_file(folder / "optimizer.safetensors")
    keys = [(names[table], int(key)) for table, key in zip(rows["tables"], rows["keys"], strict=True)]
    found = zip(rows["weights"], sparse["embeddings/state"], sparse["embeddings/days"].tolist(), strict=True)
    return dict(zip(keys, itertools.starmap(Row, found), strict=True))


WORDS = {
    "feature": ["tint     new", "shopper  restored       40", "min_count 2", "1 new, 0 resized, 0 dropped",
                "new: architecture.first.0.weight:tint", "the sketch of ids without a row 16.0 MiB"],
    "dimension": ["in all rows: from parent = restored", "0 new, 4 resized, 0 dropped",
                  "resized: architecture.first.0.weight:",
                  "embedding_dim 4 → 6: the first 4 are kept, the others are initialized"],
    "optimizer": ["0 new, 0 resized, 0 dropped",
                  "embedding_optimizer rowwise_adagrad → adam: weights are kept, its state starts from zero"],
    "less": ["colours  dropped         3", "0 new, 0 resized, 3 dropped",
             "dropped: architecture.first.0.weight:colours, architecture.first.0.weight:seen:number, standardize."],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_changes_of_a_day_are_shown_before_and_all_else_is_kept(
    three_days: tuple[Path, Path], tmp_path: Path, case: str
) -> None:
    (scenario, before), overrides = three_days, CASES[case]
    store = tmp_path / "store"
    shutil.copytree(before, store)
    parent = checkpoint(store, DAYS[2])

    shown = plan(scenario, store, overrides)
    assert f"training of {DAYS[3]} starts from the checkpoint of {DAYS[2]} ({parent.digest[:12]})" in shown
    for words in WORDS[case]:
        assert words in shown
    foreseen = json.loads(plan(scenario, store, overrides, "--json"))["training"]

    train(scenario, store, DAYS[3], overrides)
    child = checkpoint(store, DAYS[3])
    assert json.loads((child.folder / "checkpoint.json").read_text())["restored"] == foreseen["changes"]

    old, new = rows_of(parent.folder), rows_of(child.folder)
    today = datetime.date.fromisoformat(DAYS[3]).toordinal()
    unseen = [key for key in old if key in new and new[key].day < today]
    assert len(unseen) > 20
    assert {table for table, _ in old.keys() - new.keys()} == ({"colours"} if case == "less" else set())
    assert {table for table, _ in new.keys() - old.keys()} == ({"tint"} if case == "feature" else set())
    for key in unseen:
        assert np.array_equal(new[key].weights[:4], old[key].weights)
        kept = new[key].state.any() if case == "optimizer" else not np.array_equal(new[key].state, old[key].state)
        assert not kept, "the state is unchanged, but belongs to another optimizer, whose state starts from zero"
    if case in ("feature", "optimizer"):  # new parts change no score before they are learned
        unchanged = tmp_path / "unchanged"
        shutil.copytree(before, unchanged)
        train(scenario, unchanged, DAYS[3])
        scores = [
            pq.read_table(checkpoint(root, DAYS[3]).folder / "predictions.parquet")["progressive.buy"].to_numpy()
            for root in (store, unchanged)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.slow
def test_without_a_checkpoint_the_plan_shows_what_is_known(three_days: tuple[Path, Path], tmp_path: Path) -> None:
    scenario, _ = three_days
    overrides = {"features.shopper.embedding": {"capacity": 1000, "ttl_days": 3}, "train.cache_rows": 5000}
    shown = plan(scenario, tmp_path, overrides)
    assert f"training of {DAYS[3]} starts without a checkpoint" in shown
    assert "blocked" in shown
    assert "29.3 KiB  ttl_days 3, capacity 1000" in shown
    assert "a row = 30 B" in shown
    assert "unbounded" in shown
    assert "at most 5,000 rows are cached where they are learned, the others are in a file" in shown


@pytest.mark.slow
def test_where_all_is_done_the_plan_shows_the_next_training(three_days: tuple[Path, Path]) -> None:
    scenario, store = three_days
    command = ["plan", "-s", str(scenario), "--store", str(store), "--to", DAYS[2]]
    shown = CliRunner().invoke(main, command, catch_exceptions=False).output
    assert f"the next training starts from the checkpoint of {DAYS[2]}" in shown
    assert "21 tensors restored, 0 new, 0 resized, 0 dropped" in shown
