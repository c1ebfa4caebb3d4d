"""Register for real: MLflow on SQLite, models loaded in clean processes; and deploy where one is changed."""

import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError, CorruptError, RetryLaterError
from tasks import tracking
from tasks.contract import DayConfig
from tasks.deploy import deploy
from tasks.run.rollback import rollback
from tasks.store.champion_log import ChampionLog
from tasks.store.objects import files_of
from tests.paths import ROOT
from tests.unit.tasks.daily_loop import artifacts, gate
from tests.unit.tasks.little import DAYS


def test_a_version_has_tags_signature_example_and_no_pickle(loop):
    version = loop.register(1)
    checkpoint, export = loop.store.find("train", DAYS[1]), loop.store.find("quantize", DAYS[1])
    assert version["model_uri"] == "models:/little/2"
    assert (version["checkpoint"], version["export"]) == (checkpoint.digest, export.digest)
    client = tracking.connection.client()
    found = client.get_model_version("little", "2")
    assert found.tags["recloop.scenario"] == "little"
    assert found.tags["recloop.ds"] == DAYS[1]
    assert found.tags["recloop.generation"] == "0"
    assert found.tags["recloop.parent"] == loop.store.find("train", DAYS[0]).digest
    assert found.tags["recloop.data.samples"] == "5a"
    assert found.tags["recloop.code"] == "c0de"
    assert found.tags["recloop.gate_verdict"] == "pending"
    assert tracking.aliases("little")["challenger"] == "2"
    folder = artifacts("2")
    assert "mlartifacts/little" in str(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".joblib"))]
    assert "code/serving/scorer.py" in names
    assert not [name for name in names if "models/training" in name or "mlflow.db" in name]
    recipe = (folder / "MLmodel").read_text()
    assert "python_model" not in recipe  # a pickled model would be named there
    assert len((folder / "requirements.txt").read_text().split()) == 9
    assert client.get_run(found.run_id).info.run_name == f"register {DAYS[1]}"


def test_the_registration_is_the_same_in_another_mlflow(loop, empty_mlflow, tmp_path, monkeypatch):
    written = [loop.register(n) and files_of(loop.folder(n, "registration")) for n in (0, 1)]
    other = shutil.copyfile(empty_mlflow, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    again = [loop.register(n) and files_of(loop.folder(n, "registration")) for n in (0, 1)]
    assert again == written


def test_registering_again_finds_the_version(loop):
    first = loop.register(1)
    written = (loop.folder(1, "registration") / "version.json").read_bytes()
    assert loop.register(1) == first
    assert (loop.folder(1, "registration") / "version.json").read_bytes() == written
    assert len(tracking.versions("little")) == 2


def score_elsewhere(tmp_path: Path, uri: str, rows: str) -> subprocess.CompletedProcess:
    """Loads `models:/little@champion` in a process that knows nothing of this project, and scores."""
    code = (
        "import json, sys, mlflow.pyfunc, pandas as pd, pyarrow.parquet as pq\n"
        "model = mlflow.pyfunc.load_model('models:/little@champion')\n"
        f"rows = {rows}\n"
        "scores = model.predict(rows)\n"
        "assert type(scores) is pd.DataFrame and 'torch' not in sys.modules\n"
        "print(json.dumps([list(scores.columns), scores.values.tolist()]))\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_champion_loads_in_a_clean_process_and_scores_raw_rows(loop, tmp_path, mlflow_uri):
    tracking.set_alias("little", "champion", "1")
    reference = loop.store.find("quantize", DAYS[0]).folder / "reference.parquet"
    stored = pq.read_table(reference).to_pandas()
    done = score_elsewhere(tmp_path, mlflow_uri, f"pq.read_table({str(reference)!r}).to_pandas()")
    assert done.returncode == 0, done.stderr
    columns, scores = json.loads(done.stdout)
    assert columns == ["like", "love"]
    for position, task in enumerate(columns):
        assert [row[position] for row in scores] == pytest.approx(stored[f"int8.{task}"].tolist(), abs=1e-6)


@pytest.mark.slow
def test_rows_written_by_hand_with_gaps_are_scored(loop, tmp_path, mlflow_uri):
    tracking.set_alias("little", "champion", "1")
    rows = (
        "pd.DataFrame({'user': [1, 2], 'item': [3, 999999], 'zip': [None, 1.0], 'city': ['north', None],"
        " 'seen': [1.0, None], 'liked': [[3, 4], None]})"
    )
    done = score_elsewhere(tmp_path, mlflow_uri, rows)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)[1]
    assert all(0 < value < 1 for row in scores for value in row)
    without = score_elsewhere(tmp_path, mlflow_uri, "pd.DataFrame({'user': [1, 2], 'item': [3, 999999]})")
    assert without.returncode == 0, without.stderr


@pytest.mark.slow
def test_a_damaged_artifact_is_not_loaded(loop, tmp_path, mlflow_uri):
    tracking.set_alias("little", "champion", "1")
    for name in ("model.onnx", "serving.json"):
        file = next(artifacts("1").rglob(name))
        whole = file.read_bytes()
        file.write_bytes(whole + b" ")
        done = score_elsewhere(tmp_path, mlflow_uri, "pd.DataFrame({'user': [1], 'item': [3]})")
        assert done.returncode != 0
        assert "is not the expected" in done.stderr
        file.write_bytes(whole)


def test_a_version_that_is_not_in_mlflow_is_a_no_and_mlflow_away_is_not(loop, monkeypatch):
    loop.register(1)
    tracking.connection.client().delete_model_version("little", "2")
    _, verdict = loop.deploy(1)
    assert not verdict["promoted"]
    assert gate(verdict, "reproduces")["answer"] == "no"
    assert gate(verdict, "reproduces")["reason"].endswith("models:/little/2 is not in MLflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RetryLaterError):
        loop.deploy(1)


MARK = "import pathlib; pathlib.Path({!r}).touch()\n"


def append_line(folder: Path, mark: str) -> None:
    with (folder / "pyfunc_model.py").open("a") as stream:
        stream.write(mark)


def change_imported_code(folder: Path, mark: str) -> None:
    file = folder / "code" / "serving" / "__init__.py"
    file.write_text(file.read_text() + mark)


def add_module(folder: Path, mark: str) -> None:
    (folder / "code" / "pandas.py").write_text(mark)


def change_recipe(folder: Path, **flavor: object) -> None:
    recipe = json.loads((folder / "MLmodel").read_text())
    recipe["flavors"]["python_function"] |= flavor
    (folder / "MLmodel").write_text(json.dumps(recipe))


def change_loader(folder: Path, mark: str) -> None:
    (folder / "evil.py").write_text(mark)
    change_recipe(folder, loader_module="evil", code=".")


def name_a_pickle(folder: Path, mark: str) -> None:
    change_recipe(folder, python_model="artifacts/export/model.onnx")


def put_a_symlink(folder: Path, mark: str) -> None:
    """To equal bytes, which the owner of its target can change later."""
    file = folder / "pyfunc_model.py"
    elsewhere = Path(shutil.move(file, folder.parent / "elsewhere.py"))
    file.symlink_to(elsewhere)


def link_the_code_folder(folder: Path, mark: str) -> None:
    elsewhere = Path(shutil.move(folder / "code", folder.parent / "elsewhere"))
    (folder / "code").symlink_to(elsewhere)


def put_a_fifo(folder: Path, mark: str) -> None:
    (folder / "requirements.txt").unlink()
    os.mkfifo(folder / "requirements.txt")


def remove_code(folder: Path, mark: str) -> None:
    shutil.rmtree(folder / "code")


def write_yaml(folder: Path, mark: str) -> None:
    (folder / "MLmodel").write_text("a: &a [x, x]\nb: [*a, *a]\n")


def nest_recipe(folder: Path, mark: str) -> None:
    (folder / "MLmodel").write_text('{"flavors":' * 100_000)


def change_export(folder: Path, mark: str) -> None:
    file = folder / "artifacts" / "export" / "reference.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


CHANGES = [
    append_line, change_imported_code, add_module, change_loader, name_a_pickle, put_a_symlink, link_the_code_folder,
    put_a_fifo, remove_code, write_yaml, nest_recipe, change_export,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_in_the_registry_is_never_executed(loop, tmp_path, change):
    files = json.loads((loop.folder(0, "registration") / "version.json").read_text())["files"]
    reference = loop.store.find("quantize", DAYS[0]).folder / "reference.parquet"
    mark = tmp_path / "was-executed"
    change(artifacts("1"), MARK.format(str(mark)))
    with pytest.raises(CorruptError, match="models:/little/1 is not to be loaded: restore its files in MLflow"):
        tracking.check_loads("little", "1", files, reference)
    assert not mark.exists()


@pytest.mark.slow
def test_deploy_and_rollback_refuse_a_changed_model(loop, load_once, tmp_path, monkeypatch):
    loop.register(1)
    loop.deploy(1)
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mark = tmp_path / "was-executed"
    for version in ("1", "2"):
        append_line(artifacts(version), MARK.format(str(mark)))
    with pytest.raises(CorruptError, match=r"pyfunc_model.py: digest .* is not the registered"):
        loop.deploy(1)
    with pytest.raises(CorruptError, match=r"pyfunc_model.py: digest .* is not the registered"):
        rollback(loop.scenario, loop.store)
    assert not mark.exists()
    assert ChampionLog(loop.store).current().version == tracking.aliases("little")["champion"] == "2"


@pytest.mark.slow
def test_what_a_load_leaves_in_the_registry_is_neither_refused_nor_executed(loop, tmp_path):
    """Python compiles an imported module, and runs the compiled file the next time."""
    files = json.loads((loop.folder(0, "registration") / "version.json").read_text())["files"]
    code = artifacts("1") / "code" / "serving"
    mark = tmp_path / "was-executed"
    (tmp_path / "evil.py").write_text(MARK.format(str(mark)))
    compiled = Path(py_compile.compile(str(tmp_path / "evil.py"), str(code / "__pycache__" / "scorer.cpython-311.pyc")))
    source = (code / "scorer.py").stat()
    header = (
        (0).to_bytes(4, "little") + int(source.st_mtime).to_bytes(4, "little") + source.st_size.to_bytes(4, "little")
    )
    compiled.write_bytes(compiled.read_bytes()[:4] + header + compiled.read_bytes()[16:])
    reference = loop.store.find("quantize", DAYS[0]).folder / "reference.parquet"
    assert tracking.check_loads("little", "1", files, reference).refusal(1e-4) is None
    assert not mark.exists()


KILLED_REGISTER = """
import os
from tasks import tracking
from feature_jobs.schema import load_scenario
from pathlib import Path
tracking.logged_models._create_version = lambda *_: os._exit(9)
tags = {{"recloop.checkpoint": "c", "recloop.export": "e"}}
key = tracking.RunKey("little", 0, {ds!r}, "register")
tracking.register_version(load_scenario({scenario!r}), Path({export!r}), key, tags, required=set())
"""


@pytest.mark.slow
def test_what_a_killed_register_left_is_deleted_by_the_next(loop):
    export = str(loop.store.find("quantize", DAYS[1]).folder)
    code = KILLED_REGISTER.format(ds=DAYS[1], scenario=str(loop.scenario.file), export=export)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 9
    client, experiment = tracking.connection.client(), tracking.runs.experiment_id_of(loop.scenario)
    left = {model.model_id for model in client.search_logged_models([experiment])}
    assert len(left) == 2
    loop.register(1)
    found = {model.model_id for model in client.search_logged_models([experiment])}
    assert found == {version["model_id"] for version in tracking.versions("little")}
    assert len(found & left) == 1


def test_what_a_register_logs_at_this_moment_is_left_alone(loop, monkeypatch):
    client, experiment = tracking.connection.client(), tracking.runs.experiment_id_of(loop.scenario)
    unregistered = tracking.unregistered
    ours = client.create_logged_model(experiment, "little", tags=unregistered.mark_of_this_process())
    others = client.create_logged_model(
        experiment, "little", tags={unregistered.MARK: "true", unregistered.OWNER: "x/1/2"}
    )
    known = {ours.model_id, others.model_id, tracking.versions("little")[0]["model_id"]}
    unregistered.delete_unregistered("little", experiment)
    assert {model.model_id for model in client.search_logged_models([experiment])} == known
    monkeypatch.setattr(unregistered, "LONGEST_S", -1)  # the time of another machine's step is over
    unregistered.delete_unregistered("little", experiment)
    assert {model.model_id for model in client.search_logged_models([experiment])} == known - {others.model_id}


def test_deploy_without_a_store_says_what_is_missing(loop, tmp_path):
    config = DayConfig(loop.scenario, DAYS[0])
    folder = tmp_path / "x"
    with pytest.raises(BadInputError, match="--store"):
        deploy(config, registration=folder, evaluation=folder, export=folder, validation=folder, deployment=folder)


def test_of_two_that_register_the_same_export_at_once_the_first_version_stands(loop):
    loop.register(1)
    client = tracking.connection.client()
    first = tracking.versions("little")[0]
    client.delete_registered_model_alias("little", "challenger")
    counterpart = client.create_model_version("little", str(artifacts("2")), tags=first["tags"])
    assert tracking.logged_models._settled("little", first["tags"])["version"] == "2"
    assert str(counterpart.version) not in {version["version"] for version in tracking.versions("little")}
