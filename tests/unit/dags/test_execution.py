"""Running a step's command: output line by line, exit codes, and nothing left behind."""

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from dags.execution import ProcessExecution, step_environment
from tasks.run.modes import execution_of
from tests.waiting import awaited, runs


def _python(code: str) -> ProcessExecution:
    return ProcessExecution([sys.executable, "-c", code])


def test_lines_come_while_the_step_runs_and_the_exit_code_at_its_end(tmp_path: Path) -> None:
    arrived: list[str] = []
    code = (
        "import pathlib, sys, time; print('first', flush=True)\n"
        f"while not pathlib.Path({str(tmp_path / 'first')!r}).exists(): time.sleep(0.01)\n"
        "print('last'); sys.exit(5)"
    )

    def take(line: str) -> None:
        arrived.append(line)
        (tmp_path / line).touch()

    assert _python(code).run([], take, print) == 5
    assert arrived == ["first", "last"]


def test_much_output_on_both_streams_does_not_block() -> None:
    out: list[str] = []
    err: list[str] = []
    code = "import sys\nfor i in range(20000): print('o' * 50); print('e' * 50, file=sys.stderr)"
    assert _python(code).run([], out.append, err.append) == 0
    assert (len(out), len(err)) == (20000, 20000)


def test_bytes_that_are_no_text_do_not_end_the_task() -> None:
    out: list[str] = []
    assert _python("import sys; sys.stdout.buffer.write(b'a\\xffb\\n')").run([], out.append, print) == 0
    assert out == ["a\ufffdb"]


def test_kill_ends_the_step_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)"
    )
    execution = _python(code)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(execution.run([], print, print)))
    thread.start()
    awaited(lambda: pids.exists() and pids.read_text().count(" "))
    started = time.monotonic()
    execution.kill()
    thread.join(timeout=10)
    assert codes == [-15]
    assert time.monotonic() - started < 5, "Airflow kills the task after 5 s"
    left = [int(pid) for pid in pids.read_text().split()]
    left_s = started + 5 - time.monotonic()
    awaited(lambda: not any(map(runs, left)), within_s=left_s)  # the kernel ends a killed process in its own time


def test_an_exception_such_as_airflows_timeout_ends_the_step() -> None:
    class TooLateError(BaseException):
        pass

    def late(line: str) -> None:
        raise TooLateError(line)

    begun = time.monotonic()
    execution = _python("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    with pytest.raises(TooLateError) as error:
        execution.run([], late, print)
    assert not psutil.pid_exists(int(str(error.value)))
    assert time.monotonic() - begun < 10


def test_a_step_sees_no_airflow_settings() -> None:
    seen = step_environment(
        {"AIRFLOW__CORE__FERNET_KEY": "k", "_AIRFLOW_X": "y", "AIRFLOW_HOME": "/h", "RECLOOP_STORE": "/s"}
    )
    assert seen == {"AIRFLOW_HOME": "/h", "RECLOOP_STORE": "/s", "PYTHONUNBUFFERED": "1"}


def test_the_mode_is_a_setting() -> None:
    assert isinstance(execution_of({}), ProcessExecution)
    assert isinstance(execution_of({"RECLOOP_EXECUTION": "process"}), ProcessExecution)
    assert isinstance(execution_of({"RECLOOP_EXECUTION": "docker"}), ProcessExecution)  # the command's own setting
    with pytest.raises(ValueError, match="one of process"):
        execution_of({"RECLOOP_EXECUTION": "podman"})
