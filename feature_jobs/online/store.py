"""The online store: values by key, made at the end of a day, and the records that came since.

A load writes the state of a day aside; then one small write makes it the state that is read. So no half-written state
is ever visible, and a reader that holds one keeps it until it asks for the next. Records that come during the day are
appended to the value of their key, kept by the day of their time, and are the same for every state.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from feature_jobs.errors import CorruptError, RetryLaterError
from feature_jobs.online.state import KeySetState
from feature_jobs.windows.keys import Ints, Keys

# A name becomes a path and part of keys, so nothing else is taken for one.
_STATE = re.compile(r"(\d{4}-\d\d-\d\d)-([0-9a-f]{16})")
_SIGN = np.uint64(1 << 63)
Pairs = tuple[Sequence[bytes], Sequence[bytes]]
"""Keys, ascending, and their values."""


@dataclass(frozen=True)
class State:
    """A state of the store: the day that it follows, and the first 16 digits of the digest of the output that it was
    loaded from."""

    ds: str
    digest: str

    @property
    def name(self) -> str:
        """The name of its folder or of its keys."""
        return f"{self.ds}-{self.digest}"

    def not_loaded(self, place: str) -> RetryLaterError:
        """The error where this state should be kept alone, and another process has removed it since its load."""
        return RetryLaterError(f"{place}: another process has removed {self.name}; give the same command again")

    @staticmethod
    def named(name: str, place: str) -> State:
        """The state of such a name. Raises CorruptError, with the place that it was read from."""
        found = _STATE.fullmatch(name)
        if not found:
            raise CorruptError(f"{place}: {name[:40]!r} is not a state; load one again")
        return State(*found.groups())


class Reading(Protocol):
    """One state, and what came since."""

    def state(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of the state."""

    def added(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records that came since, all of a key in one value."""

    def changed(self, seen: Mapping[str, int]) -> tuple[dict[str, int], list[bytes]]:
        """The number of appends by day, and the keys of those after the `seen` ones; of a day never seen none."""


class OnlineStore(ABC):
    """A store of states and records, for one scenario."""

    @abstractmethod
    def current(self) -> State | None:
        """The state that is read, None where nothing was loaded."""

    def replaceable(self) -> State | None:
        """The same for a load, which writes the name again where it is damaged."""
        try:
            return self.current()
        except CorruptError:
            return None

    @abstractmethod
    def load(self, state: State, pairs: Iterable[Pairs]) -> None:
        """Writes a state and then makes it the current one. Stretches of pairs come in the order of their keys."""

    @abstractmethod
    def keep_only(self, state: State | None) -> None:
        """Makes a loaded state the current one, and removes all others, also unfinished ones, and the records up to its
        day. Without a state it removes all that is there."""

    @abstractmethod
    def get(self, state: State, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of a loaded state."""

    @abstractmethod
    def append(self, day: str, records: Mapping[bytes, bytes]) -> None:
        """Appends records of a day to the values of their keys."""

    @abstractmethod
    def appended(self, days: Sequence[str], keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of these days, those of one key in one value."""

    @abstractmethod
    def changed(self, day: str, seen: int | None) -> tuple[int, list[bytes]]:
        """The number of appends of a day, and the keys of those after the `seen` ones; none for None."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of files and connections."""


def store_keys(facts: KeySetState, keys: Keys) -> list[bytes]:
    """Keys of a key set as the store has them, in the same order."""
    words = _ordered(keys.first)
    if keys.second is not None:
        words = np.stack([words, _ordered(keys.second)], axis=1)
    # Stores compare keys byte by byte from the first on, and a load must come in their order.
    prefix, data = bytes.fromhex(facts["layout"]), words.astype(">u8").tobytes()
    width = 8 * words.ndim
    return [prefix + data[at : at + width] for at in range(0, len(data), width)]


def keys_from_store(keys: Sequence[bytes], *, two_words: bool) -> Keys:
    """The keys again."""
    words = np.frombuffer(b"".join(keys), ">u8").astype(np.uint64).reshape(len(keys), -1)[:, 1:] ^ _SIGN
    first, *second = np.ascontiguousarray(words.T).view(np.int64)
    return Keys(first, second[0] if two_words else None)


def joined(keys: Iterable[bytes]) -> bytes:
    """Keys as one value, each after its length."""
    # A layout and two words are 24 bytes at most, so that a length fits one byte.
    return b"".join(bytes([len(key)]) + key for key in keys)


def parted(value: bytes) -> list[bytes]:
    """The keys of such a value."""
    found, at = [], 0
    while at < len(value):
        end = at + 1 + value[at]
        found.append(value[at + 1 : end])
        at = end
    return found


def _ordered(word: Ints) -> npt.NDArray[np.uint64]:
    """Whole numbers as such without a sign, in the same order."""
    return word.view(np.uint64) ^ _SIGN


@dataclass(frozen=True)
class StoreReading:
    """A state of a store, with the records of these days."""

    store: OnlineStore
    of: State
    days: tuple[str, ...]

    def state(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of the state."""
        return self.store.get(self.of, keys)

    def added(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records that came since."""
        return self.store.appended(self.days, keys)

    def changed(self, seen: Mapping[str, int]) -> tuple[dict[str, int], list[bytes]]:
        """The keys of records that came after those `seen`."""
        found = {day: self.store.changed(day, seen.get(day)) for day in self.days}
        return {day: number for day, (number, _) in found.items()}, [key for _, keys in found.values() for key in keys]
