"""Questions about windows, answered by Spark.

Runs and tiles are sorted by key since `summarize` wrote them, so nothing is left to shuffle. This process cuts them
into parts (`feature_jobs.windows.parts`), and the kernel runs once on each. Spark sees a part as one cell of bytes,
which it passes on as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.spark_session import without_pandas_warning
from feature_jobs.windows.parts import answer, cut, joined, without_content
from feature_jobs.windows.query import Asked, Question
from feature_jobs.windows.rows import Summary

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS_PER_PART = 200_000
PARTS_PER_CORE = 2
_ANSWERS = "part long, question long, answer binary, refused string"
_NAME = b"name"


class SparkWindows:
    """Answers questions with the executors of a session. `num_parts`: of each key set; None: two or more a core."""

    def __init__(self, session: SparkSession, num_parts: int | None = None) -> None:
        self._session, self._num_parts = session, num_parts

    @property
    def rows_at_once(self) -> int:
        """Enough rows that all cores are busy with parts of full size."""
        return PARTS_PER_CORE * self._cores * ROWS_PER_PART

    @property
    def _cores(self) -> int:
        num: int = self._session.sparkContext.defaultParallelism
        return num

    def __call__(self, asked: Asked, questions: Sequence[Question]) -> Iterator[dict[str, Summary]]:
        """See `feature_jobs.windows.query.answers`. Raises BadInputError as it does."""
        num_parts = self._num_parts or max(PARTS_PER_CORE * self._cores, -(-len(asked.times) // ROWS_PER_PART))
        parts = [_bytes(blocks) for blocks in cut(asked, questions, num_parts)]
        # A batch of one row each, because Spark makes a partition of a batch.
        rows = [
            pa.record_batch([[n], pa.array([part], pa.binary())], ["part", "blocks"]) for n, part in enumerate(parts)
        ]
        found = self._run(pa.Table.from_batches(rows), questions).sort_by("part")
        if refused := found["refused"].drop_null().to_pylist():
            raise BadInputError(refused[0])
        for number in range(len(questions)):
            answers = found.filter(pc.equal(found["question"], number))["answer"]
            yield joined(asked, [table for block in answers for table in _tables(block).values()])

    def _run(self, parts: pa.Table, questions: Sequence[Question]) -> pa.Table:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException, PythonException

        try:
            with without_pandas_warning():
                frame = self._session.createDataFrame(parts)
                return frame.mapInArrow(partial(_kernel, without_content(questions)), _ANSWERS).toArrow()
        except PythonException:  # a defect of the kernel
            raise
        except (PySparkException, Py4JError) as error:
            lines = [line for line in str(error).splitlines() if "Exception: " in line] or [type(error).__name__]
            raise RetryLaterError(
                f"Spark gave up on a join of {parts.nbytes >> 20:,} MiB in {self._session.sparkContext.master}:"
                f" {lines[0].strip()[:300]}; see the executors' logs, and give them more memory (docs/spark.md)"
            ) from None


def _kernel(questions: Sequence[Question], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """On an executor: the answers of the parts of a partition."""
    for batch in batches:
        for part, blocks in zip(batch.column("part").to_pylist(), batch.column("blocks"), strict=True):
            try:
                for number, table in enumerate(answer(_tables(blocks), questions)):
                    yield _answer(part, number, _bytes({"": table}), None)
            except RecloopError as error:  # of the data; an error of Python would come back as a stack of Java
                yield _answer(part, None, None, str(error))


def _answer(part: int, number: int | None, answer: bytes | None, refused: str | None) -> pa.RecordBatch:
    columns = {
        "part": pa.array([part], pa.int64()),
        "question": pa.array([number], pa.int64()),
        "answer": pa.array([answer], pa.binary()),
        "refused": pa.array([refused], pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _bytes(tables: Mapping[str, pa.Table]) -> bytes:
    """Tables one after the other, each with its name."""
    sink = pa.BufferOutputStream()
    for name, table in tables.items():
        whole = table.replace_schema_metadata({_NAME: name}).combine_chunks()
        with pa.ipc.new_stream(sink, whole.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(whole)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _tables(cell: pa.BinaryScalar) -> dict[str, pa.Table]:
    """The tables of `_bytes`."""
    found, source = {}, pa.BufferReader(cell.as_buffer())
    while source.tell() < source.size():
        table = pa.ipc.open_stream(source).read_all()
        found[table.schema.metadata[_NAME].decode()] = table
    return found
