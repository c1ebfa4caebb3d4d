"""Background processes are ended exactly: ours with all their children, nobody else's."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.processes import MARK, Started, find, start, stop
from tests.waiting import awaited, runs

SLEEP = "import time; time.sleep(60)"


def _wait_for(file: Path) -> list[int]:
    awaited(lambda: file.exists() and file.read_text().endswith("\n"), said=lambda: f"{file} was not written")
    return [int(word) for word in file.read_text().split()]


def test_children_in_other_sessions_end_too_and_strangers_live(tmp_path: Path) -> None:
    token, pids = secrets.token_hex(8), tmp_path / "pids"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n"
        f"open({str(pids)!r}, 'w').write(f'{{child.pid}}\\n')\n"
        "time.sleep(60)"
    )
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        ours = start("server", [sys.executable, "-c", code], {**os.environ, MARK: token}, tmp_path / "log")
        [child] = _wait_for(pids)
        assert find(ours) is not None
        assert stop([ours], token, []) == 2
        assert not runs(ours.pid)
        assert not runs(child)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_orphans_are_found_by_their_token(tmp_path: Path) -> None:
    token, pids = secrets.token_hex(8), tmp_path / "pids"
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n"
        f"open({str(pids)!r}, 'w').write(f'{{child.pid}}\\n')"
    )
    ours = start("server", [sys.executable, "-c", code], {**os.environ, MARK: token}, tmp_path / "log")
    [orphan] = _wait_for(pids)
    assert stop([ours], token, []) >= 1
    assert not runs(orphan)


def test_orphans_without_their_environment_are_found_by_the_log_they_write(tmp_path: Path) -> None:
    """As Airflow's workers: their title overwrites their environment, and their scheduler was killed."""
    pids, log = tmp_path / "pids", tmp_path / "log"
    child = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=-3, stderr=-3); {SLEEP}"
    )
    code = (
        "import subprocess, sys\n"
        f"orphan = subprocess.Popen([sys.executable, '-c', {child!r}], env={{}})\n"
        f"open({str(pids)!r}, 'w').write(f'{{orphan.pid}}\\n')"
    )
    start("server", [sys.executable, "-c", code], os.environ, log)
    reader = subprocess.Popen([sys.executable, "-c", f"log = open({str(log)!r}); {SLEEP}"])
    try:
        [orphan] = _wait_for(pids)
        [grandchild] = awaited(lambda: psutil.Process(orphan).children())
        assert stop([], secrets.token_hex(8), [tmp_path / "other"]) == 0
        assert stop([], secrets.token_hex(8), [log]) == 2
        assert not runs(orphan)
        assert not runs(grandchild.pid)
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


def test_a_pid_that_was_given_out_again_is_not_ours() -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        recycled = Started("server", stranger.pid, psutil.Process(stranger.pid).create_time() - 100)
        assert find(recycled) is None
        assert stop([recycled], secrets.token_hex(8), []) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.processes.GRACE_S", 1.0)
    token, ready = secrets.token_hex(8), tmp_path / "ready"
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(ready)!r}, 'w').write('1\\n'); time.sleep(60)"
    )
    ours = start("server", [sys.executable, "-c", code], {**os.environ, MARK: token}, tmp_path / "log")
    _wait_for(ready)
    stop([ours], token, [])
    assert not runs(ours.pid)
