"""The registered model as code: MLflow runs this file when it loads the model, so nothing in it is a pickle.

Beside it lie the export's files (`artifacts/export`) and the few modules that `Scorer` needs (`code/`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.pyfunc import PythonModel, PythonModelContext


class RecloopModel(PythonModel):  # type: ignore[misc]
    """Raw feature rows in, a probability per task out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the export's files if they have the digests that they were registered with."""
        from serving.scorer import Scorer

        folder = Path(context.artifacts["export"])
        self.scorer = Scorer.load(folder, context.model_config["serving_sha256"])
        self.schema = pq.read_schema(folder / "reference.parquet")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Scores [N, T] of N rows with a column per feature; missing columns and values count as unknown."""
        columns = [field.name for field in self.schema if "." not in field.name]
        table = pa.table({name: self._column(model_input, name) for name in columns})
        return pd.DataFrame(self.scorer.score(table), index=model_input.index)

    def _column(self, rows: pd.DataFrame, name: str) -> pa.Array:
        """A column in the type that it was exported with: pandas turns whole numbers with gaps into floats."""
        kind = self.schema.field(name).type
        if name not in rows:
            return pa.nulls(len(rows), kind)
        values = rows[name]
        if pa.types.is_list(kind):
            cells = [list(cell) if isinstance(cell, list | tuple | np.ndarray) else None for cell in values]
            return pa.array(cells, kind)
        return pa.array(values, kind, from_pandas=True)


mlflow.models.set_model(RecloopModel())
