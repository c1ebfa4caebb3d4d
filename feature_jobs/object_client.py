"""Connections to object stores: from a URL and the environment, with bounds on time and retries, and their errors.

Credentials come from the places where the store's own tools look for them:

    s3://BUCKET/PREFIX      AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), a web identity, the role
                            of a container or an instance, or AWS_SHARED_CREDENTIALS_FILE (~/.aws/credentials) with
                            AWS_PROFILE; AWS_ENDPOINT_URL for other servers than Amazon's, AWS_REGION
    gs://BUCKET/PREFIX      GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT_KEY, or the role of the machine;
                            GOOGLE_BASE_URL for other servers than Google's
    az://CONTAINER/PREFIX   AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or an identity;
                            AZURE_STORAGE_ENDPOINT for other servers than Azure's
    memory://NAME           this process only; for tests

A message never repeats text of the server or the client: that can hold signatures, tokens and key ids.
"""

from __future__ import annotations

import configparser
import contextlib
import functools
import json
import os
import random
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, MemoryStore, ObjectStore, RetryConfig, S3Credential

T = TypeVar("T")

SCHEMES = ("s3", "gs", "az", "memory")
TIMEOUT = "RECLOOP_STORE_TIMEOUT_S"  # of one request, which carries at most PART_BYTES
DEFAULT_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5.0
MAX_RETRIES = 5
FIRST_PAUSE_S = 0.2  # then twice as long each time
RETRY_FOR_S = 120.0  # all tries of a request together
PART_BYTES = 8 << 20
CREDENTIALS_FOR = timedelta(minutes=5)  # then the file is read again: a mounted secret can be rotated

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>|\(code: (\w{1,64})\)")
_METADATA = "/latest/api/token", "/latest/meta-data", "metadata.google.internal", "/metadata/identity"
_DENIED = {"AccessDenied", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"}
_STALE = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"}
_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_TO_CHECK = {
    "s3": "the endpoint (AWS_ENDPOINT_URL, with http:// or https://) and the region (AWS_REGION)",
    "gs": "the endpoint (GOOGLE_BASE_URL) and the service account",
    "az": "the endpoint (AZURE_STORAGE_ENDPOINT), the account (AZURE_STORAGE_ACCOUNT_NAME) and its key",
}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_SETTINGS = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_ACCOUNT_FILES = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")
_LATER = {"408", "409", "425", "429"}  # of the 4xx, those that are worth another try
_SET_CREDENTIALS = "set the credentials of the store (docs/object-store.md)"


def is_url(path: str) -> bool:
    """Says if a path is a URL, and not a folder or file."""
    return "://" in path


def connect(url: str, *, retries: int = MAX_RETRIES, place: str = "--store") -> ObjectStore:
    """A client for everything below a URL. It connects at its first request, so that a wrong URL is found there.

    `place` is the setting that holds the URL, for messages.
    Raises BadInputError where the URL or the environment is wrong.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise BadInputError(f"{place}: {parts.scheme}:// is not supported; give a folder or {_schemes()}")
    if parts.username or parts.password or parts.query or parts.fragment or not parts.netloc:
        raise BadInputError(
            f"{place}: a URL has a bucket and a prefix only, such as s3://bucket/prefix; {_SET_CREDENTIALS}"
        )
    if parts.scheme == "memory":
        return _memory(parts.netloc)
    pauses = {"init_backoff": timedelta(seconds=FIRST_PAUSE_S), "max_backoff": timedelta(seconds=5), "base": 2}
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_FOR_S), "backoff": pauses}
    retry_config: RetryConfig = retry
    try:
        # Conditional puts by If-None-Match are the default of today's client; the commit depends on them.
        more: dict[str, Any] = {"conditional_put": "etag"} if parts.scheme == "s3" else {}
        if parts.scheme == "s3" and (file := _credentials_file()) is not None:
            more["credential_provider"] = functools.partial(_credentials, file)
        return from_url(url, client_options=_client_options(parts.scheme), retry_config=retry_config, **more)
    except (BaseError, ValueError) as error:
        # No request was made yet, so another try would end in the same way.
        raise explained(error, url, is_wrong_setting=True) from None


@functools.cache
def _user() -> int:
    """The process that has used the client first: this one, or one that it was forked from."""
    return os.getpid()


def require_own_threads() -> None:
    """Raises in a process that was forked after the client was used: its threads are not there, so it would hang."""
    if _user() != os.getpid():
        raise RuntimeError("this process was forked from one that uses an object store; start it with spawn or exec")


def explained(
    error: Exception, place: str, *, is_wrong_setting: bool = False, rights: str = "read, write, list and delete"
) -> RecloopError:
    """Explains a client's error to a person: BadInputError where something must be changed, else RetryLaterError.

    `rights`: what the caller needs to be allowed.
    """
    from obstore import exceptions as client

    text = str(error)
    status = found[1] if (found := _STATUS.search(text)) else ""
    code = next(filter(None, found.groups())) if (found := _CODE.search(text)) else ""
    said = " ".join(filter(None, (status, code)))
    # Without credentials the client asks the machine's metadata service, whose silence looks like a lost network.
    if any(part in text for part in _METADATA) or "Account must be specified" in text:
        return BadInputError(f"{place}: no credentials were found for this store; {_SET_CREDENTIALS}")
    if code in _STALE:
        return BadInputError(f"{place}: the store says {said}; renew its credentials, and check this machine's clock")
    denied = isinstance(error, client.PermissionDeniedError | client.UnauthenticatedError)
    is_wrong_setting |= isinstance(error, ValueError | client.InvalidPathError | client.NotSupportedError)
    if denied or status in ("401", "403") or code in _DENIED:
        return BadInputError(
            f"{place}: the store refuses access{said and f' ({said})'}; check that its credentials are right and may"
            f" {rights} below this place"
        )
    if code in _NO_BUCKET:
        return BadInputError(f"{place}: this bucket does not exist ({said}); create it, or correct the URL")
    if is_wrong_setting or "builder error" in text or (status.startswith(("3", "4")) and status not in _LATER):
        return BadInputError(
            f"{place}: the store does not accept the request{said and f' ({said})'}; check the URL,"
            f" {_TO_CHECK.get(place.partition(':')[0], 'the endpoint and the credentials')}"
        )
    return RetryLaterError(
        f"{place}: the store cannot be reached or is busy ({said or 'no answer'}); try again later, and check the"
        f" network and the endpoint if this repeats. {TIMEOUT} is the time that one request may take"
    )


def is_missing(error: Exception) -> bool:
    """Says if the error means that the store has no such object, but does have the bucket."""
    return isinstance(error, FileNotFoundError) and not any(code in str(error) for code in _NO_BUCKET)


def tried(call: Callable[[], T], attempts: int = 3) -> T:
    """The client repeats most failed requests; others, such as one that is cut off, are repeated here."""
    deadline = time.monotonic() + RETRY_FOR_S
    for attempt in range(attempts):
        try:
            return call()
        except RetryLaterError:
            if attempt + 1 == attempts or time.monotonic() > deadline:
                raise
            pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Waits before another attempt, longer each time, and not for equally long in all processes."""
    time.sleep(FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))


def timeout_s() -> float:
    """Returns the time limit of one request."""
    text = os.environ.get(TIMEOUT, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise BadInputError(f"{TIMEOUT}: {text!r} is not a number of seconds up to 3600; give one, such as 60")
    return seconds


def _client_options(scheme: str) -> ClientConfig:
    return {
        "timeout": timedelta(seconds=timeout_s()),
        "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, timeout_s())),
        # A person who writes http:// into the endpoint has decided; everywhere else only TLS is used.
        "allow_http": _endpoint(scheme).startswith("http://"),
    }


def _endpoint(scheme: str) -> str:
    """The address of a server that is not the one of the scheme's owner, or ""."""
    for name in _ENDPOINTS[scheme]:
        if endpoint := os.environ.get(name, ""):
            with contextlib.suppress(ValueError):
                parts = urlsplit(endpoint)
                if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                    return endpoint
            # The client crashes on some of these.
            raise BadInputError(f"{name}: not an address; write it with http:// or https://, and with its port")
    return ""


def _credentials_file() -> Path | None:
    """The file of shared credentials, where nothing else in the environment gives credentials."""
    if any(map(os.environ.get, ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", *_ROLES))):
        return None
    named = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    file = Path(named) if named else Path.home() / ".aws" / "credentials"
    if named or file.is_file():
        _credentials(file)  # raises now if it has an error
        return file
    # Not Amazon's own, so the machine has no role there, and asking for one takes half a minute.
    if endpoint := _endpoint("s3"):
        raise BadInputError(f"{endpoint}: no credentials were found for this store; {_SET_CREDENTIALS}")
    return None


def portable_settings(url: str) -> dict[str, str]:
    """The settings above of this store and no other, for a process that does not see this machine's files, such as one
    in a container."""
    scheme = urlsplit(url).scheme
    found = {name: value for name, value in os.environ.items() if name.startswith((_SETTINGS[scheme], TIMEOUT))}
    if scheme == "s3" and (file := _credentials_file()) is not None:
        read = _credentials(file)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE"):
            found.pop(name, None)
        found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"] = read["access_key_id"], read["secret_access_key"]
        if token := read.get("token"):
            found["AWS_SESSION_TOKEN"] = token
    for name in _ACCOUNT_FILES:
        if name in found:
            found["GOOGLE_SERVICE_ACCOUNT_KEY"] = _account(name, found.pop(name))
    return found


def storage_options(url: str) -> dict[str, str]:
    """The settings of this store for the client of another library, one in Rust as ours is."""
    scheme = urlsplit(url).scheme
    if scheme not in _ENDPOINTS:
        raise BadInputError(f"{url}: {scheme}:// is not supported; give a folder or {_schemes()}")
    seconds = timeout_s()
    bounds = {
        "timeout": f"{seconds * 1000:.0f}ms",
        "connect_timeout": f"{min(CONNECT_TIMEOUT_S, seconds) * 1000:.0f}ms",
        "max_retries": str(MAX_RETRIES),
        "retry_timeout": f"{RETRY_FOR_S:.0f}s",
    }
    allow_http = str(_endpoint(scheme).startswith("http://")).lower()
    return {**portable_settings(url), **bounds, "allow_http": allow_http}


def _account(name: str, file: str) -> str:
    try:
        text = Path(file).read_text()
        if "private_key" in json.loads(text):
            return text
        problem = "not the key of a service account"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        problem = f"not readable ({type(error).__name__})"
    raise BadInputError(f"{name}: {file} is {problem}; a container needs the JSON file of a service account's key")


def _credentials(file: Path) -> S3Credential:
    profile = os.environ.get("AWS_PROFILE", "default")
    try:
        # Raw, because a secret may hold a %.
        read = configparser.RawConfigParser()
        read.read_string(file.read_text())
        section = dict(read.items(profile))
        found: S3Credential = {
            "access_key_id": section["aws_access_key_id"],
            "secret_access_key": section["aws_secret_access_key"],
            "token": section.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + CREDENTIALS_FOR,
        }
    except (OSError, ValueError, KeyError, configparser.Error) as error:
        raise BadInputError(
            f"{file}: no readable profile [{profile}] with aws_access_key_id and aws_secret_access_key"
            f" ({type(error).__name__}); correct the file, or AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE"
        ) from None
    return found


@functools.cache
def _memory(name: str) -> MemoryStore:
    from obstore.store import MemoryStore

    return MemoryStore()


def _schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES[:-1])
