"""A registered model whose ids are beyond 2**53 with nulls between them: exact from file to score, or refused."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException

from models.training.day import train_day
from models.training.job import TrainJob
from tasks import tracking
from tasks.contract import DayConfig
from tasks.quantize import quantize
from tasks.tracking import logged_models
from tests.unit.tasks.little import DAYS, little_scenario, write_samples

BIG = 2**53
JSON = {"Content-Type": "application/json"}
ZIPS = [BIG + 1, None, BIG + 2]  # the first and the last are one number as float64


@dataclass
class Registered:
    """A version in MLflow, loaded as any user loads it."""

    model: object
    reference: Path
    files: dict


@pytest.fixture(scope="module")
def registered(tmp_path_factory, empty_mlflow):
    import shutil

    folder = tmp_path_factory.mktemp("ids")
    scenario = little_scenario(folder)
    write_samples(folder / "samples", DAYS[0], 3000)
    samples = pq.read_table(folder / "samples" / "samples.parquet")
    generous = samples["label.like"].to_numpy(zero_copy_only=False) == 1
    zips = pa.array(np.where(generous, ZIPS[0], ZIPS[2]), mask=np.arange(len(generous)) % 5 == 0)
    samples = samples.set_column(samples.column_names.index("zip"), "zip", zips)
    pq.write_table(samples, folder / "samples" / "samples.parquet")
    for name in ("checkpoint", "export"):
        (folder / name).mkdir()
    train_day(TrainJob(scenario, DAYS[0], folder / "samples", None, folder / "checkpoint"))
    places = {name: folder / name for name in ("samples", "checkpoint", "export")}
    quantize(DayConfig(scenario, DAYS[0]), **places)
    shutil.copyfile(empty_mlflow, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.delenv("RECLOOP_MLFLOW_SERVER", raising=False)
        tags = {"recloop.checkpoint": "c", "recloop.export": "e"}
        key = tracking.RunKey("little", 0, DAYS[0], "register")
        _, files = tracking.register_version(scenario, folder / "export", key, tags, required={"user", "item"})
        mlflow = tracking.connection.quiet_mlflow()
        yield Registered(mlflow.pyfunc.load_model("models:/little/1"), folder / "export" / "reference.parquet", files)


@pytest.fixture(scope="module")
def expected(registered) -> list[float]:
    """Scores of rows that differ in zip alone, each scored by itself, where nothing can merge."""
    rows = [pd.DataFrame({"user": [1], "item": [2], "zip": pd.array([value], "Int64")}) for value in ZIPS]
    scores = [float(registered.model.predict(row)["like"].iloc[0]) for row in rows]
    assert scores[0] > scores[2] + 0.2
    assert len(set(scores)) == 3
    return scores


def frame(zips: object) -> pd.DataFrame:
    return pd.DataFrame({"user": [1, 1, 1], "item": [2, 2, 2], "zip": zips})


@pytest.mark.parametrize("dtype", ["Int64", "object", "text"])
def test_pandas_keeps_ids_exact(registered, expected, dtype):
    zips = [None if z is None else str(z) for z in ZIPS] if dtype == "text" else pd.Series(ZIPS, dtype=dtype)
    rows = frame(zips).set_index(pd.Index([7, 8, 9]))
    scores = registered.model.predict(rows)
    assert list(scores.index) == [7, 8, 9]
    assert scores["like"].tolist() == pytest.approx(expected)


def test_floats_that_cannot_hold_the_ids_are_refused(registered):
    with pytest.raises(MlflowException, match=r"(?s)zip.*row 0.*Int64"):
        registered.model.predict(frame(pd.Series(ZIPS, dtype="float64")))
    small = registered.model.predict(frame(pd.Series([7.0, np.nan, 8.0])))
    assert len(small) == 3


def test_a_missing_required_column_is_named(registered):
    with pytest.raises(MlflowException, match="item"):
        registered.model.predict(pd.DataFrame({"user": [1]}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"user": 1, "item": [2]}, "'user' is 1, one value; give a list with a value per row"),
        ({"user": [1], "item": [2], "zip": "123"}, "'zip' is '123', one value"),
        ({"user": [2**64], "item": [2]}, f"'user', row 0: {2**64} is beyond 64 bits"),
        (pd.DataFrame([[1, 2, 3]], columns=["user", "item", "user"]), "'user' comes 2 times; keep one"),
        (pd.DataFrame({"user": [pd.Timestamp("2025-01-01")], "item": [2]}), "'user', row 0: .* is not an id"),
    ],
)
def test_rows_that_are_not_columns_of_ids_are_refused_by_name(registered, rows, message):
    with pytest.raises(MlflowException, match=message):
        registered.model.predict(rows)


def test_integers_are_numbers_where_training_had_fractions(registered):
    rows = [frame(None).assign(seen=pd.Series([0, 1, 5], dtype=dtype)) for dtype in ("int64", "float64", "Int64")]
    ints, floats, nullable = (registered.model.predict(row)["like"].tolist() for row in rows)
    assert ints == floats == nullable
    assert len(set(ints)) > 1


@pytest.fixture(scope="module")
def served(registered):
    """MLflow's own scoring server, in this process."""
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    return TestClient(scoring_server.init(registered.model), raise_server_exceptions=False)


def as_rows() -> list[dict]:
    return [{"user": 1, "item": 2, "zip": value, "liked": [3, 4][:n]} for n, value in enumerate(ZIPS)]


def test_json_rows_and_columns_keep_ids_exact(served, registered, expected):
    answer = served.post("/invocations", json={"inputs": as_rows()})
    assert answer.status_code == 200, answer.text
    rows = frame(pd.Series(ZIPS, dtype="object")).assign(liked=[[], [3], [3, 4]])
    assert [row["like"] for row in answer.json()["predictions"]] == pytest.approx(
        registered.model.predict(rows)["like"].tolist()
    )
    columns = {"user": [1, 1, 1], "item": [2, 2, 2], "zip": ZIPS}
    answer = served.post("/invocations", json={"inputs": columns})
    assert [row["like"] for row in answer.json()["predictions"]] == pytest.approx(expected)


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records"])
def test_json_frames_are_exact_or_refused(served, expected, form):
    def ask(zips: list) -> object:
        table = frame(pd.Series(zips, dtype="object"))
        content = {
            "dataframe_split": {"columns": list(table.columns), "data": table.to_numpy().tolist()},
            "dataframe_records": table.to_dict("records"),
        }
        return served.post("/invocations", content=json.dumps({form: content[form]}), headers=JSON)

    for zips in ([ZIPS[0], ZIPS[0], ZIPS[2]], [None if z is None else str(z) for z in ZIPS]):
        answer = ask(zips)
        assert answer.status_code == 200, answer.text
        scores = [row["like"] for row in answer.json()["predictions"]]
        assert scores == pytest.approx([expected[0 if z in (ZIPS[0], str(ZIPS[0])) else 2 if z else 1] for z in zips])
    refused = ask(ZIPS)  # MLflow makes floats of them before the model sees them
    assert refused.status_code == 400
    assert "zip" in refused.text
    assert "Int64" in refused.json()["message"]
    assert "Traceback" not in refused.text


def test_deploys_fresh_process_reproduces_scores_where_training_has_nulls(registered):
    assert pq.read_table(registered.reference)["zip"].null_count
    found = tracking.check_loads("little", "1", registered.files, registered.reference)
    assert (found.problem, found.own_code) == ("", True)
    assert found.rows == pq.read_metadata(registered.reference).num_rows
    assert max(found.max_difference.values()) <= 1e-4


def test_what_a_model_needs_is_ready_before_the_model_is_there(registered, tmp_path):
    """Else it is imported while deploy waits, and numba fills its tables again, which takes half a second."""
    script = Path(logged_models.__file__).with_name("load_check.py")
    folder = logged_models._fetch("little", "1", tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(script.parent)!r}); import load_check; load_check.prepare(); "
        "ready = {*sys.modules}; load_check.main(*sys.argv[1:]); print(*(m for m in sys.modules if m not in ready))"
    )
    command = [sys.executable, "-I", "-c", code, str(folder), str(registered.reference)]
    late = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert "serving.scorer" in late
    assert not {"mlflow", "numba", "onnxruntime", "scipy"} & {name.split(".")[0] for name in late}


def test_a_version_that_is_not_in_mlflow_is_reported(registered):
    found = tracking.check_loads("little", "9", registered.files, registered.reference)
    assert found.problem == "models:/little/9 is not in MLflow"


def test_the_model_and_its_version_are_described(registered):
    client = tracking.connection.client()
    assert client.get_registered_model("little").description == "Will this user like this film?"
    described = client.get_model_version("little", "1").description
    assert "Scores: like, love." in described
    assert "| zip | int64 |" in described
