"""The samples of a day as validation reads them: all rows of a small day, a sample of a large one.

A large day has more than `SAMPLE_ROWS` rows. Its file is read once, a row group at a time, so memory does not grow with
the day. Of each k rows one is kept, drawn with a fixed seed: rows from all of the day, and the same each time. (Every
k-th row would not do, as the rows of requests may repeat with the same period.) The sample may miss the one value of a
column that is wrong. So beside it are kept the smallest and the largest value of all rows, a null where there is one,
and all values of a column that has few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.schema import Scenario
from feature_jobs.schema.files import NEGATIVE, SAMPLES_FILE

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

SAMPLE_ROWS = 500_000  # a share of a sample this large is within 0.2 percent points of that of the day
FEW_VALUES = 1_000


@dataclass(frozen=True)
class DaySamples:
    """R rows of a day of `num_rows`.

    `frame`: plain columns as they are, list columns as NAME.length. `lists`: the columns of features of kind ids, in
    the frame's order. `extremes`: values of a column that the sample may lack; empty where the frame is the whole day.
    """

    file: Path
    num_rows: int
    frame: pd.DataFrame
    lists: dict[str, pa.ChunkedArray]
    extremes: dict[str, pd.Series[Any]] = field(default_factory=dict)

    @property
    def is_sampled(self) -> bool:
        """Says if rows were left out."""
        return len(self.frame) < self.num_rows

    def whole(self, columns: Sequence[str]) -> pd.DataFrame:
        """All rows of some columns. Of a large day each costs 8 bytes a row."""
        if not self.is_sampled:
            return self.frame[list(columns)]
        import pyarrow.parquet as pq

        stored = [name.removesuffix(".length") for name in columns]
        frame: pd.DataFrame = _lengths(pq.read_table(self.file, columns=stored)).to_pandas()
        return frame[list(columns)]

    def shown(self, columns: Sequence[str]) -> pd.DataFrame:
        """The same without the rows that negative sampling added."""
        if NEGATIVE not in self.frame.columns:
            return self.whole(columns)
        frame = self.whole([*columns, NEGATIVE])
        return frame.loc[~frame[NEGATIVE].astype(bool), list(columns)]

    def with_extremes(self, column: str) -> pd.DataFrame:
        """The column alone, with the values that its rows in the sample may lack."""
        import pandas as pd

        if not self.is_sampled:
            return self.frame[[column]]
        return pd.concat([self.frame[[column]], self.extremes[column].to_frame(column)], ignore_index=True)


def read_samples(samples: Path, scenario: Scenario, sample_rows: int = SAMPLE_ROWS) -> DaySamples:
    """Reads the day; of a day with more than `sample_rows` rows a sample of at most that many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = samples / SAMPLES_FILE
    lists = [name for name, feature in scenario.features.items() if feature.kind == "ids"]
    with pq.ParquetFile(file) as parquet:
        num_rows = parquet.metadata.num_rows
        if num_rows <= sample_rows:
            table, extremes = parquet.read(), {}
        else:
            wanted_S, seen = drawn_rows(num_rows, sample_rows), 0
            kept, found = list[pa.Table](), dict[str, _Extremes]()
            # By row groups, which are small: the reader of batches takes twice the time for them.
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group)
                kept.append(rows.take(wanted_S[(wanted_S >= seen) & (wanted_S < seen + len(rows))] - seen))
                lengths = _lengths(rows)
                for name in lengths.column_names:
                    found.setdefault(name, _Extremes()).add(lengths[name])
                seen += len(rows)
            table = pa.concat_tables(kept)
            extremes = {name: one.values() for name, one in found.items()}
    return DaySamples(
        file,
        num_rows,
        _lengths(table).to_pandas(),
        {name: table[name] for name in lists},
        {name: values.to_pandas() for name, values in extremes.items()},
    )


def drawn_rows(num_rows: int, sample_rows: int) -> NDArray[np.int64]:
    """One row of each block of as many as make a sample of at most `sample_rows`, in order."""
    import numpy as np

    step = max(1, -(-num_rows // sample_rows))
    starts = np.arange(0, num_rows, step)
    drawn: NDArray[np.int64] = starts + np.random.default_rng(0).integers(0, step, len(starts))
    return np.minimum(drawn, num_rows - 1)


def _lengths(table: pa.Table) -> pa.Table:
    """The table with the length of each list: Great Expectations compares plain values, and the length is what can be
    wrong with a list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {}
    for name in table.column_names:
        values = table[name]
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            columns[f"{name}.length"] = pc.list_value_length(values)
        else:
            columns[name] = values
    return pa.table(columns)


class _Extremes:
    """Values of a column, collected from row group to row group."""

    def __init__(self) -> None:
        self._kept: pa.Array | None = None
        self._few = True

    def add(self, column: pa.ChunkedArray) -> None:
        """Takes the values of some rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        whole = column.combine_chunks()
        values = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
        # Floats are rarely few, and looking for their distinct values is the dearest part.
        if self._few and not pa.types.is_floating(values.type):
            values = pc.unique(values if self._kept is None else pa.concat_arrays([self._kept, values]))
            self._few = len(values) <= FEW_VALUES
            if self._few:
                self._kept = values
                return
        elif self._kept is not None:
            values = pa.concat_arrays([self._kept, values])
        self._kept = _edges(values)

    def values(self) -> pa.Array:
        """The smallest and the largest value, a null, or all values where they are few."""
        return self._kept


def _edges(values: pa.Array) -> pa.Array:
    """The smallest and the largest value, and a null where there is one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    edges = pc.min_max(values)
    found = [edges["min"], edges["max"], *([None] if values.null_count else [])]
    return pa.array([one.as_py() if isinstance(one, pa.Scalar) else one for one in found], values.type)
