import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.schema import processor
from models.checkpoints import checkpoint as checkpoints
from models.training.day import score, train_day
from models.training.job import TrainJob
from tests.paths import ROOT
from tests.unit.models.days import DAYS, day_table, shop, write_day


def train(scenario, folder, ds, parent=None, name=None, **options):
    output = folder / (name or f"checkpoint-{ds}")
    output.mkdir()
    samples = folder / f"samples-{ds}"
    if not samples.exists():
        write_day(samples, ds)
    return output, train_day(TrainJob(scenario, ds, samples, parent, output, **options))


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def report(folder):
    return json.loads((folder / "checkpoint.json").read_text())["restored"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Two days of the shop: scenario, folder, their checkpoints."""
    folder = tmp_path_factory.mktemp("chain")
    scenario = shop(folder)
    first, _ = train(scenario, folder, DAYS[0])
    second, metrics = train(scenario, folder, DAYS[1], first)
    return scenario, folder, first, second, metrics


def test_learns_from_day_to_day(tmp_path):
    scenario, parent = shop(tmp_path), None
    for ds in DAYS:
        write_day(tmp_path / f"samples-{ds}", ds, 2000)
        parent, metrics = train(scenario, tmp_path, ds, parent)
    assert metrics["progressive"]["click"]["auc"] > 0.75
    assert metrics["holdout"]["buy"]["auc"] > 0.75
    assert 0.8 < metrics["progressive"]["click"]["calibration"] < 1.25
    assert metrics["holdout"]["buy"]["rows"] == 400
    assert metrics["samples_per_s"] > 0
    assert json.loads((parent / "metrics.json").read_text()) == {k: metrics[k] for k in ("progressive", "holdout")}


@pytest.mark.parametrize("architecture", ["shared_bottom", "mmoe"])
def test_equal_inputs_give_equal_bytes_in_one_process(tmp_path, architecture):
    scenario = shop(tmp_path, model__architecture=architecture, model__dropout=0.1)
    first, _ = train(scenario, tmp_path, DAYS[0])
    torch.rand(3)  # earlier computations must not matter
    again, _ = train(scenario, tmp_path, DAYS[0], name="again")
    assert digests(first) == digests(again)
    second, _ = train(scenario, tmp_path, DAYS[1], first)
    again, _ = train(scenario, tmp_path, DAYS[1], again, name="second-again")
    assert digests(second) == digests(again)


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes_in_another_process(chain, tmp_path):
    _, folder, first, second, _ = chain
    code = (
        "import sys; from pathlib import Path; from feature_jobs.schema import load_scenario;"
        "from models.training.day import train_day; from models.training.job import TrainJob;"
        "f, p, o = map(Path, sys.argv[1:]);"
        f"train_day(TrainJob(load_scenario(f / 'shop.yaml'), '{DAYS[1]}', f / 'samples-{DAYS[1]}', p, o))"
    )
    command = [sys.executable, "-c", code, str(folder), str(first), str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONHASHSEED": "5"}, timeout=120)
    assert digests(tmp_path) == digests(second)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_byte(tmp_path, precision):
    results = []
    for threads in (1, 2, 3):
        scenario = shop(
            tmp_path, train__threads=threads, train__micro_batch=16, train__precision=precision, model__dropout=0.1,
            features__user__embedding={"min_count": 2, "capacity": 20, "ttl_days": 1},
        )  # fmt: skip
        first, _ = train(scenario, tmp_path, DAYS[0], name=f"first-{threads}")
        second, metrics = train(scenario, tmp_path, DAYS[1], first, name=f"second-{threads}")
        results.append((digests(second), metrics["tables"]))
    assert results[0] == results[1] == results[2]
    assert 0 < results[0][1]["user"]["rows"] <= 20


def test_seed_and_day_change_the_result(tmp_path):
    results = [train(shop(tmp_path, train__seed=seed), tmp_path, DAYS[0], name=str(seed))[0] for seed in (1, 2)]
    write_day(tmp_path / f"samples-{DAYS[1]}", DAYS[0])  # the same rows on another day
    results.append(train(shop(tmp_path, train__seed=1), tmp_path, DAYS[1], name="3")[0])
    assert len({digests(folder)["dense.safetensors"] for folder in results}) == 3


def test_the_parent_scores_the_day_before_it_is_learned(chain):
    _, folder, first, second, metrics = chain
    table = pq.read_table(folder / f"samples-{DAYS[1]}" / "samples.parquet")
    predictions = pq.read_table(second / "predictions.parquet")
    before = score(first, table)
    for task in ("click", "buy"):
        assert predictions[f"progressive.{task}"].to_numpy() == pytest.approx(before[task], abs=1e-6)
        assert predictions[f"label.{task}"].equals(table[f"label.{task}"])
        gate = predictions[f"gate.{task}"]
        assert gate.is_null().to_pylist() == [True] * 400 + [False] * 100
        after = score(second, table)[task][400:]
        assert gate.slice(400).to_numpy() != pytest.approx(after, abs=1e-4), "scored only after learning"
    for key in ("key.event_time", "key.event_row", "key.user"):
        assert predictions[key].equals(table[key])
    assert metrics["progressive"]["click"]["rows"] == 500 - table["label.click"].null_count


def test_the_first_day_has_no_progressive_scores(chain):
    _, _, first, _, _ = chain
    predictions = pq.read_table(first / "predictions.parquet")
    assert predictions["progressive.click"].null_count == 500
    assert json.loads((first / "metrics.json").read_text())["progressive"] == {}
    assert json.loads((first / "checkpoint.json").read_text())["parent"] is None


def test_holdout_scores_know_nothing_of_the_holdout(tmp_path):
    """Other labels in the holdout change the checkpoint, but not the gate's scores."""
    folders = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        table = day_table(DAYS[0])
        labels = table["label.buy"].to_numpy().copy()
        labels[400:] = labels[400:] if name == "a" else 1 - labels[400:]
        at = table.column_names.index("label.buy")
        (folder / f"samples-{DAYS[0]}").mkdir()
        pq.write_table(
            table.set_column(at, "label.buy", pa.array(labels)), folder / f"samples-{DAYS[0]}" / "samples.parquet"
        )
        folders.append(train(shop(folder), folder, DAYS[0])[0])
    gates = [pq.read_table(folder / "predictions.parquet")["gate.buy"] for folder in folders]
    assert gates[0].equals(gates[1])
    assert digests(folders[0])["dense.safetensors"] != digests(folders[1])["dense.safetensors"]


@pytest.mark.parametrize("num_rows", [2, 64, 65, 129, 333])
@pytest.mark.parametrize("shuffle_rows", [50, 1000])
def test_every_row_is_learned_once(tmp_path, num_rows, shuffle_rows):
    scenario = shop(tmp_path, train__shuffle_rows=shuffle_rows)
    write_day(tmp_path / f"samples-{DAYS[0]}", DAYS[0], num_rows, row_group_size=40)
    output, metrics = train(scenario, tmp_path, DAYS[0])
    dense = load_file(output / "dense.safetensors")
    seen = pq.read_table(tmp_path / f"samples-{DAYS[0]}" / "samples.parquet")["seen"].to_numpy()
    count, mean, _ = dense["standardize.moments:seen"][:, 0]
    assert count == num_rows == metrics["num_rows"]
    assert mean == pytest.approx(np.log1p(seen).mean(), rel=1e-6)


def test_one_row_is_a_day(tmp_path):
    write_day(tmp_path / f"samples-{DAYS[0]}", DAYS[0], 1)
    output, metrics = train(shop(tmp_path), tmp_path, DAYS[0])
    assert metrics["holdout"]["click"]["auc"] is None
    assert "NaN" not in (output / "metrics.json").read_text()


def test_a_day_without_known_labels_leaves_the_embeddings_as_they_were(chain, tmp_path):
    scenario, _, first, _, _ = chain
    table = day_table(DAYS[1])
    for task in ("click", "buy"):
        at = table.column_names.index(f"label.{task}")
        table = table.set_column(at, f"label.{task}", pa.nulls(500, pa.int8()))
    (tmp_path / f"samples-{DAYS[1]}").mkdir()
    pq.write_table(table, tmp_path / f"samples-{DAYS[1]}" / "samples.parquet")
    output, metrics = train(scenario, tmp_path, DAYS[1], first)
    assert metrics["progressive"]["click"] == {
        "auc": None, "gauc": None, "normalized_entropy": None, "calibration": None, "rows": 0,
    }  # fmt: skip
    before, after = (load_file(folder / "embeddings.safetensors") for folder in (first, output))
    kept = np.isin(after["keys"], before["keys"])
    assert np.array_equal(after["weights"][kept], before["weights"])


def weights_of(folder, namespace):
    """{key: weights} of one table of a checkpoint."""
    namespaces = checkpoints.load(folder).layout.namespaces
    rows = load_file(folder / "embeddings.safetensors")
    inside = rows["tables"] == namespaces.index(namespace)
    return dict(zip(rows["keys"][inside].tolist(), rows["weights"][inside], strict=True))


def restored(scenario, parent):
    """A fresh ranker of the scenario with the parent's state, and the parts that were restored."""
    from feature_jobs.transforms import Layout
    from models.ranking.ranker import Ranker

    torch.manual_seed(1)
    ranker = Ranker(Layout.from_scenario(scenario), scenario.tasks, scenario.model, scenario.train)
    tables = ranker.tables
    foreseen = checkpoints.changes(ranker.network, tables.names, tables.dim, tables.optimizer.name, parent)
    outcome = checkpoints.restore(ranker, parent)
    assert outcome == foreseen, "footprint foresees the result of restore"
    return ranker, outcome


def test_restore_is_exact(chain, tmp_path):
    scenario, _, first, _, _ = chain
    ranker, outcome = restored(scenario, first)
    facts = json.loads((first / "checkpoint.json").read_text())
    checkpoints.save(ranker, tmp_path, {k: v for k, v in facts.items() if k not in ("tasks", "architecture", "layout")})
    before = digests(first)
    assert {name: digest for name, digest in before.items() if name in digests(tmp_path)} == digests(tmp_path)
    assert outcome["dense"]["new"] == outcome["dense"]["resized"] == outcome["dense"]["dropped"] == []
    assert report(first) == {}


def test_a_new_feature_leaves_everything_else_alone(tmp_path):
    table = day_table(DAYS[1])
    old = shop(tmp_path, features__city__enabled=False, features__price__enabled=False, features__tags__enabled=False)
    parent, _ = train(old, tmp_path, DAYS[0])
    new = shop(tmp_path)
    ranker, outcome = restored(new, parent)
    assert outcome["tables"]["new"] == ["city", "price:bucket", "tags"]
    assert outcome["dense"]["new"] == sorted(
        ["architecture.first.0.weight:city", "architecture.first.0.weight:price:bucket",
         "architecture.first.0.weight:price:number", "architecture.first.0.weight:tags", "standardize.moments:price"]
    )  # fmt: skip
    assert outcome["dense"]["resized"] == outcome["dense"]["dropped"] == []
    checkpoints.save(ranker, tmp_path, {"scenario": "shop", "ds": DAYS[0]})
    for task, scores in score(parent, table).items():
        assert score(tmp_path, table)[task] == pytest.approx(scores, abs=1e-6), "it has no say before it is learned"
    child, _ = train(new, tmp_path, DAYS[1], parent)
    assert report(child)["tables"]["new"] == ["city", "price:bucket", "tags"]
    assert load_file(child / "dense.safetensors")["architecture.first.0.weight:city"].any()


def test_a_dropped_feature_leaves_everything_else_alone(chain, tmp_path):
    _, _, first, _, _ = chain
    before = weights_of(first, "item")
    ranker, outcome = restored(shop(tmp_path, features__city__enabled=False), first)
    assert outcome["tables"]["dropped"] == {"city": 4}
    assert outcome["dense"]["dropped"] == ["architecture.first.0.weight:city"]
    checkpoints.save(ranker, tmp_path, {"scenario": "shop", "ds": DAYS[0]})
    after = weights_of(tmp_path, "item")
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[key], before[key]) for key in after)
    moments = load_file(tmp_path / "optimizer.safetensors")
    saved = load_file(first / "optimizer.safetensors")
    assert all(np.array_equal(moments[name], saved[name]) for name in moments if not name.startswith("embeddings/"))


def test_another_dimension_keeps_the_first_ones(chain, tmp_path):
    _, _, first, _, _ = chain
    before = weights_of(first, "user")
    ranker, outcome = restored(shop(tmp_path, model__embedding_dim=6), first)
    assert outcome["tables"]["resized"] == {"from": 4, "to": 6}
    assert "architecture.first.0.weight:user" in outcome["dense"]["resized"]
    checkpoints.save(ranker, tmp_path, {"scenario": "shop", "ds": DAYS[0]})
    after = weights_of(tmp_path, "user")
    assert all(np.array_equal(after[key][:4], before[key]) for key in before)
    assert all(after[key][4:].any() for key in before)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "sgd"])
def test_another_embedding_optimizer_keeps_the_weights(chain, tmp_path, optimizer):
    _, _, first, _, _ = chain
    scenario = shop(tmp_path, train__embedding_optimizer=optimizer)
    ranker, outcome = restored(scenario, first)
    assert outcome["tables"]["optimizer"] == {"from": "rowwise_adagrad", "to": optimizer}
    assert outcome["tables"]["resized"] == {}
    assert outcome["dense"]["new"] == outcome["dense"]["resized"] == outcome["dense"]["dropped"] == []
    weights, state = ranker.tables.storage.read(ranker.tables.items()[1])
    assert np.array_equal(weights, load_file(first / "embeddings.safetensors")["weights"])
    assert not state.any()
    write_day(tmp_path / f"samples-{DAYS[1]}", DAYS[1])
    child, _ = train(scenario, tmp_path, DAYS[1], first)
    assert restored(scenario, child)[1]["tables"]["optimizer"] == {}


def test_moments_of_another_dimension_keep_their_leading_columns(tmp_path):
    small, wide = (shop(tmp_path, train__embedding_optimizer="adam", model__embedding_dim=d) for d in (4, 6))
    parent, _ = train(small, tmp_path, DAYS[0])
    old = load_file(parent / "optimizer.safetensors")["embeddings/state"].reshape(-1, 2, 4)
    ranker, outcome = restored(wide, parent)
    assert outcome["tables"]["resized"] == {"from": 4, "to": 6}
    new = ranker.tables.storage.read(ranker.tables.items()[1])[1].reshape(-1, 2, 6)
    assert np.array_equal(new[:, :, :4], old)
    assert not new[:, :, 4:].any()


def test_another_architecture_keeps_the_embeddings(chain, tmp_path):
    _, _, first, _, _ = chain
    ranker, outcome = restored(shop(tmp_path, model__architecture="mmoe"), first)
    assert outcome["tables"]["restored"]["item"] == len(weights_of(first, "item"))
    assert "architecture.gates.buy:gate.weight:user" in outcome["dense"]["new"]
    assert "architecture.bottom.0.weight" in outcome["dense"]["dropped"]
    ranker.network.eval()


def test_a_new_task_leaves_the_others_alone(chain, tmp_path):
    _, _, first, _, _ = chain
    scenario = shop(tmp_path, labels={"more": "buys > 2", "buy": "buys > 1", "click": "buys > 0"})
    ranker, outcome = restored(scenario, first)
    assert all("more:tower" in name for name in outcome["dense"]["new"])
    checkpoints.save(ranker, tmp_path, {"scenario": "shop", "ds": DAYS[0]})
    table = day_table(DAYS[1])
    assert score(tmp_path, table)["buy"] == pytest.approx(score(first, table)["buy"], abs=1e-6)


FILES = ("checkpoint.json", "dense.safetensors", "embeddings.safetensors", "optimizer.safetensors")


@pytest.mark.parametrize(
    ("name", "damage"),
    # A dense file of other names is not damaged: another architecture was trained the day before.
    sorted({(name, damage) for name in FILES for damage in ("missing", "truncated", "other")} - {(FILES[1], "other")}),
)
def test_an_unreadable_parent_is_refused(chain, tmp_path, name, damage):
    scenario, folder, first, _, _ = chain
    parent, output = tmp_path / "parent", tmp_path / "output"
    shutil.copytree(first, parent)
    output.mkdir()
    if damage == "missing":
        (parent / name).unlink()
    elif damage == "truncated":
        (parent / name).write_bytes((parent / name).read_bytes()[:-9])
    elif name.endswith(".json"):
        (parent / name).write_text("{}")
    else:
        save_file({"else": np.zeros(3)}, parent / name)
    with pytest.raises(CorruptError, match=name.partition(".")[0] if damage != "other" else "checkpoint"):
        train_day(TrainJob(scenario, DAYS[1], folder / f"samples-{DAYS[1]}", parent, output))
    assert not list(output.iterdir())


def test_wrong_samples_are_refused(chain, tmp_path):
    scenario, folder, _, _, _ = chain
    whole = folder / f"samples-{DAYS[0]}" / "samples.parquet"
    for name, write, error, message in [
        ("none", lambda f: None, CorruptError, "not readable as Parquet"),
        ("cut", lambda f: f.write_bytes(whole.read_bytes()[:-100]), CorruptError, "not readable as Parquet"),
        ("empty", lambda f: pq.write_table(pq.read_table(whole).slice(0, 0), f), BadInputError, "no rows"),
        ("less", lambda f: pq.write_table(pq.read_table(whole).drop(["price"]), f), BadInputError, "no column price"),
    ]:
        samples, output = tmp_path / name, tmp_path / f"{name}-output"
        samples.mkdir()
        output.mkdir()
        write(samples / "samples.parquet")
        with pytest.raises(error, match=message):
            train_day(TrainJob(scenario, DAYS[0], samples, None, output))
        assert not list(output.iterdir())


def test_settings_of_the_process_are_put_back(chain):
    _, folder, _, _, _ = chain
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    output = folder / "settings"
    output.mkdir()
    train_day(TrainJob(shop(folder, train__threads=1), DAYS[0], folder / f"samples-{DAYS[0]}", None, output))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_log_gets_plain_lines(chain, tmp_path, capfd):
    scenario, folder, first, _, _ = chain
    train_day(TrainJob(scenario, DAYS[1], folder / f"samples-{DAYS[1]}", first, tmp_path, progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert f"train {DAYS[1]}: 100%, 500 rows learned, 600 scored" in err


def test_score_takes_rows_without_labels(chain):
    _, _, first, _, _ = chain
    table = day_table(DAYS[2], 20)
    bare = table.select([name for name in table.column_names if "." not in name])
    assert score(first, bare)["click"].tolist() == score(first, table)["click"].tolist()
    assert len(score(first, bare.slice(0, 0))["click"]) == 0
    with pytest.raises(BadInputError, match="'price' is missing"):
        score(first, bare.drop(["price"]))


@pytest.mark.parametrize(
    ("flags", "taken", "warned"), [("amx_bf16", "bfloat16", False), ("avx512_bf16", "float32", True)]
)
def test_precision_auto_is_the_fastest_of_the_processor_and_a_slow_one_is_warned_of(
    tmp_path, monkeypatch, capsys, flags, taken, warned
):
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
    for function in (processor.bfloat16_is_fast, processor.slow_precision):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "cpuinfo",))
    outputs = {}
    for precision in ("auto", "bfloat16", taken):
        output, metrics = train(
            shop(tmp_path, train__precision=precision, train__device="cpu"),
            tmp_path,
            DAYS[0],
            None,
            precision + "-x" * (precision in outputs),
        )
        outputs[precision] = digests(output)
        shown = capsys.readouterr().err
        assert ("train.precision: bfloat16: this processor computes it slower" in shown) == (
            precision == "bfloat16" and warned
        )
        assert metrics["precision"] == (taken if precision == "auto" else precision)
    assert outputs["auto"] == outputs[taken]
