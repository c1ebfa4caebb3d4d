import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError, CorruptError
from models.runtime.onnx_model import sha256_of
from models.training.day import score
from serving.scorer import Scorer
from tests.paths import ROOT
from tests.unit.models.days import DAYS, day_table
from tests.unit.models.export.test_export import shop_export  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def folder(shop_export):  # noqa: F811
    return shop_export[2]


@pytest.fixture(scope="module")
def scorer(folder):
    return Scorer.load(folder)


def test_reproduces_the_stored_scores(scorer, folder):
    reference = pq.read_table(folder / "reference.parquet")
    for rows in (reference, reference.to_pandas(), reference.to_pandas(integer_object_nulls=True)):
        scores = scorer.score(rows)
        for task in ("click", "buy"):
            assert scores[task].dtype == np.float32
            assert np.abs(scores[task] - reference[f"int8.{task}"].to_numpy()).max() <= 1e-6


def test_scores_rows_as_training_does(scorer, shop_export):  # noqa: F811
    table = day_table(DAYS[2], 700)  # more than one batch, users and items never seen
    wanted, found = score(shop_export[0], table), scorer.score(table)
    for task in ("click", "buy"):
        assert found[task] == pytest.approx(wanted[task], abs=0.04)
        assert np.corrcoef(found[task], wanted[task])[0, 1] > 0.995


def test_order_and_extra_columns_do_not_matter(scorer):
    frame = day_table(DAYS[2], 20).to_pandas()
    shuffled = frame[sorted(frame.columns, reverse=True)].assign(extra=[object()] * 20)
    assert scorer.score(shuffled)["buy"].tolist() == scorer.score(frame)["buy"].tolist()


def test_rows_of_plain_python(scorer):
    row = {
        "user": 3, "item": 5, "city": "Rome", "user_city": f"3{chr(31)}Rome", "tags": ["tag1"], "price": 3.5,
        "seen": 4, "click_rate": None, "last_seen": None, "clicked": [],
    }  # fmt: skip
    of_frame = scorer.score(pd.DataFrame([row]))["click"]
    assert of_frame == pytest.approx(scorer.score(pa.Table.from_pylist([row]))["click"])
    assert 0 < of_frame[0] < 1
    assert len(scorer.score(day_table(DAYS[2], 5).slice(0, 0))["click"]) == 0


def test_columns_amiss_are_named(scorer):
    frame = day_table(DAYS[2], 5).to_pandas()
    with pytest.raises(BadInputError, match="'price' is missing"):
        scorer.score(frame.drop(columns="price"))
    with pytest.raises(BadInputError, match=r"'user'.*no ids"):
        scorer.score(frame.assign(user=0.5))
    with pytest.raises(BadInputError, match="mixes types"):
        scorer.score(frame.assign(city=["Rome", 3, b"x", None, 1.5]))


@pytest.mark.parametrize("name", ["model.onnx", "embeddings.safetensors", "serving.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_damage_is_refused(folder, tmp_path, name, damage):
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    digest = sha256_of(copy / "serving.json")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).unlink()
    if damage == "flipped":
        (copy / name).write_bytes(data)
    with pytest.raises(CorruptError, match="export"):
        Scorer.load(copy, digest)


def test_the_expected_digest(folder):
    assert Scorer.load(folder, sha256_of(folder / "serving.json")).tasks == ("click", "buy")
    with pytest.raises(CorruptError, match="is not the expected 000"):
        Scorer.load(folder, "0" * 64)


def test_an_export_of_another_format_is_refused(folder, tmp_path):
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    facts = json.loads((copy / "serving.json").read_text())
    (copy / "serving.json").write_text(json.dumps({**facts, "format": 1}))
    with pytest.raises(CorruptError, match="format 1 where this code reads 2"):
        Scorer.load(copy)


def test_facts_lead_back_to_the_checkpoint(scorer, folder):
    assert scorer.facts["checkpoint"] == json.loads((folder / "serving.json").read_text())["checkpoint"]
    assert "price" in scorer.columns


def test_imports_nothing_heavy():
    heavy = ("torch", "mlflow", "duckdb", "matplotlib", "pandas", "pydantic", "onnx", "airflow")
    code = f"import sys, serving.scorer; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
