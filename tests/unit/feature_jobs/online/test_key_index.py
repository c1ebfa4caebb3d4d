import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.online.key_index import KeyIndex
from feature_jobs.windows.keys import Keys

LEAST, MOST = -(2**63), 2**63 - 1
whole = st.integers(LEAST, MOST)
near = st.builds(lambda base, step: min(max(base + step, LEAST), MOST), st.sampled_from([LEAST, -5, 0, 9, MOST]), whole)
ids = whole | near | st.integers(-40, 40)


def sorted_keys(first: list[int], seconds: list[int] | None) -> Keys:
    if seconds is None:
        return Keys(np.array(sorted(set(first)), np.int64))
    pairs = sorted(set(zip(first, seconds * len(first), strict=False)))
    return Keys(*(np.array(half, np.int64) for half in zip(*pairs, strict=True)))


@given(held=st.lists(ids, min_size=1, max_size=60), asked=st.lists(ids, max_size=40), two=st.booleans())
def test_it_finds_what_a_dictionary_finds(held: list[int], asked: list[int], two: bool) -> None:
    keys = sorted_keys(held, [0, 1, 0] if two else None)
    wanted = [*held, *asked, *range(-20, 20)]
    seconds = [at % 2 for at in range(len(wanted))]
    index = KeyIndex(keys)
    found = index.find(Keys(np.array(wanted), np.array(seconds) if two else None))
    places = {(one, 0 if keys.second is None else keys.second[at]): at for at, one in enumerate(keys.first.tolist())}
    expected = [places.get((one, second if two else 0), -1) for one, second in zip(wanted, seconds, strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize("first", [[], [LEAST], [MOST], [LEAST, MOST], [*range(50), MOST], [LEAST, -1, 0, 1, MOST]])
def test_keys_at_the_ends_and_in_clusters_are_found(first: list[int]) -> None:
    index = KeyIndex(Keys(np.array(first, np.int64)))
    wanted = [LEAST, LEAST + 1, *range(-2, 60), MOST - 1, MOST]
    places = {one: at for at, one in enumerate(first)}
    assert index.find(Keys(np.array(wanted))).tolist() == [places.get(one, -1) for one in wanted]
