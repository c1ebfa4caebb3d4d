"""The environment script: nothing to do where the lock is unchanged, a clear message where Python is missing."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "infra").mkdir()
    shutil.copy(ROOT / "infra" / "environment.sh", tmp_path / "infra")
    (tmp_path / "infra" / "requirements.lock").write_text("click==8.2.1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


def _run(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", project / "infra" / "environment.sh"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_second_call_does_nothing(project: Path) -> None:
    binary = project / ".venv" / "bin"
    binary.mkdir(parents=True)
    (binary / "python").symlink_to(sys.executable)
    version = f"Python {sys.version.split()[0]}\n"
    digest = hashlib.sha256(f"click==8.2.1\n[project]\n{version}".encode()).hexdigest()
    (project / ".venv" / "installed-from").write_text(digest + "\n")
    done = _run(project)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_machine_without_python_311_gets_the_name_of_the_package(project: Path) -> None:
    tools = project / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cut", "dirname", "grep", "rm", "sed", "sha256sum"):
        (tools / name).symlink_to(str(shutil.which(name)))
    script = project / "infra" / "environment.sh"
    script.write_text(script.read_text().replace("/usr/bin/python3", "/nowhere/python3"))
    done = _run(project, PATH=str(tools), PYTHON="")
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr
    assert not (project / ".venv").exists()
