"""What the numba kernels of all rooms share: SIMD registers and the folder of compiled kernels."""

import hashlib
import os
import tempfile
from pathlib import Path
from types import FunctionType
from typing import Self

from numba.core.caching import CacheImpl, InTreeCacheLocator

MODELS = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "runtime", "sparse")
"""Folders of kernels below `models`."""


def _kernel_cache() -> str:
    """Where numba keeps compiled kernels: a folder for each state of the sources, since numba itself does not notice
    an edit to a helper that a kernel of another file inlines."""
    digest = hashlib.sha256()
    for file in sorted(file for room in ROOMS for file in (MODELS / room).glob("*.py")):
        digest.update(file.read_bytes())
    root = Path(os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(root if root.exists() else root.parent, os.W_OK):
        root = Path(tempfile.gettempdir())
    return str(root / "recloop" / f"kernels-{digest.hexdigest()[:12]}")


class _Locator(InTreeCacheLocator):
    """Numba's own tell folders of equal sources apart: each registered model, which carries a copy, would compile."""

    _folder = _kernel_cache()

    def get_cache_path(self) -> str:
        return self._folder

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> Self | None:
        """None, for numba's own locators to go on, where it is not a kernel of ours."""
        return super().from_function(py_func, py_file) if Path(py_file).parent.parent == MODELS else None


CacheImpl._locator_classes.insert(0, _Locator)
