"""The online store that a scenario names."""

from __future__ import annotations

import os

from feature_jobs.errors import BadInputError
from feature_jobs.online.store import OnlineStore
from feature_jobs.schema import Scenario

_VARIABLE = "RECLOOP_ONLINE_PASSWORD"


def store_of(scenario: Scenario, *, writable: bool = False) -> OnlineStore:
    """The store that the scenario names; `writable`: this process appends records to it.

    Raises BadInputError where it names none, or a URL that is none of a store.
    """
    if scenario.online is None:
        raise BadInputError(f"{scenario.file}: online: no store is named; add online: {{store: FOLDER}}")
    url = scenario.online.store
    scheme, separator, _ = url.partition("://")
    if scheme in ("redis", "rediss") and separator:
        from feature_jobs.online.redis_store import RedisStore

        return RedisStore(url, scenario.name, os.environ.get(_VARIABLE))
    if separator:
        raise BadInputError(
            f"{scenario.file}: online.store: {scheme}:// is not an online store; give redis://HOST:PORT/DB or a folder"
        )
    from feature_jobs.online.rocks_store import RocksStore

    return RocksStore(scenario.file.parent / url, scenario.name, writable=writable)
