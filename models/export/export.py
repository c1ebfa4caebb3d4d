"""The serving form of a checkpoint: embeddings of 8 or 4 bits in a table, int8 dense layers in an ONNX graph.

    embeddings.safetensors  keys and rows, as `models.runtime.frozen_tables` maps them
    model.onnx              the dense part as QDQ, weights per channel
    serving.json            tasks, layout, the checkpoint's digest, digests of the files beside it
    reference.parquet       rows of features with the scores of int8, which every host must reproduce, and of its fp32
                            counterpart
    quantization.json       size, AUC and calibration of both, and with embeddings of the other number of bits

The ranges of activations are constants, found on calibration rows, so that a row's score does not depend on the other
rows of its batch. Weights have 7 bits, so that no x86 instruction saturates and all hosts compute equal scores.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import GateError
from feature_jobs.schema import Quantize
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.transforms import Encoded, Layout, encode
from models.checkpoints import checkpoint as checkpoints
from models.export.files import QUANTIZATION_FILE
from models.export.quantization import correct_bias, largest_inputs, quantize_dense, write_onnx
from models.metrics import scores as metrics
from models.metrics.judgement import Evidence
from models.ranking.ranker import Ranker
from models.runtime.files import MODEL_FILE, REFERENCE_FILE, SERVING_FILE, TABLE_FILE
from models.runtime.frozen_kernels import row_bytes
from models.runtime.frozen_tables import Bytes, Floats, FrozenTable, Ints, quantize_rows, slices
from models.runtime.onnx_model import (
    BATCH_ROWS,
    FORMAT,
    OnnxModel,
    ServingFacts,
    sha256_of,
)
from models.samplers.batches import open_samples, read_blocks
from models.sparse.tables import DynamicTables

JUDGED_ROWS = 200_000
REFERENCE_ROWS = 256
LATENCY_ROWS, LATENCY_RUNS = 500, 20

ByTask = dict[str, float | None]


class VariantFacts(TypedDict):
    """A variant of the model: bits of its embeddings, its size, and its metrics by task (None: undefined)."""

    bits: int
    bytes: int
    auc: ByTask
    calibration: ByTask


class Variants(TypedDict):
    """The variants that are compared. `int8` serves, with embeddings of `quantize.embedding_bits`; `other` has the
    other number of bits."""

    fp32: VariantFacts
    int8: VariantFacts
    other: VariantFacts


class ExportFacts(Variants):
    """The comparison, on `rows` rows of the day, most of which the model has learned."""

    rows: int
    latency_ms: dict[str, float]
    embedding_rows: int


def export(
    checkpoint: Path, samples: Path, output: Path, quantize: Quantize, needs: Evidence | None = None
) -> ExportFacts:
    """Exports a checkpoint (folders), compares int8 with fp32 on the day's samples, and returns the comparison.

    A task with fewer rows than `needs` is not judged, and quantization.json says why (`unjudged`). Raises GateError if
    int8 loses more than `quantize` allows or weights are not finite, CorruptError for unreadable input.
    """
    ranker = checkpoints.load(checkpoint)
    # Over the whole day, not its first rows: these are of its first hours.
    table = _spread(samples / SAMPLES_FILE, ranker)
    with tempfile.TemporaryDirectory() as scratch:
        batches = list(_batches(table, ranker.layout))
        models = _write_models(ranker, table, batches, quantize, scratch=Path(scratch), output=output)
        scores = _scores(models, batches)
        served = models["int8"].table

        def judged(name: str) -> VariantFacts:
            file = output / MODEL_FILE if name == "int8" else Path(scratch) / f"{name}.onnx"
            bits = models[name].table.bits
            num_bytes = file.stat().st_size + _table_bytes(served, bits)
            auc, calibration = _judge(ranker.tasks, table, scores[name])
            return {"bits": bits, "bytes": num_bytes, "auc": auc, "calibration": calibration}

        facts: Variants = {"fp32": judged("fp32"), "int8": judged("int8"), "other": judged("other")}
        latency_ms = {name: round(_latency_ms(model, table), 3) for name, model in models.items()}
    # Without the latencies, which differ from run to run: equal inputs give equal files.
    unjudged = _unjudged(ranker.tasks, table, needs) if needs else {}
    judged_on = {"rows": len(table), **({"unjudged": unjudged} if unjudged else {})}
    checkpoints.write_json(output / QUANTIZATION_FILE, {**facts, **judged_on})
    del scores["other"]  # never served, so that no server has to reproduce it
    _write_reference(ranker, table, scores, output / REFERENCE_FILE)
    _write_serving(ranker, checkpoint, output)
    _print_table(ranker.tasks, facts, latency_ms, unjudged)
    # Last, so that a refused export can be looked at.
    refuse_loss(tuple(task for task in ranker.tasks if task not in unjudged), facts, quantize)
    return {**facts, "rows": len(table), "latency_ms": latency_ms, "embedding_rows": len(served)}


def _write_models(
    ranker: Ranker, table: pa.Table, batches: list[Encoded], quantize: Quantize, *, scratch: Path, output: Path
) -> dict[str, OnnxModel]:
    """Writes the model that serves into `output` and the other variants into `scratch`; returns all, loaded.

    `batches`: `table`, encoded. The tables of the other variants have only the rows that `table` needs: all rows would
    not fit in memory beside the ranker's.
    """
    tables, bits = ranker.tables, quantize.embedding_bits
    keys_R, rows_R = tables.items()
    default_TD = _finite(tables, tables.default_rows)
    # In chunks: fp32 copies of all rows would double the memory of the largest part.
    chunks = _quantized(tables, keys_R, rows_R, bits)
    FrozenTable.from_sorted(chunks, len(keys_R), default_TD, bits).save(output / TABLE_FILE)
    # Both ascending: the result is, too.
    # assume_unique: both are, and otherwise np.isin would look for repeated keys first.
    judged_C = np.flatnonzero(np.isin(keys_R, _keys_of(batches), assume_unique=True))
    keys_C, weight_CD = keys_R[judged_C], tables.storage.read(rows_R[judged_C])[0]
    other_bits = 4 if bits == 8 else 8
    embeddings = {
        "fp32": FrozenTable.of(keys_C, weight_CD, default_TD),
        "int8": FrozenTable.load(output / TABLE_FILE),
        "other": FrozenTable.of(keys_C, quantize_rows(weight_CD, other_bits), default_TD, other_bits),
    }

    def load(file: Path, name: str) -> OnnxModel:
        return OnnxModel(file, ranker.layout, ranker.tasks, embeddings[name])

    files = {"fp32": scratch / "fp32.onnx", "int8": output / MODEL_FILE, "other": scratch / "other.onnx"}
    calibration = _evenly(table, quantize.calibration_rows)
    write_onnx(ranker, files["fp32"])
    # Scored by ONNX Runtime, not by torch: the comparison is then of the quantization alone.
    fp32 = load(files["fp32"], "fp32")
    wanted_CT = fp32.score(calibration)  # the target of int8's correction
    if not np.isfinite(wanted_CT).all():
        raise GateError(
            "dense part: its weights give scores that are not finite; lower train.learning_rate and train again from"
            " the last day whose scores are finite"
        )
    unquantized = scratch / "dense.onnx"
    write_onnx(ranker, unquantized, largest_inputs(ranker, fp32, calibration))
    quantize_dense(unquantized, files["int8"], load(unquantized, "int8"), calibration)
    # Its dense part is the same; only its bias is corrected for the error of its own embeddings.
    shutil.copyfile(files["int8"], files["other"])
    for name in ("int8", "other"):
        correct_bias(files[name], wanted_CT, load(files[name], name).score(calibration))
    return {"fp32": fp32, **{name: load(files[name], name) for name in ("int8", "other")}}


def _quantized(
    tables: DynamicTables, keys_R: Ints, rows_R: npt.NDArray[np.int32], bits: int
) -> Iterator[tuple[Ints, Bytes]]:
    for part in slices(len(keys_R)):
        yield keys_R[part], quantize_rows(_finite(tables, rows_R[part]), bits)


def _finite(tables: DynamicTables, rows_N: npt.NDArray[np.int32]) -> Floats:
    """Weights [N, D] of rows. Raises GateError if one is not finite."""
    weight_ND, _ = tables.storage.read(rows_N)
    wrong_N = ~np.isfinite(weight_ND).all(1)
    if wrong_N.any():
        names = sorted({tables.names[t] for t in tables.table_R[rows_N[wrong_N]]})
        raise GateError(
            f"embedding table {', '.join(names)}: {int(wrong_N.sum()):,} of {len(rows_N):,} rows have a weight that is"
            " not finite; lower train.embedding_learning_rate and train again from the last day whose weights"
            " are finite"
        )
    return weight_ND


def _keys_of(batches: list[Encoded]) -> Ints:
    """The distinct keys of all batches."""
    found = []
    for encoded in batches:
        keys = [*encoded.slots, *(keys for keys, _ in encoded.bags.values())]
        found.append(pc.unique(pa.array(np.concatenate([np.empty(0, np.int64), *keys]))).to_numpy())
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def _scores(models: dict[str, OnnxModel], batches: list[Encoded]) -> dict[str, Floats]:
    """Probabilities [N, T] of each variant."""
    parts: dict[str, list[Floats]] = {name: [] for name in models}
    for encoded in batches:
        for name, model in models.items():
            parts[name].append(model.run(encoded))
    none = np.zeros((0, len(models["int8"].tasks)), np.float32)
    return {name: np.concatenate([none, *scores]) for name, scores in parts.items()}


def _batches(table: pa.Table, layout: Layout) -> Iterator[Encoded]:
    for begin in range(0, len(table), BATCH_ROWS):
        yield encode(table.slice(begin, BATCH_ROWS), layout)


def _table_bytes(served: FrozenTable, bits: int) -> int:
    """The bytes of a table with all rows, at another number of bits."""
    # Computed, as the other variants' tables have only the judged rows.
    return served.num_bytes + len(served) * (row_bytes(served.dim, bits) - row_bytes(served.dim, served.bits))


def refuse_loss(tasks: tuple[str, ...], facts: Variants, quantize: Quantize) -> None:
    """Raises GateError if a task's int8 AUC or calibration differs from fp32's by more than `quantize` allows."""
    problems = []
    form = f"int8 with embeddings of {quantize.embedding_bits} bits"
    for task in tasks:
        fp32_auc, int8_auc = facts["fp32"]["auc"][task], facts["int8"]["auc"][task]
        fp32_mean, int8_mean = facts["fp32"]["calibration"][task], facts["int8"]["calibration"][task]
        if fp32_auc is None or int8_auc is None or fp32_mean is None or int8_mean is None:
            continue  # one class only: nothing to compare
        # A gain of AUC is not a reason to refuse; a shift of calibration is one in either direction.
        loss, shift = fp32_auc - int8_auc, abs(int8_mean - fp32_mean)
        if loss > quantize.max_auc_loss:
            problems.append(
                f"{task}: {form} loses {loss:.5f} AUC ({fp32_auc:.5f} → {int8_auc:.5f});"
                f" quantize.max_auc_loss allows {quantize.max_auc_loss:g}"
            )
        if shift > quantize.max_calibration_shift:
            problems.append(
                f"{task}: {form} shifts calibration by {shift:.5f} ({fp32_mean:.5f} →"
                f" {int8_mean:.5f}); quantize.max_calibration_shift allows {quantize.max_calibration_shift:g}"
            )
    if problems:
        wider = " set quantize.embedding_bits to 8," if quantize.embedding_bits == 4 else ""
        raise GateError(
            "\n".join(problems) + f"\nkeep serving the previous version, retrain,{wider} or allow more in quantize"
        )


def _spread(file: Path, ranker: Ranker) -> pa.Table:
    """At most JUDGED_ROWS rows, evenly spread over the day."""
    parquet = open_samples(file, ranker.layout, ranker.tasks)
    num_rows = parquet.metadata.num_rows
    wanted = _even_places(num_rows, JUDGED_ROWS)
    columns = ranker.layout.columns + [f"label.{task}" for task in ranker.tasks]
    parts, begin = [], 0
    for block in read_blocks(parquet, 0, num_rows, JUDGED_ROWS, columns):
        # Block by block: a day may not fit in memory, its judged rows do.
        inside = wanted[(wanted >= begin) & (wanted < begin + len(block))] - begin
        parts.append(block.take(pa.array(inside)))
        begin += len(block)
    return pa.concat_tables(parts)


def _even_places(num_rows: int, wanted: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, num_rows - 1, min(num_rows, wanted)).round().astype(np.int64)


def _evenly(table: pa.Table, num_rows: int) -> pa.Table:
    return table.take(pa.array(_even_places(len(table), num_rows)))


def _unjudged(tasks: tuple[str, ...], table: pa.Table, needs: Evidence) -> dict[str, str]:
    """Returns the reason why a task cannot be judged: among few pairs of rows, a single swapped one changes the AUC."""
    found = {}
    for task in tasks:
        labels = table.column(f"label.{task}").drop_null()
        if lacking := needs.lacks(len(labels), int(pc.sum(labels.cast(pa.float64())).as_py() or 0)):
            found[task] = lacking
    return found


def _judge(tasks: tuple[str, ...], table: pa.Table, scores_NT: npt.NDArray[np.float32]) -> tuple[ByTask, ByTask]:
    """AUC and calibration of each task."""
    auc, calibration = ByTask(), ByTask()
    for t, task in enumerate(tasks):
        labels = table.column(f"label.{task}").cast(pa.float32()).to_numpy()
        known = ~np.isnan(labels)
        for found, metric in ((auc, metrics.auc), (calibration, metrics.calibration)):
            value = metric(labels[known], scores_NT[known, t])
            found[task] = round(value, 6) if np.isfinite(value) else None
    return auc, calibration


def _latency_ms(model: OnnxModel, table: pa.Table) -> float:
    """Median time of one request of at most LATENCY_ROWS rows, which are encoded already."""
    encoded = encode(table.slice(0, LATENCY_ROWS), model.layout)
    times = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        model.run(encoded)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)  # the mean would follow single pauses of the machine


def _write_reference(ranker: Ranker, table: pa.Table, scores: dict[str, Floats], file: Path) -> None:
    places = _even_places(len(table), REFERENCE_ROWS)
    reference = table.select(ranker.layout.columns).take(pa.array(places))
    for name, scores_NT in scores.items():
        for t, task in enumerate(ranker.tasks):
            reference = reference.append_column(f"{name}.{task}", pa.array(scores_NT[places, t], pa.float32()))
    # Without the metadata that the samples came with: equal rows must give equal bytes.
    pq.write_table(reference.replace_schema_metadata(None), file, compression="zstd")


def _write_serving(ranker: Ranker, checkpoint: Path, output: Path) -> None:
    facts = checkpoints.read_facts(checkpoint)
    document: ServingFacts = {
        "format": FORMAT,
        "scenario": facts["scenario"],
        "ds": facts["ds"],
        "checkpoint": checkpoints.digest_of(checkpoint),
        "tasks": list(ranker.tasks),
        "layout": ranker.layout.to_json(),
        "files": {name: sha256_of(output / name) for name in (MODEL_FILE, TABLE_FILE)},
    }
    checkpoints.write_json(output / SERVING_FILE, document)


def _print_table(
    tasks: tuple[str, ...], facts: Variants, latency_ms: dict[str, float], unjudged: dict[str, str]
) -> None:
    variants = (facts["fp32"], facts["int8"], facts["other"])
    heads = ("fp32", f"{facts['int8']['bits']} bits", f"({facts['other']['bits']} bits)")
    lines = [f"{'embeddings of':24}" + "".join(f"{head:>12}" for head in heads)]
    lines.append(f"{'size, bytes':24}" + "".join(f"{variant['bytes']:>12,}" for variant in variants))
    times = (latency_ms[name] for name in ("fp32", "int8", "other"))
    lines.append(f"{f'{LATENCY_ROWS:,} rows, ms':24}" + "".join(f"{time_ms:>12.2f}" for time_ms in times))
    metrics_of = {"auc": [v["auc"] for v in variants], "calibration": [v["calibration"] for v in variants]}
    for metric, by_variant in metrics_of.items():
        for task in tasks:
            values = [by_task[task] for by_task in by_variant]
            shown = "".join(f"{'undefined' if value is None else f'{value:.5f}':>12}" for value in values)
            lines.append(f"{f'{metric} {task}':24}{shown}")
    lines.append("The model has learned these rows: compare the columns; `evaluate` judges on rows it had not learned.")
    lines.append("The column in brackets does not serve: it shows what quantize.embedding_bits would change.")
    lines += [f"{task}: the loss by int8 is not judged: {reason}" for task, reason in unjudged.items()]
    print("\n".join(lines), file=sys.stderr, flush=True)
