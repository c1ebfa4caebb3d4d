"""The places in which the tests keep a store: each can be read and written past the store's own code."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tasks.store.scenario_store import ScenarioStore, open_store
from tests.unit.tasks.store import schedules

MEMORY = Path("/dev/shm")  # noqa: S108 (a store's fsync costs nothing there)


class Backend(Protocol):
    """A place for one store."""

    def open(self) -> ScenarioStore:
        """As a new process does it."""

    def objects(self) -> dict[str, bytes]:
        """Every record and file by key; scratch is left out."""

    def write(self, objects: dict[str, bytes]) -> None:
        """Writes these bytes, over any that are there."""

    def unfinished(self) -> list[str]:
        """Leftovers in scratch and resume folders."""

    def clear(self) -> None:
        """Removes all, scratch too."""

    def end_processes(self) -> None:
        """Frees the locks as the kernel does when the processes that opened the store end."""

    def is_killed(self, call: Callable[[], Any], point: int) -> bool:
        """Calls in a process of its own that is killed at the point; False where it ended before."""

    def close(self) -> None:
        """Removes the place."""


class LocalBackend:
    """A folder."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.place = self.root / "store" / "little"
        schedules.watch(str(self.root))

    def open(self) -> ScenarioStore:
        """As a new process does it."""
        return open_store(self.root / "store", "little")

    def objects(self) -> dict[str, bytes]:
        """Every record and file by key; scratch is left out."""
        found, top = {}, f"{self.place}/"
        for folder, _, names in os.walk(self.place):
            if not folder.startswith(f"{top}."):
                for name in names:
                    found[f"{folder}/{name}".removeprefix(top)] = (Path(folder) / name).read_bytes()
        return found

    def write(self, objects: dict[str, bytes]) -> None:
        """Writes these bytes, over any that are there."""
        for key, data in objects.items():
            (self.place / key).parent.mkdir(parents=True, exist_ok=True)
            (self.place / key).write_bytes(data)

    def unfinished(self) -> list[str]:
        """Leftovers in scratch and resume folders."""
        return [str(path) for name in (".scratch", ".resume") for path in (self.place / name).glob("*")]

    def close(self) -> None:
        shutil.rmtree(self.root)

    def clear(self) -> None:
        """See Backend."""
        shutil.rmtree(self.place, ignore_errors=True)

    def end_processes(self) -> None:
        """Nothing: flocks are of files that are closed."""

    def is_killed(self, call: Callable[[], Any], point: int) -> bool:
        """See Backend. By SIGKILL."""
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                _die_at(point)
                call()
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


class MemoryBackend:
    """An object store in memory, with the real client and cache: each request to it is two points, before and after."""

    def __init__(self) -> None:
        from obstore.store import MemoryStore

        self.root = Path(tempfile.mkdtemp(prefix="machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.bucket = MemoryStore()
        self.opened: list[ScenarioStore] = []
        schedules.watch(str(self.root))

    def open(self) -> ScenarioStore:
        """As a new process on one machine does it. Cache entries of earlier ones are free: they have ended."""
        from tasks.store.cache import Cache
        from tasks.store.object_store import RemoteObjects

        cache = Cache(self.root / "cache", 1 << 30)
        objects = RemoteObjects("memory://bucket/little", cache)
        take = cache._lock

        def take_in_turn(digest: str, kind: int) -> int | None:
            """Lets the lock's holder go on where the kernel would stop this thread, or it would look again later."""
            while (handle := take(digest, kind | fcntl.LOCK_NB)) is None:
                schedules.give_way()
                if kind & fcntl.LOCK_NB:
                    return None
            return handle

        cache._lock = take_in_turn
        objects._store = objects._once = _Requests(self.bucket)
        objects._each = lambda call, items: [call(item) for item in items]  # in turn, so that schedules repeat
        objects.each = map
        store = ScenarioStore(objects)
        self.opened.append(store)
        return store

    def objects(self) -> dict[str, bytes]:
        """See Backend."""
        listed = [found["path"] for page in self.bucket.list() for found in page]
        return {key: bytes(self.bucket.get(key).bytes()) for key in listed}

    def write(self, objects: dict[str, bytes]) -> None:
        """See Backend."""
        for key, data in objects.items():
            self.bucket.put(key, data)

    def unfinished(self) -> list[str]:
        """See Backend."""
        top = self.root / "cache" / "work"
        found = [path for name in (".scratch", ".resume") for path in top.glob(f"*/{name}/*")]
        return [str(path) for path in (*found, *(self.root / "cache" / "incoming").glob("*"))]

    def clear(self) -> None:
        """See Backend."""
        self.end_processes()
        for key in self.objects():
            self.bucket.delete(key)
        shutil.rmtree(self.root / "cache", ignore_errors=True)

    def end_processes(self) -> None:
        """The kernel frees the locks of a process that has ended."""
        for store in self.opened:
            store.objects.release()
        self.opened.clear()

    def is_killed(self, call: Callable[[], Any], point: int) -> bool:
        """See Backend. Its memory must outlive the process, so the dead one is a thread's actor that does no more."""
        actor = schedules.alone(call, point)
        self.end_processes()
        assert actor.error is None, actor.error
        return actor.is_dead

    def close(self) -> None:
        """See Backend."""
        self.end_processes()
        shutil.rmtree(self.root)


def _die_at(point: int) -> None:
    """This process, a child, ends at that point."""
    seen = 0

    def at_point() -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    schedules.of_process(at_point)


class _Requests:
    """The client of an object store whose requests are points."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*given: Any, **named: Any) -> Any:
            schedules.reach()
            answer = getattr(self.store, name)(*given, **named)
            schedules.reach()
            return answer

        return request


BACKENDS: dict[str, type[Backend]] = {"local": LocalBackend, "memory": MemoryBackend}
