"""Deletes MLflow's entries of days that rows of users were left out of, files included.

MLflow's own deletions only mark entries as deleted and leave their files. An entry is deleted after its files, so an
interrupted deletion is found again. The entries of the database hold digests, counts and metrics, and no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from feature_jobs.schema import Scenario
from tasks.tracking.connection import RefusedError, call, client, client_uri
from tasks.tracking.registry import NOT_FOUND, versions
from tasks.tracking.runs import PARENT, Run, Runs, experiment_id_of

MODELS = "models"
IsForgotten = Callable[[str | None, int], bool]
"""Says if rows were left out of a day (ds) of a generation since."""


def erase_versions(scenario: Scenario, gone: Sequence[str], is_forgotten: IsForgotten) -> None:
    """Deletes registered versions with their logged models, and the logged models of these days that no version has."""
    model = scenario.model_name
    for version in gone:
        model_id = call(partial(client().get_model_version, model, version)).model_id
        if model_id:
            _erase_model(model_id)
        call(partial(client().delete_model_version, model, version))
    # By their files, because MLflow no longer lists a model that was deleted before its files were.
    root = call(partial(client().get_experiment, experiment_id_of(scenario))).artifact_location
    registered = {_model_id(model, version["version"]) for version in versions(model)}
    for item in call(partial(_repository(root).list_artifacts, MODELS)):
        model_id = item.path.rpartition("/")[2]
        # Never the files of a version that is registered: it may serve.
        if model_id not in registered and _is_over(model_id, is_forgotten):
            _delete_files(f"{root}/{MODELS}/{model_id}")
            _erase_model(model_id)


def _model_id(model: str, version: str) -> str | None:
    found: str | None = call(partial(client().get_model_version, model, version)).model_id
    return found


def _is_over(model_id: str, is_forgotten: IsForgotten) -> bool:
    """Says if a logged model without a version is deleted already but for its files, or is of a forgotten day."""
    logged = _found(partial(client().get_logged_model, model_id))
    run = _found(partial(client().get_run, logged.source_run_id)) if logged and logged.source_run_id else None
    if logged is None or run is None:
        return True
    tags = run.data.tags
    return is_forgotten(tags.get("recloop.ds"), int(tags.get("recloop.generation", 0)))


def _erase_model(model_id: str) -> None:
    logged = _found(partial(client().get_logged_model, model_id))
    if logged is not None:
        _delete_files(logged.artifact_location)
        call(partial(client().delete_logged_model, model_id))


def erase_runs(scenario: Scenario, days: Iterable[tuple[int, str]]) -> int:
    """Deletes the runs of days, each a generation and a ds, with their artifacts; returns the number of runs."""
    runs, num = Runs(scenario), 0
    for generation, ds in days:
        found = runs.find({"recloop.generation": str(generation), "recloop.ds": ds})
        # Nested runs too: MLflow does not delete children with their parent.
        trials = [trial for run in found for trial in runs.find({PARENT: run.run_id})]
        for run in {run.run_id: run for run in [*trials, *found]}.values():
            _erase_run(run)
            num += 1
    return num


def _erase_run(run: Run) -> None:
    _delete_files(call(partial(client().get_run, run.run_id)).info.artifact_uri)
    call(partial(client().delete_run, run.run_id))


def _found(get: Callable[[], Any]) -> Any:
    """Returns MLflow's answer; None where it has no such entry."""
    try:
        return call(get)
    except RefusedError as error:
        if error.code != NOT_FOUND:
            raise
        return None


def _delete_files(uri: str) -> None:
    call(_repository(uri).delete_artifacts)


def _repository(uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=client_uri())
