"""Source files that decide a step's output: its module and all of the project that it imports, found by reading the
imports, with the data files (templates) beside them. Their digest is stamped on every output, and dvc.yaml names
them as dependencies."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("feature_jobs", "models", "tasks", "serving")
CODE = (".py", ".pyc")
_ROOM = rf"(?:{'|'.join(ROOMS)})\b[\w.]*"
# Not by `ast`, which took a fifth of a short step's time. A test compares the two.
_IMPORT = re.compile(rf"^[ \t]*(?:import|from) ({_ROOM})(?: import (\([^)]*\)|.*))?", re.MULTILINE)
_NO_NAME = re.compile(r"#.*|\bas \w+|[(),]")
# These run every step and decide no step's output.
PLUMBING = ("tasks/store/", "tasks/run/", "tasks/steps.py", "tasks/contract.py")


def step_files(step: str) -> list[str]:
    """Source files of a step, relative to the project, sorted."""
    sources = imported_files(f"tasks/{step}.py")
    packages = {Path(name).parent for name in sources if name.endswith("/__init__.py")}
    found = sources | {file for package in packages for file in _data_files(ROOT / package)}
    return sorted(name for name in found if not name.startswith(PLUMBING))


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
        # The zero bytes mark the ends: without them, text moved from one file to the next would change nothing.
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _data_files(package: Path) -> set[str]:
    """Files of a package that are not Python, also those in its folders that are not packages."""
    found: set[str] = set()
    for path in package.iterdir():
        if path.is_dir() and not (path / "__init__.py").exists() and path.name != "__pycache__":
            found |= _data_files(path)
        elif path.is_file() and path.suffix not in CODE and not path.name.startswith("."):
            found.add(path.relative_to(ROOT).as_posix())
    return found


@functools.cache
def _imports(file: Path) -> list[Path]:
    """Files of the project that a file imports, also inside its functions."""
    found: list[Path] = []
    for module, names in _IMPORT.findall(file.read_text("utf-8")):
        # A name imported from a package may be a module of it.
        for name in (module, *(f"{module}.{name}" for name in _NO_NAME.sub(" ", names).split())):
            found += _files(name)
    return found


def _files(module: str) -> list[Path]:
    """The file of a module of the project, and those of the packages around it, which Python runs first."""
    parts = module.split(".")
    if parts[0] not in ROOMS:
        return []
    packages = [ROOT.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    file = ROOT.joinpath(*parts).with_suffix(".py")
    return [path for path in (*packages, file) if path.is_file()]
