"""The serving form of a checkpoint: int8 embeddings in a table of their own, int8 dense layers in an ONNX graph.

    embeddings.safetensors  keys and rows, as `models.sparse.serving` maps them
    model.onnx              the dense part as QDQ, weights per channel
    serving.json            tasks, layout, the checkpoint's digest, digests of the files beside it
    reference.parquet       rows of features, scores of the fp32 twin and of int8, which every host must reproduce
    quantization.json       size, AUC and calibration of both

Activations are quantized with constants found on calibration rows, so a row's score depends on no other row of its
batch, and weights to 7 bits, so that no x86 instruction saturates and hosts agree.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import GateError
from feature_jobs.schema import Quantize
from feature_jobs.transforms import encode
from models import checkpoints, metrics
from models.batches import open_samples, read_blocks
from models.graph import FORMAT, GRAPH_FILE, SERVING_FILE, TABLE_FILE, Graph, sha256_of
from models.quantization import correct_bias, largest_inputs, quantize_dense, write_graph
from models.ranker import Ranker
from models.sparse.serving import FrozenTable, quantize_rows, slices

JUDGED_ROWS = 200_000
REFERENCE_ROWS = 256
LATENCY_ROWS, LATENCY_RUNS = 500, 20

Facts = dict[str, Any]


def export(checkpoint: Path, samples: Path, output: Path, quantize: Quantize) -> Facts:
    """Exports a checkpoint (folders), judges int8 against fp32 on the day's samples, and returns the comparison.

    Raises GateError where int8 loses more than `quantize` allows, CorruptError for unreadable input.
    """
    ranker = checkpoints.load(checkpoint)
    table = _spread(samples / "samples.parquet", ranker)
    with tempfile.TemporaryDirectory() as scratch:
        twin = Path(scratch) / "fp32.onnx"
        graphs = _write_graphs(ranker, _evenly(table, quantize.calibration_rows), twin, output)
        scores = {name: graph.score(table) for name, graph in graphs.items()}
        files = {"fp32": twin, "int8": output / GRAPH_FILE}
        sizes = {name: files[name].stat().st_size + graph.table.num_bytes for name, graph in graphs.items()}
        facts: Facts = {name: {"bytes": sizes[name], **_judge(ranker.tasks, table, scores[name])} for name in graphs}
        latency_ms = {name: round(_latency_ms(graph, table), 3) for name, graph in graphs.items()}
    checkpoints.write_json(output / "quantization.json", {**facts, "rows": len(table)})
    _write_reference(ranker, table, scores, output / "reference.parquet")
    _write_serving(ranker, checkpoint, output)
    _print_table(ranker.tasks, facts, latency_ms)
    refuse_loss(ranker.tasks, facts, quantize)
    return {**facts, "rows": len(table), "latency_ms": latency_ms, "embedding_rows": len(graphs["int8"].table)}


def _write_graphs(ranker: Ranker, calibration: pa.Table, twin: Path, output: Path) -> dict[str, Graph]:
    """Writes table and graph into `output`, the fp32 twin's graph beside; returns both, loaded."""
    tables = ranker.tables
    keys_R, rows_R = tables.items()
    default_TD, _ = tables.rows.read(tables.default_rows)
    chunks = ((keys_R[part], quantize_rows(tables.rows.read(rows_R[part])[0])) for part in slices(len(keys_R)))
    FrozenTable.from_sorted(chunks, len(keys_R), default_TD).save(output / TABLE_FILE)
    int8_table = FrozenTable.load(output / TABLE_FILE)
    fp32_table = FrozenTable.of(keys_R, tables.rows.read(rows_R)[0], default_TD)

    def load(file: Path, table: FrozenTable) -> Graph:
        return Graph(file, ranker.layout, ranker.tasks, table)

    write_graph(ranker, twin)
    fp32 = load(twin, fp32_table)
    unquantized = twin.with_name("dense.onnx")
    write_graph(ranker, unquantized, largest_inputs(ranker, fp32, calibration))
    quantize_dense(unquantized, output / GRAPH_FILE, load(unquantized, int8_table), calibration)
    found = load(output / GRAPH_FILE, int8_table).score(calibration)
    correct_bias(output / GRAPH_FILE, fp32.score(calibration), found)
    return {"fp32": fp32, "int8": load(output / GRAPH_FILE, int8_table)}


def refuse_loss(tasks: tuple[str, ...], facts: Facts, quantize: Quantize) -> None:
    """Raises GateError where a task's int8 AUC or calibration is further from fp32's than allowed."""
    problems = []
    for task in tasks:
        fp32, int8 = (({k: facts[name][k][task] for k in ("auc", "calibration")}) for name in ("fp32", "int8"))
        if None in (*fp32.values(), *int8.values()):  # one class only: nothing to compare
            continue
        loss, shift = fp32["auc"] - int8["auc"], abs(int8["calibration"] - fp32["calibration"])
        if loss > quantize.max_auc_loss:
            problems.append(
                f"{task}: int8 loses {loss:.5f} AUC ({fp32['auc']:.5f} → {int8['auc']:.5f});"
                f" quantize.max_auc_loss allows {quantize.max_auc_loss:g}"
            )
        if shift > quantize.max_calibration_shift:
            problems.append(
                f"{task}: int8 shifts calibration by {shift:.5f} ({fp32['calibration']:.5f} →"
                f" {int8['calibration']:.5f}); quantize.max_calibration_shift allows {quantize.max_calibration_shift:g}"
            )
    if problems:
        raise GateError("\n".join(problems) + "\nserve the previous version, retrain, or allow more in quantize")


def _spread(file: Path, ranker: Ranker) -> pa.Table:
    """Up to JUDGED_ROWS rows, evenly spread over the day."""
    parquet = open_samples(file, ranker.layout, ranker.tasks)
    num_rows = parquet.metadata.num_rows
    wanted = _even_places(num_rows, JUDGED_ROWS)
    columns = ranker.layout.columns + [f"label.{task}" for task in ranker.tasks]
    parts, begin = [], 0
    for block in read_blocks(parquet, 0, num_rows, JUDGED_ROWS, columns):
        inside = wanted[(wanted >= begin) & (wanted < begin + len(block))] - begin
        parts.append(block.take(pa.array(inside)))
        begin += len(block)
    return pa.concat_tables(parts)


def _even_places(num_rows: int, wanted: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, num_rows - 1, min(num_rows, wanted)).round().astype(np.int64)


def _evenly(table: pa.Table, num_rows: int) -> pa.Table:
    return table.take(pa.array(_even_places(len(table), num_rows)))


def _judge(tasks: tuple[str, ...], table: pa.Table, scores_NT: npt.NDArray[np.float32]) -> Facts:
    facts: Facts = {"auc": {}, "calibration": {}}
    for t, task in enumerate(tasks):
        labels = table.column(f"label.{task}").cast(pa.float32()).to_numpy()
        known = ~np.isnan(labels)
        for name, metric in (("auc", metrics.auc), ("calibration", metrics.calibration)):
            value = metric(labels[known], scores_NT[known, t])
            facts[name][task] = round(value, 6) if np.isfinite(value) else None
    return facts


def _latency_ms(graph: Graph, table: pa.Table) -> float:
    """Median time of one request of up to LATENCY_ROWS rows, from keys and numbers on."""
    encoded = encode(table.slice(0, LATENCY_ROWS), graph.layout)
    times = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        graph.run(encoded)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def _write_reference(ranker: Ranker, table: pa.Table, scores: dict[str, Any], file: Path) -> None:
    places = _even_places(len(table), REFERENCE_ROWS)
    reference = table.select(ranker.layout.columns).take(pa.array(places))
    for name, scores_NT in scores.items():
        for t, task in enumerate(ranker.tasks):
            reference = reference.append_column(f"{name}.{task}", pa.array(scores_NT[places, t], pa.float32()))
    pq.write_table(reference.replace_schema_metadata(None), file, compression="zstd")


def _write_serving(ranker: Ranker, checkpoint: Path, output: Path) -> None:
    facts = checkpoints.read_facts(checkpoint)
    document = {
        "format": FORMAT,
        "scenario": facts["scenario"],
        "ds": facts["ds"],
        "checkpoint": checkpoints.digest_of(checkpoint),
        "tasks": list(ranker.tasks),
        "layout": ranker.layout.to_json(),
        "files": {name: sha256_of(output / name) for name in (GRAPH_FILE, TABLE_FILE)},
    }
    checkpoints.write_json(output / SERVING_FILE, document)


def _print_table(tasks: tuple[str, ...], facts: Facts, latency_ms: dict[str, float]) -> None:
    lines = [f"{'':24}{'fp32':>12}{'int8':>12}"]
    lines.append(f"{'size, bytes':24}{facts['fp32']['bytes']:>12}{facts['int8']['bytes']:>12}")
    lines.append(f"{f'{LATENCY_ROWS} rows, ms':24}{latency_ms['fp32']:>12.2f}{latency_ms['int8']:>12.2f}")
    for metric in ("auc", "calibration"):
        for task in tasks:
            values = [facts[name][metric][task] for name in ("fp32", "int8")]
            shown = "".join(f"{'undefined' if value is None else f'{value:.5f}':>12}" for value in values)
            lines.append(f"{f'{metric} {task}':24}{shown}")
    print("\n".join(lines), file=sys.stderr, flush=True)
