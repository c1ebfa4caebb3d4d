"""Run by deploy in a fresh process, `python -I load_check.py MODEL_URI REFERENCE`: loads, scores, compares, tells.

Imports nothing of this project: what is not in the registered model must not be needed to serve it.
"""

import json
import sys

BUSY = 6


def main(model_uri: str, reference: str) -> dict[str, object]:
    """{"rows", "max_difference": {task: number}, "own_code": whether the scorer came from the model itself}."""
    import mlflow.pyfunc
    import numpy as np
    import pyarrow.parquet as pq

    model = mlflow.pyfunc.load_model(model_uri)
    table = pq.read_table(reference)
    features = [name for name in table.column_names if "." not in name]
    scores = model.predict(table.select(features).to_pandas(integer_object_nulls=True))
    differences = {
        task: float(np.abs(scores[task].to_numpy() - table[f"int8.{task}"].to_numpy()).max()) for task in scores.columns
    }
    source = str(sys.modules["serving.scorer"].__file__)
    own = any(source.startswith(path) for path in sys.path if path.endswith("code"))
    return {"rows": len(table), "max_difference": differences, "own_code": own}


if __name__ == "__main__":
    try:
        print(json.dumps(main(*sys.argv[1:])))
    except Exception as error:
        away = any(sign in str(error) for sign in ("database is locked", "Connection refused", "Max retries exceeded"))
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BUSY if away else 1)
