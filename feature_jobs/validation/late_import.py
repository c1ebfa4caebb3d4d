"""Importing a library without what it imports and seldom uses."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


class LateModule(types.ModuleType):
    """Stands for a module until something in it is asked for, and answers from the real one then."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def late(*names: str) -> Iterator[None]:
    """While it lasts, `import` of `names` costs nothing: the module is loaded when its first attribute is used.

    Great Expectations imports altair and scipy.stats for three expectations out of sixty: 2.4 of its 6 seconds.
    (importlib.util.LazyLoader does not help: on CPython 3.11 `import x` itself asks the module for an attribute.)
    Names that are loaded already stay as they are. Afterwards nothing of it is left in sys.modules.
    """
    placed = [name for name in names if name not in sys.modules]
    for name in placed:
        stand_in = sys.modules[name] = LateModule(name)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(importlib.import_module(parent), leaf, stand_in)
    try:
        yield
    finally:
        for name in placed:
            if isinstance(sys.modules.get(name), LateModule):
                del sys.modules[name]
            parent, _, leaf = name.rpartition(".")
            if parent and isinstance(vars(sys.modules[parent]).get(leaf), LateModule):
                delattr(sys.modules[parent], leaf)
