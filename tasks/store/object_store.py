"""One scenario's part of an object store: records and outputs as objects, outputs also in the local cache.

An object store has no rename and no folders. It has a put of a whole object, on the condition that no object is
there yet; each of S3, GCS and Azure offers it (If-None-Match: *, a generation of 0). It makes the commit record visible
after all files of the output are up, so a reader never sees a part of an output.

A request can fail although the store has carried it out: the answer was lost. `put_if_absent` then reads the record
back. Equal bytes count as written by us; if another process wrote them, the result is the same, because a record says
everything that its writer decided.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from typing_extensions import Buffer

from feature_jobs.control_records import MAX_BYTES, RESTORE, checked_name
from feature_jobs.errors import CorruptError, RetryLaterError
from feature_jobs.object_client import (
    MAX_RETRIES,
    PART_BYTES,
    RETRY_FOR_S,
    connect,
    explained,
    is_missing,
    pause,
    require_own_threads,
    tried,
)
from tasks.store.cache import Cache
from tasks.store.digests import MANIFEST
from tasks.store.objects import matches
from tasks.store.records import FileFacts, with_manifest
from tasks.store.scratch import Scratch

T = TypeVar("T")
R = TypeVar("R")

FILES_AT_ONCE = 4
PARTS_AT_ONCE = 4  # of one file; so at most 16 parts of 8 MiB are in memory
FIRST_AT_ONCE, RECORDS_AT_ONCE = 2, 16  # more with each round: most logs are short, and their end is not known


@dataclass(frozen=True)
class _Part:
    """A piece of a file, downloaded by one request."""

    name: str
    start: int
    size: int


class RemoteObjects:
    """Below `url`, which names the store and the scenario. See tasks.store.objects.Objects."""

    def __init__(self, url: str, cache: Cache | None = None) -> None:
        self._url = url.rstrip("/")
        self.cache = cache or Cache()
        self.scratch = Scratch(self.cache.work_for(self._url))
        self._store = connect(self._url)
        self._once = connect(self._url, retries=0)  # of a conditional put, each failed try must be looked at

    @property
    def url(self) -> str:
        """Its URL, for messages."""
        return self._url

    # records

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Objects."""
        from obstore.exceptions import AlreadyExistsError

        deadline, is_unclear = time.monotonic() + RETRY_FOR_S, False
        for attempt in range(MAX_RETRIES + 1):
            try:
                with self._errors(key, AlreadyExistsError):
                    self._once.put(key, data, mode="create")
                return True
            except AlreadyExistsError:
                standing = self.read(key)
                if standing is not None:
                    return is_unclear and standing == data
                # Another writer's put is under way (409), or it has just been deleted.
            except RetryLaterError:
                is_unclear = True
                if attempt == MAX_RETRIES or time.monotonic() > deadline:
                    raise
            pause(attempt)
        raise RetryLaterError(f"{self.url}/{key}: other processes are writing this record; run this again")

    def put(self, key: str, data: bytes) -> None:
        """See Objects."""
        with self._errors(key):
            self._store.put(key, data, use_multipart=False)

    def append(self, key: str, line: bytes) -> None:
        """See Objects. An object cannot be added to, so each line is an object, named by its time."""
        # Padded, so that the order of the keys is that of time; the random end keeps two machines apart.
        self.put(f"{key}/{time.time_ns():020}-{uuid.uuid4().hex[:8]}", line)

    def lines(self, key: str) -> list[bytes]:
        """See Objects."""
        found = self.each(self.read, sorted(self._sizes(key)))
        return [line.rstrip(b"\n") for line in found if line is not None]

    def read(self, key: str, remedy: str = RESTORE) -> bytes | None:
        """See Objects."""

        def read() -> bytes | None:
            found = self._store.get(key)
            if found.meta["size"] > MAX_BYTES:
                raise CorruptError(f"{self.url}/{key}: more than the {MAX_BYTES} bytes that it may have; {remedy}")
            return bytes(found.bytes())

        return tried(lambda: self._found(key, read))

    def keys(self, pattern: str) -> list[str]:
        """See Objects. All keys below the parts without `*` are listed, a thousand at once."""
        parts = pattern.split("/")
        fixed = list(itertools.takewhile(lambda part: "*" not in part, parts[:-1]))
        return sorted(key for key in self._sizes("/".join(fixed)) if matches(pattern, key))

    def each(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See Objects."""
        waiting, size = iter(items), FIRST_AT_ONCE
        while group := list(itertools.islice(waiting, size)):
            with ThreadPoolExecutor(len(group)) as pool:
                for done in [pool.submit(call, item) for item in group]:
                    yield done.result()
            size = min(2 * size, RECORDS_AT_ONCE)

    def tops(self) -> list[str]:
        """See Objects."""

        def listed() -> list[str]:
            with self._errors(""):
                found = self._store.list_with_delimiter()
            below = [prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]
            return sorted({*below, *(one["path"].rpartition("/")[2] for one in found["objects"])})

        return tried(listed)

    def time_of(self, key: str) -> float:
        """See Objects."""
        found = tried(lambda: self._found(key, lambda: self._store.head(key)))
        return found["last_modified"].timestamp() if found else 0.0

    def delete(self, key: str) -> None:
        """See Objects."""
        for _ in range(MAX_RETRIES):
            # A record, or all objects below the key: their names do not say which of the two it is.
            for several in [key], sorted(self._sizes(key)):
                with self._errors(key), contextlib.suppress(FileNotFoundError):  # another process removes them, too
                    self._store.delete(several)
            if not self._sizes(key):
                return
        raise RetryLaterError(f"{self.url}/{key}: other processes are writing there; run this again")

    def delete_files(self, key: str, files: Mapping[str, FileFacts]) -> None:
        """See Objects. The copy goes first: once the files are gone, nothing leads to it any more."""
        self.cache.discard(with_manifest(files, self.read(f"{key}/{MANIFEST}")))
        for name in files:
            self.delete(f"{key}/{name}")

    # outputs

    def publish(self, folder: Path, key: str, files: Mapping[str, FileFacts]) -> None:
        """See Objects. Files of a killed run are overwritten: its sizes say nothing about its bytes.

        The files are then in the local cache, so that the next step does not download them.
        """
        self._each(lambda name: self._upload(folder, key, name), list(files))
        sizes = self._sizes(key)
        # Left of a killed run: as files that nobody committed they would count as damage.
        for name in sizes.keys() - {f"{key}/{name}" for name in (*files, MANIFEST)}:
            self.delete(name)
        for name, facts in files.items():
            if (arrived := sizes.get(f"{key}/{name}")) != facts["bytes"]:
                raise RetryLaterError(
                    f"{self.url}/{key}/{name}: {arrived} bytes arrived of {facts['bytes']}; run this again"
                )
        if (folder / MANIFEST).exists():
            self._upload(folder, key, MANIFEST)
        manifest = (folder / MANIFEST).read_bytes() if (folder / MANIFEST).exists() else None
        self.cache.adopt(folder, with_manifest(files, manifest))

    def fetch(self, key: str, files: Mapping[str, FileFacts]) -> Path:
        """See Objects. It stays in the cache until `release`."""
        return self.proven(key, files)

    def proven(self, key: str, files: Mapping[str, FileFacts]) -> Path:
        """See Objects."""
        content = with_manifest(files, self.read(f"{key}/{MANIFEST}"))
        try:
            return self.cache.entry(content, lambda target: self._download(key, target, content))
        except CorruptError as error:
            raise CorruptError(f"{self.url}/{key}: {error}") from None

    def problems_of(self, key: str, files: Mapping[str, FileFacts], *, partly: bool = False) -> Iterator[str]:
        """See Objects. Every byte is read from the store, not from the cache."""
        sizes = self._sizes(key)
        wanted = {f"{key}/{name}" for name in (*files, MANIFEST)}
        yield from (f"{self.url}/{name}: was not committed" for name in sorted(sizes.keys() - wanted))
        for name, facts in files.items():
            place = f"{key}/{name}"
            if partly and place not in sizes:
                continue
            if (size := sizes.get(place)) != facts["bytes"]:
                yield _wrong_size(f"{self.url}/{place}", size, facts["bytes"])
                continue
            digest = hashlib.sha256()
            for part in _parts(name, facts["bytes"]):
                digest.update(self._part(key, part))
            if digest.hexdigest() != facts["sha256"]:
                yield (
                    f"{self.url}/{place}: digest {digest.hexdigest()[:12]} is not the committed {facts['sha256'][:12]}"
                )

    def entries(self, top: str) -> Iterator[tuple[str, str]]:
        """See Objects."""
        yield from ((key, "file") for key in self._sizes("") if matches(top, key.split("/")[0]))

    def release(self) -> None:
        """Lets the cache remove the folders that were given out."""
        self.cache.release()

    def _upload(self, folder: Path, key: str, name: str) -> None:
        place = f"{key}/{checked_name(name, str(folder))}"

        def upload() -> None:
            with self._errors(place):
                self._store.put(place, folder / name, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

        tried(upload)

    def _download(self, key: str, target: Path, files: Mapping[str, FileFacts]) -> None:
        sizes = self._sizes(key)
        for name, facts in files.items():
            if (size := sizes.get(f"{key}/{name}")) != facts["bytes"]:
                raise CorruptError(_wrong_size(name, size, facts["bytes"]))
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (target / name).open("wb") as stream:
                # The size first: then parts can be written in any order, several at once.
                stream.truncate(facts["bytes"])

        def fetch(part: _Part) -> None:
            data = self._part(key, part)
            with (target / part.name).open("r+b") as stream:
                stream.seek(part.start)
                stream.write(data)

        self._each(fetch, [part for name, facts in files.items() for part in _parts(name, facts["bytes"])])

    def _part(self, key: str, part: _Part) -> Buffer:
        place = f"{key}/{part.name}"

        def read() -> Buffer:
            data = self._found(place, lambda: self._store.get_range(place, start=part.start, length=part.size))
            if data is None:
                raise CorruptError(f"{part.name} is missing")
            return data

        return tried(read)

    def _sizes(self, prefix: str) -> dict[str, int]:
        def listed() -> dict[str, int]:
            with self._errors(prefix):
                pages = self._store.list(prefix or None)
                return {found["path"]: found["size"] for page in pages for found in page}

        return tried(listed)

    def _each(self, call: Callable[[T], R], items: list[T]) -> list[R]:
        """Calls for all items, several at once; the first error ends it."""
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            try:
                return [done.result() for done in [pool.submit(call, item) for item in items]]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _found(self, key: str, call: Callable[[], T]) -> T | None:
        """Returns the call's result; None where the store has no such object."""
        with self._errors(key, FileNotFoundError):
            try:
                return call()
            except FileNotFoundError as error:
                if is_missing(error):
                    return None
                raise explained(error, f"{self.url}/{key}") from None

    @contextmanager
    def _errors(self, key: str, *expected: type[Exception]) -> Iterator[None]:
        """Errors of the client become ours, without their text; `expected` ones are the caller's."""
        from obstore.exceptions import BaseError

        require_own_threads()
        try:
            yield
        except expected:
            raise
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise explained(error, f"{self.url}/{key}") from None


def _parts(name: str, size: int) -> list[_Part]:
    return [_Part(name, start, min(PART_BYTES, size - start)) for start in range(0, size, PART_BYTES)]


def _wrong_size(name: str, size: int | None, committed: int) -> str:
    return f"{name}: missing" if size is None else f"{name}: {size} bytes, but {committed} were committed"
