"""A tiny scenario with a space to search, and a call of `tune` on its days."""

import json
from pathlib import Path

from feature_jobs.schema import load_scenario
from tasks.contract import DayConfig
from tasks.tune import tune

DAYS = ["2022-04-01", "2022-04-02", "2022-04-03"]
SCENARIO = """\
# What this is for.
name: tiny
data:
  path: .
  events:
    path: events.csv
    format: csv
    time: {column: t}
    columns: {t: {type: int}, user: {type: int}, item: {type: int}, age: {type: int}, liked: {type: int}}
  user: user
  item: item
  days: {first: 2022-04-01}
labels: {like: liked == 1}
features:
  item: {kind: id}               # predicts a little
  age: {kind: number}
  recent: {kind: count, by: [user], window_days: 7}
model:
  embedding_dim: 4
  bottom: [8]
  tower: [4]
train: {batch_size: 64, threads: 1, learning_rate: 0.00001}  # far too slow
"""
TUNE = """
tune:
  trials: 5
  replay_days: 2
  space:
    train.learning_rate: {low: 0.0001, high: 0.1, log: true}
    model.bottom: {choices: [[8], [16, 8]]}
    "features.*.enabled": {choices: [true, false]}
"""


def run(folder: Path, chain: Path, section: str = TUNE, champion: Path | None = None, **options) -> tuple[dict, Path]:
    """Runs the step in `folder`; returns its metrics and its output folder."""
    folder.mkdir(exist_ok=True)
    if not (folder / "tiny.yaml").exists():
        (folder / "tiny.yaml").write_text(SCENARIO + section)
    output = folder / "proposal"
    output.mkdir(exist_ok=True)
    samples = {ds: chain / "samples" / ds for ds in DAYS}
    config = DayConfig(load_scenario(folder / "tiny.yaml"), DAYS[2], options=options)
    metrics = tune(
        config,
        samples=samples.pop(DAYS[2]),
        history=samples,
        checkpoints={DAYS[0]: chain / "checkpoint"},
        champion=champion,
        events=None,
        past_events={},
        proposal=output,
    )
    return metrics, output


def proposal_of(output: Path) -> dict:
    return json.loads((output / "proposal.json").read_text())
