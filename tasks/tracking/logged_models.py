"""Making registered versions out of exports, and proving that one loads: what needs MLflow itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.errors import RetryLaterError
from tasks.store.scenario_store import sha256_of
from tasks.store.source_digest import ROOT, imported_files
from tasks.tracking.connection import SETTINGS, client, library_uri, quiet_mlflow, retrying
from tasks.tracking.registry import CHECKPOINT_TAG, versions
from tasks.tracking.runs import RunKey, open_run
from tasks.tracking.sinks import open_sink

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from tasks.tracking import pyfunc_model  # noqa: F401 (part of what is registered, so part of the code's digest)

EXPORT_TAG = "recloop.export"
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
BUSY = 6


def register_version(
    model: str,
    export: Path,
    key: RunKey,
    tags: Mapping[str, str],
    *,
    tasks: Collection[str],
    never_null: Collection[str],
) -> dict[str, Any]:
    """Registers an export folder as a version of `model`, or finds it registered; returns it as `versions` does.

    The version is known by its tags `recloop.checkpoint` and `recloop.export`, and has all its tags from the moment it
    exists. `never_null` names integer columns that are in every row; other integer columns are of any type in the
    signature, because pandas has no integers with gaps. Raises RetryLaterError where MLflow stays busy.
    """
    standing = _find(model, tags)
    if standing:
        return standing
    mlflow = quiet_mlflow()
    sink = open_sink()
    run = open_run(sink, key)
    mlflow.set_tracking_uri(library_uri())
    mlflow.set_experiment(experiment_id=sink.experiment(key.scenario))  # else the model lands in experiment 0
    with tempfile.TemporaryDirectory() as folder:
        example = _example(export)
        logged = retrying(
            lambda: mlflow.models.Model.log(
                None,
                flavor=mlflow.pyfunc,
                name=model,
                run_id=run.run_id,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"export": str(export)},
                model_config={"serving_sha256": sha256_of((export / "serving.json").read_bytes())},
                code_paths=_serving_code(Path(folder)),
                signature=_signature(export, tasks, never_null),
                input_example=example,
                pip_requirements=[_pinned(name) for name in REQUIREMENTS],
            )
        )
    _create_version(model, logged, run.run_id, tags)
    return _settled(model, tags)


def _pinned(name: str) -> str:
    """The requirement of what is here; a step's image has MLflow without its server, which has the same version."""
    return f"{name}=={installed('mlflow-skinny' if name == 'mlflow' else name)}"


def _find(model: str, tags: Mapping[str, str]) -> dict[str, Any] | None:
    """The oldest version of this checkpoint and export."""
    same = [v for v in versions(model) if all(v["tags"].get(tag) == tags[tag] for tag in (CHECKPOINT_TAG, EXPORT_TAG))]
    return same[-1] if same else None


def _create_version(model: str, logged: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # it is registered already
        retrying(lambda: client().create_registered_model(model))
    retrying(
        lambda: client().create_model_version(
            model, logged.artifact_path, run_id, tags=dict(tags), model_id=logged.model_id
        )
    )


def _settled(model: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Of two that registered the same export at once, the first stands."""
    standing = _find(model, tags)
    assert standing is not None  # noqa: S101 (just made)
    for version in versions(model):
        same = all(version["tags"].get(tag) == tags[tag] for tag in (CHECKPOINT_TAG, EXPORT_TAG))
        if same and version["version"] != standing["version"] and not version["aliases"]:
            retrying(lambda v=version["version"]: client().delete_model_version(model, v))  # type: ignore[misc]
    return standing


def _serving_code(folder: Path) -> list[str]:
    """The scorer and what it imports, copied into packages of their own; nothing else of the project travels."""
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

    return pa.schema([field for field in pq.read_schema(export / "reference.parquet") if "." not in field.name])


def _example(export: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    names = _features(export).names
    table = pq.read_table(export / "reference.parquet", columns=names).slice(0, EXAMPLE_ROWS)
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    return frame.map(lambda cell: cell.tolist() if hasattr(cell, "tolist") else cell)


def _signature(export: Path, tasks: Collection[str], never_null: Collection[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

    def column(field: pa.Field) -> ColSpec:
        if pa.types.is_list(field.type):
            inner = DataType.long if pa.types.is_integer(field.type.value_type) else DataType.string
            return ColSpec(Array(inner), field.name, required=False)
        if pa.types.is_integer(field.type):
            surely = field.name in never_null and not reference[field.name].null_count
            return ColSpec(DataType.long if surely else AnyType(), field.name, required=surely)
        return ColSpec(
            DataType.double if pa.types.is_floating(field.type) else DataType.string, field.name, required=False
        )

    reference = pq.read_table(export / "reference.parquet", columns=_features(export).names)
    inputs = Schema([column(field) for field in reference.schema])
    return ModelSignature(inputs, Schema([ColSpec(DataType.float, task) for task in tasks]))


def check_loads(model: str, version: str, reference: Path) -> dict[str, Any]:
    """Loads a version in a fresh process, away from this project, and scores the reference rows.

    Returns {"loaded": True, "rows", "max_difference": {task: number}, "own_code"} or {"loaded": False, "problem"}.
    Raises RetryLaterError where MLflow is busy or away.
    """
    if version not in {found["version"] for found in versions(model)}:
        return {"loaded": False, "problem": f"models:/{model}/{version} is not in MLflow"}
    script = Path(__file__).with_name("load_check.py")
    environment = {**SETTINGS, **os.environ, "MLFLOW_TRACKING_URI": library_uri()}
    command = [sys.executable, "-I", str(script), f"models:/{model}/{version}", str(reference)]
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            done = subprocess.run(
                command,
                cwd=elsewhere,
                env=environment,
                capture_output=True,
                text=True,
                timeout=CHECK_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RetryLaterError(
                f"models:/{model}/{version}: did not load within {CHECK_TIMEOUT_S} s; try again later"
            ) from None
    if done.returncode == BUSY:
        raise RetryLaterError(
            f"models:/{model}/{version}: MLflow is busy or away: {_last_line(done.stderr)}; try again later"
        )
    if done.returncode:
        return {"loaded": False, "problem": _last_line(done.stderr)}
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"loaded": True, **facts}


def _last_line(text: str) -> str:
    line = (text.strip().splitlines() or ["no message"])[-1]
    return line if len(line) <= 300 else f"{line[:140]} … {line[-140:]}"
