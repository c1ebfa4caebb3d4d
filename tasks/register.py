"""register: the day's export becomes a version in MLflow's registry, with everything that leads back to its origin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.checkpoints.files import CHECKPOINT_FILE
from tasks.contract import DayConfig, Input, Metrics, Resources, step
from tasks.evaluation.files import EVALUATION_FILE
from tasks.store.champion_log import CHALLENGER
from tasks.store.output_files import digest_of, facts_of, read_json, write_json
from tasks.tracking.files import VERSION_FILE, Registration

if TYPE_CHECKING:
    from feature_jobs.schema import Scenario


@step(
    reads={"export": Input(), "checkpoint": Input(), "evaluation": Input(), "validation": Input()},
    writes="registration",
    asset="version",
    config=("data", "deploy", "features", "labels"),  # the columns that are never null are part of the model
    resources=Resources(memory_gib=3.0),
    timeout_s=1200,
    imports=("tasks.tracking.logged_models",),
    registry=True,
)
def register(
    config: DayConfig, *, export: Path, checkpoint: Path, evaluation: Path, validation: Path, registration: Path
) -> Metrics:
    """Registers the export as a model version in MLflow. It loads and scores without this project.

    Its tags name scenario, day, checkpoint, parent, data and code by digest; the gate's verdict is pending until
    deploy.
    An export that is registered already keeps its version. Writes version.json with the digests of all files that a
    load of the version executes or reads. It holds nothing that MLflow draws at random, so equal exports registered in
    equal histories have equal digests.
    """
    from tasks import tracking

    scenario = config.scenario
    key = tracking.RunKey(scenario.name, config.generation, config.ds, "register")
    digests = {"export": export, "checkpoint": checkpoint, "evaluation": evaluation, "validation": validation}
    tags = {
        **key.tags,
        **{f"recloop.{name}": digest_of(folder) for name, folder in digests.items()},
        "recloop.parent": str(read_json(checkpoint, CHECKPOINT_FILE).get("parent") or "none"),
        **{f"recloop.data.{name}": str(digest) for name, digest in _data(checkpoint).items()},
        "recloop.code": str(facts_of(checkpoint).get("code", "")),
        tracking.VERDICT_TAG: "pending",
    }
    del tags["recloop.step"]
    found, files = tracking.register_version(scenario, export, key, tags, required=never_null(scenario))
    # An equal export keeps its version: one that deploy has judged before is not a challenger again.
    if found["verdict"] == "pending":
        tracking.set_alias(scenario.model_name, CHALLENGER, found["version"])
    version: Registration = {
        "name": scenario.model_name,
        "version": found["version"],
        "model_uri": f"models:/{scenario.model_name}/{found['version']}",
        "checkpoint": tags["recloop.checkpoint"],
        "export": tags["recloop.export"],
        "files": files,
    }
    write_json(registration, VERSION_FILE, version)
    judged = read_json(evaluation, EVALUATION_FILE)["overall"]
    return {
        "version": int(found["version"]),
        "auc": {task: facts["challenger"]["auc"] for task, facts in judged.items()},
    }


def _data(checkpoint: Path) -> dict[str, str]:
    """Digests of the checkpoint's inputs, its parent aside."""
    inputs = facts_of(checkpoint).get("inputs", {})
    return {name: digest for name, digest in inputs.items() if name != "parent" and isinstance(digest, str)}


def never_null(scenario: Scenario) -> set[str]:
    """Id features read straight from an event column that every row has."""
    columns = scenario.data.events.columns
    return {
        name
        for name, feature in scenario.enabled_features.items()
        if feature.kind == "id" and (source := columns.get(feature.of or name)) is not None and source.required
    }
