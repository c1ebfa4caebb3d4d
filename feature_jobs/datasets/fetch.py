"""Brings the data that a scenario names in `data.fetch` to its folder: downloaded or generated, checked, then moved
in whole. A second call finds it there. Nothing fetched is ever part of this project."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from feature_jobs.checks.problems import closest
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario

_PACKAGE = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_MEMBERS = "recbole/dataset_example/ml-100k/"
_MOVIELENS = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
_MOVIELENS_TERMS = (
    "MovieLens 100K is GroupLens' (University of Minnesota): for research, not to be passed on. "
    "Cite Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015."
)


def fetch(scenario: Scenario, folder: Path, options: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Brings the data to `folder`; yields lines for a person. `options` are settings of a generator.

    Raises BadInputError for a name that is not known and for data that differs from the published data,
    RetryLaterError where the network fails.
    """
    name, place = scenario.data.fetch, f"{scenario.place_of('data', 'fetch')}: data.fetch"
    if name is None:
        raise BadInputError(f"{place}: missing, so there is nothing to fetch; put the files into {folder} yourself")
    if name not in _FETCHERS:
        raise BadInputError(f"{place}: {name!r}: is not a known data set; {closest(name, _FETCHERS)}")
    if options and name != "synthetic":
        raise BadInputError(f"{place}: {name!r} takes no options ({', '.join(options)}); leave --option out")
    try:
        yield from _FETCHERS[name](scenario, folder, dict(options or {}))
    except OSError as error:
        raise BadInputError(
            f"{error.filename or folder}: {error.strerror or error}; check space and permissions"
        ) from None


def _movielens(_scenario: Scenario, folder: Path, _options: dict[str, Any]) -> Iterator[str]:
    if all((folder / name).is_file() for name in _MOVIELENS):
        yield f"{folder}: MovieLens 100K is there"
        return
    folder.mkdir(parents=True, exist_ok=True)
    # In the folder itself: a rename moves a file whole only within one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        wheel = _pip_download(_PACKAGE, Path(scratch))
        unpack_movielens(wheel, folder, Path(scratch))
    yield f"{folder}: {', '.join(_MOVIELENS)}, out of {_PACKAGE}"
    yield _MOVIELENS_TERMS


def unpack_movielens(wheel: Path, folder: Path, scratch: Path, sha256: str = _WHEEL_SHA256) -> None:
    """Moves the three files out of the wheel into `folder`. Raises BadInputError where it is another file."""
    # A package index is not trusted: any mirror that pip is configured for may answer.
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise BadInputError(f"{wheel.name}: sha256 is {found}, not {sha256}; not unpacked: ask who serves this package")
    with zipfile.ZipFile(wheel) as archive:
        for name in _MOVIELENS:
            (scratch / name).write_bytes(archive.read(_MEMBERS + name))
    for name in _MOVIELENS:
        (scratch / name).replace(folder / name)  # all are unpacked by then: no half data set stays


def _pip_download(package: str, scratch: Path) -> Path:
    """The wheel of a package, downloaded and not installed."""
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:  # uv makes environments without pip
        other = shutil.which("pip3") or shutil.which("pip")
        if other is None:
            raise BadInputError(f"no pip to download {package} with; run: {sys.executable} -m ensurepip")
        pip = [other]
    # No dependencies, as torch alone is gigabytes; wheels only, as pip runs the code of a source package.
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(scratch)]
    try:
        command = [*pip, "download", *options, package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        raise RetryLaterError(f"pip download {package}: not done after 10 minutes; try again") from None
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else "no wheel was downloaded"
        raise RetryLaterError(f"pip download {package}: {reason[:200]}; check the network and try again")
    return wheels[0]


def _kuairand(_scenario: Scenario, folder: Path, _options: dict[str, Any]) -> Iterator[str]:
    from feature_jobs.datasets.kuairand import bring

    yield from bring(folder)


def _synthetic(scenario: Scenario, folder: Path, options: dict[str, Any]) -> Iterator[str]:
    from feature_jobs.datasets.synthetic import generate

    yield from generate(scenario, folder, options)


def _company(scenario: Scenario, folder: Path, _options: dict[str, Any]) -> Iterator[str]:
    from feature_jobs.datasets.company import generate

    yield from generate(scenario, folder)


_FETCHERS: dict[str, Callable[[Scenario, Path, dict[str, Any]], Iterator[str]]] = {
    "movielens-100k": _movielens,
    "kuairand-pure": _kuairand,
    "synthetic": _synthetic,
    "company": _company,
}
