"""The serving form of a checkpoint: embeddings of 8 or 4 bits in a table, int8 dense layers in an ONNX graph.

    embeddings.safetensors  keys and rows, as `models.runtime.frozen_tables` maps them
    model.onnx              the dense part as QDQ, weights per channel
    serving.json            tasks, layout, the checkpoint's digest, digests of the files beside it
    reference.parquet       rows of features, scores of the fp32 twin and of int8, which every host must reproduce
    quantization.json       size, AUC and calibration of both, and of embeddings of the other number of bits

Activations are quantized with constants found on calibration rows, so a row's score depends on no other row of its
batch, and weights to 7 bits, so that no x86 instruction saturates and hosts agree.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import GateError
from feature_jobs.schema import Quantize
from feature_jobs.transforms import Encoded, Layout, encode
from models.checkpoints import checkpoint as checkpoints
from models.export.files import QUANTIZATION_FILE
from models.export.quantization import correct_bias, largest_inputs, quantize_dense, write_graph
from models.metrics import scores as metrics
from models.ranking.ranker import Ranker
from models.runtime.frozen_kernels import row_bytes
from models.runtime.frozen_tables import Bytes, Floats, FrozenTable, Ints, quantize_rows, slices
from models.runtime.onnx_model import BATCH_ROWS, FORMAT, GRAPH_FILE, SERVING_FILE, TABLE_FILE, Graph, sha256_of
from models.samplers.batches import open_samples, read_blocks
from models.sparse.tables import DynamicTables

JUDGED_ROWS = 200_000
REFERENCE_ROWS = 256
LATENCY_ROWS, LATENCY_RUNS = 500, 20

Facts = dict[str, Any]


def export(checkpoint: Path, samples: Path, output: Path, quantize: Quantize) -> Facts:
    """Exports a checkpoint (folders), judges int8 against fp32 on the day's samples, and returns the comparison.

    "int8" is what serves, with embeddings of `quantize.embedding_bits`; "other" has the other bits, to compare.
    Raises GateError where int8 loses more than `quantize` allows and for weights that are not finite, CorruptError for
    unreadable input.
    """
    ranker = checkpoints.load(checkpoint)
    table = _spread(samples / "samples.parquet", ranker)
    with tempfile.TemporaryDirectory() as scratch:
        batches = list(_batches(table, ranker.layout))
        graphs = _write_graphs(ranker, table, batches, quantize, scratch=Path(scratch), output=output)
        scores = _scores(graphs, batches)
        served = graphs["int8"].table
        facts: Facts = {}
        for name, graph in graphs.items():
            file = output / GRAPH_FILE if name == "int8" else Path(scratch) / f"{name}.onnx"
            num_bytes = file.stat().st_size + _table_bytes(served, graph.table.bits)
            facts[name] = {"bits": graph.table.bits, "bytes": num_bytes, **_judge(ranker.tasks, table, scores[name])}
        latency_ms = {name: round(_latency_ms(graph, table), 3) for name, graph in graphs.items()}
    checkpoints.write_json(output / QUANTIZATION_FILE, {**facts, "rows": len(table)})
    del scores["other"]
    _write_reference(ranker, table, scores, output / "reference.parquet")
    _write_serving(ranker, checkpoint, output)
    _print_table(ranker.tasks, facts, latency_ms)
    refuse_loss(ranker.tasks, facts, quantize)
    return {**facts, "rows": len(table), "latency_ms": latency_ms, "embedding_rows": len(served)}


def _write_graphs(
    ranker: Ranker, table: pa.Table, batches: list[Encoded], quantize: Quantize, *, scratch: Path, output: Path
) -> dict[str, Graph]:
    """Writes what serves into `output`, the graphs of the others into `scratch`; returns all, loaded.

    `batches`: `table`, encoded. The others' tables hold the rows of its ids alone: of the whole there would be no room
    beside training's.
    """
    tables, bits = ranker.tables, quantize.embedding_bits
    keys_R, rows_R = tables.items()
    default_TD = _finite(tables, tables.default_rows)
    chunks = _quantized(tables, keys_R, rows_R, bits)
    FrozenTable.from_sorted(chunks, len(keys_R), default_TD, bits).save(output / TABLE_FILE)
    judged_C = np.flatnonzero(np.isin(keys_R, _keys_of(batches), assume_unique=True))
    keys_C, weight_CD = keys_R[judged_C], tables.rows.read(rows_R[judged_C])[0]
    other_bits = 4 if bits == 8 else 8
    embeddings = {
        "fp32": FrozenTable.of(keys_C, weight_CD, default_TD),
        "int8": FrozenTable.load(output / TABLE_FILE),
        "other": FrozenTable.of(keys_C, quantize_rows(weight_CD, other_bits), default_TD, other_bits),
    }

    def load(file: Path, name: str) -> Graph:
        return Graph(file, ranker.layout, ranker.tasks, embeddings[name])

    files = {"fp32": scratch / "fp32.onnx", "int8": output / GRAPH_FILE, "other": scratch / "other.onnx"}
    calibration = _evenly(table, quantize.calibration_rows)
    write_graph(ranker, files["fp32"])
    fp32 = load(files["fp32"], "fp32")
    wanted_CT = fp32.score(calibration)
    if not np.isfinite(wanted_CT).all():
        raise GateError(
            "dense part: its weights give scores that are not finite; lower train.learning_rate and train again from"
            " the last day whose scores are"
        )
    unquantized = scratch / "dense.onnx"
    write_graph(ranker, unquantized, largest_inputs(ranker, fp32, calibration))
    quantize_dense(unquantized, files["int8"], load(unquantized, "int8"), calibration)
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
    """Weights [N, D] of rows. Raises GateError for one that is not finite."""
    weight_ND, _ = tables.rows.read(rows_N)
    amiss_N = ~np.isfinite(weight_ND).all(1)
    if amiss_N.any():
        names = sorted({tables.names[t] for t in tables.table_R[rows_N[amiss_N]]})
        raise GateError(
            f"embedding table {', '.join(names)}: {int(amiss_N.sum())} of {len(rows_N)} rows have a weight that is not"
            " finite; lower train.embedding_learning_rate and train again from the last day whose weights are"
        )
    return weight_ND


def _keys_of(batches: list[Encoded]) -> Ints:
    """Each key once."""
    found = []
    for encoded in batches:
        keys = [*encoded.slots, *(keys for keys, _ in encoded.bags.values())]
        found.append(pc.unique(pa.array(np.concatenate([np.empty(0, np.int64), *keys]))).to_numpy())
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def _scores(graphs: dict[str, Graph], batches: list[Encoded]) -> dict[str, Floats]:
    """Probabilities [N, T] of each graph."""
    parts: dict[str, list[Floats]] = {name: [] for name in graphs}
    for encoded in batches:
        for name, graph in graphs.items():
            parts[name].append(graph.run(encoded))
    none = np.zeros((0, len(graphs["int8"].tasks)), np.float32)
    return {name: np.concatenate([none, *scores]) for name, scores in parts.items()}


def _batches(table: pa.Table, layout: Layout) -> Iterator[Encoded]:
    for begin in range(0, len(table), BATCH_ROWS):
        yield encode(table.slice(begin, BATCH_ROWS), layout)


def _table_bytes(served: FrozenTable, bits: int) -> int:
    """What all rows of a table take at another number of bits."""
    return served.num_bytes + len(served) * (row_bytes(served.dim, bits) - row_bytes(served.dim, served.bits))


def refuse_loss(tasks: tuple[str, ...], facts: Facts, quantize: Quantize) -> None:
    """Raises GateError where a task's int8 AUC or calibration is further from fp32's than allowed."""
    problems = []
    form = f"int8 with embeddings of {quantize.embedding_bits} bits"
    for task in tasks:
        fp32, int8 = (({k: facts[name][k][task] for k in ("auc", "calibration")}) for name in ("fp32", "int8"))
        if None in (*fp32.values(), *int8.values()):  # one class only: nothing to compare
            continue
        loss, shift = fp32["auc"] - int8["auc"], abs(int8["calibration"] - fp32["calibration"])
        if loss > quantize.max_auc_loss:
            problems.append(
                f"{task}: {form} loses {loss:.5f} AUC ({fp32['auc']:.5f} → {int8['auc']:.5f});"
                f" quantize.max_auc_loss allows {quantize.max_auc_loss:g}"
            )
        if shift > quantize.max_calibration_shift:
            problems.append(
                f"{task}: {form} shifts calibration by {shift:.5f} ({fp32['calibration']:.5f} →"
                f" {int8['calibration']:.5f}); quantize.max_calibration_shift allows {quantize.max_calibration_shift:g}"
            )
    if problems:
        wider = " set quantize.embedding_bits to 8," if quantize.embedding_bits == 4 else ""
        raise GateError(
            "\n".join(problems) + f"\nserve the previous version, retrain,{wider} or allow more in quantize"
        )


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
    heads = {"fp32": "fp32", "int8": f"{facts['int8']['bits']} bits", "other": f"({facts['other']['bits']} bits)"}
    lines = [f"{'embeddings of':24}" + "".join(f"{head:>12}" for head in heads.values())]
    lines.append(f"{'size, bytes':24}" + "".join(f"{facts[name]['bytes']:>12}" for name in heads))
    lines.append(f"{f'{LATENCY_ROWS} rows, ms':24}" + "".join(f"{latency_ms[name]:>12.2f}" for name in heads))
    for metric in ("auc", "calibration"):
        for task in tasks:
            values = [facts[name][metric][task] for name in heads]
            shown = "".join(f"{'undefined' if value is None else f'{value:.5f}':>12}" for value in values)
            lines.append(f"{f'{metric} {task}':24}{shown}")
    print("\n".join(lines), file=sys.stderr, flush=True)
