"""A shop with two versions, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.serving.shop import Shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Its first version is the champion."""
    from tests.unit.serving.shop import shared_shop  # imports torch

    return shared_shop(tmp_path_factory)
