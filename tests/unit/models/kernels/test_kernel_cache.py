import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import feature_jobs
import models

CALL = """
import numpy as np
from models.runtime.frozen_kernels import embed
from models.sparse.row_kernels import update
none, zeros = np.empty(0, np.int64), np.zeros((1, 1), np.float32)
embed(1, 32)(*[none] * 6, np.zeros(3, np.uint32), 63, zeros, zeros, np.zeros((0, 0, 1), np.float32))
update("sgd", 1, False)(zeros, zeros, none, none, none, 0, 0, zeros, 1, zeros[0], zeros[0], 1.0, 0.0, 0.1, 0.0, 1)
"""


def compiled(code: Path, cache: Path) -> dict[str, int]:
    """Calls kernels of a copy of the sources; returns the cached files and when each was written."""
    environment = os.environ | {"PYTHONPATH": str(code), "XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": ""}
    subprocess.run([sys.executable, "-c", CALL], check=True, env=environment, cwd=code)
    return {str(file.relative_to(cache)): file.stat().st_mtime_ns for file in cache.rglob("*.nb?")}


@pytest.fixture
def copies(tmp_path):
    """Two folders of equal sources, as two registered models have them."""
    for name in ("first", "second"):
        (tmp_path / name / "feature_jobs").mkdir(parents=True)
        for file in ("__init__.py", "kernel_cache.py"):
            shutil.copy(Path(feature_jobs.__file__).parent / file, tmp_path / name / "feature_jobs")
        for room in ("kernels", "runtime", "sparse"):
            shutil.copytree(Path(models.__file__).parent / room, tmp_path / name / "models" / room)
        (tmp_path / name / "models" / "__init__.py").touch()
    return tmp_path


@pytest.mark.slow
def test_equal_sources_elsewhere_are_not_compiled_again_but_those_with_another_helper_are(copies):
    cache = copies / "cache"
    first = compiled(copies / "first", cache)
    assert len({Path(file).parent for file in first}) == 1
    assert compiled(copies / "second", cache) == first
    with (copies / "second" / "models" / "kernels" / "simd.py").open("a") as helper:
        helper.write("\n# edited\n")
    edited = compiled(copies / "second", cache)
    assert {file: edited[file] for file in first} == first
    assert len(edited) == 2 * len(first)
