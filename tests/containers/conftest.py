"""The engine and the step image, made once for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers.engine import TAG, started_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """Address of a running engine."""
    with started_engine() as address:
        yield address


@pytest.fixture(scope="session")
def step_image(engine: str) -> str:
    """Name of the step image, built from this checkout."""
    from infra.images import Parts, build

    return build("step", Parts.local(), TAG)
