"""Answers of parts, in this process, compared with the answer to all asking rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from feature_jobs.windows.parts import answer, cut, joined, without_content
from feature_jobs.windows.query import Asked, Question, answers
from feature_jobs.windows.rows import Column, Summary


class InParts:
    """Answers in `num_parts`, all questions of the same asking rows together, and asserts that nothing differs."""

    rows_at_once = 1 << 18

    def __init__(self, num_parts: int) -> None:
        self._num_parts = num_parts
        self._times: np.ndarray = np.zeros(0)
        self._questions: list[Question] = []
        self.compared = 0

    def __call__(self, asked: Asked, questions: Sequence[Question]) -> Iterator[dict[str, Summary]]:
        if not np.array_equal(self._times, asked.times):
            self._times, self._questions = asked.times, []
        self._questions += questions
        together = self._questions
        parts = [list(answer(blocks, without_content(together))) for blocks in cut(asked, together, self._num_parts)]
        found = [joined(asked, tables) for tables in zip(*parts, strict=True)]
        for one, whole in zip(found, answers(asked, together), strict=True):
            assert {name: list(summary) for name, summary in one.items()} == {n: list(s) for n, s in whole.items()}
            for name, summary in one.items():
                for column, values in summary.items():
                    assert is_same(values, whole[name][column]), (name, column)
                    self.compared += len(values)
        yield from found[-len(questions) :]


def is_same(one: Column, other: Column) -> bool:
    if isinstance(one, pa.Array):
        return isinstance(other, pa.Array) and one.type == other.type and one.equals(other)
    return one.dtype == other.dtype and np.array_equal(one, other)
