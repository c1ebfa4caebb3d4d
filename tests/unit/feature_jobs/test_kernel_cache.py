"""Kernels are compiled and run where their folder can't be written or is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import feature_jobs
from feature_jobs.kernel_cache import KernelLocator, keep_kernels

KERNEL = """
from pathlib import Path
from numba import int64, njit
from feature_jobs.kernel_cache import keep_kernels
keep_kernels([Path(__file__).resolve().parent])
@njit([(int64,)], cache=True)
def twice(number):
    return 2 * number
print(twice(21), sum(twice.stats.cache_hits.values()))
"""


def ran(folder: Path, cache: Path) -> str:
    """The output of a program with a kernel: 42, and how many kernels came from the folder of compiled ones."""
    (folder / "program.py").write_text(KERNEL)
    code = str(Path(feature_jobs.__file__).parent.parent)
    places = {"XDG_CACHE_HOME": str(cache), "HOME": str(cache), "NUMBA_CACHE_DIR": "", "PYTHONPATH": code}
    done = subprocess.run(
        [sys.executable, folder / "program.py"], env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.strip()


def test_no_folder_can_be_written(tmp_path: Path) -> None:
    # Also root can make no folder below a file.
    (tmp_path / "file").touch()
    (tmp_path / "__pycache__").touch()
    assert ran(tmp_path, tmp_path / "file") == "42 0"


def test_damaged_files_are_replaced(tmp_path: Path) -> None:
    assert ran(tmp_path, tmp_path / "cache") == "42 0"
    files = [*(tmp_path / "cache").rglob("*.nb?")]
    assert len(files) == 2  # the kernel, and the index that names it
    for file in files:
        os.truncate(file, 10)
    assert ran(tmp_path, tmp_path / "cache") == "42 0"
    assert ran(tmp_path, tmp_path / "cache") == "42 1"


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gettempdir() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", gettempdir)
    monkeypatch.setattr(KernelLocator, "folders", {})
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    keep_kernels([tmp_path])
    assert str(tmp_path / "not" / "there") in KernelLocator.folders[tmp_path]


def test_a_folder_that_others_may_write_to_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba unpickles what lies there."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(KernelLocator, "folders", {})
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    own = tmp_path / f"recloop-{os.getuid()}"
    keep_kernels([tmp_path])
    assert str(own) in KernelLocator.folders[tmp_path]
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(0o777)
    keep_kernels([tmp_path])
    assert str(own) not in KernelLocator.folders[tmp_path]
