"""Dynamic embedding tables of raw 64-bit ids: id map, rows, fused sparse optimizers. Kernels in numba on CPU."""

import hashlib
import os
import tempfile
from pathlib import Path


def _kernel_cache() -> Path:
    """Where numba keeps compiled kernels: a folder for each state of the sources, since numba itself does not notice
    an edit to a helper that a kernel of another file inlines."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(root if root.exists() else root.parent, os.W_OK):
        root = Path(tempfile.gettempdir())
    return root / "recloop" / f"kernels-{digest.hexdigest()[:12]}"


os.environ.setdefault("NUMBA_CACHE_DIR", str(_kernel_cache()))
