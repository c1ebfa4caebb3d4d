import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_jobs.online.key_index import KeyIndex
from feature_jobs.online.request_kernels import find_others
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


@given(held=st.lists(ids, max_size=20), asked=st.lists(ids, max_size=20), two=st.booleans(), bits=st.integers(0))
def test_places_of_other_keys_are_those_of_a_dictionary(
    held: list[int], asked: list[int], two: bool, bits: int
) -> None:
    keys = sorted_keys(held, [0, 1, 0] if two else None) if held else Keys(np.zeros(0, np.int64))
    wanted = [*held, *asked]
    seconds = [at % 2 for at in range(len(wanted))]
    known, has_place = (np.array([bits >> 2 * at + of & 1 for at in range(len(wanted))], bool) for of in (0, 1))
    of_keys = np.arange(100, 100 + len(keys))
    halves = zip(keys.first.tolist(), [0] * len(keys) if keys.second is None else keys.second.tolist(), strict=True)
    places = dict(zip(halves, of_keys.tolist(), strict=True))
    at_N, none = np.where(has_place, 7, -1), np.zeros(0, np.int64)
    own_seconds = np.array(seconds, np.int64) if two else none
    second_K = none if keys.second is None else keys.second
    missing = find_others(at_N, known, np.array(wanted, np.int64), own_seconds, keys.first, second_K, of_keys)
    found = [places.get((one, second if two and held else 0), -1) for one, second in zip(wanted, seconds, strict=True)]
    expected = [
        (7 if has else at) if is_known else -1 for at, has, is_known in zip(found, has_place, known, strict=True)
    ]
    assert at_N.tolist() == expected
    assert missing.tolist() == [row for row, at in enumerate(expected) if at < 0 and known[row]]
