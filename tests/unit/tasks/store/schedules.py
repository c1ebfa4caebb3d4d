"""Actors that take turns at the calls by which a store is read and written, and that die at one of them.

A point is a system call that Python audits, below a folder (`watch`), or a call that a test reports (`reach`). An actor
is a thread that runs only while it has the turn, so a schedule and its end are the same in every run. A dead actor does
nothing more: every further point raises, so that no `finally` block cleans up, as after SIGKILL.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

EVENTS = {
    "open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir",
    "os.symlink", "os.truncate", "os.utime", "shutil.rmtree",
}  # fmt: skip

_this = threading.local()
_watched: list[str] = []
_process: list[Callable[[], None]] = []


class Killed(BaseException):
    """The end of an actor."""


@dataclass
class Actor:
    """Its call, the point at which it dies, and its end: `result` or `error`, or neither where it died."""

    call: Callable[[], Any]
    kill_at: int | None = None
    result: Any = None
    error: Exception | None = None
    points: int = 0
    is_dead: bool = False
    is_done: bool = False
    reach: Callable[[], None] = lambda: None
    give_way: Callable[[], None] = lambda: None
    turn: threading.Event = field(default_factory=threading.Event)

    def at_point(self, *, may_switch: bool = True) -> None:
        if self.is_dead:
            raise Killed
        self.points += 1
        if self.points == self.kill_at:
            self.is_dead = True
            raise Killed
        if may_switch:
            self.reach()

    def run(self) -> None:
        _this.actor = self
        try:
            self.result = self.call()
        except Killed:
            pass
        except Exception as error:
            self.error = error
        finally:
            _this.actor = None
            self.is_done = True


def reach() -> None:
    """A point of the actor that runs now, if one does, and of the process."""
    if _process:
        _process[0]()
    actor = getattr(_this, "actor", None)
    if actor is not None:
        actor.at_point()


def give_way() -> None:
    """The actor that runs now waits for a lock that another one holds: the next one has the turn."""
    actor = getattr(_this, "actor", None)
    if actor is not None:
        actor.give_way()


def watch(folder: str) -> None:
    """From now on the audited system calls below this folder are points; those below another one no longer are."""
    if not _watched:
        sys.addaudithook(_audit)
    _watched[:] = [folder]


def of_process(at_point: Callable[[], None]) -> None:
    """From now on `at_point` is called at every point of this process, in any thread."""
    _process[:] = [at_point]


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event not in EVENTS or not args:
        return
    path = str(args[0])
    if not path.startswith(_watched[0]) and path[:1] == "/":  # a relative path is one below an open folder
        return
    if _process:
        _process[0]()
    if (actor := getattr(_this, "actor", None)) is not None:
        # In the middle of taking a lock the thread holds locks of the library that every thread needs.
        actor.at_point(may_switch=not path.endswith(".lock"))


def alone(call: Callable[[], Any], kill_at: int | None = None) -> Actor:
    """Runs one actor here."""
    actor = Actor(call, kill_at)
    actor.run()
    return actor


def together(actors: Sequence[Actor], turns: Sequence[int]) -> None:
    """Runs the actors. Each turn is a number of points; after it the next actor has the turn, and after the last turn
    each runs to its end."""
    left = itertools.chain(turns, itertools.repeat(1 << 30))
    budget = next(left)
    ended = threading.Event()

    def pass_on(current: Actor) -> Actor | None:
        place = next(index for index, actor in enumerate(actors) if actor is current)
        order = [*actors[place + 1 :], *actors[: place + 1]]
        return next((actor for actor in order if not actor.is_done), None)

    def switched(current: Actor) -> None:
        nonlocal budget
        budget -= 1
        if budget > 0:
            return
        budget = next(left)
        following = pass_on(current)
        if following is not None and following is not current:
            current.turn.clear()
            following.turn.set()
            current.turn.wait()

    def gave_way(current: Actor) -> None:
        nonlocal budget
        budget = 1
        switched(current)

    def whole(actor: Actor) -> None:
        nonlocal budget
        actor.turn.wait()
        actor.run()
        budget = next(left)
        following = pass_on(actor)
        if following is None:
            ended.set()
        else:
            following.turn.set()

    threads = [threading.Thread(target=whole, args=(actor,), daemon=True) for actor in actors]
    for actor, thread in zip(actors, threads, strict=True):
        actor.reach = lambda actor=actor: switched(actor)
        actor.give_way = lambda actor=actor: gave_way(actor)
        thread.start()
    actors[0].turn.set()
    ended.wait()
    for thread in threads:
        thread.join()
