"""Execution of a step's command by an Airflow task: the interface, and its simplest form, a process beside the worker.

tasks/run/modes.py chooses one by `RECLOOP_EXECUTION`, which is read when a task runs, never when Airflow parses a DAG.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Protocol, cast

KILL_AFTER_S = 3.0  # Airflow kills a task 5 s after asking it to end; its step must be gone before

Sink = Callable[[str], None]
"""Takes one line of output, without its newline."""


class Execution(Protocol):
    """Runs `recloop ARGUMENTS`."""

    def run(self, arguments: Sequence[str], on_stdout: Sink, on_stderr: Sink) -> int:
        """Waits for the end and returns the exit code, negative for a signal; passes on each line as it is printed."""

    def kill(self) -> None:
        """Stops the process that `run` started, with all of its children. Safe to call at any time."""


class ProcessExecution:
    """A process beside the Airflow worker, in its own session, so that one signal stops it with all its children."""

    # -P: a file in the worker's folder must not be imported instead of the project's.
    def __init__(self, program: Sequence[str] = (sys.executable, "-P", "-m", "tasks")) -> None:
        self._program = program
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ProcessExecution:
        """Needs no settings."""
        return cls()

    def run(self, arguments: Sequence[str], on_stdout: Sink, on_stderr: Sink) -> int:
        """See Execution."""
        self._process = process = subprocess.Popen(
            [*self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",  # a library may print bytes that are not UTF-8
            env=step_environment(os.environ),
            start_new_session=True,
        )
        stdout, stderr = cast("IO[str]", process.stdout), cast("IO[str]", process.stderr)
        # Two readers, because a step stops at a full pipe that nobody reads.
        errors = threading.Thread(target=_drain, args=(stderr, on_stderr), daemon=True)
        errors.start()
        try:
            _drain(stdout, on_stdout)
            return process.wait()
        finally:
            self.kill()  # after an exception (a timeout) the step must not outlive its task
            errors.join(timeout=KILL_AFTER_S)

    def kill(self) -> None:
        """See Execution."""
        process = self._process
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KILL_AFTER_S)
        # Also where the step itself has ended: its children are in its group and may still run.
        _signal_group(process.pid, signal.SIGKILL)


def step_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a step: everything except Airflow's own settings, which contain its keys."""
    ours = {name: value for name, value in environment.items() if not name.startswith(("AIRFLOW__", "_AIRFLOW"))}
    return {**ours, "PYTHONUNBUFFERED": "1"}


def _drain(stream: IO[str], sink: Sink) -> None:
    for line in stream:
        sink(line.rstrip())


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
