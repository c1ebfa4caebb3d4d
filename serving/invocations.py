"""MLflow's way to ask: rows of features by name as JSON, predictions as rows. The slow and compatible way."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa

from feature_jobs.errors import BadInputError
from serving.release import Loaded

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def answer(serving: Loaded, kind: str, body: bytes, most: int) -> bytes:
    """The body of the answer to a body of the type `kind`: {"predictions": [{task: score, …}, …]}.

    Raises BadInputError for a body of another form, more than `most` rows, and features of another type.
    """
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise BadInputError(f"content-type: {kind[:60]!r} is not read; send application/json")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"the body is not JSON ({error}); send one of {', '.join(_FORMS)}") from None
    table = pa.table(_columns(document))
    if table.num_rows > most:
        raise BadInputError(f"the body has {table.num_rows:,} rows; give at most {most:,} a request")
    if not set(table.column_names) & set(serving.columns):
        raise BadInputError(f"the body has no feature; give some of {', '.join(serving.columns)}")
    scores = serving.score_rows(table)
    rows = [dict(zip(scores, row, strict=True)) for row in zip(*(v.tolist() for v in scores.values()), strict=True)]
    return orjson.dumps({"predictions": rows})


def _columns(document: Any) -> dict[str, pa.Array]:
    forms = [name for name in _FORMS if isinstance(document, dict) and name in document]
    if len(forms) != 1:
        raise BadInputError(f"the body has {len(forms)} of {', '.join(_FORMS)}; give one of them")
    (form,) = forms
    given = document[form]
    if form == "dataframe_split":
        if not isinstance(given, dict) or not all(isinstance(given.get(part), list) for part in ("columns", "data")):
            raise BadInputError(f"{form}: give an object with columns and data, both lists")
        names = given["columns"]
        if not all(isinstance(row, list) and len(row) == len(names) for row in given["data"]):
            raise BadInputError(f"{form}.data: each row needs {len(names)} values, one for each of columns")
        columns = {str(name): [row[at] for row in given["data"]] for at, name in enumerate(names)}
    elif isinstance(given, dict):
        columns = {str(name): column if isinstance(column, list) else [column] for name, column in given.items()}
    elif isinstance(given, list) and all(isinstance(row, dict) for row in given):
        names = list(dict.fromkeys(name for row in given for name in row))
        columns = {str(name): [row.get(name) for row in given] for name in names}
    else:
        raise BadInputError(f"{form}: give rows with features by name, or columns by name")
    if len({len(column) for column in columns.values()}) > 1:
        raise BadInputError(f"{form}: the columns differ in length; give one value a row in each")
    found = {}
    for name, column in columns.items():
        try:
            found[name] = pa.array(column)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise BadInputError(f"{name}: {error}; give values of one type") from None
    return found
