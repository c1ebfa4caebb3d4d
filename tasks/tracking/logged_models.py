"""Creating registered versions out of exports, and proving that one loads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from feature_jobs.errors import RetryLaterError
from feature_jobs.schema import Scenario
from models.runtime.files import REFERENCE_FILE, SERVING_FILE
from tasks.store.digests import sha256_of
from tasks.store.source_digest import ROOT, imported_files
from tasks.tracking.connection import SETTINGS, RefusedError, call, client, client_uri, quiet_mlflow
from tasks.tracking.registry import CHECKPOINT_TAG, EXPORT_TAG, NOT_FOUND, Version, versions
from tasks.tracking.runs import RunKey, Runs

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.tracking import pyfunc_model  # noqa: F401 (part of what is registered, so part of the code's digest)

SCORER = "serving/scorer.py"
REQUIREMENTS = (
    "mlflow",
    "numba",
    "numpy",
    "onnxruntime",
    "pandas",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
)
EXAMPLE_ROWS = 3
CHECK_TIMEOUT_S = 300
HOW_TO_SCORE = """\
Features, by name; values that are missing count as unknown, and other columns are ignored:

| column | type |
|---|---|
{rows}

Integer ids are exact up to 64 bits: in pandas give `Int64` or object columns where some are null. JSON with such ids
goes to `/invocations` as `{{"inputs": [{{"column": value, ...}}, ...]}}`."""


@dataclass(frozen=True)
class LoadCheck:
    """What a fresh process found. `problem`: why the version does not load, or nothing. `own_code`: whether the code
    that scored is the registered one."""

    problem: str = ""
    rows: int = 0
    max_difference: dict[str, float] = field(default_factory=dict)
    own_code: bool = False


def register_version(
    scenario: Scenario, export: Path, key: RunKey, tags: Mapping[str, str], *, required: Collection[str]
) -> Version:
    """Registers an export folder as a version of the scenario's model, or finds it registered.

    The version is known by its tags `recloop.checkpoint` and `recloop.export`, and has all its tags from the moment it
    exists. `required` names the columns that are in every row. Raises RetryLaterError where MLflow stays busy.
    """
    standing = _find(scenario.model_name, tags)
    if standing:
        return standing
    mlflow, runs, now_ms = quiet_mlflow(), Runs(scenario), int(time.time() * 1000)
    day = runs.open(RunKey(key.scenario, key.generation, key.ds), now_ms, note=scenario.description)
    run = runs.open(key, now_ms, parent=day)
    mlflow.set_tracking_uri(client_uri())
    mlflow.set_experiment(experiment_id=runs.experiment_id)  # else the model lands in experiment 0
    with tempfile.TemporaryDirectory() as folder:
        logged = call(
            lambda: mlflow.models.Model.log(
                None,
                flavor=mlflow.pyfunc,
                name=scenario.model_name,
                run_id=run.run_id,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"export": str(export)},
                model_config={
                    "serving_sha256": sha256_of((export / SERVING_FILE).read_bytes()),
                    "required": sorted(required),
                },
                code_paths=_serving_code(Path(folder)),
                signature=_signature(scenario.tasks),
                input_example=_example(export),
                pip_requirements=[_pinned(name) for name in REQUIREMENTS],
            )
        )
    _create_version(scenario, logged, run.run_id, tags, _description(scenario, export, key))
    return _settled(scenario.model_name, tags)


def _pinned(name: str) -> str:
    """The requirement of what is here; a step's image has MLflow without its server, which has the same version."""
    return f"{name}=={installed('mlflow-skinny' if name == 'mlflow' else name)}"


def _find(model: str, tags: Mapping[str, str]) -> Version | None:
    """The oldest version of this checkpoint and export."""
    same = [v for v in versions(model) if all(v["tags"].get(tag) == tags[tag] for tag in (CHECKPOINT_TAG, EXPORT_TAG))]
    return same[-1] if same else None


def _create_version(scenario: Scenario, logged: Any, run_id: str, tags: Mapping[str, str], description: str) -> None:
    model = scenario.model_name
    with contextlib.suppress(RefusedError):  # it is registered already
        call(partial(client().create_registered_model, model, description=scenario.description))
    create = partial(client().create_model_version, model, logged.artifact_path, run_id)
    call(partial(create, tags=dict(tags), description=description, model_id=logged.model_id))


def _settled(model: str, tags: Mapping[str, str]) -> Version:
    """The version that stays: where two processes registered the same export at once, the first."""
    standing = _find(model, tags)
    assert standing is not None  # noqa: S101 (just created)
    for version in versions(model):
        same = all(version["tags"].get(tag) == tags[tag] for tag in (CHECKPOINT_TAG, EXPORT_TAG))
        if same and version["version"] != standing["version"] and not version["aliases"]:
            call(partial(client().delete_model_version, model, version["version"]))
    return standing


def _serving_code(folder: Path) -> list[str]:
    """The scorer and what it imports, copied into packages of their own; nothing else of the project is registered."""
    for name in sorted(imported_files(SCORER)):
        for file in (ROOT / name, (ROOT / name).parent / "__init__.py"):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return [str(package) for package in sorted(folder.iterdir())]


def _features(export: Path) -> pa.Schema:
    """Feature columns of reference.parquet; its other columns have a dot in their name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.schema([field for field in pq.read_schema(export / REFERENCE_FILE) if "." not in field.name])


def _example(export: Path) -> list[dict[str, Any]]:
    """A few rows as JSON has them, with the scenario's own columns: a frame would lose integers beside a null."""
    import pyarrow.parquet as pq

    table = pq.read_table(export / REFERENCE_FILE, columns=_features(export).names)
    rows: list[dict[str, Any]] = table.slice(0, EXAMPLE_ROWS).to_pylist()
    return rows


def _signature(tasks: Collection[str]) -> Any:
    """What comes out. What goes in is in the version's description: see pyfunc_model for the reason."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    return ModelSignature(outputs=Schema([ColSpec(DataType.float, task) for task in tasks]))


def _description(scenario: Scenario, export: Path, key: RunKey) -> str:
    rows = "\n".join(f"| {field.name} | {field.type} |" for field in _features(export))
    generation = f", generation {key.generation}" if key.generation else ""
    head = f"{scenario.name}, learned up to {key.ds}{generation}. Scores: {', '.join(scenario.tasks)}."
    return f"{head}\n\n{HOW_TO_SCORE.format(rows=rows)}"


def check_loads(model: str, version: str, reference: Path) -> LoadCheck:
    """Loads a version in a fresh process, away from this project, and scores the reference rows.

    That process imports MLflow while this one fetches the version. Raises RetryLaterError where MLflow is busy or away.
    """
    script = Path(__file__).with_name("load_check.py")
    with tempfile.TemporaryDirectory() as elsewhere, _fresh_python(script, Path(elsewhere)) as process:
        try:
            folder = _fetch(model, version, Path(elsewhere) / "model")
        except RefusedError as error:
            if error.code != NOT_FOUND:
                raise
            return LoadCheck(f"models:/{model}/{version} is not in MLflow")
        asked = json.dumps({"model": str(folder), "reference": str(reference)}) + "\n"
        try:
            answer, errors = process.communicate(asked, timeout=CHECK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RetryLaterError(
                f"models:/{model}/{version}: did not load within {CHECK_TIMEOUT_S} s; try again later"
            ) from None
    if process.returncode:
        return LoadCheck(_last_line(errors))
    return LoadCheck(**json.loads(answer.splitlines()[-1]))


@contextlib.contextmanager
def _fresh_python(script: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has nothing of this one, in a folder of its own; it is ended with the block."""
    command, environment = [sys.executable, "-I", str(script)], {**SETTINGS, **os.environ}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        try:
            yield run
        finally:
            run.kill()


def _fetch(model: str, version: str, target: Path) -> Path:
    """The files of a registered version on this machine: where they are, or copied to `target`."""
    mlflow = quiet_mlflow()
    place = urlsplit(call(partial(client().get_model_version_download_uri, model, version)))
    uri, local = f"models:/{model}/{version}", place.scheme in ("", "file")
    fetch = partial(mlflow.artifacts.download_artifacts, artifact_uri=uri, dst_path=None if local else str(target))
    return Path(call(partial(fetch, tracking_uri=client_uri(), registry_uri=client_uri())))


def _last_line(text: str) -> str:
    line = (text.strip().splitlines() or ["no message"])[-1]
    return line if len(line) <= 300 else f"{line[:140]} … {line[-140:]}"
