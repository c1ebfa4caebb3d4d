"""A container engine of the tests' own, with the step image of this checkout; gone when they are done."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.waiting import awaited

TAG = "test"
SCRIPT = ROOT / "infra" / "engine.sh"
DOCKER = "/usr/bin/docker"


@contextmanager
def started_engine() -> Iterator[str]:
    """Yields the address of a fresh engine that has our base image. Where none can be: fails in CI, skips elsewhere."""
    folder = Path(tempfile.mkdtemp(prefix="recloop-engine-"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", _engine("start", folder))
            _engine("base", folder)
            yield os.environ["DOCKER_HOST"]
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)


def _engine(command: str, folder: Path) -> str:
    done = subprocess.run([SCRIPT, command, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"no container engine: {done.stderr.strip()}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return done.stdout.strip()


def containers(*filters: str) -> list[str]:
    """Ids of the containers, running or not, that the filters let through."""
    return docker("ps", "--all", "--quiet", "--no-trunc", *(f"--filter={filter}" for filter in filters)).split()


def await_none(*filters: str, besides: Collection[str] = (), within_s: float = 5.0) -> None:
    """Fails if some stay: the engine removes a container a moment after it has ended."""
    awaited(lambda: set(containers(*filters)) <= set(besides), within_s, lambda: docker("ps", "--all"))


def docker(*arguments: str, check: bool = True, **options: object) -> str:
    """Runs the Docker command; returns its output."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0 or not check, done.stderr
    return str(done.stdout + ("" if check else done.stderr))
