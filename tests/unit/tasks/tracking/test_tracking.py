"""The view in MLflow: a run per committed step below its day's, the chain's curves, from several processes at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario
from tasks import tracking
from tasks.contract import Input, Step
from tasks.store.keys import record_key
from tasks.store.scenario_store import Commit, ScenarioStore, open_store
from tests.mlflow_server import mlflow_server
from tests.paths import ROOT
from tests.unit.tasks.little import DAYS, NUM_USERS, commit, little_scenario, write_samples

HEADLINE = {"progressive/*/auc": "auc/*", "num_rows": "rows"}
STEPS = {
    "train": Step(
        "train",
        lambda **_: {},
        {"samples": Input()},
        "checkpoint",
        ("model", "features", "labels", "train"),
        headline=HEADLINE,
    ),
    "deploy": Step("deploy", lambda **_: {}, {"checkpoint": Input()}, "deployment", ("deploy",)),
    "tune": Step("tune", lambda **_: {}, {}, "proposal", ("tune",), trials="proposal.json", daily=False),
}
RECORD = {
    "metrics": {"progressive": {"like": {"auc": 0.75, "gauc": float("nan")}}, "num_rows": 10, "name": "x"},
    "series": {"training/loss": [[64, 0.7], [128, 0.6], [192, 0.5]]},
    "system": {"cpu_utilization_percentage": [10.0, 90.0, 50.0]},
    "seconds": {"compute": 1.5, "imports": 0.5},
}


@pytest.fixture(scope="module")
def server(empty_mlflow, tmp_path_factory):
    """A real MLflow server on its own database."""
    folder = tmp_path_factory.mktemp("server")
    uri = f"sqlite:///{shutil.copyfile(empty_mlflow, folder / 'mlflow.db')}"
    with mlflow_server(folder / "artifacts", "--backend-store-uri", uri) as address:
        yield uri, address


@pytest.fixture(
    params=["database", pytest.param("server", marks=pytest.mark.slow), pytest.param("beside", marks=pytest.mark.slow)]
)
def mlflow(request, monkeypatch):
    """The ways to reach MLflow: its SQLite database; a server; a server in front of the same SQLite file."""
    if request.param == "database":
        request.getfixturevalue("mlflow_uri")
    else:
        uri, url = request.getfixturevalue("server")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url if request.param == "server" else uri)
        if request.param == "beside":
            monkeypatch.setenv("RECLOOP_MLFLOW_SERVER", url)
    return f"little_{request.param}"


def committed(
    store: ScenarioStore,
    folder: Path,
    step: str,
    ds: str,
    record: dict,
    gate: str | None = None,
    files: dict | None = None,
) -> Commit:
    """A commit with its record, as the runner leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"metrics.json": "{}", **(files or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    made = commit(store, step, ds, folder, gate=gate)
    store.write_record(record_key(made.generation, ds, step), record)
    return made


def show(scenario: Scenario, store: ScenarioStore, *commits: Commit) -> None:
    tracking.View(scenario, store, STEPS).show(commits)


def runs_of(experiment: str, kind: str | None = None) -> list:
    client = tracking.connection.client()
    found = client.get_experiment_by_name(experiment)
    runs = list(client.search_runs([found.experiment_id]))
    return [run for run in runs if kind in (None, run.data.tags.get("recloop.kind"))]


def test_a_committed_step_is_one_run_below_its_days_run(mlflow, tmp_path):
    scenario, store = little_scenario(tmp_path / "s", name=mlflow), open_store(tmp_path / "store", mlflow)
    files = {"docs/static/page.html": "<p>", "weights.safetensors": "0"}
    made = committed(store, tmp_path / "out", "train", DAYS[0], RECORD, "no: too bad", files)
    for _ in range(2):
        show(scenario, store, made)
    assert len(runs_of(mlflow)) == 3  # step, day, chain
    [run], [day] = runs_of(mlflow, "step"), runs_of(mlflow, "day")
    assert (run.info.run_name, run.info.status) == (f"train {DAYS[0]}", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == day.info.run_id
    assert run.info.end_time - run.info.start_time == 2000
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
    client, run_id = tracking.connection.client(), run.info.run_id
    files = {a.path for a in client.list_artifacts(run_id, "checkpoint")}
    assert files == {"checkpoint/metrics.json", "checkpoint/manifest.json", "checkpoint/docs"}
    assert client.list_artifacts(run_id, "checkpoint/docs/static")[0].path.endswith("page.html")
    history = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [(m.step, m.value) for m in history] == [(0, 10.0), (1, 90.0), (2, 50.0)]
    losses = client.get_metric_history(run_id, "training/loss")
    assert [(m.step, m.value) for m in losses] == [(64, 0.7), (128, 0.6), (192, 0.5)]
    assert [m.timestamp - run.info.start_time for m in losses] == [0, 1000, 2000]


def test_a_days_run_has_its_aucs_rows_seconds_and_verdict(mlflow_uri, tmp_path):
    scenario, store = little_scenario(tmp_path / "s"), open_store(tmp_path / "store", "little")
    show(scenario, store, committed(store, tmp_path / "a", "train", DAYS[0], RECORD))
    [day] = runs_of("little", "day")
    assert day.data.tags["recloop.verdict"] == "1 of 2 steps done"
    promoted = {"metrics": {"verdict": "promoted version 5"}, "seconds": {"compute": 3.0}}
    show(scenario, store, committed(store, tmp_path / "b", "deploy", DAYS[0], promoted))
    [day] = runs_of("little", "day")
    assert (day.info.run_name, day.info.status) == (DAYS[0], "FINISHED")
    seconds = {"seconds/train": 2.0, "seconds/deploy": 3.0, "seconds_total": 5.0}
    assert day.data.metrics == {"auc/like": 0.75, "rows": 10.0, **seconds}
    assert day.data.tags["recloop.verdict"] == "promoted version 5"
    refused = committed(store, tmp_path / "c", "deploy", DAYS[1], promoted, gate="no: worse")
    show(scenario, store, refused)
    verdicts = {run.info.run_name: run.data.tags["recloop.verdict"] for run in runs_of("little", "day")}
    assert verdicts[DAYS[1]] == "deploy: no: worse"
    client = tracking.connection.client()
    experiment = client.get_experiment_by_name("little")
    assert experiment.tags["mlflow.note.content"].startswith(scenario.description)
    assert tracking.experiment_path("little") == f"/#/experiments/{experiment.experiment_id}/runs"
    assert tracking.experiment_path("unknown") == "/#/experiments"


def test_the_chain_is_a_run_with_a_point_per_day_and_a_replay_has_its_own(mlflow_uri, tmp_path):
    scenario, store = little_scenario(tmp_path / "s"), open_store(tmp_path / "store", "little")

    def learn(ds: str, auc: float) -> Commit:
        record = {"metrics": {"progressive": {"like": {"auc": auc}}, "num_rows": 10}}
        return committed(store, tmp_path / f"{ds} {auc}", "train", ds, record, files={"auc.json": str(auc)})

    def curve(generation: str) -> list:
        [run] = [run for run in runs_of("little", "chain") if run.data.tags["recloop.generation"] == generation]
        points = tracking.connection.client().get_metric_history(run.info.run_id, "auc/like")
        return [(point.step, point.value) for point in points]

    for ds, auc in zip(DAYS[:3], (0.6, 0.7, 0.8), strict=True):
        made = learn(ds, auc)
        show(scenario, store, made)
        show(scenario, store, made)
    assert curve("0") == [(1, 0.6), (2, 0.7), (3, 0.8)]
    store.new_generation(DAYS[1], "corrected")
    show(scenario, store, learn(DAYS[1], 0.75))
    assert curve("1") == [(1, 0.6), (2, 0.75)]  # the day before the correction is of both
    assert curve("0") == [(1, 0.6), (2, 0.7), (3, 0.8)]
    names = sorted(run.info.run_name for run in runs_of("little", "chain"))
    assert names == ["little chain", "little chain (generation 1)"]


def test_runs_that_were_created_at_once_become_one_again(mlflow_uri, tmp_path):
    scenario, store = little_scenario(tmp_path / "s"), open_store(tmp_path / "store", "little")
    made = committed(store, tmp_path / "a", "train", DAYS[0], RECORD)
    runs, key = tracking.view.Runs(scenario), tracking.RunKey("little", 0, DAYS[0])
    for start_ms in (2, 1):
        runs.create(key.name, start_ms, key.tags)
    show(scenario, store, made)
    [day] = runs_of("little", "day")
    assert day.info.start_time == 1


def test_statistics_of_the_embedding_tables_are_metrics_of_train(mlflow_uri, tmp_path):
    from models.training.day import train_day  # not above: other processes of this module's tests need no torch
    from models.training.job import TrainJob

    scenario = little_scenario(tmp_path / "s", **{"features.user.embedding": {"min_count": 5, "capacity": 30}})
    samples, store = tmp_path / "samples", open_store(tmp_path / "store", "little")
    write_samples(samples, DAYS[0])
    (tmp_path / "out").mkdir()
    metrics = train_day(TrainJob(scenario, DAYS[0], samples, None, tmp_path / "out"))
    series = metrics.pop("series")
    show(scenario, store, committed(store, tmp_path / "out", "train", DAYS[0], {"metrics": metrics, "series": series}))
    [run] = runs_of("little", "step")
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
    client = tracking.connection.client()
    for name in ("training/loss", "training/learning_rate", "training/samples_per_s"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == list(range(60, 601, 60))


def test_many_params_and_points_fit_into_batches(mlflow, tmp_path):
    name, features = f"{mlflow}_many", {f"f{n}": {"kind": "id", "of": "user"} for n in range(230)}
    scenario, store = little_scenario(tmp_path / "s", name=name, features=features), open_store(tmp_path / "st", name)
    record = {"system": {f"gpu_{n}": [float(i) for i in range(1000)] for n in range(6)}}
    show(scenario, store, committed(store, tmp_path / "a", "train", DAYS[0], record))
    [run] = runs_of(name, "step")
    assert sum(name.startswith("features.") for name in run.data.params) == 230
    assert run.data.metrics["system/gpu_5"] == 995.0


def test_registry_reads_and_moves_aliases(mlflow):
    client = tracking.connection.client()
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
    assert tracking.aliases(mlflow) == {"champion": "2"}
    with pytest.raises(BadInputError, match=r"(?i)version"):
        tracking.set_alias(mlflow, "champion", "9")


def test_trials_are_nested_runs(mlflow_uri, tmp_path):
    scenario, store = little_scenario(tmp_path / "s"), open_store(tmp_path / "store", "little")
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
    files = {"proposal.json": json.dumps({"trials": trials})}
    made = committed(store, tmp_path / "proposal", "tune", DAYS[0], {}, files=files)
    for _ in range(2):
        show(scenario, store, made)
    [parent] = runs_of("little", "step")
    children = [run for run in runs_of("little") if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    best = next(run for run in children if run.data.tags["recloop.trial"] == "0")
    assert len(children) == 2
    assert best.data.metrics["value"] == 0.7
    assert best.data.params["train.learning_rate"] == "0.001"


@pytest.mark.slow
def test_several_processes_write_one_new_database_at_once(tmp_path):
    scenario, store = little_scenario(tmp_path / "s"), open_store(tmp_path / "store", "little")
    committed(store, tmp_path / "a", "train", DAYS[0], RECORD)
    code = (
        "from feature_jobs.schema import load_scenario\nfrom tasks.store.scenario_store import open_store\n"
        "from tests.unit.tasks.tracking.test_tracking import runs_of, show\n"
        f"store = open_store({str(store.work.parent)!r}, 'little')\n"
        f"show(load_scenario({str(scenario.file)!r}), store, store.find('train', {DAYS[0]!r}))\n"
        "print(sorted(run.info.run_id for run in runs_of('little')))\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = [process.communicate()[0].splitlines()[-1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(json.loads(printed[0].replace("'", '"'))) == 3
    assert len(set(printed)) == 1


def test_a_server_that_is_away_is_retry_later(monkeypatch, mlflow_uri):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(RetryLaterError, match="does not answer") as raised:
        tracking.versions("little")
    assert "secret" not in str(raised.value)
