"""The engine and the step image, created once for all tests of a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.images import Parts, build
from tasks.run.container import ContainerSettings
from tests.containers.engine import TAG, await_none, containers, docker, started_engine
from tests.paths import ROOT
from tests.small import write_small


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """Address of a running engine."""
    with started_engine() as address:
        yield address


@pytest.fixture(scope="session")
def parts(engine: str) -> Parts:
    """The base images that images are built from, in the engine."""
    return Parts.local()


@pytest.fixture(scope="session")
def step_image(parts: Parts) -> str:
    """Name of the step image, built from this checkout."""
    return build("step", parts, TAG)


@pytest.fixture(scope="session")
def probe(step_image: str) -> ContainerSettings:
    """A step image in whose place a probe runs."""
    docker("build", "--tag", f"probe/step:{TAG}", str(ROOT / "tests" / "containers" / "probe"), env={**os.environ})
    return ContainerSettings("probe", TAG, "host")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write_small(tmp_path / "shop", num_days=2)


@pytest.fixture
def none_left(engine: str) -> Iterator[None]:
    """Checks that no container of a step stays, after any end of it."""
    yield
    try:
        await_none()
    finally:
        docker("rm", "--force", *containers(), check=False)  # else the next test would fail too
