"""The online store in a Redis server, which several machines share.

    recloop:NAME:current              the name of the state that is read
    recloop:NAME:removals             counts removals of states
    recloop:NAME:state:STATE:KEY      a value of a state
    recloop:NAME:added:DAY:KEY        the records of a day
    recloop:NAME:added:DAY:changes    the keys of each append, a list

A load keeps the state before it, for requests that still read that one, and removes all others with the records that
both have. A state never expires: where no day ends for a week, requests still have features.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.online.store import OnlineStore, Pairs, State, joined, parted

RECORDS_EXPIRE_S = 30 * 86_400
"""Records of days that never come, as of a wrong clock, are removed by nothing else."""
# The client has all commands of a pipeline in memory, and the server all of its replies.
_AT_ONCE = 2_000
_CHANGES = b"changes"
"""A key of each day: a list of the keys of each append."""
_WHOLE = b"whole"
"""A key of each state, which is written last: it says that the others are there."""
_REMOVALS = b"removals"


class RedisStore(OnlineStore):
    """`url`: redis://HOST:PORT/DB, or rediss:// with TLS."""

    def __init__(self, url: str, name: str, password: str | None = None) -> None:
        import redis

        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._prefix = f"recloop:{name}:".encode()
        try:
            parts = urlsplit(url)
            self._place = f"{parts.scheme}://{parts.hostname or 'localhost'}:{parts.port or 6379}"  # without a password
            self._redis: Any = redis.Redis.from_url(url, password=password, socket_timeout=10, socket_connect_timeout=5)
        except (ValueError, TypeError) as error:
            raise BadInputError(f"online.store: {error}; give redis://HOST:PORT/DB") from None

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise RetryLaterError(
                f"{self._place}: {error}; start the server, or correct online.store and RECLOOP_ONLINE_PASSWORD"
            ) from None

    def current(self) -> State | None:
        with self._reached():
            name = self._redis.get(self._prefix + b"current")
        return None if name is None else State.named(name.decode("ascii", "replace"), self._place)

    def load(self, state: State, pairs: Iterable[Pairs]) -> None:
        own, former = self._of_state(state), self.replaceable()
        with self._reached():
            removals = self._redis.get(self._prefix + _REMOVALS)
            for keys, values in pairs:
                for at in range(0, len(keys), _AT_ONCE):
                    pipe = self._redis.pipeline(transaction=False)
                    for key, value in zip(keys[at : at + _AT_ONCE], values[at : at + _AT_ONCE], strict=True):
                        # In no transaction, which would hold up other clients: before _WHOLE nobody reads them.
                        pipe.set(own + key, value)
                    pipe.execute()
            if self._redis.get(self._prefix + _REMOVALS) != removals:  # keys of this state may be among them
                raise RetryLaterError(
                    f"{self._place}: states were removed while {state.name} was loaded; load it again"
                )
            self._redis.set(own + _WHOLE, b"1")
            self._redis.set(self._prefix + b"current", state.name)
            if former is None or former == state:
                return
            # Rows that were taken out of a corrected day may be in every other state.
            self._remove_states(own, *([self._of_state(former)] if former.ds != state.ds else []))
            self._remove_days(min(former.ds, state.ds))

    def keep_only(self, state: State | None) -> None:
        own = self._of_state(state) if state else None
        with self._reached():
            if state and own and not self._redis.exists(own + _WHOLE):
                raise state.not_loaded(self._place)
            # Before the states: if the process is killed, the name left behind is that of a state that is there.
            if state is None:
                self._redis.delete(self._prefix + b"current")
            else:
                self._redis.set(self._prefix + b"current", state.name)
            self._remove_states(*([own] if own else []))
            self._remove_days(state.ds if state else "9999-12-31")

    def _remove_states(self, *kept: bytes) -> None:
        self._redis.incr(self._prefix + _REMOVALS)  # before the first key goes
        self._remove(b"state:", lambda key: not key.startswith(kept))

    def _remove_days(self, last: str) -> None:
        """Removes the records of days up to the last one."""
        day = len(self._prefix + b"added:")
        self._remove(b"added:", lambda key: key[day : day + 10] <= last.encode())

    def _remove(self, kind: bytes, is_old: Callable[[bytes], bool]) -> None:
        """Removes keys; each is looked at, so a removal that was killed is finished by the next one."""
        # SCAN, since KEYS stops the server for all clients while it looks at every key.
        old = filter(is_old, self._redis.scan_iter(self._prefix + kind + b"*", count=_AT_ONCE))
        while some := list(itertools.islice(old, _AT_ONCE)):
            # Not DEL: the server then frees the memory in another thread.
            self._redis.unlink(*some)

    def get(self, state: State, keys: Sequence[bytes]) -> list[bytes | None]:
        before = self._of_state(state)
        with self._reached():
            # In one call, so that no removal comes between the mark and the values.
            found: list[bytes | None] = self._redis.mget([before + key for key in (_WHOLE, *keys)])
        if found[0] is None:  # else every key would look like one that has no value
            name = f"{self._place}: {state.name}"
            raise BadInputError(f"{name} was removed; ask the store for the current one")
        return found[1:]

    def append(self, day: str, records: Mapping[bytes, bytes]) -> None:
        before = self._of_day(day)
        with self._reached():
            pipe = self._redis.pipeline(transaction=False)
            for key, record in records.items():
                pipe.append(before + key, record)
                pipe.expire(before + key, RECORDS_EXPIRE_S)
            # After the records: who sees the change must find the rows.
            pipe.rpush(before + _CHANGES, joined(records))
            pipe.expire(before + _CHANGES, RECORDS_EXPIRE_S)
            pipe.execute()

    def changed(self, day: str, seen: int | None) -> tuple[int, list[bytes]]:
        place = self._of_day(day) + _CHANGES
        with self._reached():
            if seen is None:
                return self._redis.llen(place), []
            values: list[bytes] = self._redis.lrange(place, seen, -1)
        return seen + len(values), [key for value in values for key in parted(value)]

    def appended(self, days: Sequence[str], keys: Sequence[bytes]) -> list[bytes | None]:
        wanted = [self._of_day(day) + key for day in days for key in keys]
        with self._reached():
            found = self._redis.mget(wanted) if wanted else []
        parts = [[part for part in found[at :: len(keys)] if part] for at in range(len(keys))]
        return [b"".join(part) or None for part in parts]

    def _of_state(self, state: State) -> bytes:
        return self._prefix + f"state:{state.name}:".encode()

    def _of_day(self, day: str) -> bytes:
        return self._prefix + f"added:{day}:".encode()

    def close(self) -> None:
        self._redis.close()
