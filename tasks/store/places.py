"""Places for a store: a folder, or below the URL of an object store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from feature_jobs.errors import BadInputError
from tasks.store.objects import LocalObjects, Objects

_URL_LIKE = re.compile("(?i)(file|s3|gs|az):|[a-z][a-z0-9+.-]*:/")
_URL = re.compile(r"file:///[^%?#]*|(?!(?i:file):)[A-Za-z][A-Za-z0-9+.-]*://[^/].*", re.DOTALL)


def is_remote(place: str) -> bool:
    """Says if the place is the URL of an object store, and not a folder."""
    return "://" in place


def normalized(store: str) -> str:
    """The value of --store as an absolute path, or as a URL without a slash at its end.

    Raises BadInputError for a URL that would be taken for a folder below the current one, and for one that the client
    of the store would silently read as another.
    """
    if _URL_LIKE.match(store):
        if not _URL.fullmatch(store):
            raise BadInputError(
                f"--store {store}: is neither a path nor the URL of a store; write a path, file:///PATH or"
                " s3://BUCKET/PREFIX"
            )
        _require_plain(store)
    store = store.removeprefix("file://")
    return store.removesuffix("/") if is_remote(store) else str(Path(store).resolve())


def _require_plain(url: str) -> None:
    """Names only the wrong part of the URL: the rest can hold a secret, although it should not."""
    decoded = unquote(url)
    parts = decoded.partition("://")[2].removesuffix("/").split("/")
    if url.startswith("file:"):
        parts = parts[1:]  # the first one is the root
    wrong = [character for character in decoded if not character.isprintable()]
    wrong += [part for part in parts if part in ("", ".", "..")]
    if wrong:
        raise BadInputError(
            f"--store: the URL has {wrong[0]!r}{'' if wrong[0] else ' between two slashes'}; write it without that"
        )


def objects_at(place: str) -> Objects:
    """One scenario's part of a store, at the place of ScenarioStore.url."""
    if not is_remote(place):
        return LocalObjects(Path(place))
    from tasks.store.object_store import RemoteObjects

    return RemoteObjects(place)
