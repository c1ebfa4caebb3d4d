"""Which source files decide what a step does: its module and all of the project that it imports, found by reading
the imports. Their digest is stamped on every output, and dvc.yaml names them as dependencies."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("feature_jobs", "models", "tasks", "serving")
# Plumbing that runs every step and decides no step's output.
PLUMBING = (
    "tasks/store.py",
    "tasks/chain.py",
    "tasks/runner.py",
    "tasks/steps.py",
    "tasks/contract.py",
    "tasks/champion.py",
)


def step_files(step: str) -> list[str]:
    """Source files of a step, relative to the project, sorted."""
    return sorted(imported_files(f"tasks/{step}.py") - set(PLUMBING))


def imported_files(name: str) -> set[str]:
    """A source file and all of the project that it imports, directly or not; relative to the project."""
    seen: set[Path] = set()
    waiting = [ROOT / name]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += _imports(file)
    return {file.relative_to(ROOT).as_posix() for file in seen}


@functools.cache
def code_digest(step: str) -> str:
    """One digest of those files' names and content."""
    digest = hashlib.sha256()
    for name in step_files(step):
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _imports(file: Path) -> list[Path]:
    """Files of the project that a file imports, wherever in it the import stands."""
    found: list[Path] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found += [path for alias in node.names for path in _files(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += _files(node.module)
            found += [path for alias in node.names for path in _files(f"{node.module}.{alias.name}")]
    return found


def _files(module: str) -> list[Path]:
    if module.split(".", maxsplit=1)[0] not in ROOMS:
        return []
    base = ROOT.joinpath(*module.split("."))
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
