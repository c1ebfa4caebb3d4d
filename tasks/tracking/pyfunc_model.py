"""The registered model as code: MLflow runs this file when it loads the model, so no pickle is read.

Beside it lie the export's files (`artifacts/export`) and the few modules that `Scorer` needs (`code/`).

The model has no input schema on purpose: to check one, MLflow rebuilds each column with pandas, which holds integers
with a null beside them as floats, and so merges ids beyond 2**53. Here each column goes to `Scorer` as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext


class RecloopModel(PythonModel):  # type: ignore[misc]
    """Raw feature rows in, a probability per task out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the export's files if they have the digests that they were registered with."""
        from serving.scorer import Scorer

        self.scorer = Scorer.load(context.artifacts["export"], context.model_config["serving_sha256"])
        self.required = context.model_config["required"]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Scores [N, T] of N rows with a column per feature. Other missing columns and missing values count as unknown.

        `model_input` may also be columns by name, or a list of rows, each with values by name: JSON's `inputs`. The
        type hint does not say so, because MLflow would then convert frames to it.
        """
        from feature_jobs.errors import BadInputError

        columns = _columns(model_input)
        if missing := [name for name in self.required if name not in columns]:
            raise _refused(f"feature columns {', '.join(missing)} are missing; add them: no training row was without")
        try:
            scores = self.scorer.score(columns, fill_missing=True)
        except BadInputError as error:  # MLflow's server answers its own errors with 400 and their text
            raise _refused(str(error)) from None
        return pd.DataFrame(scores, index=model_input.index if isinstance(model_input, pd.DataFrame) else None)


def _columns(rows: Any) -> pd.DataFrame | dict[str, list[Any]]:
    """Columns by name, each value as it came. MLflow's server wraps values of JSON in NumPy arrays."""
    if isinstance(rows, pd.DataFrame):
        return rows
    if isinstance(rows, Mapping):
        return {name: _plain_column(column) for name, column in rows.items()}
    if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [_plain(row.get(name)) for row in rows] for name in names}
    raise _refused(f"{type(rows).__name__} is not rows with features by name; give a frame, columns or a list of rows")


def _plain_column(column: Any) -> Any:
    """One value instead of a column stays as it is: `Scorer` refuses it by name."""
    is_one = isinstance(column, str | bytes) or not hasattr(column, "__len__")
    return column if is_one else [_plain(value) for value in column]


def _refused(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


mlflow.models.set_model(RecloopModel())
