"""Run by deploy in a fresh process: `python -I load_check.py`. Loads a registered model, scores, compares.

Reads one line of JSON from stdin, {"model": folder of the registered version, "reference": Parquet file}, and writes
one to stdout. MLflow is imported before stdin is read, so that deploy can fetch the model at the same time.
Imports nothing of this project: serving a registered model must need nothing but its own files.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
from pathlib import Path


def main(model_folder: str, reference: str) -> dict[str, object]:
    """{"rows", "max_difference": {task: number}, "own_code": True if the scorer came from the model itself}."""
    import mlflow.pyfunc
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without the comparison of installed packages, which takes half a second: this environment is the step's own.
    model = mlflow.pyfunc.load_model(model_folder, suppress_warnings=True)
    table = pq.read_table(reference)
    features = [name for name in table.column_names if "." not in name]
    exact = {pa.int64(): pd.Int64Dtype()}  # else pandas holds integers with nulls as floats
    scores = model.predict(table.select(features).to_pandas(types_mapper=exact.get))
    differences = {
        task: float(np.abs(scores[task].to_numpy() - table[f"int8.{task}"].to_numpy()).max()) for task in scores.columns
    }
    if not np.isfinite(list(differences.values())).all():
        raise ValueError("its scores are not finite")
    source = Path(str(sys.modules["serving.scorer"].__file__)).resolve()
    own = source.is_relative_to(Path(model_folder).resolve())
    return {"rows": len(table), "max_difference": differences, "own_code": own}


def prepare() -> None:
    """Loads the libraries that the model needs, while deploy fetches it."""
    for name in ("mlflow.pyfunc", "numba", "onnxruntime", "pandas", "pyarrow", "scipy.linalg"):
        with contextlib.suppress(ImportError):  # a library that is really missing is reported when the model is loaded
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        import numba

        # numba fills its tables of known functions when it first compiles; loading its cached code needs them too.
        numba.njit(lambda x: x + 1)(0)


if __name__ == "__main__":
    gc.disable()  # a fifth of the time of the imports, in a process that ends soon
    prepare()
    try:
        asked = json.loads(sys.stdin.readline())
        print(json.dumps(main(asked["model"], asked["reference"])), flush=True)
        os._exit(0)  # deploy waits for the end, and Python would take half a second to unload all this
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
