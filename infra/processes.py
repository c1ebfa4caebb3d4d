"""Background processes: started in their own sessions, recorded, and stopped exactly.

A process is identified by its pid and start time, so a reused pid is never mistaken for ours. Its descendants have the
record's token in their environment, or they write to the log that it was started with: Airflow's workers overwrite
their environment with a title, and outlive a scheduler that was killed.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "RECLOOP_STARTED_BY"
GRACE_S = 8.0
OUTPUTS = (1, 2)  # stdout and stderr; a person who only reads a log has it open under another number


@dataclass(frozen=True)
class Started:
    """A background process. `created`: its start time, in seconds since 1970."""

    name: str
    pid: int
    created: float


def start(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Started:
    """Starts a command in its own session, its output added to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C in the terminal that started it does not reach it
        )
    return Started(name, process.pid, psutil.Process(process.pid).create_time())


def find(started: Started) -> psutil.Process | None:
    """The process, if it still runs."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(started.pid)
        # The boot time, from which it is computed, can shift a little.
        if abs(process.create_time() - started.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def stop(recorded: Iterable[Started], token: str, logs: Sequence[Path]) -> int:
    """Stops the recorded processes and their descendants; returns how many there were."""

    def found() -> dict[int, psutil.Process]:
        return {process.pid: process for process in (*_marked(token), *_writing_to(logs))}

    # The family alone misses children whose parent has ended: they belong to init by then.
    ours = {process.pid: process for process in _family(recorded)} | found()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in ours.values():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        _, alive = psutil.wait_procs(list(ours.values()), timeout=GRACE_S)
        # A server that is stopped may still start a worker: look again before it counts as ended.
        late = {pid: process for pid, process in found().items() if pid not in ours}
        if not alive and not late:
            break
        ours |= late
    return len(ours)


def _family(recorded: Iterable[Started]) -> list[psutil.Process]:
    family: list[psutil.Process] = []
    for started in recorded:
        process = find(started)
        if process is not None:
            with contextlib.suppress(psutil.Error):
                family += [process, *process.children(recursive=True)]
    return family


def _writing_to(logs: Sequence[Path]) -> list[psutil.Process]:
    """Processes of this user whose output goes to one of the files, and their descendants."""
    files, writing = {str(log) for log in logs}, []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(file.path in files and file.fd in OUTPUTS for file in process.open_files()):
                writing += [process, *process.children(recursive=True)]
    return writing


def _marked(token: str) -> list[psutil.Process]:
    """Processes of this user that carry the token."""
    marked: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == token and process.status() != psutil.STATUS_ZOMBIE:
                marked.append(process)
    return marked
