"""The folder of compiled numba kernels: a package that has kernels calls `keep_kernels` before it declares any."""

import contextlib
import hashlib
import os
import pickle
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, Self

from numba.core import config, dispatcher
from numba.core.caching import FunctionCache, InTreeCacheLocator


class KernelLocator(InTreeCacheLocator):
    """Finds the compiled form of our kernels by the content of the sources.

    Numba's own locators use the path of the source. Each registered model carries a copy of the sources, and would
    compile all kernels when it is first loaded.
    """

    folders: ClassVar[dict[Path, str]] = {}
    """The folder of compiled kernels, by that of the sources."""

    def __init__(self, py_func: FunctionType, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._folder = self.folders[Path(py_file).parent]

    def get_cache_path(self) -> str:
        """The folder of compiled kernels."""
        return self._folder

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> Self | None:
        """None for a function that is not a kernel of ours: numba then asks the next locator."""
        # Not numba's own, which looks for a folder that can be written, and ends with an error where none can.
        return cls(py_func, py_file) if Path(py_file).parent in cls.folders else None


class KernelCache(FunctionCache):
    """Compiles where compiled kernels can't be read, and goes on where they can't be written.

    Numba's own ends the import with an error where a disk is full or read-only, or a file is damaged.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel, None where it has to be compiled."""
        try:
            return super().load_overload(sig, target_context)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            # Else each start would compile: what is compiled is added to the index, which has to be read for that.
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled kernel, where there is room for it."""
        with contextlib.suppress(OSError, EOFError, ValueError, pickle.UnpicklingError):
            super().save_overload(sig, data)


def keep_kernels(sources: Sequence[Path]) -> None:
    """Keeps the compiled kernels of these folders of sources, in one folder for each state of all of them.

    Numba's own check covers only the file of a kernel. An edit to a helper that is inlined from another file would
    leave an old kernel in use, so the folder's name has a digest of the sources.
    """
    digest = hashlib.sha256()
    for file in sorted(file for folder in sources for file in folder.glob("*.py")):
        digest.update(file.read_bytes())
    root = Path(os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(root if root.exists() else root.parent, os.W_OK):
        root = _own_temporary_folder() or root
    kept = str(root / "recloop" / f"kernels-{digest.hexdigest()[:12]}")
    KernelLocator.folders |= dict.fromkeys(sources, kept)


def _own_temporary_folder() -> Path | None:
    """A folder below that of temporary files which nobody else can write to, since numba unpickles what lies in it.

    None where there is none: kernels are then compiled in each process.
    """
    try:
        folder = Path(tempfile.gettempdir(), f"recloop-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if is_own else None


# The documented setting NUMBA_CACHE_LOCATOR_CLASSES. It is set here and not in the environment, which subprocesses
# without this package would inherit. It replaces the default list, so that has to be repeated.
NUMBAS_OWN = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator,ZipCacheLocator"
SETTING = "CACHE_LOCATOR_CLASSES"
vars(config)[SETTING] = f"{__name__}.{KernelLocator.__name__},{getattr(config, SETTING) or NUMBAS_OWN}"
# No setting says what happens where a cache can't be used.
vars(dispatcher)["FunctionCache"] = KernelCache
