"""Scores raw feature rows with an exported model: ONNX Runtime and the transforms that training used, nothing else.

    scorer = Scorer.load("export/")
    scorer.score(frame)  # {"is_click": float32 [N], ...}

Imports neither torch nor mlflow, so that it starts in well under a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pyarrow as pa

from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.transforms import Layout
from models.runtime.frozen_tables import FrozenTable
from models.runtime.onnx_model import GRAPH_FILE, TABLE_FILE, Graph, read_serving

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class Scorer:
    """An exported model, checked and loaded. `facts` is its serving.json."""

    def __init__(self, graph: Graph, facts: dict[str, Any]) -> None:
        self._graph, self.facts = graph, facts

    @classmethod
    def load(cls, folder: str | Path, digest: str | None = None, *, threads: int = 1) -> Scorer:
        """Loads an export folder. `digest` is the SHA-256 that serving.json must have.

        Raises CorruptError where a file is missing or differs from its digest in serving.json.
        """
        folder = Path(folder)
        facts = read_serving(folder, digest)
        try:
            layout, tasks = Layout.from_json(facts["layout"]), tuple(facts["tasks"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{folder}: not a readable export ({error}); fetch it again") from None
        table = FrozenTable.load(folder / TABLE_FILE)
        return cls(Graph(folder / GRAPH_FILE, layout, tasks, table, threads=threads), facts)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it scores."""
        return self._graph.tasks

    @property
    def columns(self) -> list[str]:
        """The feature columns that it reads."""
        return self._graph.layout.columns

    def score(self, rows: pa.Table | pd.DataFrame) -> dict[str, npt.NDArray[np.float32]]:
        """Probabilities [N] of each task. Columns are named by feature; those that no feature names are ignored.

        Raises BadInputError for a column that is missing or of the wrong type.
        """
        scores_NT = self._graph.score(self._table(rows))
        return {task: scores_NT[:, t] for t, task in enumerate(self.tasks)}

    def _table(self, rows: pa.Table | pd.DataFrame) -> pa.Table:
        if isinstance(rows, pa.Table):
            return rows
        frame = rows[[name for name in self.columns if name in rows.columns]]
        try:
            return pa.Table.from_pandas(frame, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise BadInputError(f"a feature column mixes types: {error}; give one type a column") from None
