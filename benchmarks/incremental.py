"""Next-day quality and cost of incremental training against cold start and full retrain, on the days of a scenario.

    python -m benchmarks.incremental [--scenario kuairand] [--data FOLDER] [--days 14]
        [--work FOLDER] [--strategies incremental cold retrain shuffled] [--output FILE.json]

Ingests and joins the days once, into a store in `--work` (kept, so a second call begins at once). Then each whole day
is scored by models that were trained on earlier days only:

- incremental: yesterday's checkpoint, trained on one more day, as `recloop run` does
- cold: a new model, trained on yesterday alone
- retrain: a new model, trained on all days in order; incremental training gives the same bits
- shuffled: a new model, trained on all days with their rows shuffled together; one pass, like the others

Each is `models.training.day.train_day` with the scenario's own settings, not training code of its own. `--set`
changes some. Rows and seconds are those of learning; scoring and files do not count.
"""

from __future__ import annotations

import os

# Before torch is loaded, which reads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.days import parse_ds
from feature_jobs.schema.files import SAMPLES_FILE
from models.checkpoints.checkpoint import digest_of
from models.metrics import scores as metrics
from models.training.day import score, train_day
from models.training.job import TrainJob
from tasks.commands.common import scenario_file
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store

MEASURES = ("auc", "gauc")


@dataclass(frozen=True)
class Trained:
    """A model that is to score a day, and the rows and seconds of its training."""

    checkpoint: Path
    rows: int
    seconds: float


Strategy = Callable[[Sequence[str]], Trained]


class Strategies:
    """Trains a model on the days before the one that it will score. Writes into `folder`."""

    def __init__(self, scenario: Scenario, samples: dict[str, Path], folder: Path) -> None:
        self.scenario, self.samples, self.folder = scenario, samples, folder
        self.chain: Path | None = None

    def incremental(self, days: Sequence[str]) -> Trained:
        """Yesterday's checkpoint and yesterday."""
        trained = self._train(days[-1], self.samples[days[-1]], self.chain, f"incremental-{days[-1]}")
        if self.chain is not None:
            shutil.rmtree(self.chain)
        self.chain = trained.checkpoint
        return trained

    def cold(self, days: Sequence[str]) -> Trained:
        """Yesterday alone."""
        return self._train(days[-1], self.samples[days[-1]], None, "cold")

    def retrain(self, days: Sequence[str]) -> Trained:
        """All days, in order."""
        parent: Path | None = None
        rows, seconds = 0, 0.0
        for number, ds in enumerate(days):
            trained = self._train(ds, self.samples[ds], parent, f"retrain-{number % 2}")
            parent, rows, seconds = trained.checkpoint, rows + trained.rows, seconds + trained.seconds
        if parent is None:
            raise ValueError("no day to train")
        return Trained(parent, rows, seconds)

    def shuffled(self, days: Sequence[str]) -> Trained:
        """All days as one. Rows are in order of time, so the holdout, which is learned last, is the newest fifth."""
        together = self.folder / "together"
        together.mkdir(exist_ok=True)
        tables = [pq.read_table(self.samples[ds] / SAMPLES_FILE) for ds in days]
        pq.write_table(pa.concat_tables(tables).replace_schema_metadata(None), together / SAMPLES_FILE)
        return self._train(days[-1], together, None, "shuffled")

    def _train(self, ds: str, samples: Path, parent: Path | None, name: str) -> Trained:
        output = self.folder / name
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        metrics = train_day(TrainJob(self.scenario, ds, samples, parent, output))
        return Trained(output, metrics["num_rows"], metrics["learn_s"])


def prepare(scenario: Scenario, work: Path, num_days: int) -> dict[str, Path]:
    """Folders with the samples of the first days, ingested and joined where they are not yet."""
    store, samples = open_store(work / "store", scenario.name), dict[str, Path]()
    day, last = scenario.data.days.first, scenario.data.days.last
    while len(samples) < num_days and (last is None or day <= last):
        ds = str(day)
        if day not in scenario.data.days.skip:
            for step in ("ingest", "join"):
                run_step(step, scenario, ds, store, track=False)
            commit = store.find("join", ds)
            if commit is None:
                raise LookupError(f"{ds}: the join step ended well, but left no commit")
            samples[ds] = commit.folder
            print(f"{ds}: joined", file=sys.stderr, flush=True)
        day = parse_ds(ds) + timedelta(days=1)
    return samples


def judge(checkpoint: Path, samples: Path, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """AUC and GAUC of each task over a day that the checkpoint has not seen; unknown labels are left out."""
    table = pq.read_table(samples / SAMPLES_FILE)
    users = table.column("key.user").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    scores = score(checkpoint, table)
    judged = {}
    for task in tasks:
        labels = table.column(f"label.{task}").cast(pa.float32()).to_numpy()
        known = ~np.isnan(labels)
        judged[task] = {
            "auc": metrics.auc(labels[known], scores[task][known]),
            "gauc": metrics.gauc(users[known], labels[known], scores[task][known]),
        }
    return judged


def replay(
    scenario: Scenario, samples: dict[str, Path], folder: Path, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A record for each strategy on each day but the first."""
    strategies, days = Strategies(scenario, samples, folder), sorted(samples)
    strategies.cold(days[:1])  # off the clock: compiled kernels are loaded from disk
    for number, ds in enumerate(days[1:], 1):
        digests = {}
        for name in names:
            trained = getattr(strategies, name)(days[:number])
            digests[name] = digest_of(trained.checkpoint)
            yield {
                "ds": ds,
                "strategy": name,
                "rows_learned": trained.rows,
                "learn_s": round(trained.seconds, 2),
                "checkpoint": digests[name][:12],
                **judge(trained.checkpoint, samples[ds], scenario.tasks),
            }
            print(f"{ds}: {name}", file=sys.stderr, flush=True)


def markdown(records: list[dict[str, Any]], tasks: Sequence[str], names: Sequence[str]) -> str:
    """For each task its days, then the means over days and the cost."""
    by_day: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        by_day.setdefault(record["ds"], {})[record["strategy"]] = record
    heads = [f"{name} {measure.upper()}" for name in names for measure in MEASURES]
    lines = []
    for task in tasks:
        rows = [[ds, *(day[n][task][m] for n in names for m in MEASURES)] for ds, day in by_day.items()]
        means = np.nanmean([row[1:] for row in rows], 0)
        lines += [f"### {task}", "", *_table(["day", *heads], [*rows, ["mean", *means]]), ""]
    costs = []
    for name in names:
        own = [record for record in records if record["strategy"] == name]
        rows_learned, learn_s = (sum(record[key] for record in own) for key in ("rows_learned", "learn_s"))
        costs.append([name, f"{rows_learned:,}", f"{learn_s:.1f}", f"{own[-1]['learn_s']:.1f}"])
    lines += ["### Cost", "", *_table(["", "rows learned", "seconds", "seconds of the last day"], costs)]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    shown = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *shown)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="kuairand")
    parser.add_argument("--data", type=Path, help="folder of the logs, instead of the scenario's")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--work", type=Path, help="folder that keeps the joined days")
    parser.add_argument("--strategies", nargs="+", default=["incremental", "cold", "retrain", "shuffled"])
    parser.add_argument("--set", dest="settings", nargs="*", default=[], metavar="PATH=VALUE", help="of the scenario")
    parser.add_argument("--output", type=Path, help="every record as JSON")
    args = parser.parse_args()
    unknown = set(args.strategies) - {"incremental", "cold", "retrain", "shuffled"}
    if unknown:
        parser.error(f"--strategies {' '.join(sorted(unknown))}: not one of incremental, cold, retrain, shuffled")
    if args.days < 2:
        parser.error(f"--days {args.days}: two at least, one to learn and one to score")
    overrides = {path: json.loads(value) for path, value in (text.split("=", 1) for text in args.settings)}
    data = args.data.resolve() if args.data else None
    scenario = load_scenario(scenario_file(args.scenario), data=data, overrides=overrides)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        samples = prepare(scenario, work, args.days)
        models = Path(scratch) / "models"
        models.mkdir()
        records = list(replay(scenario, samples, models, args.strategies))
    print(markdown(records, scenario.tasks, args.strategies))
    if args.output:
        args.output.write_text(json.dumps({"scenario": scenario.name, "records": records}, indent=1) + "\n")
    chains = {name: [r["checkpoint"] for r in records if r["strategy"] == name] for name in ("incremental", "retrain")}
    if all(chains.values()):
        same = sum(a == b for a, b in zip(*chains.values(), strict=True))
        print(f"\nIncremental checkpoints that equal the retrain's, bit for bit: {same} of {len(chains['retrain'])}")


if __name__ == "__main__":
    main()
