"""Places for a store: a folder, or below the URL of an object store."""

from __future__ import annotations

from pathlib import Path

from tasks.store.objects import LocalObjects, Objects


def is_remote(place: str) -> bool:
    """Says if the place is the URL of an object store, and not a folder."""
    return "://" in place


def objects_at(place: str) -> Objects:
    """One scenario's part of a store, at the place of ScenarioStore.url."""
    if not is_remote(place):
        return LocalObjects(Path(place))
    from tasks.store.object_store import RemoteObjects

    return RemoteObjects(place)
