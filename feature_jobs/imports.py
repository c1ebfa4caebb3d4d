"""Imports of large libraries, such as PyTorch, Great Expectations and MLflow, which a step does when it needs them."""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import cast

_SPARK = ("pyspark", "pyspark.sql.connect")


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Pauses the garbage collector while the block imports: it would take a fifth of the time.

    It looks at all objects again whenever there are a quarter more of them. Those of modules live until the process
    ends, so it need not look at them afterwards either.

    The block does not find PySpark, which Great Expectations would import for nothing: 0.3 s and a warning. The client
    of a remote Spark is not found where PySpark is there already either: without gRPC, and in a process without a main
    module, it would end the process.
    """
    known, was_enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    hidden = [name for name in _SPARK if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden, cast("ModuleType", None))  # as Python marks what is not to be found
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if len(sys.modules) > known:
            gc.freeze()
            atexit.unregister(_unfreeze_duckdb)
            atexit.register(_unfreeze_duckdb)
        if was_enabled:
            gc.enable()


def _unfreeze_duckdb() -> None:
    # Frozen, it is not freed when the process ends, and prints a page of "leaked function" to stderr. A process without
    # DuckDB ends half a second sooner if nothing is freed.
    if "duckdb" in sys.modules:
        gc.unfreeze()
