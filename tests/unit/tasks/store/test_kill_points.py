"""A process is killed (SIGKILL) at each of the calls that a day, a replay, a rollback and gc make; then the same
commands run again. After a kill at any point, the store ends with the same bytes as without a kill, and is proven.

`python -m tests.unit.tasks.store.test_kill_points` tries every point and prints the table of docs/the-store.md.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.run.collect import collect, garbage, leftovers
from tasks.run.replay import begin_replay
from tasks.run.rollback import resume_promotions, rollback
from tasks.run.runner import run_step
from tasks.store.champion_log import ChampionLog
from tasks.store.verify import require_sound
from tests.own_process import in_own_process
from tests.unit.tasks.store import schedules
from tests.unit.tasks.store.backends import BACKENDS, Backend
from tests.unit.tasks.store.checker import check
from tests.unit.tasks.store.tiny import DAYS, SOURCE, STEPS_OF_A_DAY, Direct, Registry, tiny_scenario, use_tiny_steps

FAST, SLOW, TAKEN_OVER = 197, 17, 29  # every 197th point, every 17th one, every 29th one


class Loop:
    """A store after its first day, and the commands that follow: they do the remaining work, however often they run."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend, self.scenario = backend, tiny_scenario(folder)
        self.registry = Registry(folder / "registry.json")
        self.registry.before = lambda _: schedules.reach()
        self.now = "start"

    def day(self, ds: str) -> None:
        for step in STEPS_OF_A_DAY:
            self.now = step
            run_step(step, self.scenario, ds, self.backend.open(), track=False, launcher=Direct())

    def commands(self) -> None:
        """Day 2, and again after a correction; a rollback, its end; gc."""
        store = self.backend.open()
        SOURCE.editions = {DAYS[1]: 1 + store.generation}
        self.day(DAYS[1])
        if store.generation == 0:
            self.now = "chain replay"
            begin_replay(self.scenario, store, DAYS[1], None, "corrected")
            SOURCE.editions = {DAYS[1]: 2}
            self.day(DAYS[1])
        self.now = "rollback"
        kinds = [entry.kind for entry in ChampionLog(store).history()]
        if "resumption" not in kinds:
            rollback(self.scenario, store, "2")
            self.now = "resume-promotions"
            resume_promotions(self.scenario, store)
        self.now = "gc --delete"
        collect(store, garbage(self.scenario, store, 1), leftovers(store), "test")

    def end(self) -> dict[str, bytes]:
        """All bytes that a digest depends on."""
        return {key: data for key, data in self.backend.objects().items() if key.startswith(("g", "champion"))}


class Again(Loop):
    """A replay that takes over the training of its day."""

    def commands(self) -> None:
        """A replay of the first day, whose source is as it was."""
        store, self.now = self.backend.open(), "chain replay"
        SOURCE.editions = {}
        if store.generation == 0:
            begin_replay(self.scenario, store, DAYS[0], None, "the same data")
        for self.now in ("ingest", "train"):
            run_step(self.now, self.scenario, DAYS[0], self.backend.open(), track=False, launcher=Direct())


@contextmanager
def loop_on(backend: Backend, folder: Path, kind: type[Loop] = Loop) -> Iterator[Loop]:
    made = kind(backend, folder)
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_steps(patch, made.registry)
        yield made
    backend.close()


class Reference:
    """The commands without a kill: the command of each point, and the contents of the store at the end."""

    def __init__(self, loop: Loop) -> None:
        loop.day(DAYS[0])
        self.begin = loop.backend.objects()
        self.registry = json.dumps(loop.registry.state)
        self.points: list[str] = []
        self.restore(loop)  # as before each kill: folders that the first day left empty are not there
        schedules.of_process(lambda: self.points.append(loop.now))
        try:
            loop.commands()
        finally:
            schedules.of_process(lambda: None)
        self.end = loop.end()

    def restore(self, loop: Loop) -> None:
        loop.backend.clear()
        loop.backend.write(self.begin)
        loop.registry.file.write_text(self.registry)


def kill_at(points, loop: Loop, reference: Reference) -> None:
    for point in points:
        reference.restore(loop)
        assert loop.backend.is_killed(loop.commands, point), point
        loop.commands()
        after, name = loop.end(), reference.points[point - 1]
        assert after == reference.end, (point, name, _difference(after, reference.end))
        assert require_sound(loop.scenario, loop.backend.open()).problems == []
        found = check(loop.backend.objects())
        assert (found.problems, found.leftovers, loop.backend.unfinished()) == ([], [], []), (point, name)


def _difference(left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def kill_every(backend: str, folder: Path, first: int, step: int) -> Counter[str]:
    """Kills at every so many points; returns how many points each command has."""
    with loop_on(BACKENDS[backend](), folder) as loop:
        reference = Reference(loop)
        assert len(reference.points) > 1000
        kill_at(range(first, len(reference.points) + 1, step), loop, reference)
    return Counter(reference.points)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_next_run_ends_as_if_nothing_was_killed(backend: str, tmp_path: Path) -> None:
    kill_every(backend, tmp_path, 1, FAST)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_so_it_does_at_many_more_points(backend: str, tmp_path: Path) -> None:
    """In a small process, because each point of a folder is a fork of it."""
    in_own_process(kill_every, backend, tmp_path, 2, SLOW)


@pytest.mark.parametrize("backend", BACKENDS)
def test_so_does_a_replay_that_takes_over(backend: str, tmp_path: Path) -> None:
    with loop_on(BACKENDS[backend](), tmp_path, Again) as loop:
        reference = Reference(loop)
        reused = [data for key, data in reference.end.items() if b'"reused_from": 0' in data and "/train/" in key]
        assert len(reused) == 1
        kill_at(range(1, len(reference.points) + 1, TAKEN_OVER), loop, reference)


if __name__ == "__main__":
    counted = []
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            counted.append(kill_every(backend, Path(folder), 1, 1))
    for command in counted[0]:
        print(f"| `{command}` | {' | '.join(f'{points[command]:,}' for points in counted)} |")
    print(f"| in all | {' | '.join(f'{points.total():,}' for points in counted)} |")
