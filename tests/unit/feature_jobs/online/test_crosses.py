"""The texts of crosses in a request: the kernels give the bytes of Arrow, which the daily join calls."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.expressions.vectors import repeated
from feature_jobs.joins import values
from feature_jobs.online.crosses import joined_texts

LEAST, MOST = -(2**63), 2**63 - 1
whole = st.none() | st.integers(LEAST, MOST) | st.sampled_from([LEAST, LEAST + 1, -10, -9, -1, 0, 9, 10, 99, MOST])
text = st.none() | st.text(max_size=6)


@st.composite
def columns(draw: st.DrawFn) -> list[pa.Array]:
    """Parts of a cross, some of them slices, or a single value for all rows."""
    num, found = draw(st.sampled_from([0, 1, 2, 5])), []
    for is_single in [False, *draw(st.lists(st.booleans(), min_size=1, max_size=3))]:
        kind, one = draw(st.sampled_from([(pa.int64(), whole), (pa.string(), text)]))
        one = draw(st.sampled_from([one, one.filter(lambda value: value is not None)]))
        size, skipped = 1 if is_single else num, draw(st.integers(0, 2))
        found.append(pa.array(draw(st.lists(one, min_size=size + skipped, max_size=size + skipped)), kind)[skipped:])
    return draw(st.permutations(found))


@settings(max_examples=60, deadline=None)
@given(columns())
def test_they_are_those_of_the_join(parts: list[pa.Array]) -> None:
    num = next((len(part) for part in parts if len(part) != 1), 1)
    whole_parts = [repeated(part, num) for part in parts]
    assert joined_texts(parts).equals(values.joined_texts(whole_parts))
    found = values.cross(parts, "pair", joined_texts)
    assert found.equals(values.cross(whole_parts, "pair", values.joined_texts))
    found.validate(full=True)
