"""The engine and the step image, created once for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.images import Parts, build
from tests.containers.engine import TAG, started_engine


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
