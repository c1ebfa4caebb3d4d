"""A run that is killed at any call leaves nothing torn, and the same command then ends with the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.object_store import ObjectServer
from tests.paths import ROOT


def kills(folder: Path, place: str, every: int, **environment: str) -> int:
    command = [sys.executable, "-m", "tests.unit.tasks.store.kills", str(folder), place, str(every)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == {}
    return int(found["kills"])


@pytest.mark.slow
def test_a_folder(tmp_path: Path) -> None:
    assert kills(tmp_path, str(tmp_path / "store"), 2) > 130


@pytest.mark.slow
def test_an_object_store(object_server: ObjectServer, tmp_path: Path) -> None:
    place = f"s3://{object_server.new_bucket()}"
    assert kills(tmp_path, place, 2, **object_server.environment()) > 90
