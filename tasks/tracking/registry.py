"""Registered versions and their aliases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypedDict

from tasks.tracking.connection import RefusedError, call, client

CHECKPOINT_TAG = "recloop.checkpoint"
EXPORT_TAG = "recloop.export"
FILES_TAG = "recloop.files"
VERDICT_TAG = "recloop.gate_verdict"
LOGGED_MODEL = re.compile(r"m-[0-9a-f]{32}")
"""Its id, in the place where a version's files lie: MLflow keeps no other link from a version to it."""
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"


class Version(TypedDict):
    """A registered version, as `recloop status --json` shows it. `model_id`: the logged model that it was made from."""

    version: str
    model_id: str | None
    ds: str | None
    generation: int
    checkpoint: str | None
    verdict: str | None
    aliases: list[str]
    tags: dict[str, str]


def versions(model: str) -> list[Version]:
    """All versions of a registered model, newest first. Empty where the model is not registered yet."""
    try:
        registered = call(lambda: client().get_registered_model(model))
    except RefusedError as error:
        if error.code == NOT_FOUND:  # before the first registration
            return []
        raise
    names: dict[str, list[str]] = {}
    for alias, version in registered.aliases.items():
        names.setdefault(str(version), []).append(alias)
    found: list[Version] = []
    token: str | None = None
    while True:
        page = _page(model, token)
        found += [_version(entity, names.get(str(entity.version), [])) for entity in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda version: -int(version["version"]))  # as numbers: "10" comes after "9"


def _page(model: str, token: str | None) -> Any:
    return call(lambda: client().search_model_versions(f"name='{model}'", max_results=1000, page_token=token))


def _version(entity: Any, aliases_of_it: list[str]) -> Version:
    tags = dict(entity.tags)
    return Version(
        version=str(entity.version),
        model_id=found[0] if (found := LOGGED_MODEL.search(str(entity.source))) else None,
        ds=tags.get("recloop.ds"),
        generation=int(tags.get("recloop.generation", 0)),
        checkpoint=tags.get(CHECKPOINT_TAG),
        verdict=tags.get(VERDICT_TAG),
        aliases=sorted(aliases_of_it),
        tags=tags,
    )


def aliases(model: str) -> dict[str, str]:
    """Alias → version of a registered model."""
    return {alias: version["version"] for version in versions(model) for alias in version["aliases"]}


def set_alias(model: str, alias: str, version: str) -> None:
    """Points the alias to the version. MLflow has no compare-and-swap: the champion log has."""
    call(lambda: client().set_registered_model_alias(model, alias, version))


def delete_alias(model: str, alias: str) -> None:
    """Removes the alias; nothing happens where there is none."""
    call(lambda: client().delete_registered_model_alias(model, alias))


def set_version_tags(model: str, version: str, tags: Mapping[str, str]) -> None:
    """Adds or replaces tags of a version; nothing happens where it was deleted."""
    try:
        for tag in tags.items():
            call(partial(client().set_model_version_tag, model, version, *tag))
    except RefusedError as error:
        if error.code != NOT_FOUND:
            raise
