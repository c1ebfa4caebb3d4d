"""Rows of users in a checkpoint's embedding tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.transforms import hash_ids
from models.checkpoints.checkpoint import EMBEDDINGS
from models.checkpoints.tensor_files import read_rows


def ids_with_rows(folder: Path, ids: Sequence[int | str], tables: Iterable[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Finds the ids that have an embedding row in a checkpoint, as a mask for each of the tables.

    Crosses with an id are not looked up: they get their rows from the same events.
    """
    keys = {table: hash_ids(pa.array(ids), table) for table in tables}
    found = {table: np.zeros(len(ids), bool) for table in keys}
    for _, part in read_rows(folder / EMBEDDINGS, "keys"):
        for table, wanted in keys.items():
            found[table] |= np.isin(wanted, part)
    return found
