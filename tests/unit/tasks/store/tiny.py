"""A loop whose steps write a few bytes: real runner, store, chain and champion log, in milliseconds.

Four steps stand for the nine. `deploy` is the real function, and so is the part of `register` after it has written an
evaluation; `train` writes all else that they read. A step's output is a pure function of its inputs (`content`), so
that a model can say each digest beforehand.
`Registry` stands for the functions of tasks.tracking, the only double.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import tasks.register
import tasks.run.collect
import tasks.run.replay
import tasks.steps
import tasks.tracking
import tasks.tracking.champion_alias
from feature_jobs.errors import GateError
from feature_jobs.schema import Scenario
from tasks.contract import DayConfig, Input, Metrics
from tasks.run.launchers import Call, Ran
from tasks.steps import STEPS, WRITERS
from tasks.store.digests import MANIFEST
from tasks.store.output_files import digest_of
from tasks.tracking.connection import RefusedError
from tasks.tracking.registry import NOT_FOUND, Version
from tests.unit.tasks.little import little_scenario

DAYS = [f"2024-01-0{n}" for n in range(1, 5)]
STEPS_OF_A_DAY = ("ingest", "train", "register", "deploy")
WINDOW = 1  # days before, whose events are read too
LINK = "train"


def tiny_scenario(folder: Path) -> Scenario:
    """A rollback can go one version back."""
    return little_scenario(folder, deploy={"keep_versions": 1})


@dataclass
class Source:
    """The log files that `ingest` reads: the edition of each day, which a correction raises."""

    editions: dict[str, int] = field(default_factory=dict)

    def read(self, ds: str) -> str:
        return f"events of {ds}, edition {self.editions.get(ds, 1)}"


SOURCE = Source()


def content(step: str, ds: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON files that a step writes, by name. `inputs` are digests as a manifest has them."""
    if step == "ingest":
        return {"events.json": SOURCE.read(ds)}
    if step == "train":
        quality = {"auc": {"like": 0.7, "love": 0.7}, "calibration": {"like": 1.0, "love": 1.0}}
        return {
            "checkpoint.json": {"parent": inputs["parent"]},
            "tables/rows.json": [inputs["events"], inputs["history"]],
            "quantization.json": {"fp32": quality, "int8": quality},
            "verdict.json": {"ok": True},
        }
    judged = {"verdict": "better", "reasons": [], "unknown": []}
    evaluation = {
        "challenger": inputs["checkpoint"],
        "champion": inputs["champion"],
        "former_champion": inputs["former_champion"],
        "overall": {},
        "segments": {},
        "comparison": judged,
        "next_day": {**judged, "verdict": "ok"},
        "warnings": [],
    }
    return {"evaluation.json": evaluation}


def as_bytes(value: Any) -> bytes:
    """A value as the steps write it."""
    return json.dumps(value, sort_keys=True).encode()


def _write(output: Path, files: Mapping[str, Any]) -> None:
    for name, value in files.items():
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_bytes(as_bytes(value))


def _ingest(config: DayConfig, *, events: Path) -> Mapping[str, object]:
    _write(events, content("ingest", config.ds, {}))
    return {"rows": 1}


def _train(config: DayConfig, *, checkpoint: Path, **inputs: Any) -> Mapping[str, object]:
    if config.resume is not None:
        config.resume.mkdir(exist_ok=True)
    _write(checkpoint, content("train", config.ds, {name: _digest(found) for name, found in inputs.items()}))
    return {"rows": 1}


def _register(config: DayConfig, *, checkpoint: Path, registration: Path, **others: Path | None) -> Metrics:
    inputs = {"checkpoint": checkpoint, **others}
    _write(registration, content("register", config.ds, {name: _digest(found) for name, found in inputs.items()}))
    same = {"export": checkpoint, "checkpoint": checkpoint, "validation": checkpoint, "evaluation": registration}
    return tasks.register.register(config, **same, registration=registration)


def _digest(found: Path | dict[str, Path] | None) -> Any:
    """Of a folder whose files are all read, as a step does it."""
    if isinstance(found, dict):
        return {ds: _digest(folder) for ds, folder in found.items()}
    if found is None:
        return None
    if (found / MANIFEST).exists():  # the cache of an object store has none, so digest_of reads the files
        for name in json.loads((found / MANIFEST).read_bytes())["files"]:
            (found / name).read_bytes()
    return digest_of(found)


READS: dict[str, dict[str, Input]] = {
    "ingest": {},
    "train": {
        "events": Input(),
        "history": Input(of="events", days="trailing", window=lambda _: WINDOW),
        "parent": Input(of="checkpoint", days="previous", is_parent=True),
    },
    "register": {
        "checkpoint": Input(),
        "champion": Input(of="checkpoint", days="champion"),
        "former_champion": Input(of="checkpoint", days="former_champion"),
    },
    "deploy": {
        "registration": Input(),
        "evaluation": Input(of="registration"),
        "export": Input(of="checkpoint"),
        "validation": Input(of="checkpoint"),
    },
}
FUNCTIONS = {"ingest": _ingest, "train": _train, "register": _register, "deploy": STEPS["deploy"].function}


def use_tiny_steps(patch: pytest.MonkeyPatch, registry: Registry) -> None:
    """Until the patch is undone, a day has the four steps, and MLflow is `registry`."""
    steps = {}
    for name in STEPS_OF_A_DAY:
        small = {
            "reads": READS[name],
            "config": (),
            "imports": (),
            "resumable": name == LINK,
            "shared": False,
        }
        steps[name] = replace(STEPS[name], function=FUNCTIONS[name], **small)
    writers = {declared.writes: name for name, declared in steps.items()}
    writers |= {"export": LINK, "validation": LINK, "evaluation": "register"}
    for known, wanted in ((STEPS, steps), (WRITERS, writers)):
        for name in list(known):
            patch.delitem(known, name)
        for name, value in wanted.items():
            patch.setitem(known, name, value)
    for module in (tasks.steps, tasks.run.replay, tasks.run.collect):
        patch.setattr(module, "DAILY", STEPS_OF_A_DAY)
    patch.setattr(tasks.run.collect, "LINK_STEPS", (LINK,))
    for name in ("versions", "aliases", "set_alias", "delete_alias", "set_version_tags"):
        patch.setattr(tasks.tracking, name, getattr(registry, name))
        if hasattr(tasks.tracking.champion_alias, name):
            patch.setattr(tasks.tracking.champion_alias, name, getattr(registry, name))
    patch.setattr(tasks.tracking, "register_version", registry.register_version)
    patch.setattr(tasks.tracking, "check_loads", registry.check_loads)


class Registry:
    """Registered versions, their tags and aliases. `file`: where they outlive a process; one at a time uses it."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.state: dict[str, Any] = {"next": 1, "tags": {}, "aliases": {}}
        self.before: Callable[[str], None] = lambda call: None

    def _begin(self, call: str) -> dict[str, Any]:
        self.before(call)
        if self.file is not None and self.file.exists():
            self.state = json.loads(self.file.read_text())
        return self.state

    def _end(self) -> None:
        if self.file is not None:
            aside = self.file.with_suffix(".new")
            aside.write_text(json.dumps(self.state))
            aside.rename(self.file)

    def versions(self, model: str) -> list[Version]:
        state = self._begin("versions")
        return [self._version(number) for number in sorted(map(int, state["tags"]), reverse=True)]

    def _version(self, number: int) -> Version:
        tags = self.state["tags"][str(number)]
        named = sorted(alias for alias, version in self.state["aliases"].items() if version == str(number))
        return Version(
            version=str(number),
            model_id=None,
            ds=tags["recloop.ds"],
            generation=int(tags["recloop.generation"]),
            checkpoint=tags[tasks.tracking.CHECKPOINT_TAG],
            verdict=tags.get(tasks.tracking.VERDICT_TAG),
            aliases=named,
            tags=dict(tags),
        )

    def aliases(self, model: str) -> dict[str, str]:
        return dict(self._begin("aliases")["aliases"])

    def set_alias(self, model: str, alias: str, version: str) -> None:
        if version not in self._begin("set_alias")["tags"]:
            raise RefusedError(NOT_FOUND, f"version {version} not found")
        self.state["aliases"][alias] = version
        self._end()

    def delete_alias(self, model: str, alias: str) -> None:
        self._begin("delete_alias")["aliases"].pop(alias, None)
        self._end()

    def set_version_tags(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        if version in self._begin("set_version_tags")["tags"]:
            self.state["tags"][version].update(tags)
            self._end()

    def register_version(
        self, scenario: Scenario, export: Path, key: Any, tags: Mapping[str, str], **_: Any
    ) -> tuple[Version, dict[str, Any]]:
        """As the real one, an export that is registered keeps its version: the oldest of its checkpoint."""
        state = self._begin("register_version")
        same = [n for n, known in state["tags"].items() if known["recloop.checkpoint"] == tags["recloop.checkpoint"]]
        number = min(map(int, same), default=state["next"])
        if not same:
            state["tags"][str(number)] = {key: str(value) for key, value in tags.items()}
            state["next"] += 1
            self._end()
        return self._version(number), {}

    def check_loads(self, model: str, version: str, *_: Any) -> tasks.tracking.LoadCheck:
        if version not in self._begin("check_loads")["tags"]:
            return tasks.tracking.LoadCheck("not in the registry")
        return tasks.tracking.LoadCheck("", 1, {"like": 0.0}, own_code=True)

    def delete_version(self, version: str) -> None:
        """As a person does it in MLflow's pages; its aliases go with it."""
        state = self._begin("delete_version")
        del state["tags"][version]
        state["aliases"] = {alias: named for alias, named in state["aliases"].items() if named != version}
        self._end()


@dataclass
class Direct:
    """A launcher that calls the function here and measures nothing. `during` is called while the step is in flight."""

    during: Callable[[], Any] = lambda: None

    def launch(self, declared: Any, call: Call) -> Ran:
        self.during()
        try:
            return Ran(declared.function(call.config, **call.folders, **{declared.writes: call.output}), {}, {})
        except GateError as error:
            return Ran(error.metrics, {}, {}, str(error))
