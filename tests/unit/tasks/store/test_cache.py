"""The cache of committed outputs: proven on entry, bounded, shared by processes."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, CorruptError
from tasks.store.cache import BOUND, FOLDER, GIB, Cache
from tasks.store.digests import sha256_of
from tasks.store.records import FileFacts
from tests.paths import ROOT
from tests.waiting import awaited

SIZE = 1000


def content(name: str) -> dict[str, bytes]:
    return {"a.bin": name.encode().ljust(SIZE // 2), "sub/b.bin": name.encode().rjust(SIZE // 2)}


def files_for(name: str) -> dict[str, FileFacts]:
    return {file: {"sha256": sha256_of(data), "bytes": len(data)} for file, data in content(name).items()}


def written(folder: Path, name: str) -> None:
    for file, data in content(name).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


class Fetches:
    """Counts how often an entry is fetched."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def of(self, cache: Cache, name: str) -> Path:
        def fetch(folder: Path) -> None:
            self.names.append(name)
            written(folder, name)

        return cache.entry(files_for(name), fetch)


def entries(root: Path) -> int:
    return len(list((root / "entries").iterdir()))


def test_an_entry_is_fetched_once(tmp_path: Path) -> None:
    fetches = Fetches()
    place = fetches.of(Cache(tmp_path, GIB), "one")
    assert fetches.of(Cache(tmp_path, GIB), "one") == place
    assert fetches.names == ["one"]
    assert (place / "sub" / "b.bin").read_bytes() == content("one")["sub/b.bin"]


def _flip(place: Path) -> None:
    data = bytearray((place / "a.bin").read_bytes())
    data[0] ^= 1
    (place / "a.bin").write_bytes(data)


def _link(place: Path) -> None:
    (place / "a.bin").rename(place.parent / "aside")
    (place / "a.bin").symlink_to(place.parent / "aside")


def _pipe(place: Path) -> None:
    (place / "a.bin").unlink()
    os.mkfifo(place / "a.bin")


def _file_for_folder(place: Path) -> None:
    for file in ("a.bin", "sub/b.bin"):
        (place / file).unlink()
    (place / "sub").rmdir()
    place.rmdir()
    place.write_bytes(b"")


DAMAGES: list[Callable[[Path], object]] = [
    _flip,
    lambda place: (place / "a.bin").unlink(),
    lambda place: (place / "more").write_bytes(b""),
    lambda place: (place / "a.bin").write_bytes(b""),
    _link,
    _pipe,
    _file_for_folder,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_fetched_again(damage: Callable[[Path], object], tmp_path: Path) -> None:
    fetches, cache = Fetches(), Cache(tmp_path, GIB)
    damage(fetches.of(cache, "one"))
    cache.release()
    place = fetches.of(Cache(tmp_path, GIB), "one")
    assert fetches.names == ["one", "one"]
    assert (place / "a.bin").read_bytes() == content("one")["a.bin"]


def test_a_copy_of_a_finished_folder_is_proven_when_it_is_used(tmp_path: Path) -> None:
    """A hard link: a process that writes to the folder later damages the entry, which is then fetched again."""
    written(tmp_path / "out", "one")
    (tmp_path / "out" / "manifest.json").write_bytes(b"{}")
    cache = Cache(tmp_path / "cache", GIB)
    place = cache.adopt(tmp_path / "out", files_for("one"))
    cache.release()
    assert (place / "a.bin").samefile(tmp_path / "out" / "a.bin")
    _flip(tmp_path / "out")
    fetches = Fetches()
    fetches.of(Cache(tmp_path / "cache", GIB), "one")
    assert fetches.names == ["one"]


def test_other_bytes_never_become_an_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path, GIB)
    with pytest.raises(CorruptError, match="is not the committed"):
        cache.entry(files_for("one"), lambda folder: written(folder, "two"))
    assert entries(tmp_path) == 0


def test_the_entry_that_was_not_used_longest_goes(tmp_path: Path) -> None:
    fetches = Fetches()
    for name in ("one", "two", "one", "three", "one"):
        cache = Cache(tmp_path, 2 * SIZE)
        fetches.of(cache, name)
        cache.release()
    assert fetches.names == ["one", "two", "three"]
    assert entries(tmp_path) == 2
    assert len(list((tmp_path / "locks").iterdir())) == 2


def test_an_entry_in_use_stays(tmp_path: Path) -> None:
    fetches, cache = Fetches(), Cache(tmp_path, SIZE)
    places = [fetches.of(cache, name) for name in ("one", "two", "three")]
    other = Cache(tmp_path, SIZE)
    fetches.of(other, "four")
    assert all(place.is_dir() for place in places)
    cache.release()
    fetches.of(other, "five")
    assert not any(place.is_dir() for place in places)


HOLD = """
import signal, sys
from pathlib import Path
from tests.unit.tasks.store.test_cache import Fetches, files_for
from tasks.store.cache import Cache
cache = Cache(Path(sys.argv[1]), 10**9)
def fetch(folder):
    (folder / "a.bin").write_bytes(b"half")
    print("here", flush=True)
    signal.pause()
if sys.argv[2] == "uses":
    Fetches().of(cache, "one")
    print("here", flush=True)
    signal.pause()
cache.entry(files_for("one"), fetch)
"""


@pytest.mark.parametrize("does", ["uses", "fetches"])
def test_a_killed_process_leaves_nothing_locked(does: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), does]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "here\n"
        cache, fetches = Cache(tmp_path, SIZE), Fetches()
        if does == "uses":
            fetches.of(cache, "two")
            assert entries(tmp_path) == 2
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    if does == "fetches":
        assert list((tmp_path / "incoming").iterdir())
        fetches.of(cache, "one")
        assert fetches.names == ["one"]
    cache.release()
    fetches.of(cache, "three")
    assert entries(tmp_path) == 1
    assert not list((tmp_path / "incoming").iterdir())


NAMES = [f"entry-{number}" for number in range(6)]
ROUNDS = 60


def _uses(root: Path, seed: int, results: "multiprocessing.Queue[str]") -> None:
    try:
        for chosen in random.Random(seed).choices(NAMES, k=ROUNDS):
            cache = Cache(root, 2 * SIZE)
            place = Fetches().of(cache, chosen)
            for file, data in content(chosen).items():
                assert (place / file).read_bytes() == data
            cache.release()
        results.put("")
    except BaseException as error:
        results.put("".join(traceback.format_exception(error)))


def test_several_processes_share_a_cache_that_is_too_small(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_uses, args=(tmp_path, seed, results)) for seed in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [""] * 4
    for process in processes:
        process.join(60)
    Cache(tmp_path, 2 * SIZE).make_room(0)
    assert entries(tmp_path) <= 2


def test_a_second_process_waits_for_the_first_fetch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD.replace("signal.pause()", "import time; time.sleep(1)"), str(tmp_path), "no"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        awaited(lambda: (tmp_path / "incoming").is_dir() and list((tmp_path / "incoming").iterdir()), 60)
        fetches = Fetches()
        fetches.of(Cache(tmp_path, GIB), "one")
        assert first.wait(60) != 0, "half of it was written, which is not an entry"
        assert fetches.names == ["one"]
    finally:
        first.kill()
        first.wait()


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "there"))
    monkeypatch.setenv(BOUND, "1.5")
    assert (Cache().root, Cache().max_bytes) == (tmp_path / "there", 3 * GIB // 2)
    for wrong in ("much", "nan", "-1", "inf"):
        monkeypatch.setenv(BOUND, wrong)
        with pytest.raises(BadInputError, match=f"{BOUND}: '{wrong}' is not a number of GiB"):
            Cache()
    monkeypatch.delenv(BOUND)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    with pytest.raises(BadInputError, match=f"set {FOLDER} to a folder"):
        Cache()
