"""The online store that a scenario names, and the features of requests from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from feature_jobs.errors import BadInputError
from feature_jobs.online.append import append_rows
from feature_jobs.online.materialize import online_facts, proven_state, state_in
from feature_jobs.online.request import Request, RequestPath
from feature_jobs.online.store import OnlineStore, Reading, StoreReading
from feature_jobs.schema import Scenario
from feature_jobs.windows.keys import Ints

# Never in the scenario, which is committed and shown.
_VARIABLE = "RECLOOP_ONLINE_PASSWORD"


def store_of(scenario: Scenario, *, writable: bool = False) -> OnlineStore:
    """The store that the scenario names; `writable`: this process appends records to it.

    Raises BadInputError where it names none, or a URL that is none of a store.
    """
    if scenario.online is None or scenario.online.store is None:
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

    # From the scenario's folder, in whatever folder the process was started.
    return RocksStore(scenario.file.parent / url, scenario.name, writable=writable)


class _NothingSince:
    """The reading of a state whose values are all mapped, where no rows come."""

    def state(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """None for each key."""
        return [None] * len(keys)

    added = state

    def changed(self, seen: Mapping[str, int]) -> tuple[dict[str, int], list[bytes]]:
        """No appends."""
        return {}, []


class OnlineFeatures:
    """Features of requests, from a state that the scenario's store has loaded, or from its files where there is none.
    `folder` is what `materialize` wrote; `names` are the features wanted, by default all.

    `writable`: this process adds the rows of logs as they come; with RocksDB only one may. Raises BadInputError where
    the store has not loaded this state, CorruptError where a file of the folder is not the one that was written.
    """

    def __init__(
        self, scenario: Scenario, folder: Path, *, names: Collection[str] | None = None, writable: bool = False
    ) -> None:
        has_store = scenario.online is not None and scenario.online.store is not None
        state, self._store = state_in(folder), store_of(scenario, writable=writable) if has_store else None
        with contextlib.ExitStack() as on_error:
            # Else a state that is refused leaves the store open.
            on_error.callback(self.close)
            # First what costs nothing: to prove a state reads its files whole.
            if self._store is not None and (current := self._store.current()) != state:
                has = f"the state {current.name}" if current else "no state"
                raise BadInputError(
                    f"{folder}: the online store has {has}, not {state.name}; load it:"
                    f" recloop materialize {scenario.option} --ds {state.ds}"
                )
            facts = proven_state(folder)
            self.path = RequestPath(scenario, online_facts(folder, alone=self._store is None), names)
            on_error.pop_all()
        # The same one for all requests: with another one caches begin from nothing.
        self.reading: Reading = (
            _NothingSince() if self._store is None else StoreReading(self._store, state, tuple(facts["days"]))
        )

    def of(self, request: Request) -> pa.Table:
        """The features of a request, a row for each item."""
        return self.path.table(request, self.reading)

    def add(
        self,
        columns: Mapping[str, pa.Array],
        *,
        times: Ints,
        rows: Ints,
        known_at: Ints | None = None,
        source: str | None = None,
    ) -> None:
        """Adds rows of a log: see `append_rows`."""
        if self._store is None:
            raise BadInputError(
                f"{self.path.scenario.file}: online: rows of today need a store; name one: store: FOLDER"
            )
        append_rows(self.path, self._store, columns, times=times, rows=rows, known_at=known_at, source=source)

    def update(self, entity: str, rows: pa.Table) -> None:
        """Lets later requests of this process see changed rows of an entity, which have the columns of the log's."""
        self.path.update(entity, rows, whole=False)

    def close(self) -> None:
        """Lets go of the store."""
        if self._store is not None:
            self._store.close()
