"""Chains of jobs in processes of their own: the jobs of a chain one after the other, several chains at once.

A process per chain, forked from a server that has imported the heavy libraries once, so that a chain starts in
milliseconds. A chain that fails leaves the others alone. Nothing outlives the caller: each process waits for its end in
a thread of its own, also where it is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from feature_jobs.errors import RecloopError

LAST_LINES = 5


@dataclass(frozen=True)
class Job:
    """A call of `function(*arguments)` in a chain; `label` is shown when it is done."""

    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Chain:
    """Jobs of which each needs the one before. `log`: the file that gets their output."""

    name: str
    jobs: Sequence[Job]
    log: Path


@dataclass
class ChainEnd:
    """End of a chain: seconds on the clock and on the processors, and the error if there was one."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    error: str | None = None
    exit_code: int = 0


def run_chains(
    chains: Sequence[Chain], workers: int, imports: Sequence[str], done: Callable[[int, Job], None]
) -> list[ChainEnd]:
    """Runs all chains, `workers` at a time; `done` is called here after each job, with the number of its chain.

    `imports`: modules that the jobs need, imported once for all.
    """
    # Not fork: torch's and numba's threads would be copied in an unknown state. Not spawn: it imports for seconds each.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *imports])
    ends = [ChainEnd() for _ in chains]
    waiting = list(range(len(chains)))
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(chains[number], sender), daemon=True)
                process.start()
                sender.close()  # so that the end of the process shows as the end of the pipe
                running[receiver] = number, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)  # noqa: S101 (wait() is given nothing else)
                number, process = running[ready]
                if not _hear(ready, chains[number], ends[number], partial(done, number)):
                    process.join()
                    _check_end(process.exitcode, chains[number], ends[number])
                    del running[ready]
    finally:
        for _, process in running.values():
            process.kill()  # they only write into scratch, so that nothing needs an orderly end
            process.join()
    return ends


def _hear(receiver: Connection, chain: Chain, end: ChainEnd, done: Callable[[Job], None]) -> bool:
    """Takes one message of a process; False where it has ended."""
    try:
        position, end.seconds, end.cpu_s, end.error, end.exit_code = receiver.recv()
    except EOFError:
        return False
    if end.error is None:
        done(chain.jobs[position])
    return True


def _check_end(status: int | None, chain: Chain, end: ChainEnd) -> None:
    """A process that ended without an answer was killed, or met a defect: its last lines say more."""
    if status and end.error is None:
        lines = chain.log.read_text(errors="replace").strip().splitlines() if chain.log.is_file() else []
        cause = f"signal {-status} ended its process (no memory left?)" if status < 0 else "its process failed"
        end.error = "\n".join([f"{cause}; try it alone with --jobs 1", *lines[-LAST_LINES:]])
        end.exit_code = 1 if status > 0 else 128 - status


def _end_with_caller() -> None:
    """Ends this process when the caller has ended. The kernel's parent is the fork server, which may live on."""
    caller = multiprocessing.parent_process()
    if caller is not None:
        wait([caller.sentinel])
        os._exit(1)  # it only writes into scratch


def _work(chain: Chain, sender: Connection) -> None:
    """Runs a chain's jobs in a process of its own, and reports the end of each."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    chain.log.parent.mkdir(parents=True, exist_ok=True)
    with chain.log.open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())  # also for C++ code, which prints without sys.stdout
    begun = time.perf_counter()
    for position, job in enumerate(chain.jobs):
        error, exit_code = None, 0
        try:
            job.function(*job.arguments)
        except RecloopError as problem:
            error, exit_code = str(problem), problem.exit_code
        seconds = round(time.perf_counter() - begun, 3)
        sender.send((position, seconds, round(time.process_time(), 3), error, exit_code))
        if error is not None:
            return
