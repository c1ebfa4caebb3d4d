"""Runs a history of commits again and again, and kills it at its first call, at its second, and so on.

    python -m tests.unit.tasks.store.kills FOLDER STORE EVERY

A call is a point that changes or reads the store: each file operation below FOLDER, and before and after each request
to an object store. After each kill the store is looked at as it is, then the history runs to its end. Prints one JSON
object. Each run is a fork of this process, which never uses the object store's client: that does not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from obstore.store import ObjectStoreMethods

from feature_jobs.schema import Scenario
from tasks.store import object_store
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.scenario_store import ScenarioStore, open_store
from tasks.store.verify import verify
from tests.unit.tasks.little import DAYS, little_scenario

CHANGES = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.utime"}
REQUESTS = ("put", "get", "get_range", "head", "delete", "list")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def history(store: ScenarioStore) -> None:
    """Two days, a promotion, a correction of the second day, a refused output; done again, it changes nothing."""
    first = _commit(store, "train", DAYS[0], parent=None)
    log = ChampionLog(store)
    if log.current() is None:
        log.promote(0, Entry("promotion", "little", "1", DAYS[0], 0, first))
    if store.generation == 0:
        _commit(store, "train", DAYS[1], parent=first)
        store.new_generation(DAYS[1], "corrected")
    _commit(store, "train", DAYS[1], "corrected", parent=first)
    with store.scratch() as scratch:
        (scratch / "report").mkdir()
        (scratch / "report" / "why.html").write_text("rows are missing")
        store.keep_rejected("validate", DAYS[1], scratch / "report")
    store.note({"outcome": "done", "ds": DAYS[1]})


def _commit(store: ScenarioStore, step: str, ds: str, content: str = "", parent: str | None = None) -> str:
    with store.scratch() as scratch:
        output = scratch / "out"
        (output / "deep").mkdir(parents=True)
        (output / "a.txt").write_text(content or f"{step} {ds}")
        (output / "deep" / "b.txt").write_text("b")
        store.write_record(f"runs/{ds}.json", {"seconds": {}})
        commit, _ = store.commit(step, ds, output, {"parent": parent})
    store.verify(commit)
    assert (commit.folder / "deep" / "b.txt").read_text() == "b"
    return commit.digest


def state(store: ScenarioStore) -> list[str]:
    """Every record and file of the store by key and content; the journal says how often the history ran."""
    keys = [key for depth in range(1, 8) for key in store.keys("/".join("*" * depth))]
    shown = [key for key in keys if not key.startswith(("journal", "."))]
    return [f"{key} {sha256_of(store.read(key) or b'')}" for key in sorted(shown)]


class Killer:
    """Kills this process at the call of a number."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def count(self, name: str) -> None:
        self.seen += 1
        if self.seen == self.at:
            os.write(2, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, folder: Path) -> None:
        def hook(event: str, given: tuple[Any, ...]) -> None:
            if event == "open":
                path, _, flags = given
                is_change = isinstance(flags, int) and bool(flags & WRITES)
                if str(path).startswith(str(folder)) and (is_change or folder.is_dir()):
                    self.count(f"open {path}")
            elif event in CHANGES:
                self.count(f"{event} {given[0]}")

        for name in REQUESTS:
            setattr(ObjectStoreMethods, name, self._counted(name, getattr(ObjectStoreMethods, name)))
        sys.addaudithook(hook)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(store: Any, *given: Any, **named: Any) -> Any:
            self.count(f"before {name} {given[:1]}")
            answer = call(store, *given, **named)
            if name != "list":  # its requests come later, one for each page
                self.count(f"after {name} {given[:1]}")
            return answer

        return counted


def forked(call: Callable[[], Any]) -> tuple[int, str]:
    """Calls in a child; returns its signal or exit code, and its stderr."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 2)
        code = 1
        try:
            call()
            code = 0
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), text


def killed(folder: Path, at: int, url: str) -> None:
    Killer(at).watch(folder)
    again(url)


def again(url: str) -> None:
    history(open_store(url, "little"))


def problems_after(scenario: Scenario, url: str, expected: list[str] | None) -> None:
    store = open_store(url, "little")
    assert not (found := verify(scenario, store).problems), found
    if expected is not None:
        assert state(store) == expected, [sorted(set(state(store)) ^ set(expected))]
        assert not list((store.work / ".scratch").iterdir())


def failures(folder: Path, place: str, every: int) -> Iterator[tuple[int, str]]:
    """Yields each kill's number and the problem afterwards, or ""."""
    scenario = little_scenario(folder)
    reference = folder / "reference.json"
    os.environ["RECLOOP_CACHE"] = str(folder / "cache-of-all")

    def undisturbed() -> None:
        for _ in range(2):
            again(f"{place}/undisturbed")
        reference.write_bytes(canonical_json(state(open_store(f"{place}/undisturbed", "little"))))

    assert forked(undisturbed) == (0, "")
    expected = json.loads(reference.read_bytes())
    for at in range(1, 100_000, every):
        url = f"{place}/{at}"
        os.environ["RECLOOP_CACHE"] = str(folder / f"cache-{at}")

        status, said = forked(partial(killed, folder, at, url))
        if status == 0:
            return
        if status != -signal.SIGKILL:
            yield at, f"ended with {status}: {said}"
            continue
        steps = (
            partial(problems_after, scenario, url, None),
            partial(again, url),
            partial(problems_after, scenario, url, expected),
        )
        wrong = next((f"{code}: {text}" for code, text in map(forked, steps) if code), "")
        yield at, wrong and f"killed at {said.strip()}: {wrong}"


if __name__ == "__main__":
    object_store.pause = lambda attempt: None
    found = dict(failures(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    print(json.dumps({"kills": len(found), "wrong": {at: what for at, what in found.items() if what}}))
