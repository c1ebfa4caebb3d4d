import hashlib
import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import CorruptError, GateError
from feature_jobs.schema import Quantize
from feature_jobs.transforms import Layout
from models.checkpoints import checkpoint as checkpoints
from models.export.export import export, refuse_loss
from models.export.quantization import write_onnx
from models.metrics.judgement import Evidence
from models.runtime.frozen_tables import FrozenTable
from models.runtime.onnx_model import OnnxModel
from models.training.day import score, train_day
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, day_table, shop, write_day

LOOSE = Quantize(max_auc_loss=0.05, max_calibration_shift=0.1)


def made(folder, **overrides):
    """A checkpoint of two days, its samples."""
    scenario, parent = shop(folder, **overrides), None
    for ds in DAYS[:2]:
        samples = write_day(folder / f"samples-{ds}", ds, 1000)
        output = folder / f"checkpoint-{ds}"
        output.mkdir()
        train_day(TrainJob(scenario, ds, samples, parent, output))
        parent = output
    return parent, samples


@pytest.fixture(scope="module")
def shop_export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    checkpoint, samples = made(folder)
    output = folder / "export"
    output.mkdir()
    return checkpoint, samples, output, export(checkpoint, samples, output, LOOSE)


def test_files(shop_export):
    checkpoint, _, output, metrics = shop_export
    assert sorted(file.name for file in output.iterdir()) == [
        "embeddings.safetensors", "model.onnx", "quantization.json", "reference.parquet", "serving.json",
    ]  # fmt: skip
    facts = json.loads((output / "quantization.json").read_text())
    assert facts["int8"]["auc"]["click"] == pytest.approx(facts["fp32"]["auc"]["click"], abs=0.01)
    assert "latency" not in json.dumps(facts)
    assert metrics["latency_ms"].keys() == {"fp32", "int8", "other"}
    serving = json.loads((output / "serving.json").read_text())
    assert serving["checkpoint"] == checkpoints.digest_of(checkpoint)
    assert serving["tasks"] == ["click", "buy"]
    assert len(FrozenTable.load(output / "embeddings.safetensors")) == metrics["embedding_rows"]


def test_embeddings_and_dense_weights_are_int8(shop_export):
    table = FrozenTable.load(shop_export[2] / "embeddings.safetensors")
    assert table.rows_RW.dtype == np.uint8
    graph = onnx.load(shop_export[2] / "model.onnx").graph
    matrices = {i.name: i.data_type for i in graph.initializer if len(i.dims) == 2}
    assert len(matrices) == 6
    assert set(matrices.values()) == {onnx.TensorProto.INT8}
    assert all(not node.doc_string for node in graph.node)


def test_equal_inputs_give_equal_bytes(shop_export, tmp_path):
    checkpoint, samples, output, _ = shop_export
    export(checkpoint, samples, tmp_path, LOOSE)
    for file in output.iterdir():
        assert (
            hashlib.sha256((tmp_path / file.name).read_bytes()).digest() == hashlib.sha256(file.read_bytes()).digest()
        )


@pytest.mark.parametrize(
    "overrides",
    [
        {"model__architecture": "shared_bottom"},
        {"model__architecture": "mmoe"},
        {"features__price__scale": "quantile", "features__price__buckets": 0},
        {"features__price__scale": "minmax", "features__price__buckets": 0},
    ],
    ids=["shared_bottom", "mmoe", "quantile", "minmax"],
)
def test_the_fp32_graph_is_the_model(tmp_path, overrides):
    """On a day with ids that the model never saw, nulls and empty lists."""
    checkpoint, _ = made(tmp_path, **overrides)
    ranker = checkpoints.load(checkpoint)
    tables = ranker.tables
    keys_R, rows_R = tables.items()
    table = FrozenTable.of(keys_R, tables.storage.read(rows_R)[0], tables.storage.read(tables.default_rows)[0])
    write_onnx(ranker, tmp_path / "fp32.onnx")
    samples = day_table(DAYS[2], 300)
    graph = OnnxModel(tmp_path / "fp32.onnx", ranker.layout, ranker.tasks, table)
    wanted = score(checkpoint, samples)
    for t, task in enumerate(ranker.tasks):
        assert graph.score(samples)[:, t] == pytest.approx(wanted[task], abs=1e-6)


def test_int8_scores_stay_near(shop_export):
    checkpoint, _, output, _ = shop_export
    reference = pq.read_table(output / "reference.parquet")
    wanted = score(checkpoint, reference)
    assert len(reference) == 256
    for task in ("click", "buy"):
        assert reference[f"fp32.{task}"].to_numpy() == pytest.approx(wanted[task], abs=1e-6)
        assert reference[f"int8.{task}"].to_numpy() == pytest.approx(wanted[task], abs=0.03)


@pytest.mark.parametrize(
    "left_out",
    [
        ("tags", "clicked"),
        ("price", "seen", "click_rate", "last_seen"),
        ("user", "item", "city", "user_city", "price", "click_rate"),
        ("user", "item", "city", "user_city", "tags", "price", "click_rate", "clicked"),
    ],
    ids=["no bags", "no numbers", "no slots", "numbers alone"],
)
def test_models_without_a_kind_of_feature(tmp_path, left_out):
    checkpoint, samples = made(tmp_path, **{f"features__{name}__enabled": False for name in left_out})
    (tmp_path / "export").mkdir()
    export(checkpoint, samples, tmp_path / "export", Quantize(max_auc_loss=1, max_calibration_shift=9))
    reference = pq.read_table(tmp_path / "export" / "reference.parquet")
    assert not set(left_out) & set(reference.column_names)
    assert reference["fp32.buy"].to_numpy() == pytest.approx(score(checkpoint, reference)["buy"], abs=1e-6)


def test_the_gate_names_task_numbers_and_allowance(shop_export, tmp_path):
    checkpoint, samples, _, _ = shop_export
    with pytest.raises(
        GateError,
        match=r"buy: int8 with embeddings of 8 bits shifts calibration by 0\.0.*max_calibration_shift allows 1e-09",
    ):
        export(checkpoint, samples, tmp_path, Quantize(max_auc_loss=1, max_calibration_shift=1e-9))
    facts = {
        "fp32": {"auc": {"a": 0.8, "b": None}, "calibration": {"a": 1.0, "b": None}},
        "int8": {"auc": {"a": 0.79, "b": None}, "calibration": {"a": 0.9, "b": None}},
    }
    refuse_loss(("a", "b"), facts, Quantize(max_auc_loss=0.011, max_calibration_shift=0.11))
    with pytest.raises(
        GateError, match=r"a: int8 with embeddings of 8 bits loses 0\.01000 AUC \(0\.80000 → 0\.79000\).*allows 0\.005"
    ):
        refuse_loss(("a", "b"), facts, Quantize(max_auc_loss=0.005, max_calibration_shift=0.11))


def test_a_task_with_too_few_rows_is_not_judged_and_the_file_says_so(shop_export, tmp_path):
    checkpoint, samples, _, _ = shop_export
    strict = Quantize(max_auc_loss=1, max_calibration_shift=1e-9)
    for name in ("few", "enough"):
        (tmp_path / name).mkdir()
    export(checkpoint, samples, tmp_path / "few", strict, Evidence(min_rows=10**9))
    found = json.loads((tmp_path / "few" / "quantization.json").read_text())
    assert set(found["unjudged"]) == {"click", "buy"}
    assert re.fullmatch(r"[\d,]+ rows where 1,000,000,000 are needed", found["unjudged"]["buy"])
    with pytest.raises(GateError, match="buy: int8"):
        export(checkpoint, samples, tmp_path / "enough", strict, Evidence(min_rows=10, min_positives=1))
    assert "unjudged" not in json.loads((tmp_path / "enough" / "quantization.json").read_text())


def test_embeddings_of_4_bits_are_exported_compared_and_gated(shop_export, tmp_path):
    checkpoint, samples, _, metrics = shop_export
    (tmp_path / "export").mkdir()
    found = export(checkpoint, samples, tmp_path / "export", LOOSE.model_copy(update={"embedding_bits": 4}))
    table = FrozenTable.load(tmp_path / "export" / "embeddings.safetensors")
    assert (table.bits, len(table)) == (4, metrics["embedding_rows"])
    assert {name: found[name]["bits"] for name in ("fp32", "int8", "other")} == {"fp32": 32, "int8": 4, "other": 8}
    assert found["other"]["auc"] == pytest.approx(metrics["int8"]["auc"], abs=0.002)
    reference = pq.read_table(tmp_path / "export" / "reference.parquet")
    assert "other.buy" not in reference.column_names
    for task in ("click", "buy"):
        assert reference[f"int8.{task}"].to_numpy() == pytest.approx(reference[f"fp32.{task}"].to_numpy(), abs=0.1)
    strict = Quantize(embedding_bits=4, max_auc_loss=1, max_calibration_shift=1e-9)
    (tmp_path / "strict").mkdir()
    with pytest.raises(
        GateError, match=r"buy: int8 with embeddings of 4 bits shifts(.|\n)*set quantize.embedding_bits to 8"
    ):
        export(checkpoint, samples, tmp_path / "strict", strict)


def test_sizes_are_those_of_all_rows(shop_export):
    """Though the others' tables hold but the rows of ids in the day's samples."""
    checkpoint, _, output, metrics = shop_export
    tables = checkpoints.load(checkpoint).tables
    keys_R, rows_R = tables.items()
    default_TD = tables.storage.read(tables.default_rows)[0]
    whole = FrozenTable.of(keys_R, tables.storage.read(rows_R)[0], default_TD)
    served = FrozenTable.load(output / "embeddings.safetensors")
    assert metrics["int8"]["bytes"] == served.num_bytes + (output / "model.onnx").stat().st_size
    dense = metrics["fp32"]["bytes"] - whole.num_bytes
    assert (output / "model.onnx").stat().st_size / 4 < dense < 4 * (output / "model.onnx").stat().st_size
    assert metrics["int8"]["bytes"] - metrics["other"]["bytes"] == pytest.approx(2 * len(keys_R), abs=64)


@pytest.mark.parametrize("row", ["of an id", "default"])
def test_a_weight_that_is_not_finite_names_its_table(shop_export, tmp_path, row):
    checkpoint, samples, _, _ = shop_export
    ranker = checkpoints.load(checkpoint)
    tables = ranker.tables
    wrong = tables.default_rows[tables.names.index("city")]
    if row == "of an id":
        _, rows_R = tables.items()
        wrong = rows_R[tables.table_R[rows_R] == tables.names.index("city")][0]
    weight_ND, state_NK = tables.storage.read(np.array([wrong]))
    weight_ND[0, 1] = np.nan
    tables.storage.write(np.array([wrong]), weight_ND, state_NK)
    (tmp_path / "checkpoint").mkdir()
    facts = checkpoints.read_facts(checkpoint)
    checkpoints.save(ranker, tmp_path / "checkpoint", {name: facts[name] for name in ("format", "scenario", "ds")})
    with pytest.raises(GateError, match=r"table city: 1 of \d+ rows have a weight that is not finite; lower train\."):
        export(tmp_path / "checkpoint", samples, tmp_path, LOOSE)


def test_dense_weights_that_are_not_finite_end_as_a_no(shop_export, tmp_path):
    checkpoint, samples, _, _ = shop_export
    ranker = checkpoints.load(checkpoint)
    next(ranker.network.parameters()).data.fill_(np.nan)
    (tmp_path / "checkpoint").mkdir()
    facts = checkpoints.read_facts(checkpoint)
    checkpoints.save(ranker, tmp_path / "checkpoint", {name: facts[name] for name in ("format", "scenario", "ds")})
    with pytest.raises(GateError, match=r"dense part: .* not finite; lower train\.learning_rate"):
        export(tmp_path / "checkpoint", samples, tmp_path, LOOSE)


def test_a_rows_score_does_not_depend_on_its_batch(shop_export):
    _, _, output, _ = shop_export
    layout = Layout.from_json(json.loads((output / "serving.json").read_text())["layout"])
    graph = OnnxModel(
        output / "model.onnx", layout, ("click", "buy"), FrozenTable.load(output / "embeddings.safetensors")
    )
    samples = day_table(DAYS[2], 40)
    together = graph.score(samples)
    alone = np.concatenate([graph.score(samples.slice(row, 1)) for row in range(40)])
    assert np.abs(together - alone).max() < 1e-6


def test_quantizing_prints_nothing_on_stdout(shop_export, tmp_path, capfd):
    checkpoint, samples, _, _ = shop_export
    export(checkpoint, samples, tmp_path, LOOSE)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0].split() == ["embeddings", "of", "fp32", "8", "bits", "(4", "bits)"]
    assert "Warn" not in err


def test_damaged_checkpoints_are_refused(shop_export, tmp_path):
    checkpoint, samples, _, _ = shop_export
    for name in ("dense.safetensors", "embeddings.safetensors", "checkpoint.json"):
        damaged = tmp_path / name
        shutil.copytree(checkpoint, damaged)
        (damaged / name).write_bytes(b"no")
        with pytest.raises(CorruptError, match=name.partition(".")[0]):
            export(damaged, samples, tmp_path, LOOSE)


def test_runs_in_plain_onnx_runtime(shop_export):
    session = ort.InferenceSession(str(shop_export[2] / "model.onnx"))
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "embeddings": ("tensor(float)", ["B", 8, 4]),
        "numbers": ("tensor(float)", ["B", 4]),
    }
    feeds = {"embeddings": np.zeros((2, 8, 4), np.float32), "numbers": np.full((2, 4), np.nan, np.float32)}
    (scores,) = session.run(["probabilities"], feeds)
    assert scores.shape == (2, 2)
    assert ((scores > 0) & (scores < 1)).all()
