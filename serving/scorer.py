"""Scores raw feature rows with an exported model: ONNX Runtime and the transforms that training used, nothing else.

    scorer = Scorer.load("export/")
    scorer.score(frame)  # {"is_click": float32 [N], ...}

Imports neither torch nor mlflow, so that it starts in well under a second.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.control_records import open_regular
from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.exact_columns import exact_column, finite_column, refuse_flags, vector_column
from feature_jobs.transforms import Layout
from models.runtime.files import MODEL_FILE, REFERENCE_FILE, SERVING_FILE, TABLE_FILE
from models.runtime.frozen_tables import FrozenTable
from models.runtime.onnx_model import OnnxModel, ServingFacts, read_serving
from models.runtime.sides import Fill, Sides

if TYPE_CHECKING:
    import pandas as pd

    Rows: TypeAlias = pa.Table | pd.DataFrame | Mapping[str, Any]

_MOST_SIDES = 64


class Scorer:
    """An exported model, checked and loaded. `facts` is its serving.json, `types` the type of each feature's column."""

    def __init__(self, model: OnnxModel, facts: ServingFacts, reference: pa.Table) -> None:
        self.model, self.facts = model, facts
        self._sides: dict[tuple[frozenset[str], frozenset[str]], Sides] = {}
        # Types of the rows that it was exported with: the layout knows what a feature is for, not its type.
        self.types = {name: reference.schema.field(name).type for name in model.layout.columns}
        self._widths = model.layout.widths
        self._numbers = {number.column for number in model.layout.numbers} - self._widths.keys()
        # The join makes ids 1 and 0 of true and false, so only the values show which features may be given as flags.
        no_ids = self._numbers | self._widths.keys()
        self._flags = {name for name in self.types.keys() - no_ids if _has_only_flags(reference[name])}

    @classmethod
    def load(cls, folder: str | Path, digest: str | None = None, *, threads: int = 1) -> Scorer:
        """Loads an export folder. `digest` is the SHA-256 that serving.json must have.

        Raises CorruptError where a file is missing or differs from its digest in serving.json.
        """
        folder = Path(folder)
        # First: files are compared with their digests before any of them is parsed.
        facts = read_serving(folder, digest)
        table = FrozenTable.load(folder / TABLE_FILE)
        try:
            layout = Layout.from_json(facts["layout"], str(folder / SERVING_FILE))
            tasks = tuple(facts["tasks"])
            with open_regular(folder / REFERENCE_FILE) as file:
                reference = pq.read_table(file, columns=list(layout.columns))
            return cls(OnnxModel(folder / MODEL_FILE, layout, tasks, table, threads=threads), facts, reference)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{folder}: not a readable export ({error}); fetch it again") from None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it scores."""
        return self.model.tasks

    @property
    def columns(self) -> list[str]:
        """The feature columns that it reads."""
        return list(self.types)

    def score(self, rows: Rows, *, fill_missing: bool = False) -> dict[str, npt.NDArray[np.float32]]:
        """Probabilities [N] of each task.

        `rows`: an Arrow table, a pandas frame, or a column (NumPy, pandas, Arrow, list) by name. Columns are named by
        feature; others are ignored. Integer ids stay exact in all of these, with nulls too. `fill_missing`: a feature
        without a column is null in all rows.

        Raises BadInputError for a column that is missing or of the wrong type, an id that is not exact, and an infinite
        number.
        """
        scores_NT = self.model.score(self._table(rows, fill_missing=fill_missing))
        return {task: scores_NT[:, t] for t, task in enumerate(self.tasks)}

    def score_request(
        self, columns: Mapping[str, pa.Array], num_items: int, fill: Fill | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The same of the items of one request, whose features come from the request path: a column has a value for
        each of N items, or one for all. `fill` writes the features that have no column."""
        common = frozenset(name for name, column in columns.items() if len(column) == 1)
        kept = frozenset(self.types.keys() - columns.keys())
        if (common, kept) not in self._sides:
            # Which columns come with each item is the client's choice: as many forms as there are subsets of them.
            if len(self._sides) == _MOST_SIDES:
                self._sides.clear()
            self._sides[common, kept] = Sides(self.model, common, kept)
        scores_NT = self._sides[common, kept].score(columns, num_items, fill)
        return {task: scores_NT[:, t] for t, task in enumerate(self.tasks)}

    def _table(self, rows: Rows, *, fill_missing: bool) -> pa.Table:
        names = list(rows.column_names if isinstance(rows, pa.Table) else rows.keys())
        if repeated := [name for name in self.columns if names.count(name) > 1]:
            raise BadInputError(
                f"feature column {repeated[0]!r} comes {names.count(repeated[0])} times; keep one of them"
            )
        columns = {name: self._column(rows[name], name) for name in self.columns if name in names}
        if fill_missing:
            # A mapping's length is its number of columns.
            num_rows = len(next(iter(columns.values()), ())) if isinstance(rows, Mapping) else len(rows)
            columns |= {name: pa.nulls(num_rows, self.types[name]) for name in self.columns if name not in columns}
        try:
            return pa.table(columns)
        except pa.ArrowInvalid as error:
            raise BadInputError(f"feature columns differ in length ({error}); give one value per row in each") from None

    def _column(self, values: Any, name: str) -> pa.Array:
        """A column as Arrow: finite numbers, and ids in the type that the model was trained with."""
        is_number = name in self._numbers
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            values = _as_arrow(values, name, is_number=is_number)
        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if is_number:
            return finite_column(array, name)
        if name in self._widths:
            return vector_column(array, name, self._widths[name])
        if name not in self._flags:
            refuse_flags(array, name)
        return exact_column(array, name, self.types[name])


def _has_only_flags(values: pa.ChunkedArray) -> bool:
    """Says if all ids are 1 and 0 (or unknown), as those of a bool column are."""
    flat = pc.list_flatten(values) if pa.types.is_nested(values.type) else values
    return set(pc.unique(flat).to_pylist()) <= {0, 1, None}


def _as_arrow(values: Any, name: str, *, is_number: bool) -> pa.Array | pa.ChunkedArray:
    """A column of Python, NumPy or pandas values as Arrow, whose types it must fit."""
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise BadInputError(f"feature column {name!r} is {values!r}, one value; give a list with a value per row")
    try:
        return pa.array(values, from_pandas=True)  # NaN is null, as pandas means it
    except OverflowError:
        row, value = _beyond_64_bits(values)
        if not is_number:
            raise BadInputError(
                f"feature column {name!r}, row {row}: {value} is beyond 64 bits; give ids from -2**63 to 2**63 - 1"
            ) from None
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise BadInputError(
            f"feature column {name!r}, row {_first_of_another_type(values)}: mixes types: {error}; give one type a"
            " column"
        ) from None
    try:
        return pa.array([float(value) if isinstance(value, int) else value for value in values], from_pandas=True)
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        raise BadInputError(f"feature column {name!r}, row {row}: {error}; give numbers of 64 bits") from None


def _first_of_another_type(values: Any) -> int:
    """The first row that Arrow has no common type for with the rows before it."""
    column = list(values)

    def fails(row: int) -> bool:
        try:
            pa.array(column[: row + 1], from_pandas=True)
        except (pa.ArrowException, ValueError, TypeError):
            return True
        return False

    # Longer beginnings of the column fail too, so a binary search finds it: a batch can have 100,000 rows.
    return min(bisect.bisect_left(range(len(column)), True, key=fails), len(column) - 1)


def _beyond_64_bits(values: Any) -> tuple[int, int]:
    """The first row with an integer that Arrow has no type for, and this integer."""
    for row, value in enumerate(values):
        for element in value if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]:
            if isinstance(element, int) and not -(2**63) <= element < 2**63:
                return row, element
    return 0, 2**63
