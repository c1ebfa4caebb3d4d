"""Shared parts of the numba kernels: SIMD registers (`simd`) and the folder of compiled kernels."""

import hashlib
import os
import tempfile
from pathlib import Path
from types import FunctionType
from typing import Self

from numba.core import config
from numba.core.caching import InTreeCacheLocator

MODELS = Path(__file__).resolve().parent.parent
WINGS = ("kernels", "runtime", "sparse")
"""Folders below `models` that hold kernels."""


def _cache_folder() -> str:
    """The folder where numba keeps our compiled kernels, one for each state of the sources.

    Numba's own check covers only the file of a kernel. An edit to a helper that is inlined from another file would
    leave an old kernel in use, so the folder's name has a digest of all of these sources.
    """
    digest = hashlib.sha256()
    for file in sorted(file for wing in WINGS for file in (MODELS / wing).glob("*.py")):
        digest.update(file.read_bytes())
    root = Path(os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(root if root.exists() else root.parent, os.W_OK):
        root = Path(tempfile.gettempdir())
    return str(root / "recloop" / f"kernels-{digest.hexdigest()[:12]}")


class KernelLocator(InTreeCacheLocator):
    """Finds the compiled form of our kernels by the content of the sources.

    Numba's own locators use the path of the source. Each registered model carries a copy of the sources, and would
    compile all kernels when it is first loaded.
    """

    _folder = _cache_folder()

    def get_cache_path(self) -> str:
        """The folder of compiled kernels."""
        return self._folder

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> Self | None:
        """None for a function that is not a kernel of ours: numba then asks the next locator."""
        return super().from_function(py_func, py_file) if Path(py_file).parent.parent == MODELS else None


# The documented setting NUMBA_CACHE_LOCATOR_CLASSES. It is set here and not in the environment, which subprocesses
# without this package would inherit. It replaces the default list, so that has to be repeated.
NUMBAS_OWN = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator,ZipCacheLocator"
SETTING = "CACHE_LOCATOR_CLASSES"
vars(config)[SETTING] = f"{__name__}.{KernelLocator.__name__},{getattr(config, SETTING) or NUMBAS_OWN}"
