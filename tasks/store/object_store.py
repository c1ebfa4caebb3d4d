"""One scenario's part of an object store: records and outputs as objects, outputs also in the local cache.

An object store has no rename and no folders. What it has is a put of a whole object, on the condition that no object is
there yet; each of S3, GCS and Azure offers it (If-None-Match: *, a generation of 0). It makes the commit record visible
after all files of the output are up, so a reader never sees a part of an output.

A request can fail although the store has carried it out: the answer was lost. `put_if_absent` then reads the record
back. Equal bytes count as written by us; if another process wrote them, the result is the same, because a record says
everything that its writer decided.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from feature_jobs.control_records import MAX_BYTES, checked_name
from feature_jobs.errors import CorruptError, RetryLaterError
from tasks.store.cache import MANIFEST, Cache, manifest_files
from tasks.store.object_client import MAX_RETRIES, PART_BYTES, RETRY_FOR_S, connect, explained, is_missing
from tasks.store.records import FileFacts

T = TypeVar("T")

FILES_AT_ONCE = 4
PARTS_AT_ONCE = 4  # of one file; so at most 16 parts of 8 MiB are in memory
FIRST_PAUSE_S = 0.2
RESTORE = "restore it from a backup, or compute the day again in a new generation: recloop chain replay"


@dataclass(frozen=True)
class _Part:
    """A piece of a file: what one request downloads."""

    name: str
    start: int
    size: int


class RemoteObjects:
    """Below `url`, which names the store and the scenario. `work` is a local folder for scratch and resume folders."""

    def __init__(self, url: str, cache: Cache) -> None:
        self.url = url.rstrip("/")
        self.cache = cache
        self.work = cache.work_for(self.url)
        self._store = connect(self.url)
        self._once = connect(self.url, retries=0)  # of a conditional put, each failed try must be looked at

    # records

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the record whole, or returns False where another record is there already."""
        from obstore.exceptions import AlreadyExistsError

        deadline, is_unclear = time.monotonic() + RETRY_FOR_S, False
        for attempt in range(MAX_RETRIES + 1):
            try:
                with self._errors(key, AlreadyExistsError):
                    self._once.put(key, data, mode="create")
                return True
            except AlreadyExistsError:
                standing = self.read(key, len(data))
                if standing is not None:
                    return is_unclear and standing == data
                # Another writer's put is under way (409), or it has just been deleted.
            except RetryLaterError:
                is_unclear = True
                if attempt == MAX_RETRIES or time.monotonic() > deadline:
                    raise
            time.sleep(FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
        raise RetryLaterError(f"{self.url}/{key}: other processes are writing this record; run this again")

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces a record that no digest depends on."""
        with self._errors(key):
            self._store.put(key, data)

    def read(self, key: str, limit: int = MAX_BYTES) -> bytes | None:
        """The record, or None. Raises CorruptError where it has more than `limit` bytes."""
        with self._errors(key, FileNotFoundError):
            try:
                found = self._store.get(key)
                if found.meta["size"] > limit:
                    raise CorruptError(f"{self.url}/{key}: more than the {limit} bytes that it may have; {RESTORE}")
                return bytes(found.bytes())
            except FileNotFoundError as error:
                if is_missing(error):
                    return None
                raise explained(error, f"{self.url}/{key}") from None

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a prefix (whole parts of a path), sorted."""
        return sorted(self._sizes(prefix))

    def delete(self, prefix: str) -> None:
        """Removes the object of that key and everything below it."""
        for _ in range(MAX_RETRIES):
            for several in [prefix], self.keys(prefix):
                with self._errors(prefix), contextlib.suppress(FileNotFoundError):  # another process removes them, too
                    self._store.delete(several)
            if not self.keys(prefix):
                return
        raise RetryLaterError(f"{self.url}/{prefix}: other processes are writing there; run this again")

    # outputs

    def publish(self, folder: Path, key: str, files: Mapping[str, FileFacts], digest: str) -> None:
        """Uploads an output's files, then its manifest, whose sha256 is `digest`. Afterwards all of it is there.

        What lies there from a killed run is overwritten: its sizes say nothing about its bytes. The files are then in
        the local cache, so that the next step does not download them.
        """
        self._each(lambda name: self._upload(folder, key, name), list(files))
        expected = {f"{key}/{name}": facts["bytes"] for name, facts in files.items()}
        found = self._sizes(key)
        found.pop(f"{key}/{MANIFEST}", None)
        if extra := sorted(found.keys() - expected.keys()):
            with self._errors(key):
                self._store.delete(extra)
        if wrong := [name for name, size in expected.items() if found.get(name) != size]:
            raise RetryLaterError(
                f"{self.url}/{wrong[0]}: {found.get(wrong[0])} bytes arrived instead of {expected[wrong[0]]};"
                " run this again"
            )
        self._upload(folder, key, MANIFEST)
        self.cache.adopt(folder, digest)

    def folder(self, key: str, digest: str) -> Path:
        """A local folder with the committed output at `key`, whose manifest has the sha256 `digest`.

        Every file has the digest that the manifest says. The folder stays until `release`.
        Raises CorruptError where the store holds something else.
        """
        return self.cache.entry(digest, lambda target: self._download(key, target, digest))

    def release(self) -> None:
        """Lets the cache remove the folders that were given out."""
        self.cache.release()

    def _upload(self, folder: Path, key: str, name: str) -> None:
        place = f"{key}/{checked_name(name, str(folder))}"

        def upload() -> None:
            with self._errors(place):
                self._store.put(place, folder / name, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

        _tried(upload)

    def _download(self, key: str, target: Path, digest: str) -> None:
        manifest = self.read(f"{key}/{MANIFEST}", MAX_BYTES)
        if manifest is None:
            raise CorruptError(f"{self.url}/{key}/{MANIFEST}: missing; {RESTORE}")
        files = manifest_files(manifest, f"{self.url}/{key}/{MANIFEST}", digest)
        sizes = self._sizes(key)
        for name, facts in files.items():
            if (size := sizes.get(f"{key}/{name}")) != facts["bytes"]:
                was = "missing" if size is None else f"{size} bytes instead of {facts['bytes']}"
                raise CorruptError(f"{self.url}/{key}/{name}: {was}; {RESTORE}")
        self.cache.make_room(sum(facts["bytes"] for facts in files.values()))
        for name, facts in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (target / name).open("wb") as stream:
                stream.truncate(facts["bytes"])
        parts = [part for name, facts in files.items() for part in _parts(name, facts["bytes"])]
        self._each(lambda part: self._fetch(key, target, part), parts)
        (target / MANIFEST).write_bytes(manifest)

    def _fetch(self, key: str, target: Path, part: _Part) -> None:
        place = f"{key}/{part.name}"

        def fetch() -> None:
            with self._errors(place, FileNotFoundError):
                try:
                    data = self._store.get_range(place, start=part.start, length=part.size)
                except FileNotFoundError as error:
                    if is_missing(error):
                        raise CorruptError(f"{self.url}/{place}: missing; {RESTORE}") from None
                    raise explained(error, f"{self.url}/{place}") from None
            with (target / part.name).open("r+b") as stream:
                stream.seek(part.start)
                stream.write(data)

        _tried(fetch)

    def _sizes(self, prefix: str) -> dict[str, int]:
        with self._errors(prefix):
            listed = self._store.list(prefix or None)
            return {found["path"]: found["size"] for several in listed for found in several}

    def _each(self, call: Callable[[T], None], items: list[T]) -> None:
        """Calls for all items, several at once; the first error ends it."""
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            try:
                for done in [pool.submit(call, item) for item in items]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    @contextmanager
    def _errors(self, key: str, *expected: type[Exception]) -> Iterator[None]:
        """Errors of the client become ours, without their text; `expected` ones are the caller's."""
        from obstore.exceptions import BaseError

        try:
            yield
        except expected:
            raise
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise explained(error, f"{self.url}/{key}") from None


def _parts(name: str, size: int) -> list[_Part]:
    return [_Part(name, start, min(PART_BYTES, size - start)) for start in range(0, size, PART_BYTES)]


def _tried(call: Callable[[], None], attempts: int = 3) -> None:
    """The client repeats a request; what it does not repeat, such as an upload that was cut off, is repeated here."""
    for attempt in range(attempts):
        try:
            return call()
        except RetryLaterError:
            if attempt + 1 == attempts:
                raise
            time.sleep(FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
    return None
