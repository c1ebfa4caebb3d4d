"""One scenario's part of an object store, against a real S3-compatible server and a proxy that fails as asked."""

import itertools
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from feature_jobs import object_client
from feature_jobs.control_records import MAX_BYTES
from feature_jobs.errors import BadInputError, CorruptError, RecloopError, RetryLaterError
from feature_jobs.object_client import PART_BYTES, TIMEOUT, connect
from tasks.store.cache import Cache
from tasks.store.digests import MANIFEST
from tasks.store.object_store import RemoteObjects
from tasks.store.objects import Objects, files_of
from tests.object_store import NARROW, Fault, ObjectServer, Proxy, proxy_of

KEY = "g0000/2022-01-01/join/0123456789abcdef"
RECORD = "g0000/2022-01-01/join/commit.json"
PROCESSES, ROUNDS = 4, 10


@pytest.fixture(scope="module")
def bucket(object_server: ObjectServer) -> str:
    return object_server.new_bucket()


@pytest.fixture
def proxy(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stands before the server, in a process whose requests end after two seconds and are soon repeated."""
    monkeypatch.setattr(object_client, "FIRST_PAUSE_S", 0.01)
    with proxy_of(object_server) as running:
        for name, value in object_server.environment(running.port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(TIMEOUT, "2")
        yield running


@pytest.fixture
def objects(proxy: Proxy, bucket: str, tmp_path: Path) -> RemoteObjects:
    return RemoteObjects(f"s3://{bucket}/{tmp_path.name}/movies", Cache(tmp_path / "cache", 1 << 30))


def output(folder: Path, **more: bytes) -> Path:
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "a.bin").write_bytes(os.urandom(PART_BYTES + 1))
    (folder / "b c.json").write_bytes(b"{}")
    (folder / "empty").write_bytes(b"")
    for name, content in more.items():
        (folder / name).write_bytes(content)
    return folder


def published(objects: Objects, folder: Path) -> dict:
    files = files_of(folder)
    (folder / MANIFEST).write_bytes(b"the manifest")
    objects.publish(folder, KEY, files)
    return files


def other_machine(objects: RemoteObjects, tmp_path: Path) -> RemoteObjects:
    return RemoteObjects(objects.url, Cache(tmp_path / "other", 1 << 30))


def everything(objects: RemoteObjects) -> list[str]:
    return sorted(objects._sizes(""))


def test_records(objects: RemoteObjects) -> None:
    assert objects.read("nothing/here.json") is None
    assert objects.put_if_absent(RECORD, b"one")
    assert not objects.put_if_absent(RECORD, b"two")
    assert not objects.put_if_absent(RECORD, b"one"), "the same words of another writer are not ours"
    assert objects.read(RECORD) == b"one"
    objects.put("runs/g0000/x.json", b"1")
    objects.put("runs/g0000/x.json", b"2")
    assert objects.read("runs/g0000/x.json") == b"2"
    objects.append("journal.jsonl", b"first\n")
    objects.append("journal.jsonl", b"second\n")
    assert objects.lines("journal.jsonl") == [b"first", b"second"]
    assert objects.keys("g*/*/*/commit.json") == [RECORD]
    assert objects.keys("g*/*/commit.json") == []
    assert objects.keys("runs/*/*.json") == ["runs/g0000/x.json"]
    objects.delete("g0000")
    objects.delete("g0000")
    objects.delete("runs/g0000/x.json")
    assert [key.split("/")[0] for key in everything(objects)] == ["journal.jsonl", "journal.jsonl"]


def test_a_record_has_a_limit(objects: RemoteObjects) -> None:
    objects.put("huge.json", b" " * (MAX_BYTES + 1))
    with pytest.raises(CorruptError, match=r"huge\.json: more than"):
        objects.read("huge.json")


def test_an_output_comes_back_on_another_machine(objects: RemoteObjects, proxy: Proxy, tmp_path: Path) -> None:
    files = published(objects, output(tmp_path / "out"))
    uploads = [path for method, path in proxy.seen if method == "PUT"]
    assert uploads[-1].endswith(MANIFEST), "a reader of the manifest may rely on the files"
    assert not any(objects.problems_of(KEY, files))
    proxy.seen.clear()
    own = objects.fetch(KEY, files)
    assert not [path for _, path in proxy.seen if not path.endswith(MANIFEST)], "this machine's own objects are here"
    other = other_machine(objects, tmp_path).fetch(KEY, files)
    assert files_of(other) == files_of(own) == files


def test_what_a_killed_run_left_is_replaced(objects: RemoteObjects, tmp_path: Path) -> None:
    folder = output(tmp_path / "out")
    size = (folder / "rows" / "a.bin").stat().st_size
    objects.put(f"{KEY}/rows/a.bin", os.urandom(size))
    objects.put(f"{KEY}/rows/half", b"x")
    files = published(objects, folder)
    assert not any(objects.problems_of(KEY, files))
    assert files_of(other_machine(objects, tmp_path).fetch(KEY, files)) == files


@pytest.mark.parametrize(
    "fault", ["busy", pytest.param("silent", marks=pytest.mark.slow), "reset", "lost answer", "cut answer"]
)
def test_a_fault_that_passes_changes_nothing(
    fault: Fault, objects: RemoteObjects, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.fail(fault, method="PUT", part=RECORD)
    assert objects.put_if_absent(RECORD, b"one")
    proxy.fail(fault, method="GET", part=RECORD)
    assert objects.read(RECORD) == b"one"
    proxy.fail(fault, fault, method="PUT", part=KEY)
    files = published(objects, output(tmp_path / "out"))
    proxy.fail(fault, method="POST")
    published(objects, output(tmp_path / "again"))
    files = files_of(tmp_path / "again") | {}
    files.pop(MANIFEST, None)
    proxy.fail(fault, fault, method="GET")
    assert files_of(other_machine(objects, tmp_path).fetch(KEY, files)) == files


def test_half_an_upload_is_repeated_or_leaves_nothing_visible(
    objects: RemoteObjects, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.fail("cut upload", "cut upload", method="PUT")
    files = published(objects, output(tmp_path / "out"))
    assert not any(objects.problems_of(KEY, files))
    objects.delete(KEY)
    proxy.fail_always("cut upload", method="PUT", part="partNumber")
    with pytest.raises(RetryLaterError, match="try again later"):
        published(objects, output(tmp_path / "again"))
    proxy.fail()
    assert f"{KEY}/{MANIFEST}" not in everything(objects)
    assert f"{KEY}/rows/a.bin" not in everything(objects)


def test_after_a_lost_answer_the_record_decides(objects: RemoteObjects, proxy: Proxy) -> None:
    """The client cannot know if the store carried out its request; the stored record shows it."""
    proxy.fail("lost answer", method="PUT")
    assert objects.put_if_absent(RECORD, b"ours")
    assert objects.read(RECORD) == b"ours"
    proxy.fail("lost answer", method="PUT")
    assert not objects.put_if_absent(RECORD, b"theirs came first")
    assert objects.read(RECORD) == b"ours"


@pytest.mark.parametrize("fault", ["busy", pytest.param("silent", marks=pytest.mark.slow), "reset"])
def test_a_store_that_stays_away_ends_with_try_later(fault: Fault, objects: RemoteObjects, proxy: Proxy) -> None:
    os.environ[TIMEOUT] = "0.2"
    objects = RemoteObjects(objects.url, objects.cache)
    proxy.fail_always(fault)
    calls = [
        lambda: objects.put_if_absent(RECORD, b"one"),
        lambda: objects.read(RECORD),
        lambda: objects.keys("g*/*/*/commit.json"),
        lambda: objects.delete(RECORD),
        lambda: objects.fetch(KEY, {"a": {"sha256": "0" * 64, "bytes": 1}}),
    ]
    for call in calls:
        with pytest.raises(RetryLaterError, match="cannot be reached or is busy") as raised:
            call()
        assert raised.value.exit_code == 6
    assert len(proxy.seen) < 20 * len(calls), "retries are bounded"


def test_a_store_that_is_not_there(
    object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(object_client, "FIRST_PAUSE_S", 0.01)
    for name, value in object_server.environment(9).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RetryLaterError, match="cannot be reached"):
        RemoteObjects("s3://bucket/movies", Cache(tmp_path)).read(RECORD)


REFUSALS = {
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses access.*SignatureDoesNotMatch"),
    "wrong key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses access.*InvalidAccessKeyId"),
    "no bucket": ({}, "bucket does not exist"),
    "no credentials": ({"AWS_ACCESS_KEY_ID": "", "HOME": "/nowhere"}, "no credentials were found"),
    "a profile that is missing": ({"AWS_ACCESS_KEY_ID": "", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}, "no readable"),
    "an endpoint without scheme": ({"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "AWS_ENDPOINT_URL: not an address"),
    "a timeout that is none": ({TIMEOUT: "soon"}, "RECLOOP_STORE_TIMEOUT_S: 'soon' is not a number"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.usefixtures("proxy")
def test_what_a_person_must_change_is_named(
    name: str, bucket: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, message = REFUSALS[name]
    for variable, value in changed.items():
        monkeypatch.setenv(variable, value)
    url = f"s3://{'nothing-' if name == 'no bucket' else ''}{bucket}/movies"
    for call in (
        lambda objects: objects.read(RECORD),
        lambda objects: objects.put_if_absent(RECORD, b"one"),
        lambda objects: objects.keys("g*/*/*/commit.json"),
    ):
        with pytest.raises(BadInputError, match=message) as raised:
            call(RemoteObjects(url, Cache(tmp_path)))
        assert object_server.secret not in str(raised.value)
        assert object_server.key not in str(raised.value)


@pytest.mark.parametrize(("fault", "message"), [("refused", "refuses access"), ("expired", "renew its credentials")])
def test_credentials_that_are_lost_in_the_middle(
    fault: Fault, message: str, objects: RemoteObjects, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.fault = lambda method, path, count: fault if count > 3 else None
    with pytest.raises(BadInputError, match=message):
        published(objects, output(tmp_path / "out"))
    proxy.fail()
    assert f"{KEY}/{MANIFEST}" not in everything(objects)


def test_an_identity_of_one_bucket(
    object_server: ObjectServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's credentials, from a file: they work in the store's bucket and nowhere else."""
    file = tmp_path / "credentials"
    file.write_text(f"[steps]\naws_access_key_id = {NARROW}\naws_secret_access_key = {object_server.narrow_secret}\n")
    for name, value in object_server.environment(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "steps")
    own = RemoteObjects(f"s3://{object_server.narrow_bucket}/movies", Cache(tmp_path / "cache"))
    assert own.put_if_absent(RECORD, b"one")
    assert own.keys("g*/*/*/commit.json") == [RECORD]
    own.delete(RECORD)
    other = RemoteObjects(f"s3://{bucket}/movies", Cache(tmp_path / "cache"))
    for call in (lambda: other.read(RECORD), lambda: other.put_if_absent(RECORD, b"x"), lambda: other.delete(RECORD)):
        with pytest.raises(BadInputError, match="refuses access"):
            call()


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "s3://key:secret@bucket/x", "s3://bucket/x?token=secret", "s3:///x", "http://host/x"]
)
def test_a_url_that_is_not_one_of_a_store(url: str) -> None:
    with pytest.raises(BadInputError, match="--store: ") as raised:
        connect(url)
    assert "secret" not in str(raised.value)


DAMAGES = {
    "other bytes": "digest .* is not the committed",
    "shorter": "1 bytes, but 2 were committed",
    "missing": "missing",
    "added": "was not committed",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_found(damage: str, objects: RemoteObjects, tmp_path: Path) -> None:
    files = published(objects, output(tmp_path / "out"))
    place = f"{KEY}/b c.json"
    if damage in ("other bytes", "shorter"):
        objects.put(place, b"[]" if damage == "other bytes" else b"[")
    elif damage == "missing":
        objects.delete(place)
    else:
        objects.put(f"{KEY}/more", b"")
    [problem] = objects.problems_of(KEY, files)
    assert place in problem or damage == "added"
    other = other_machine(objects, tmp_path)
    if damage == "added":
        assert files_of(other.fetch(KEY, files)) == files
        return
    with pytest.raises(CorruptError, match=DAMAGES[damage]):
        other.fetch(KEY, files)
    assert not list((tmp_path / "other" / "entries").iterdir())


def _race(url: str, folder: Path, number: int, barrier: Barrier, results: "multiprocessing.Queue[list[bool]]") -> None:
    objects = RemoteObjects(url, Cache(folder / str(number)))
    won = []
    for one in range(ROUNDS):
        barrier.wait(60)
        won.append(objects.put_if_absent(f"{one}.json", str(number).encode()))
    results.put([number, *won])


def let_processes_race(objects: RemoteObjects, folder: Path) -> None:
    """Several processes put each object at once: one of them has written it, and the others know that they have not."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    racers = [
        context.Process(target=_race, args=(objects.url, folder, number, barrier, results))
        for number in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    won = {number: rounds for number, *rounds in (results.get(timeout=240) for _ in racers)}
    for racer in racers:
        racer.join(60)
    for one in range(ROUNDS):
        winners = [number for number in range(PROCESSES) if won[number][one]]
        assert len(winners) == 1
        assert objects.read(f"{one}.json") == str(winners[0]).encode()


@pytest.mark.slow
def test_of_several_processes_one_writes(objects: RemoteObjects, tmp_path: Path) -> None:
    let_processes_race(objects, tmp_path)


def test_memory_is_a_store_too(tmp_path: Path) -> None:
    objects = RemoteObjects("memory://of-this-test/movies", Cache(tmp_path / "cache", 1 << 30))
    assert objects.put_if_absent(RECORD, b"one")
    assert not objects.put_if_absent(RECORD, b"two")
    files = published(objects, output(tmp_path / "out"))
    again = RemoteObjects("memory://of-this-test/movies", Cache(tmp_path / "other", 1 << 30))
    assert files_of(again.fetch(KEY, files)) == files
    again.delete("g0000")
    again.delete("g0000")
    assert everything(objects) == []


def test_a_fork_is_refused_where_it_would_hang(objects: RemoteObjects) -> None:
    assert objects.read(RECORD) is None
    child = os.fork()
    if child == 0:
        try:
            objects.read(RECORD)
        except RuntimeError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_messages_are_recloop_errors_only(objects: RemoteObjects) -> None:
    with pytest.raises(RecloopError):
        objects.put("a/../b", b"")


def test_each_item_is_asked_for_in_turn_and_no_error_after_the_end_counts(objects: RemoteObjects) -> None:
    def square(number: int) -> int:
        if number > 9:
            raise CorruptError("behind the end")
        return number * number

    assert list(objects.each(square, range(9))) == [square(number) for number in range(9)]
    assert next(found for found in objects.each(square, itertools.count(3)) if found > 60) == 64
    with pytest.raises(CorruptError):
        list(objects.each(square, range(11)))


def test_a_step_reads_the_manifest_of_its_input_on_every_machine(objects: RemoteObjects, tmp_path: Path) -> None:
    files = published(objects, output(tmp_path / "out"))
    manifest = objects.read(f"{KEY}/{MANIFEST}")
    for folder in (objects.fetch(KEY, files), other_machine(objects, tmp_path).fetch(KEY, files)):
        assert (folder / MANIFEST).read_bytes() == manifest
