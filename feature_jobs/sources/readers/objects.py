"""Files of a source in an object store: the objects that a URL means, and copies of them.

A URL is that of an object, of a folder (all its objects of the table's format), or a pattern with `*`, as for files.
The credentials are those of the store by URL, see feature_jobs.object_client.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.object_client import connect, explained, is_missing, require_own_threads, tried

if TYPE_CHECKING:
    from obstore import ObjectMeta

_CHUNK_BYTES = 8 << 20
_RIGHTS = "read and list"


@dataclass(frozen=True)
class StoredObject:
    """An object as it was when it was listed."""

    url: str
    size: int
    etag: str | None
    _bucket: _Bucket = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.url

    def copy_to(self, target: Path) -> None:
        """Downloads it; `target` is there once it is whole. Raises RetryLaterError where it is another one by now."""
        part = target.with_name(f"{target.name}.part")

        def download() -> None:
            with self._bucket.errors(self.url):
                found = self._bucket.store.get(self._bucket.key_of(self.url))
                size = 0
                with part.open("wb") as stream:
                    for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                        size += stream.write(chunk)
            if (size, found.meta["e_tag"]) != (self.size, self.etag):
                raise RetryLaterError(f"{self.url}: was replaced while it was read; try again later")

        tried(download)
        part.rename(target)


class _Bucket:
    """The bucket of a URL, with the client's errors as ours."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.store = connect(self.url, place="the URL of a table's path")

    def key_of(self, url: str) -> str:
        """The key of an object by its URL."""
        return url.removeprefix(f"{self.url}/")

    def head(self, key: str) -> StoredObject | None:
        """The object with this key, if there is one."""

        def read() -> StoredObject | None:
            with self.errors(f"{self.url}/{key}"):
                try:
                    found = self.store.head(key)
                except FileNotFoundError as error:
                    if is_missing(error):
                        return None
                    raise
            return StoredObject(f"{self.url}/{key}", found["size"], found["e_tag"], self)

        return tried(read)

    def in_folder(self, folder: str) -> tuple[list[StoredObject], list[str]]:
        """The objects of a folder, by key, and the folders in it."""

        def read() -> tuple[list[StoredObject], list[str]]:
            with self.errors(f"{self.url}/{folder}"):
                found = self.store.list_with_delimiter(folder)
            return self._objects(found["objects"]), list(found["common_prefixes"])

        return tried(read)

    def below(self, folder: str) -> list[StoredObject]:
        """The objects of a folder and of all folders below it, by key."""

        def read() -> list[StoredObject]:
            with self.errors(f"{self.url}/{folder}"):
                return self._objects(one for page in self.store.list(folder or None) for one in page)

        return tried(read)

    def _objects(self, found: Iterable[ObjectMeta]) -> list[StoredObject]:
        objects = [StoredObject(f"{self.url}/{one['path']}", one["size"], one["e_tag"], self) for one in found]
        return sorted(objects, key=str)

    @contextmanager
    def errors(self, place: str) -> Iterator[None]:
        """Errors of the client become ours, without their text."""
        from obstore.exceptions import BaseError

        require_own_threads()
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise explained(error, place, rights=_RIGHTS) from None


def objects_at(url: str, endings: tuple[str, ...]) -> list[StoredObject]:
    """The objects that a URL means, sorted: one, those of a folder whose names have one of these endings, or those that
    match a pattern; none where there are none.

    Raises BadInputError for a wrong URL, credentials or bucket, RetryLaterError where the store does not answer.
    """
    bucket = _Bucket(url)
    key = bucket.key_of(url).strip("/")
    parts = key.split("/")
    if not all(part and part not in (".", "..") for part in parts):
        raise BadInputError(f"{url}: has a part that is empty, . or ..; write bucket and folders, as in s3://logs/shop")
    # What exists is itself, even if its name holds characters of a pattern.
    if found := bucket.head(key):
        return [found]
    objects, folders = bucket.in_folder(key)
    if objects or folders:
        return [one for one in objects if one.url.endswith(endings)]
    fixed = list(itertools.takewhile(lambda part: not re.search(r"[*?[]", part), parts))
    if len(fixed) == len(parts):
        return []
    return [one for one in bucket.below("/".join(fixed)) if _matches(parts, bucket.key_of(one.url).split("/"))]


def _matches(parts: Sequence[str], names: Sequence[str]) -> bool:
    """Says if a key matches a pattern, both by their parts: `**` is any number of folders."""
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        return any(_matches(parts[1:], names[i:]) for i in range(len(names)))
    return fnmatch.fnmatchcase(names[0], parts[0]) and _matches(parts[1:], names[1:])
