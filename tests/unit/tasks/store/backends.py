"""The places in which the tests keep a store: each can be read and written past the store's own code."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

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
        """Puts these bytes there, whatever there is."""

    def unfinished(self) -> list[str]:
        """What is left in scratch and resume folders."""

    def clear(self) -> None:
        """Removes all, scratch too."""

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
        """Puts these bytes there, whatever there is."""
        for key, data in objects.items():
            (self.place / key).parent.mkdir(parents=True, exist_ok=True)
            (self.place / key).write_bytes(data)

    def unfinished(self) -> list[str]:
        """What is left in scratch and resume folders."""
        return [str(path) for name in (".scratch", ".resume") for path in (self.place / name).glob("*")]

    def close(self) -> None:
        shutil.rmtree(self.root)

    def clear(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


BACKENDS: dict[str, type[Backend]] = {"local": LocalBackend}
