"""MLflow as a view of the store: runs of committed steps, registered versions, aliases. The only importer of mlflow.

Importing MLflow takes 1.5 s and opening its database one more, in each of the many processes of a day. So it is
imported inside functions, and only a process that needs it does (docs/decisions/0009-mlflow-client.md).
"""

from tasks.tracking.champion_alias import mirror_alias
from tasks.tracking.connection import tracking_uri
from tasks.tracking.erase import erase_runs, erase_versions
from tasks.tracking.logged_models import LoadCheck, check_loads, register_version
from tasks.tracking.registry import (
    CHECKPOINT_TAG,
    VERDICT_TAG,
    Version,
    aliases,
    delete_alias,
    set_alias,
    set_version_tags,
    versions,
)
from tasks.tracking.runs import RunKey, experiment_path
from tasks.tracking.view import View

__all__ = [
    "CHECKPOINT_TAG",
    "VERDICT_TAG",
    "LoadCheck",
    "RunKey",
    "Version",
    "View",
    "aliases",
    "check_loads",
    "delete_alias",
    "erase_runs",
    "erase_versions",
    "experiment_path",
    "mirror_alias",
    "register_version",
    "set_alias",
    "set_version_tags",
    "tracking_uri",
    "versions",
]
