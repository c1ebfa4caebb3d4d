"""MLflow as a view of the store: runs of committed steps, registered versions, aliases. The only importer of mlflow.

Importing MLflow takes three seconds of CPU and opening its database two more, in each of the many processes of a day.
So whatever can be said over its REST API is said that way where a server answers, and MLflow itself is imported only
where it must be: to log and load models, and to write runs straight into a database.
"""

from tasks.tracking.champion_alias import mirror_alias
from tasks.tracking.connection import tracking_uri
from tasks.tracking.logged_models import check_loads, register_version
from tasks.tracking.registry import (
    CHECKPOINT_TAG,
    VERDICT_TAG,
    aliases,
    delete_alias,
    set_alias,
    set_version_tags,
    versions,
)
from tasks.tracking.runs import RunKey, record_step

__all__ = [
    "CHECKPOINT_TAG",
    "VERDICT_TAG",
    "RunKey",
    "aliases",
    "check_loads",
    "delete_alias",
    "mirror_alias",
    "record_step",
    "register_version",
    "set_alias",
    "set_version_tags",
    "tracking_uri",
    "versions",
]
