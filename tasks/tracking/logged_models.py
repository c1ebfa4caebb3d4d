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

from feature_jobs.control_records import read_record
from feature_jobs.errors import RetryLaterError
from feature_jobs.schema import Scenario
from models.runtime.files import REFERENCE_FILE, SERVING_FILE
from tasks.store.digests import MANIFEST, sha256_of
from tasks.store.records import FileFacts
from tasks.store.source_digest import ROOT, imported_files
from tasks.tracking.connection import SETTINGS, RefusedError, call, client, client_uri, quiet_mlflow
from tasks.tracking.model_files import FLAVOR, RECIPE, Files, copy_proven, digest_of_all, digests_of, write_recipe
from tasks.tracking.registry import CHECKPOINT_TAG, EXPORT_TAG, FILES_TAG, NOT_FOUND, Version, versions
from tasks.tracking.runs import RunKey, Runs
from tasks.tracking.unregistered import clear_mark, delete_unregistered, mark_of_this_process

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.tracking import pyfunc_model  # noqa: F401 (part of the registered model, so part of the code's digest)

SCORER = "serving/scorer.py"
MODEL_CODE = "pyfunc_model.py"
EXPORT = "artifacts/export"
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
    """Findings of a fresh process. `problem`: the reason why the version does not load, else empty. `own_code`: True if
    the code that scored is the registered one."""

    problem: str = ""
    rows: int = 0
    max_difference: dict[str, float] = field(default_factory=dict)
    own_code: bool = False

    def refusal(self, tolerance: float) -> str | None:
        """Returns a reason not to serve the version; None if it reproduces the stored scores within the tolerance."""
        if self.problem:
            return f"the registered model does not load: {self.problem}"
        if not self.own_code:
            return "the registered model needs code that is not in it"
        worst = max(self.max_difference.values())
        if not worst <= tolerance:
            return f"its scores differ by {worst:.2g} from the stored ones where {tolerance:g} is allowed"
        return None


def register_version(
    scenario: Scenario, export: Path, key: RunKey, tags: Mapping[str, str], *, required: Collection[str]
) -> tuple[Version, Files]:
    """Registers an export folder as a version of the scenario's model, or finds it registered; with its files' digests.

    The version is known by its tags `recloop.checkpoint`, `recloop.export` and `recloop.files`, and has all its tags
    from the moment it exists. `required` names the columns that are in every row. Raises RetryLaterError where MLflow
    stays busy.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = _write_model(scenario, export, Path(folder), required)
        files = digests_of(model)
        tags = {**tags, FILES_TAG: digest_of_all(files)}
        # By content, not by name: a step that was killed after it registered must find its version.
        standing = _find(scenario.model_name, tags)
        if standing is None:
            _log_model(scenario, export, model, key, tags)
            standing = _settled(scenario.model_name, tags)
    return standing, files


def _write_model(scenario: Scenario, export: Path, scratch: Path, required: Collection[str]) -> Path:
    """The model as a folder, in MLflow's form. Equal exports, code and packages give equal digests (`digests_of`)."""
    mlflow = quiet_mlflow()
    mlflow.set_tracking_uri(client_uri())
    model, recipe = scratch / "model", mlflow.models.Model()
    mlflow.pyfunc.save_model(
        str(model),
        mlflow_model=recipe,
        python_model=str(Path(__file__).with_name(MODEL_CODE)),
        model_config={
            "serving_sha256": sha256_of((export / SERVING_FILE).read_bytes()),
            "required": sorted(required),
        },
        # Code in the model, so that it loads where this project is not installed.
        code_paths=_serving_code(scratch / "code"),
        signature=_signature(scenario.tasks),
        input_example=_example(export),
        pip_requirements=[_pinned(name) for name in REQUIREMENTS],
    )
    flavor = recipe.flavors[FLAVOR]
    flavor["model_code_path"] = MODEL_CODE  # MLflow reads the last part alone
    # MLflow would name the folder as it is named on this machine, and copy it twice.
    flavor["artifacts"] = {"export": {"path": EXPORT, "uri": "export"}}
    (model / EXPORT).mkdir(parents=True)
    for file in sorted(export.iterdir()):
        if file.name != MANIFEST:  # about the making of the export, not part of its content
            shutil.copyfile(file, model / EXPORT / file.name)
    write_recipe(model, recipe.to_dict())
    return model


def _log_model(scenario: Scenario, export: Path, model: Path, key: RunKey, tags: Mapping[str, str]) -> None:
    """Uploads the folder as a logged model of the step's run, then registers it."""
    from mlflow.entities import LoggedModelOutput

    runs, now_ms = Runs(scenario), int(time.time() * 1000)
    day = runs.open(RunKey(key.scenario, key.generation, key.ds), now_ms, note=scenario.description)
    run = runs.open(key, now_ms, parent=day)
    # Before the new one is created, so that a chain of kills leaves one at most.
    delete_unregistered(scenario.model_name, runs.experiment_id)
    create = partial(client().create_logged_model, runs.experiment_id, scenario.model_name, run.run_id)
    logged = call(partial(create, mark_of_this_process()))
    recipe = json.loads((model / RECIPE).read_bytes())
    recipe |= {"model_id": logged.model_id, "model_uuid": logged.model_id, "run_id": run.run_id}
    write_recipe(model, recipe | {"artifact_path": logged.artifact_location})
    call(partial(client().log_outputs, run.run_id, [LoggedModelOutput(logged.model_id, 0)]))
    call(partial(client().log_model_artifacts, logged.model_id, str(model)))
    call(partial(client().finalize_logged_model, logged.model_id, "READY"))
    _create_version(scenario, logged, run.run_id, tags, _description(scenario, export, key))
    clear_mark(logged.model_id)


def _pinned(name: str) -> str:
    """The requirement of the installed version; a step's image has MLflow without its server, of the same version."""
    return f"{name}=={installed('mlflow-skinny' if name == 'mlflow' else name)}"


def _find(model: str, tags: Mapping[str, str]) -> Version | None:
    """The oldest version of this checkpoint, export and files."""
    same = [version for version in versions(model) if _same(version, tags)]
    # The oldest, which all processes agree on, however many register at once.
    return same[-1] if same else None


def _same(version: Version, tags: Mapping[str, str]) -> bool:
    return all(version["tags"].get(tag) == tags[tag] for tag in (CHECKPOINT_TAG, EXPORT_TAG, FILES_TAG))


def _create_version(scenario: Scenario, logged: Any, run_id: str, tags: Mapping[str, str], description: str) -> None:
    model = scenario.model_name
    # MLflow has no "create if absent".
    with contextlib.suppress(RefusedError):  # it is registered already
        call(partial(client().create_registered_model, model, description=scenario.description))
    create = partial(client().create_model_version, model, logged.artifact_location, run_id)
    call(partial(create, tags=dict(tags), description=description, model_id=logged.model_id))


def _settled(model: str, tags: Mapping[str, str]) -> Version:
    """The version that stays: where two processes registered the same export at once, the first."""
    standing = _find(model, tags)
    assert standing is not None  # noqa: S101 (just created)
    for version in versions(model):
        # One with an alias may serve already.
        if _same(version, tags) and version["version"] != standing["version"] and not version["aliases"]:
            call(partial(client().delete_model_version, model, version["version"]))
            if version["model_id"] not in (None, standing["model_id"]):
                call(partial(client().delete_logged_model, version["model_id"]))
    return standing


def _serving_code(folder: Path) -> list[str]:
    """The scorer and its imports, copied into packages of their own; nothing else of the project is registered."""
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
    """Returns the model's outputs. Its inputs are in the version's description: see pyfunc_model for the reason."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    return ModelSignature(outputs=Schema([ColSpec(DataType.float, task) for task in tasks]))


def _description(scenario: Scenario, export: Path, key: RunKey) -> str:
    rows = "\n".join(f"| {field.name} | {field.type} |" for field in _features(export))
    generation = f", generation {key.generation}" if key.generation else ""
    head = f"{scenario.name}, learned up to {key.ds}{generation}. Scores: {', '.join(scenario.tasks)}."
    return f"{head}\n\n{HOW_TO_SCORE.format(rows=rows)}"


def check_loads(model: str, version: str, files: Mapping[str, FileFacts], reference: Path) -> LoadCheck:
    """Loads a version in a fresh process, away from this project, and scores the reference rows.

    That process imports MLflow while this one fetches the version and proves its files: see `model_files`. Raises
    CorruptError where they differ from `files`, RetryLaterError where MLflow is busy or away.
    """
    script = Path(__file__).with_name("load_check.py")
    place = f"models:/{model}/{version}"
    remedy = f"{place} is not to be loaded: restore its files in MLflow, or compute its day again in a new generation"
    with tempfile.TemporaryDirectory() as elsewhere, _fresh_python(script, Path(elsewhere)) as process:
        folder = Path(elsewhere) / "proven"
        try:
            # Meanwhile the process that was started above imports MLflow.
            copy_proven(_fetch(model, version, Path(elsewhere) / "model"), files, folder, remedy)
        except RefusedError as error:
            if error.code != NOT_FOUND:
                raise
            return LoadCheck(f"{place} is not in MLflow")
        asked = json.dumps({"model": str(folder), "reference": str(reference)}) + "\n"
        try:
            answer, errors = process.communicate(asked, timeout=CHECK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RetryLaterError(f"{place}: did not load within {CHECK_TIMEOUT_S} s; try again later") from None
    # The last line alone: above it stands a traceback of the model's own code.
    if process.returncode:
        return LoadCheck(_short(_last_line(errors)))
    return read_record(_last_line(answer).encode(), LoadCheck, f"the check of {place}", remedy)


@contextlib.contextmanager
def _fresh_python(script: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has nothing of this one, in a folder of its own; it is ended with the block."""
    # -I: neither this folder nor PYTHONPATH, so that only the registered code can be imported.
    command, environment = [sys.executable, "-I", str(script)], {**SETTINGS, **os.environ}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as run:
        try:
            yield run
        finally:
            run.kill()


def _fetch(model: str, version: str, target: Path) -> Path:
    """The files of a registered version on this machine: in their own place, or copied to `target`."""
    mlflow = quiet_mlflow()
    place = urlsplit(call(partial(client().get_model_version_download_uri, model, version)))
    uri, local = f"models:/{model}/{version}", place.scheme in ("", "file")
    fetch = partial(mlflow.artifacts.download_artifacts, artifact_uri=uri, dst_path=None if local else str(target))
    return Path(call(partial(fetch, tracking_uri=client_uri(), registry_uri=client_uri())))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _short(line: str) -> str:
    return line if len(line) <= 300 else f"{line[:140]} … {line[-140:]}"
