"""Runs in MLflow: one per committed step, through the library as over REST, from several processes at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, RetryLaterError
from models.training.day import train_day
from tasks import tracking
from tasks.contract import Input, Step
from tasks.store.scenario_store import Commit, ScenarioStore, open_store
from tests.mlflow_server import mlflow_server
from tests.paths import ROOT
from tests.unit.tasks.little import DAYS, NUM_USERS, commit, little_scenario, write_samples

TRAIN = Step("train", lambda **_: {}, {"samples": Input()}, "checkpoint", ("model", "features", "labels", "train"))
RECORD = {
    "metrics": {"progressive": {"like": {"auc": 0.75, "gauc": float("nan")}}, "num_rows": 10, "name": "x"},
    "system": {"cpu_utilization_percentage": [10.0, 90.0, 50.0]},
    "seconds": {"compute": 1.5},
}


@pytest.fixture(scope="module")
def server(empty_mlflow, tmp_path_factory):
    """A real MLflow server on its own database."""
    folder = tmp_path_factory.mktemp("server")
    uri = f"sqlite:///{shutil.copyfile(empty_mlflow, folder / 'mlflow.db')}"
    with mlflow_server(folder / "artifacts", "--backend-store-uri", uri) as address:
        yield uri, address


@pytest.fixture(
    params=["library", pytest.param("rest", marks=pytest.mark.slow), pytest.param("beside", marks=pytest.mark.slow)]
)
def mlflow(request, monkeypatch):
    """The ways to reach MLflow: its library on SQLite; a server; a server in front of the same SQLite file."""
    if request.param == "library":
        request.getfixturevalue("mlflow_uri")
    else:
        uri, url = request.getfixturevalue("server")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url if request.param == "rest" else uri)
        if request.param == "beside":
            monkeypatch.setenv("RECLOOP_MLFLOW_SERVER", url)
    return f"little_{request.param}"


def trained(tmp_path: Path, gate: str | None = None) -> tuple[ScenarioStore, Commit]:
    store = open_store(tmp_path / "store", "little")
    folder = tmp_path / "checkpoint"
    (folder / "docs" / "static").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"0" * 10)
    (folder / "docs" / "static" / "page.html").write_text("<p>")
    return store, commit(store, "train", DAYS[0], folder, gate=gate)


def runs_of(experiment: str) -> list:
    client = tracking.connection._client(tracking.tracking_uri())
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id]))


def test_a_committed_step_is_one_run_with_what_a_person_looks_for(mlflow, tmp_path):
    scenario = little_scenario(tmp_path / "s", name=mlflow)
    _, made = trained(tmp_path, gate="no: too bad")
    run_id = tracking.record_step(TRAIN, scenario, made, RECORD)
    assert tracking.record_step(TRAIN, scenario, made, RECORD) == run_id
    (run,) = runs_of(mlflow)
    assert run.info.run_name == f"train {DAYS[0]}"
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 1500
    assert run.data.metrics["progressive/like/auc"] == 0.75
    assert run.data.metrics["num_rows"] == 10
    assert run.data.metrics["system/cpu_utilization_percentage"] == 50.0
    assert "progressive/like/gauc" not in run.data.metrics
    assert run.data.params["train.batch_size"] == "64"
    assert json.loads(run.data.params["features.liked"])["length"] == 5
    assert run.data.params["labels.like"] == "rating >= 4"
    tags = run.data.tags
    assert tags["recloop.digest"] == made.digest
    assert (tags["recloop.ds"], tags["recloop.generation"], tags["recloop.gate"]) == (DAYS[0], "0", "no: too bad")
    assert not any(str(tmp_path) in value for value in run.data.params.values())
    client = tracking.connection._client(tracking.tracking_uri())
    files = {a.path for a in client.list_artifacts(run_id, "checkpoint")}
    assert files == {"checkpoint/metrics.json", "checkpoint/manifest.json", "checkpoint/docs"}
    assert client.list_artifacts(run_id, "checkpoint/docs/static")[0].path.endswith("page.html")
    history = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [(m.step, m.value) for m in history] == [(0, 10.0), (1, 90.0), (2, 50.0)]


def test_statistics_of_the_embedding_tables_are_metrics_of_train(mlflow_uri, tmp_path):
    scenario = little_scenario(tmp_path / "s", **{"features.user.embedding": {"min_count": 5, "capacity": 30}})
    samples, (_, made) = tmp_path / "samples", trained(tmp_path)
    write_samples(samples, DAYS[0])
    metrics = train_day(scenario, DAYS[0], samples, None, made.folder)
    tracking.record_step(TRAIN, scenario, made, {"metrics": metrics})
    (run,) = runs_of("little")
    shown = run.data.metrics
    assert {name.split("/")[1] for name in shown if name.startswith("tables/")} == {"user", "item", "zip", "city"}
    assert 0 < shown["tables/user/rows"] <= 30
    assert shown["tables/user/lookups"] == 600
    assert shown["tables/user/rejected"] == 4 * NUM_USERS
    assert shown["tables/user/rows"] == shown["tables/user/admitted"] - shown["tables/user/evicted"]
    for name, counts in metrics["tables"].items():
        assert {kind: shown[f"tables/{name}/{kind}"] for kind in counts} == counts
        assert {"rows", "lookups", "admitted", "rejected", "evicted", "hit_rate"} <= counts.keys()
    assert (shown["skipped_steps"], shown["loss_scale"]) == (0, 1)


def test_many_params_and_points_fit_into_batches(mlflow, tmp_path):
    features = {f"f{n}": {"kind": "id", "of": "user"} for n in range(230)}
    scenario = little_scenario(tmp_path / "s", name=f"{mlflow}_many", features=features)
    _, made = trained(tmp_path)
    record = {"system": {f"gpu_{n}": [float(i) for i in range(1000)] for n in range(6)}}
    tracking.record_step(TRAIN, scenario, made, record)
    (run,) = runs_of(f"{mlflow}_many")
    assert sum(name.startswith("features.") for name in run.data.params) == 230
    assert run.data.metrics["system/gpu_5"] == 995.0


def test_registry_reads_and_moves_aliases(mlflow):
    client = tracking.connection._client(tracking.tracking_uri())
    assert tracking.versions(mlflow) == []
    client.create_registered_model(mlflow)
    for n in range(2):
        client.create_model_version(
            mlflow, "s3://nowhere/model", tags={"recloop.ds": DAYS[n], "recloop.generation": str(n)}
        )
    tracking.set_alias(mlflow, "champion", "1")
    tracking.set_alias(mlflow, "champion", "2")
    tracking.set_alias(mlflow, "challenger", "1")
    tracking.set_version_tags(mlflow, "1", {"recloop.gate_verdict": "pending", "recloop.ds": "2024-02-02"})
    tracking.set_version_tags(mlflow, "1", {"recloop.gate_verdict": "promoted"})
    assert tracking.aliases(mlflow) == {"champion": "2", "challenger": "1"}
    newest, first = tracking.versions(mlflow)
    assert (newest["version"], newest["aliases"], newest["generation"]) == ("2", ["champion"], 1)
    assert (first["verdict"], first["ds"]) == ("promoted", "2024-02-02")
    tracking.delete_alias(mlflow, "challenger")
    tracking.delete_alias(mlflow, "challenger")
    # MLflow's own client sees the same
    assert str(client.get_model_version_by_alias(mlflow, "champion").version) == "2"
    assert {alias: str(v) for alias, v in client.get_registered_model(mlflow).aliases.items()} == {"champion": "2"}
    assert client.get_model_version(mlflow, "1").tags["recloop.gate_verdict"] == "promoted"
    with pytest.raises(BadInputError, match=r"(?i)version"):
        tracking.set_alias(mlflow, "champion", "9")


def test_trials_are_nested_runs(mlflow_uri, tmp_path):
    scenario = little_scenario(tmp_path / "s")
    store = open_store(tmp_path / "store", "little")
    trials = [
        {
            "number": 0,
            "params": {"train.learning_rate": 0.001},
            "value": 0.7,
            "state": "COMPLETE",
            "intermediate": {"0": 0.6},
        },
        {"number": 1, "params": {"train.learning_rate": 0.01}, "value": None, "state": "PRUNED"},
    ]
    (tmp_path / "proposal").mkdir()
    (tmp_path / "proposal" / "proposal.json").write_text(json.dumps({"trials": trials}))
    made = commit(store, "tune", DAYS[0], tmp_path / "proposal")
    tune = Step("tune", lambda **_: {}, {"samples": Input()}, "proposal", ("tune",))
    parent = tracking.record_step(tune, scenario, made, {})
    children = [run for run in runs_of("little") if run.data.tags.get("mlflow.parentRunId") == parent]
    best = next(run for run in children if run.data.tags["recloop.trial"] == "0")
    assert len(children) == 2
    assert best.data.metrics["value"] == 0.7
    assert best.data.params["train.learning_rate"] == "0.001"


@pytest.mark.slow
def test_several_processes_write_one_new_database_at_once(tmp_path):
    scenario, (store, made) = little_scenario(tmp_path / "s"), trained(tmp_path)
    code = (
        "import sys\nfrom feature_jobs.schema import load_scenario\nfrom tasks.store.scenario_store import open_store\n"
        "from tests.unit.tasks.tracking.test_tracking import TRAIN, RECORD\nfrom tasks import tracking\n"
        f"store = open_store({str(store.root.parent)!r}, 'little')\n"
        f"scenario = load_scenario({str(scenario.file)!r})\n"
        f"print(tracking.record_step(TRAIN, scenario, store.find('train', {made.ds!r}), RECORD))\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({run[-1] for run in told}) == 1


def test_a_server_that_is_away_is_retry_later(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setattr(tracking.connection, "PAUSES_S", (0.01,) * 6)
    with pytest.raises(RetryLaterError, match="does not answer") as told:
        tracking.versions("little")
    assert "secret" not in str(told.value)
