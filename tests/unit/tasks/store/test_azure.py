"""A store in a container of Azure's, against Azurite; where `azurite-blob` is on PATH (npm install -g azurite)."""

import base64
import hashlib
import hmac
import http.client
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from infra.servers import HOST, free_ports
from tasks.store.cache import Cache
from tasks.store.object_store import RemoteObjects
from tasks.store.objects import files_of
from tests.unit.tasks.store.test_object_store import (
    KEY,
    RECORD,
    ROUNDS,
    everything,
    let_processes_race,
    other_machine,
    output,
    published,
)
from tests.waiting import awaited

PROGRAM = shutil.which("azurite-blob")
ACCOUNT, VERSION = "tests", "2021-08-06"
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no azurite-blob on PATH; npm install -g azurite brings it")


class Azurite:
    """The port of a running server, and the key of its account."""

    def __init__(self) -> None:
        [self.port] = free_ports(0)
        self.key = base64.b64encode(secrets.token_bytes(32)).decode()

    def request(self, method: str, container: str) -> int:
        """The status of its answer to a request for a container."""
        own = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
        signed = "\n".join([method, *[""] * 11, *(f"{name}:{value}" for name, value in own.items())])
        signed += f"\n/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
        digest = hmac.new(base64.b64decode(self.key), signed.encode(), hashlib.sha256).digest()
        headers = {**own, "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        connection.request(method, f"/{ACCOUNT}/{container}?restype=container", headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status

    def is_up(self) -> bool:
        try:
            return self.request("GET", "nothing") == 404
        except OSError:
            return False


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    folder, server = tmp_path_factory.mktemp("azurite"), Azurite()
    command = [str(PROGRAM), "--blobHost", HOST, "--blobPort", str(server.port), "--location", str(folder / "data")]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{server.key}"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--disableTelemetry"], env=environment, stdout=log, stderr=log)
    try:
        awaited(lambda: process.poll() is not None or server.is_up(), 60, (folder / "log").read_text)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def objects(azurite: Azurite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RemoteObjects:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azurite.key)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://{HOST}:{azurite.port}/{ACCOUNT}")
    container = f"test-{secrets.token_hex(6)}"
    assert azurite.request("PUT", container) == 201
    return RemoteObjects(f"az://{container}/stores/movies", Cache(tmp_path / "cache", 1 << 30))


def test_records_and_outputs(objects: RemoteObjects, tmp_path: Path) -> None:
    assert objects.read(RECORD) is None
    assert objects.time_of(RECORD) == 0
    assert objects.put_if_absent(RECORD, b"one")
    assert not objects.put_if_absent(RECORD, b"one"), "the same words of another writer are not ours"
    assert not objects.put_if_absent(RECORD, b"two")
    assert objects.read(RECORD) == b"one"
    assert objects.time_of(RECORD) > 0
    objects.append("journal.jsonl", b"first\n")
    objects.append("journal.jsonl", b"second\n")
    assert objects.lines("journal.jsonl") == [b"first", b"second"]
    files = published(objects, output(tmp_path / "out"))
    assert not any(objects.problems_of(KEY, files))
    assert files_of(other_machine(objects, tmp_path).fetch(KEY, files)) == files
    assert objects.keys("g*/*/*/commit.json") == [RECORD]
    assert objects.tops() == ["g0000", "journal.jsonl"]
    objects.delete_files(KEY, files)
    objects.delete("g0000")
    objects.delete("g0000")
    assert objects.tops() == ["journal.jsonl"]


def test_what_a_person_must_change_is_named(
    objects: RemoteObjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(url: str, message: str) -> None:
        other = RemoteObjects(url, Cache(tmp_path / "other"))
        for call in (lambda: other.read("x"), lambda: other.put_if_absent("x", b""), other.tops):
            with pytest.raises(BadInputError, match=message):
                call()

    refused("az://nothing/movies", "bucket does not exist")
    with pytest.raises(BadInputError, match="bucket does not exist"):
        RemoteObjects("az://nothing/movies", Cache(tmp_path / "other")).delete("x")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    refused(objects.url, "refuses access.*403")


def test_of_several_processes_one_writes(objects: RemoteObjects, tmp_path: Path) -> None:
    let_processes_race(objects, tmp_path)
    assert everything(objects) == sorted(f"{one}.json" for one in range(ROUNDS))
