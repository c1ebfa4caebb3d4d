"""Register and deploy for real: MLflow on SQLite, models loaded in clean processes, gates that say no with numbers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError, GateError, RetryLaterError
from feature_jobs.schema import Scenario
from models.training.day import train_day
from models.training.job import TrainJob
from tasks import tracking
from tasks.contract import DayConfig
from tasks.deploy import deploy
from tasks.evaluate import evaluate
from tasks.quantize import quantize
from tasks.register import register
from tasks.run.rollback import resume_promotions, rollback
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.objects import files_of
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.unit.tasks.little import DAYS, commit, little_scenario, write_samples, write_validation

WRITERS = {"checkpoint": "train", "evaluation": "evaluate", "export": "quantize", "validation": "validate"}


@dataclass
class Loop:
    """Days of a very small recommender, taken to their exports, in a store."""

    root: Path
    scenario: Scenario
    store: ScenarioStore

    def folder(self, number: int, name: str) -> Path:
        folder = self.root / DAYS[number] / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def folders(self, number: int, *names: str) -> dict[str, Path]:
        return {name: self.store.find(WRITERS[name], DAYS[number]).folder for name in names}

    def config(self, number: int) -> DayConfig:
        return DayConfig(self.scenario, DAYS[number], self.store, self.store.generation_of(DAYS[number]))

    def make(self, number: int, **how) -> None:
        """Everything before register, committed."""
        samples = self.folder(number, "samples")
        write_samples(samples, DAYS[number], 1500, **how)
        write_validation(self.folder(number, "validation"))
        self.commit(number, "validation")
        before = self.store.find("train", DAYS[number - 1]) if number else None
        parent = before.folder if before else None
        train_day(TrainJob(self.scenario, DAYS[number], samples, parent, self.folder(number, "checkpoint")))
        self.commit(number, "checkpoint", inputs={"samples": "5a", "parent": before.digest if before else None})
        quantize(self.config(number), **self.quantize_reads(number), export=self.folder(number, "export"))
        self.commit(number, "export")
        self.evaluate(number)

    def quantize_reads(self, number: int) -> dict[str, Path]:
        known = {"samples": self.folder(number, "samples"), **self.folders(number, "checkpoint", "validation")}
        return {name: known[name] for name in quantize.step.reads}

    def evaluate(self, number: int) -> None:
        entries = ChampionLog(self.store).as_of(DAYS[number])
        champions = [e and self.store.find_by_digest("train", e.checkpoint) for e in entries]
        out = self.folder(number, "evaluation")
        given = {"samples": self.folder(number, "samples"), **self.folders(number, "validation", "checkpoint")}
        given |= {"champion": champions[0], "former_champion": champions[1], "yesterday": None}
        evaluate(self.config(number), **given, evaluation=out)
        self.commit(number, "evaluation")

    def commit(self, number: int, name: str, **facts) -> None:
        commit(self.store, WRITERS[name], DAYS[number], self.folder(number, name), **facts)

    def register(self, number: int) -> dict:
        out = self.folder(number, "registration")
        reads = self.folders(number, "export", "checkpoint", "evaluation", "validation")
        register(self.config(number), **reads, registration=out)
        return json.loads((out / "version.json").read_text())

    def deploy(self, number: int, **others: Path) -> tuple[dict, dict]:
        """Metrics and verdict; after a no the metrics hold the reason as `gate`."""
        out = self.folder(number, "deployment")
        reads = self.folders(number, "export", "evaluation", "validation") | others
        reads["registration"] = self.folder(number, "registration")
        try:
            metrics = deploy(self.config(number), **reads, deployment=out)
        except GateError as error:
            metrics = {**error.metrics, "gate": str(error)}
        return metrics, json.loads((out / "verdict.json").read_text())


@pytest.fixture(scope="module")
def two_days(tmp_path_factory) -> Loop:
    """The first day promoted (in the log alone), the second one ready to register."""
    root = tmp_path_factory.mktemp("loop")
    loop = Loop(root, little_scenario(root), open_store(root / "store", "little"))
    loop.make(0)
    first = loop.store.find("train", DAYS[0])
    ChampionLog(loop.store).promote(0, Entry("promotion", "little", "1", DAYS[0], 0, first.digest))
    loop.make(1)
    return loop


ANSWERS: dict[str, tracking.LoadCheck] = {}


@pytest.fixture
def load_once(monkeypatch):
    """The real answer of the fresh process, asked once for each model: it takes seconds."""
    real = tracking.check_loads

    def check(model: str, version: str, reference: Path) -> tracking.LoadCheck:
        digest = tracking.versions(model)[-int(version)]["tags"]["recloop.export"]
        if digest not in ANSWERS:
            ANSWERS[digest] = real(model, version, reference)
        return ANSWERS[digest]

    monkeypatch.setattr(tracking, "check_loads", check)


@pytest.fixture
def loop(two_days: Loop, tmp_path: Path, mlflow_uri: str) -> Loop:
    """A copy that a test may change, the first day registered as version 1."""
    shutil.copytree(two_days.root, tmp_path / "loop")
    copied = Loop(tmp_path / "loop", two_days.scenario, open_store(tmp_path / "loop" / "store", "little"))
    assert copied.register(0)["version"] == "1"
    return copied


def artifacts(version: str) -> Path:
    """Where a version's files lie."""
    uri = tracking.connection.client().get_model_version_download_uri("little", version)
    return Path(uri.removeprefix("file://"))


def gate(verdict: dict, name: str) -> dict:
    return next(g for g in verdict["gates"] if g["name"] == name)


def edited(folder: Path, tmp_path: Path, name: str, **changes) -> Path:
    """A copy of a folder with other values in a JSON file."""
    copy = tmp_path / "edited" / folder.parent.name
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    document = json.loads((copy / name).read_text())
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        node = document
        for key in parents:
            node = node[key]
        node[leaf] = value
    (copy / name).write_text(json.dumps(document))
    return copy


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
    assert not [name for name in names if "training" in name or "mlflow.db" in name]
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


def test_a_good_day_is_promoted_with_all_its_numbers(loop, load_once):
    loop.register(1)
    metrics, verdict = loop.deploy(1)
    assert verdict["promoted"], [g["reason"] for g in verdict["gates"] if g["answer"] != "yes"]
    assert metrics["promoted"] is True
    assert "gate" not in metrics
    names = [g["name"] for g in verdict["gates"]]
    assert names == ["reproduces", "int8", "not_worse", "calibration", "validation", "next_day", "order"]
    assert gate(verdict, "reproduces")["numbers"]["max_difference"]["like"] <= 1e-4
    assert verdict["words"] == "promoted"
    assert set(gate(verdict, "not_worse")["numbers"]["overall"]["like"]) == {"auc", "low", "high", "judgement"}
    assert tracking.aliases("little") == {"champion": "2"}
    assert tracking.versions("little")[0]["verdict"] == "promoted"
    current = ChampionLog(loop.store).current()
    assert (current.version, current.ds, current.checkpoint) == ("2", DAYS[1], verdict["checkpoint"])
    assert verdict["champion"]["sequence"] == 2


def test_deploying_again_after_a_kill_changes_nothing(loop, load_once):
    loop.register(1)
    _, verdict = loop.deploy(1)
    tracking.set_alias("little", "champion", "1")  # as if it was killed between the log and the alias
    _, again = loop.deploy(1)
    assert again == verdict
    assert len(ChampionLog(loop.store).history()) == 2
    assert tracking.aliases("little")["champion"] == "2"


def test_a_rollback_is_not_undone_by_the_same_days_deploy(loop, load_once):
    loop.register(1)
    loop.deploy(1)
    rollback(loop.scenario, loop.store)
    assert tracking.aliases("little")["champion"] == "1"
    loop.deploy(1)
    assert tracking.aliases("little")["champion"] == "1"
    assert ChampionLog(loop.store).current().version == "1"


THIN = {"verdict": "unknown", "reason": "14 rows where 200 are needed"}


def thin_evaluation(loop: Loop, tmp_path: Path) -> Path:
    """The second day's evaluation as of 14 rows of the holdout, of which 5 are positive."""
    return edited(
        loop.folders(1, "evaluation")["evaluation"],
        tmp_path,
        "evaluation.json",
        comparison={"verdict": "unknown", "reasons": [], "unknown": [f"like: {THIN['reason']}"]},
        overall__like__judgement=THIN,
        overall__like__rows=14,
        overall__like__positives=5,
        overall__like__challenger__calibration=1.68,
        overall__like__challenger__calibration_interval=[0.9, None],
        warnings=["like is rare: …"],
    )


def test_too_few_rows_are_promoted_with_that_word_or_held_as_the_scenario_says(loop, load_once, tmp_path, capsys):
    loop.register(1)
    evaluation = thin_evaluation(loop, tmp_path)
    loop.scenario = little_scenario(tmp_path / "held", deploy={"max_calibration_error": 3, "when_unsure": "hold"})
    metrics, verdict = loop.deploy(1, evaluation=evaluation)
    assert metrics["promoted"] is False
    assert metrics["gate"].startswith(
        "no: held, because deploy.when_unsure is hold and this is unjudged: like: 14 rows"
    )
    assert ChampionLog(loop.store).current().version == "1"
    loop.scenario = little_scenario(tmp_path / "promoted", deploy={"max_calibration_error": 3})
    metrics, verdict = loop.deploy(1, evaluation=evaluation)
    assert ChampionLog(loop.store).current().version == "2"
    assert (metrics["promoted"], metrics["unjudged"]) == (True, 2)
    unjudged = [g["name"] for g in verdict["gates"] if g["answer"] == "unknown"]
    assert unjudged == ["not_worse", "calibration"]
    assert gate(verdict, "calibration")["reason"] == (
        "like: calibration 1.68 [0.90, ∞] not judged: 14 rows where 200 are needed"
    )
    assert verdict["words"].startswith("promoted, unjudged: like: 14 rows where 200 are needed; like: calibration 1.68")
    assert tracking.versions("little")[0]["verdict"] == verdict["words"]
    printed = capsys.readouterr().err
    assert "promoted version 2, unjudged: " in printed
    assert "warning: like is rare" in printed


def test_a_version_whose_few_positives_show_scores_far_too_high_is_refused(loop, load_once, tmp_path):
    loop.register(1)
    evaluation = edited(
        thin_evaluation(loop, tmp_path),
        tmp_path / "far",
        "evaluation.json",
        overall__like__challenger__calibration=97.61,
        overall__like__challenger__calibration_interval=[40.69, None],
    )
    metrics, verdict = loop.deploy(1, evaluation=evaluation)
    assert metrics["promoted"] is False
    assert gate(verdict, "calibration")["answer"] == "no"
    assert verdict["words"] == (
        "no: like: calibration 97.61 [40.69, ∞] where 1 ± 3 is allowed: scores are at least 40.7 times too high"
    )
    assert ChampionLog(loop.store).current().version == "1"


def test_a_day_with_one_class_is_unknown_and_not_equal(loop, load_once, tmp_path):
    loop.register(1)
    nothing = dict.fromkeys(("auc", "calibration"))
    evaluation = edited(
        loop.folders(1, "evaluation")["evaluation"],
        tmp_path,
        "evaluation.json",
        comparison={"verdict": "unknown", "reasons": [], "unknown": ["love: 0 positives where 30 are needed"]},
        overall__love__positives=0,
        overall__love__challenger__calibration=None,
        overall__love__challenger__calibration_interval=[None, None],
    )
    export = edited(
        loop.folders(1, "export")["export"],
        tmp_path,
        "quantization.json",
        **{f"{form}__{metric}__love": None for form in ("fp32", "int8") for metric in nothing},
    )
    _, verdict = loop.deploy(1, evaluation=evaluation, export=export)
    unknown = [g["name"] for g in verdict["gates"] if g["answer"] == "unknown"]
    assert unknown == ["int8", "not_worse", "calibration"]
    assert "one class only" in verdict["words"]
    assert "0 positives where 30 are needed" in verdict["words"]


def test_an_evaluation_of_an_older_release_is_refused_with_the_remedy(loop, tmp_path):
    loop.register(1)
    folder = edited(loop.folders(1, "evaluation")["evaluation"], tmp_path, "evaluation.json")
    old = json.loads((folder / "evaluation.json").read_text())
    del old["warnings"]
    (folder / "evaluation.json").write_text(json.dumps(old))
    with pytest.raises(BadInputError, match="an older release wrote it"):
        loop.deploy(1, evaluation=folder)


def test_a_rollback_holds_the_next_two_days_until_a_person_lifts_it(loop, load_once):
    loop.register(1)
    loop.deploy(1)
    rollback(loop.scenario, loop.store)
    for number in (2, 3):
        loop.make(number)
        loop.register(number)
        metrics, verdict = loop.deploy(number)
        assert metrics["promoted"] is False
        assert "held since the rollback to version 1" in metrics["gate"]
        assert metrics["gate"].endswith("recloop resume-promotions -s little")
        assert gate(verdict, "order")["answer"] == "no"
        assert ChampionLog(loop.store).current().version == "1"
        assert tracking.aliases("little")["champion"] == "1"
    assert resume_promotions(loop.scenario, loop.store).changed
    assert tracking.aliases("little")["champion"] == "1"  # until a later day is promoted
    _, verdict = loop.deploy(3)
    assert verdict["promoted"], verdict["words"]
    assert tracking.aliases("little")["champion"] == "4"


def test_a_scenario_may_let_the_next_day_promote_after_a_rollback(loop, load_once, tmp_path):
    loop.register(1)
    loop.deploy(1)
    rollback(loop.scenario, loop.store)
    rules = {"max_calibration_error": 3, "after_rollback": "promote"}
    loop.scenario = little_scenario(tmp_path / "open", deploy=rules)
    loop.make(2)
    loop.register(2)
    _, verdict = loop.deploy(2)
    assert verdict["promoted"], verdict["words"]
    assert ChampionLog(loop.store).current().version == "3"


@pytest.mark.slow
def test_each_gate_says_no_with_a_reason(loop, tmp_path):
    loop.register(1)
    reads = loop.folders(1, "evaluation", "validation", "export")
    reason = "like: AUC -0.2000 [-0.3000, -0.1000] where at most -0.0100 is allowed"
    worse = {"verdict": "worse", "reasons": [reason], "unknown": []}
    evaluation = edited(
        reads["evaluation"],
        tmp_path,
        "evaluation.json",
        comparison=worse,
        next_day__verdict="hold",
        next_day__reasons=["love: …"],
        overall__like__challenger__calibration=9.0,
        overall__like__challenger__calibration_interval=[5.0, 11.0],
    )
    validation = edited(reads["validation"], tmp_path, "verdict.json", ok=False)
    export = edited(reads["export"], tmp_path, "quantization.json", int8__auc__like=0.1, int8__calibration__love=30.0)
    scores = pq.read_table(export / "reference.parquet").to_pandas()
    table = pq.read_table(export / "reference.parquet")
    position = table.column_names.index("int8.like")
    pq.write_table(
        table.set_column(position, "int8.like", [(scores["int8.like"] + 0.01).to_numpy()]), export / "reference.parquet"
    )
    metrics, verdict = loop.deploy(1, evaluation=evaluation, validation=validation, export=export)
    assert [g["name"] for g in verdict["gates"] if g["answer"] == "yes"] == ["order"]
    assert metrics["promoted"] is False
    assert metrics["gate"].startswith("no: its scores differ by 0.01")
    for part in ("int8 loses", "int8 shifts calibration", "AUC -0.2000", "calibration 9.00", "blocking", "fell behind"):
        assert part in metrics["gate"], part
    assert ChampionLog(loop.store).current().version == "1"
    assert tracking.aliases("little") == {"champion": "1", "challenger": "2"}
    assert tracking.versions("little")[0]["verdict"].startswith("no: ")


def test_a_later_days_champion_is_never_replaced(loop, load_once):
    loop.register(1)
    later = loop.store.find("train", DAYS[1])
    ChampionLog(loop.store).promote(1, Entry("promotion", "little", "2", DAYS[1], 0, later.digest))
    _, verdict = loop.deploy(0, evaluation=loop.store.find("evaluate", DAYS[0]).folder)
    # the first day was promoted before and stays so; a version of it that was not is held
    assert verdict["promoted"]
    held = Entry("promotion", "little", "9", DAYS[0], 0, "other")
    from tasks.deploy import _swap

    answer, standing = _swap(loop.scenario, ChampionLog(loop.store), held, wanted=True)
    assert answer.answer == "no"
    assert answer.reason.startswith("held: champion is of a later day")
    assert standing.version == "2"


def test_a_comparison_with_another_champion_does_not_count(loop, load_once):
    loop.register(1)
    other = Entry("promotion", "little", "1", DAYS[0], 0, loop.store.find("train", DAYS[0]).digest)
    shutil.rmtree(loop.store.work / "champion")
    metrics, _ = loop.deploy(1)
    assert "the champion changed since the comparison" in metrics["gate"]
    assert ChampionLog(loop.store).history() == []
    assert other.sequence == 0


@pytest.mark.slow
def test_a_model_that_does_not_load_is_a_no_and_mlflow_away_is_not(loop, monkeypatch):
    loop.register(1)
    shutil.rmtree(artifacts("2") / "code")
    metrics, verdict = loop.deploy(1)
    assert gate(verdict, "reproduces")["answer"] == "no"
    assert "does not load" in metrics["gate"] or "needs code" in metrics["gate"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RetryLaterError):
        loop.deploy(1)


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
    twin = client.create_model_version("little", str(artifacts("2")), tags=first["tags"])
    assert tracking.logged_models._settled("little", first["tags"])["version"] == "2"
    assert str(twin.version) not in {version["version"] for version in tracking.versions("little")}
