"""Registered versions and their aliases.

Reading them and moving an alias must take milliseconds (a rollback has five seconds in all), so a server is asked over
REST, and of an SQLite database the few rows are read and written directly: MLflow's import alone would take too long.
The library does it for any other database, and where the tables are not as expected.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tasks.tracking.connection import RefusedError, client, rest, retrying, server_url, sqlite_file, tracking_uri

CHECKPOINT_TAG = "recloop.checkpoint"
VERDICT_TAG = "recloop.gate_verdict"
BUSY_S = 20.0


def versions(model: str) -> list[dict[str, Any]]:
    """All versions of a registered model, newest first: {"version", "run_id", "ds", "generation", "checkpoint",
    "verdict", "aliases", "tags"}. Empty where the model is not registered yet."""
    found = _first_that_can(
        lambda server: _rest_versions(server, model),
        lambda database: _sqlite_versions(database, model),
        lambda: _library_versions(model),
    )
    return sorted(found, key=lambda version: -int(version["version"]))


def aliases(model: str) -> dict[str, str]:
    """Alias → version of a registered model."""
    return {alias: version["version"] for version in versions(model) for alias in version["aliases"]}


def set_alias(model: str, alias: str, version: str) -> None:
    """Points the alias to the version. MLflow has no compare-and-swap: the champion log has."""
    _first_that_can(
        lambda server: rest(
            server, "POST", "registered-models/alias", {"name": model, "alias": alias, "version": version}
        ),
        lambda database: _sqlite_set_alias(database, model, alias, version),
        lambda: retrying(lambda: client().set_registered_model_alias(model, alias, version)),
    )


def delete_alias(model: str, alias: str) -> None:
    """Takes the alias away; nothing happens where there is none."""
    if alias in aliases(model):
        _first_that_can(
            lambda server: rest(server, "DELETE", "registered-models/alias", {"name": model, "alias": alias}),
            lambda database: _sqlite_delete_alias(database, model, alias),
            lambda: retrying(lambda: client().delete_registered_model_alias(model, alias)),
        )


def set_version_tags(model: str, version: str, tags: Mapping[str, str]) -> None:
    """Adds or replaces tags of a version."""
    for key, value in tags.items():
        body = {"name": model, "version": version, "key": key, "value": value}
        _first_that_can(
            lambda server, body=body: rest(server, "POST", "model-versions/set-tag", body),  # type: ignore[misc]
            lambda database, key=key, value=value: _sqlite_set_tag(database, model, version, key, value),  # type: ignore[misc]
            lambda key=key, value=value: retrying(  # type: ignore[misc]
                lambda: client().set_model_version_tag(model, version, key, value)
            ),
        )


def _first_that_can(
    over_rest: Callable[[str], Any], on_sqlite: Callable[[sqlite3.Connection], Any], with_library: Callable[[], Any]
) -> Any:
    """A server is asked where one answers, else an SQLite file directly, else the library."""
    server = server_url()
    if server:
        return over_rest(server)
    file = sqlite_file(tracking_uri())
    if file and file.is_file():
        with contextlib.suppress(sqlite3.Error), _database(str(file)) as database:
            return on_sqlite(database)
    return with_library()


@contextlib.contextmanager
def _database(file: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(file, timeout=BUSY_S, isolation_level="IMMEDIATE")) as database:
        database.execute("PRAGMA foreign_keys = ON")
        with database:
            yield database


def _version(version: Any, run_id: str | None, tags: Mapping[str, str], alias_names: list[str]) -> dict[str, Any]:
    return {
        "version": str(version),
        "run_id": run_id,
        "ds": tags.get("recloop.ds"),
        "generation": int(tags.get("recloop.generation", 0)),
        "checkpoint": tags.get(CHECKPOINT_TAG),
        "verdict": tags.get(VERDICT_TAG),
        "aliases": sorted(alias_names),
        "tags": dict(tags),
    }


def _rest_versions(server: str, model: str) -> list[dict[str, Any]]:
    try:
        registered = rest(server, "GET", "registered-models/get", {"name": model})["registered_model"]
    except RefusedError as error:
        if error.code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    names: dict[str, list[str]] = {}
    for alias in registered.get("aliases", []):
        names.setdefault(alias["version"], []).append(alias["alias"])
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        query = {"filter": f"name='{model}'", "max_results": "1000", **({"page_token": token} if token else {})}
        answer = rest(server, "GET", "model-versions/search", query)
        for version in answer.get("model_versions", []):
            tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
            found.append(_version(version["version"], version.get("run_id"), tags, names.get(version["version"], [])))
        token = answer.get("next_page_token", "")
        if not token:
            return found


def _sqlite_versions(database: sqlite3.Connection, model: str) -> list[dict[str, Any]]:
    tags: dict[int, dict[str, str]] = {}
    for version, key, value in database.execute(
        "SELECT version, key, value FROM model_version_tags WHERE name = ?", (model,)
    ):
        tags.setdefault(version, {})[key] = value
    names: dict[int, list[str]] = {}
    for version, alias in database.execute(
        "SELECT version, alias FROM registered_model_aliases WHERE name = ?", (model,)
    ):
        names.setdefault(version, []).append(alias)
    rows = database.execute(
        "SELECT version, run_id FROM model_versions WHERE name = ? AND current_stage != 'Deleted_Internal'", (model,)
    )
    return [_version(v, run_id, tags.get(v, {}), names.get(v, [])) for v, run_id in rows]


def _sqlite_set_alias(database: sqlite3.Connection, model: str, alias: str, version: str) -> None:
    known = database.execute("SELECT 1 FROM model_versions WHERE name = ? AND version = ?", (model, int(version)))
    if known.fetchone() is None:
        raise RefusedError("RESOURCE_DOES_NOT_EXIST", f"model {model} has no version {version} in MLflow")
    database.execute(
        "INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, ?, ?)"
        " ON CONFLICT (workspace, name, alias) DO UPDATE SET version = excluded.version",
        (model, alias, int(version)),
    )


def _sqlite_delete_alias(database: sqlite3.Connection, model: str, alias: str) -> None:
    database.execute("DELETE FROM registered_model_aliases WHERE name = ? AND alias = ?", (model, alias))


def _sqlite_set_tag(database: sqlite3.Connection, model: str, version: str, key: str, value: str) -> None:
    database.execute(
        "INSERT INTO model_version_tags (name, version, key, value) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (workspace, key, name, version) DO UPDATE SET value = excluded.value",
        (model, int(version), key, value),
    )


def _library_versions(model: str) -> list[dict[str, Any]]:
    from mlflow.exceptions import MlflowException

    try:
        registered = retrying(lambda: client().get_registered_model(model))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    names: dict[str, list[str]] = {}
    for alias, version in registered.aliases.items():
        names.setdefault(str(version), []).append(alias)
    found, token = [], None
    while True:
        page = retrying(
            lambda token=token: client().search_model_versions(f"name='{model}'", max_results=1000, page_token=token)  # type: ignore[misc]
        )
        found += [_version(v.version, v.run_id, v.tags, names.get(str(v.version), [])) for v in page]
        token = page.token
        if not token:
            return found
