"""One registry for all machines of a store.

The champion log of the store names versions by the numbers that MLflow gave them. A local store has its MLflow database
beside it. A store elsewhere is used by several machines, and a database on each of them would number its own versions.
"""

from __future__ import annotations

import os
import socket
import sys

from typing_extensions import TypedDict

from feature_jobs.errors import BadInputError
from tasks.store.digests import canonical_json
from tasks.store.places import is_remote
from tasks.store.scenario_store import ScenarioStore

KEY = "registry.json"


class Registry(TypedDict):
    """The machine that has the database, and the address of the database."""

    machine: str
    uri: str


def require_one_registry(store: ScenarioStore) -> None:
    """The first machine that registers into a file writes down that it does. Raises BadInputError on any other."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not is_remote(store.url) or uri.startswith(("http://", "https://")):
        return
    here: Registry = {"machine": socket.gethostname(), "uri": uri}
    if store.put_if_absent(KEY, canonical_json(here)):
        print(
            f"{store.url}: its model versions are registered in {uri}, a file of this machine. For several machines,"
            " set MLFLOW_TRACKING_URI to an MLflow server before the first day",
            file=sys.stderr,
        )
        return
    found = store.record(KEY, Registry, f"remove it, if no other machine registers versions of {store.url}")
    if found is not None and found[0] != here:
        there = found[0]
        raise BadInputError(
            f"{store.url}/{KEY}: the model versions of this store are registered in {there['uri']} on machine"
            f" {there['machine']}; run registering steps there, or move its MLflow database to a server and set"
            " MLFLOW_TRACKING_URI to the server's address on all machines"
        )
