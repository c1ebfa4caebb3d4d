"""A day of training: predict, then learn, in one pass.

1. The parent's checkpoint is restored into a model with today's features. It scores the whole day before it learns any
   of it: the progressive scores.
2. It learns the day's first rows, shuffled. The last rows by event time, `train.holdout_share` of them, are held out.
3. It scores the holdout: the scores by which the gate judges the challenger that the day may promote.
4. It learns the holdout too. 5. The checkpoint is written, with the scores.

Everything random is seeded by scenario, day and `train.seed`; equal inputs give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from feature_jobs.schema import Scenario
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.schema.processor import slow_precision
from feature_jobs.transforms import Layout
from models.checkpoints import checkpoint as checkpoints
from models.checkpoints.files import METRICS_FILE, PREDICTIONS_FILE
from models.checkpoints.snapshots import Position, Snapshots
from models.distributed.compression import SentBytes
from models.distributed.process_group import Group
from models.metrics import scores as metrics
from models.ranking.placement import make_ranker
from models.ranking.ranker import Ranker
from models.ranking.thread_pool import ThreadPool
from models.samplers.batches import Block, Floats, encoded_blocks, make_block, open_samples, read_blocks
from models.training.footprint import refuse_too_large
from models.training.job import TrainJob
from models.training.progress import Progress
from models.training.series import Series


class TaskMetrics(TypedDict):
    """Metrics of a task's scores on `rows` rows; None where a metric is undefined (one class only)."""

    auc: float | None
    gauc: float | None
    normalized_entropy: float | None
    calibration: float | None
    rows: int
    anonymous: NotRequired[int]  # rows without a user, which GAUC leaves out


class JudgedDay(TypedDict):
    """metrics.json: by task, of the parent's scores for the whole day, and of the model's for the holdout."""

    progressive: dict[str, TaskMetrics]
    holdout: dict[str, TaskMetrics]


class TrainMetrics(TypedDict, total=False):
    """The metrics of a day of training; empty for processes other than rank 0.

    `tables`: see `DynamicTables.report`. `precision`: the one used, never `auto`. `dense_bytes_sent`, and
    with `hierarchical` `dense_bytes_between_nodes`: of several processes only.
    """

    progressive: dict[str, TaskMetrics]
    holdout: dict[str, TaskMetrics]
    num_rows: int
    samples_per_s: int
    learn_s: float
    score_s: float
    embedding_rows: int
    tables: dict[str, dict[str, float]]
    skipped_steps: int
    loss_scale: float
    precision: str
    series: dict[str, list[list[float]]]
    dense_bytes_sent: int
    dense_bytes_between_nodes: int
    checkpoint_bytes: int


KEYS = ["key.event_time", "key.event_row", "key.user"]
REQUEST_KEYS = ["key.item", "key.request"]  # of samples whose rows are shown in requests
PREDICTIONS_ROWS = 1_000_000  # in memory at a time


def train_day(job: TrainJob, group: Group | None = None) -> TrainMetrics:
    """Continues from the parent's checkpoint over a day's samples and writes the next one into the job's `output`.

    `group`: the processes that train together. All are called with the same arguments; rank 0 writes the checkpoint and
    returns the metrics, the others {}.

    Raises CorruptError for an unreadable parent or samples file, BadInputError for samples that do not fit, and for a
    model that is larger than the machine's memory.
    """
    scenario, ds, parent, output = job.scenario, job.ds, job.parent, job.output
    # First: the kernel would kill a process that takes too much, without a word about the setting.
    refuse_too_large(scenario)
    layout, tasks, is_leader = Layout.from_scenario(scenario), scenario.tasks, group is None or group.is_leader
    parquet = open_samples(job.samples / SAMPLES_FILE, layout, tasks, scenario.train.value_weights)
    num_rows = parquet.metadata.num_rows
    # At least a row on each side.
    cut = min(max(round(num_rows * (1 - scenario.train.holdout_share)), 1), max(num_rows - 1, 1))
    # Rows that are learned, scored for the gate, scored by the parent.
    num_passes = num_rows + (num_rows - cut) + (num_rows if parent else 0)
    with reproducible(_seed(scenario, ds)), ThreadPool(scenario.train.threads) as thread_pool:
        ranker = make_ranker(
            layout, tasks, scenario.model, scenario.train, scenario.embeddings, scratch=output, group=group
        )
        ranker.thread_pool = thread_pool
        if is_leader and (warning := slow_precision(ranker.train.precision, ranker.device.type)):
            print(f"train {ds}: warning: {warning}", file=sys.stderr, flush=True)
        bar = Progress(f"train {ds}", num_passes, job.progress, quiet=not is_leader)
        day = _Day(scenario, ds, parquet, ranker, Snapshots(job.resume), bar, Series(scenario.train.learning_rate))
        day.score_and_learn(parent, cut)
        # Here and not at the next day's start: a day's evictions belong to its own checkpoint and digest.
        ranker.tables.make_room(over=day.number)
        day.progress.close()
    progressive_NT, gate_NT = day.scores["progressive"], day.scores["gate"]
    facts = {
        "format": 1,
        "scenario": scenario.name,
        "ds": ds,
        "parent": checkpoints.digest_of(parent) if parent else None,
        "num_rows": num_rows,
        "restored": day.restored,
    }
    sent = None
    if ranker.exchange is not None:
        ranker.exchange.gather_residual()
        sent = ranker.exchange.report()
    checkpoints.save(ranker, output if is_leader else None, facts)
    if not is_leader:
        return TrainMetrics()
    _write_predictions(parquet, tasks, progressive_NT, gate_NT, output / PREDICTIONS_FILE)
    judged = _judge(parquet, tasks, progressive_NT if parent else None, gate_NT)
    checkpoints.write_json(output / METRICS_FILE, judged)
    return _report(day, judged, sent, output)


def score(checkpoint: Path, samples: pa.Table) -> dict[str, Floats]:
    """Probabilities [N] of each task for rows that have the checkpoint's feature columns.

    Raises CorruptError for an unreadable checkpoint, BadInputError for a missing or mistyped column.
    """
    ranker = checkpoints.load(checkpoint)
    scores_NT = ranker.score(make_block(samples, ranker.layout, ranker.tasks))
    return {task: scores_NT[:, t] for t, task in enumerate(ranker.tasks)}


@dataclass
class _Day:
    """The samples of a day, learned and scored by ranges of rows. `position`: its progress."""

    scenario: Scenario
    ds: str
    parquet: pq.ParquetFile
    ranker: Ranker
    snapshots: Snapshots
    progress: Progress
    series: Series
    position: Position = field(default_factory=Position)
    restored: checkpoints.Restored = field(default_factory=checkpoints.Restored)
    scores: dict[str, Floats] = field(default_factory=dict)
    rows_learned: int = 0
    learn_s: float = 0.0
    score_s: float = 0.0

    @property
    def number(self) -> int:
        """The day as a number, counted from year 1."""
        return date.fromisoformat(self.ds).toordinal()

    def score_and_learn(self, parent: Path | None, cut: int) -> None:
        """The parent scores all rows, then rows are learned; those from `cut` on are scored just before."""
        num_rows, num_tasks = self.parquet.metadata.num_rows, len(self.scenario.tasks)
        if not self.resume():
            if parent:
                self.restored = checkpoints.restore(self.ranker, parent)
            self.ranker.tables.start_day()
            # Before a row is learned, and for the whole day: this is the honest metric of the next day.
            self.scores["progressive"] = self.score(0, num_rows) if parent else _unknown(num_rows, num_tasks)
        # A resumed run that is in the holdout has the scores of it in its snapshot: its weights know some rows already.
        if not self.position.in_holdout:
            self.learn(0, cut)
            self.scores["gate"] = np.concatenate([_unknown(cut, num_tasks), self.score(cut, num_rows)])
            # From here on the gate's scores are part of a snapshot.
            self.advance_to(Position(self.position.rows, in_holdout=True))
        self.learn(cut, num_rows)

    def resume(self) -> bool:
        """Continues from the last snapshot of a killed run. Returns False if there is none."""
        found = self.snapshots.load(self.ranker)
        if found is None:
            return False
        self.position, self.restored, self.scores = found
        return True

    def advance_to(self, position: Position) -> None:
        """Records the new position, and writes a snapshot every `train.snapshot_rows` rows."""
        rows_before = self.position.rows // self.scenario.train.snapshot_rows
        self.position = position
        if position.rows // self.scenario.train.snapshot_rows > rows_before:
            if self.ranker.exchange is not None:
                self.ranker.exchange.gather_residual()  # also without a folder for snapshots, because it changes bits
            self.snapshots.save(self.ranker, position, self.restored, self.scores)

    def learn(self, begin: int, end: int) -> None:
        """One pass over rows [begin, end), shuffled inside blocks of `train.shuffle_rows`."""
        started = time.perf_counter()
        self.series.start_clock()
        for number, block in enumerate(self._blocks(begin, end, self.position.blocks), self.position.blocks):
            # A seed for each block, so that a run that is resumed between blocks draws the same order.
            shuffle = np.random.default_rng(_seed(self.scenario, self.ds, begin, number))
            batches = block.batches(self.scenario.train.batch_size, shuffle.permutation(len(block)))
            for num_rows, loss in self.ranker.learn(batches, self.number):
                self.progress.advance(num_rows, f"loss {loss:.4f}")
                self.series.add(num_rows, loss)
            self.rows_learned += len(block)
            self.advance_to(Position(self.position.rows + len(block), self.position.in_holdout, number + 1))
        self.learn_s += time.perf_counter() - started

    def _blocks(self, begin: int, end: int, skip: int = 0) -> Iterator[Block]:
        layout, tasks = self.ranker.layout, self.ranker.tasks
        weights = [f"value.{task}" for task in self.scenario.train.value_weights]
        columns = [*layout.columns, *(f"label.{task}" for task in tasks), *weights]
        # Blocks that a killed run has learned are read and dropped, but not encoded.
        tables = read_blocks(self.parquet, begin, end, self.scenario.train.shuffle_rows, columns)
        return encoded_blocks(itertools.islice(tables, skip, None), layout, tasks)

    def score(self, begin: int, end: int) -> Floats:
        """Probabilities [end - begin, T]."""
        started = time.perf_counter()
        scores = [_unknown(0, len(self.ranker.tasks))]
        for block in self._blocks(begin, end):
            scores.append(self.ranker.score(block))
            self.progress.advance(len(block), "scoring", scored=True)
        self.score_s += time.perf_counter() - started
        return np.concatenate(scores)


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds torch and sets it to deterministic kernels of one thread each; restores its settings afterwards."""
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        # The same as use_deterministic_algorithms(True), which would also import torch's compiler (2 s).
        torch.set_deterministic_debug_mode("error")
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_deterministic_debug_mode(before[1])


def _seed(scenario: Scenario, ds: str, *part: int) -> int:
    """A seed that is equal in every process, which Python's own hash of text is not."""
    text = "\0".join([scenario.name, ds, str(scenario.train.seed), *map(str, part)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def _unknown(num_rows: int, num_tasks: int) -> Floats:
    return np.full((num_rows, num_tasks), np.nan, np.float32)


def _report(day: _Day, judged: JudgedDay, sent: SentBytes | None, output: Path) -> TrainMetrics:
    """The metrics of a day that is learned and written."""
    metrics: TrainMetrics = {
        "progressive": judged["progressive"],
        "holdout": judged["holdout"],
        "num_rows": day.parquet.metadata.num_rows,
        "samples_per_s": round(day.rows_learned / max(day.learn_s, 1e-9)),
        "learn_s": round(day.learn_s, 3),
        "score_s": round(day.score_s, 3),
        "embedding_rows": len(day.ranker.tables),
        "tables": day.ranker.tables.report(),
        "skipped_steps": day.ranker.scaler.skipped,
        "loss_scale": day.ranker.scaler.scale,
        "precision": day.ranker.train.precision,
        "series": day.series.report(),
        "checkpoint_bytes": sum(file.stat().st_size for file in output.iterdir()),
    }
    if sent is not None:
        metrics["dense_bytes_sent"] = sent.total
        if sent.between_nodes is not None:
            metrics["dense_bytes_between_nodes"] = sent.between_nodes
    return metrics


def _write_predictions(
    parquet: pq.ParquetFile, tasks: tuple[str, ...], progressive_NT: Floats, gate_NT: Floats, file: Path
) -> None:
    """Keys, labels and scores of every row, a block at a time."""
    of_request = REQUEST_KEYS if "key.request" in parquet.schema_arrow.names else []
    columns = [*KEYS, *of_request, *(f"label.{task}" for task in tasks)]
    writer, begin = None, 0
    for table in read_blocks(parquet, 0, parquet.metadata.num_rows, PREDICTIONS_ROWS, columns):
        rows = slice(begin, begin + len(table))
        # Without the metadata that the samples came with: equal rows must give equal bytes.
        scored = table.replace_schema_metadata(None)
        for kind, scores_NT in (("progressive", progressive_NT), ("gate", gate_NT)):
            for t, task in enumerate(tasks):
                scores = pa.array(scores_NT[rows, t], pa.float32(), from_pandas=True)  # NaN becomes null
                scored = scored.append_column(f"{kind}.{task}", scores)
        writer = writer or pq.ParquetWriter(file, scored.schema, compression="zstd")
        writer.write_table(scored)
        begin = rows.stop
    if writer:
        writer.close()


def _judge(
    parquet: pq.ParquetFile, tasks: tuple[str, ...], progressive_NT: Floats | None, gate_NT: Floats
) -> JudgedDay:
    """Metrics of each task, without the rows whose label is unknown and those that have no score."""
    table = parquet.read(["key.user", *(f"label.{task}" for task in tasks)])
    users = table.column("key.user").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)

    def judged(scores_NT: Floats) -> dict[str, TaskMetrics]:
        by_task = {}
        for t, task in enumerate(tasks):
            labels = table.column(f"label.{task}").cast(pa.float32()).to_numpy()  # null becomes NaN
            # Unknown labels are not zeros: counted as such, they would lower every metric.
            kept = ~(np.isnan(labels) | np.isnan(scores_NT[:, t]))
            by_task[task] = _metrics(users[kept], labels[kept], scores_NT[kept, t])
        return by_task

    return {"progressive": {} if progressive_NT is None else judged(progressive_NT), "holdout": judged(gate_NT)}


def _metrics(users: Any, labels: Floats, scores: Floats) -> TaskMetrics:
    found: TaskMetrics = {
        "auc": _defined(metrics.auc(labels, scores)),
        "gauc": _defined(metrics.gauc(users, labels, scores)),
        "normalized_entropy": _defined(metrics.normalized_entropy(labels, scores)),
        "calibration": _defined(metrics.calibration(labels, scores)),
        "rows": len(labels),
    }
    if num_anonymous := int(np.isnan(users).sum()):
        found["anonymous"] = num_anonymous
    return found


def _defined(value: float) -> float | None:
    """JSON has no NaN: an undefined metric is null."""
    return round(value, 6) if np.isfinite(value) else None
