"""Rows of users in a checkpoint's embedding tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_jobs.schema import Scenario
from feature_jobs.schema.features import EmbeddedFeature
from feature_jobs.transforms import hash_ids
from models.checkpoints.checkpoint import EMBEDDINGS
from models.checkpoints.tensor_files import read_rows


def num_user_rows(scenario: Scenario, folder: Path, users: Sequence[int | str]) -> int:
    """How many embedding rows of these users a checkpoint has, in the tables of features that are the user's id itself.

    Crosses with the user's id are not looked up: they get their rows from the same events.
    """
    keys = np.concatenate([np.empty(0, np.int64), *(hash_ids(pa.array(users), name) for name in _tables(scenario))])
    return sum(int(np.isin(part, keys).sum()) for _, part in read_rows(folder / EMBEDDINGS, "keys"))


def _tables(scenario: Scenario) -> set[str]:
    """Tables whose ids are users."""
    user = scenario.data.user
    named = {name: f for name, f in scenario.features.items() if isinstance(f, EmbeddedFeature)}
    return {getattr(f, "table", None) or name for name, f in named.items() if (getattr(f, "of", None) or name) == user}
