"""Days of a very small recommender, taken to their exports: the start of tests of register and deploy."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from feature_jobs.errors import GateError
from feature_jobs.schema import Scenario
from models.training.day import train_day
from models.training.job import TrainJob
from tasks import tracking
from tasks.contract import DayConfig
from tasks.deploy import deploy
from tasks.evaluate import evaluate
from tasks.quantize import quantize
from tasks.register import register
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.unit.tasks.little import DAYS, commit, little_scenario, write_samples, write_validation

WRITERS = {
    "checkpoint": "train", "evaluation": "evaluate", "export": "quantize", "validation": "validate",
    "registration": "register",
}  # fmt: skip


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
        found = [e and self.store.find_commit("train", e.checkpoint) for e in entries]
        champions = [commit and commit.folder for commit in found]
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
        self.commit(number, "registration")
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


def artifacts(version: str) -> Path:
    """The folder of a version's files."""
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


def first_two_days(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """The first day promoted (in the log alone), the second one ready to register."""
    root = tmp_path_factory.mktemp("loop")
    loop = Loop(root, little_scenario(root), open_store(root / "store", "little"))
    loop.make(0)
    first = loop.store.find("train", DAYS[0])
    ChampionLog(loop.store).promote(0, Entry("promotion", "little", "1", DAYS[0], 0, first.digest))
    loop.make(1)
    return loop


ANSWERS: dict[str, tracking.LoadCheck] = {}


def load_each_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real answer of the fresh process, asked once for each model: it takes seconds."""
    real = tracking.check_loads

    def check(model: str, version: str, files: dict, reference: Path) -> tracking.LoadCheck:
        digest = tracking.versions(model)[-int(version)]["tags"]["recloop.export"]
        if digest not in ANSWERS:
            ANSWERS[digest] = real(model, version, files, reference)
        return ANSWERS[digest]

    monkeypatch.setattr(tracking, "check_loads", check)


def copy_of_loop(two_days: Loop, tmp_path: Path) -> Loop:
    """A copy that a test may change, the first day registered as version 1."""
    shutil.copytree(two_days.root, tmp_path / "loop")
    copied = Loop(tmp_path / "loop", two_days.scenario, open_store(tmp_path / "loop" / "store", "little"))
    assert copied.register(0)["version"] == "1"
    return copied
