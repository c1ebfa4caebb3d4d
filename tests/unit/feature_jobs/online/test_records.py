"""Damaged records and files of a state: refused by name before they are used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.online.materialize import load
from feature_jobs.online.opening import OnlineFeatures, store_of
from feature_jobs.schema import Scenario
from tests.unit.feature_jobs.online.test_opening import request, scenario, state

__all__ = ["scenario", "state"]

OTHERS = st.sampled_from(
    [-1, 0, 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30, 0.5, -0.0, 1e300, None, "1", True]
)


def numbers_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers of a record."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_in(inner, (*path, key))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path


def opened(scenario: Scenario, folder: Path) -> None:
    """Loads a state and answers requests, one of them too late for it."""
    with closing(store_of(scenario)) as store:
        load(folder, store)
    with closing(OnlineFeatures(scenario, folder)) as features:
        features.of(request())
        with pytest.raises(BadInputError):
            features.of(request(time=2**62))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_number_of_a_state_is_checked(data: st.DataObject, scenario: Scenario, state: Path) -> None:
    record = json.loads((state / "state.json").read_text())
    path = data.draw(st.sampled_from(list(numbers_in(record))))
    node = record
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(OTHERS | st.integers(-(2**70), 2**70))
    damaged = state.parent / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(state, damaged)
    (damaged / "state.json").write_text(json.dumps(record))
    try:
        opened(scenario, damaged)
    except CorruptError as error:
        assert str(damaged) in str(error) and "; materialize the day again" in str(error)


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["keys.blocks", "entities.blocks"])
@pytest.mark.parametrize(
    "damage",
    [_flipped, Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-64])],
    ids=["bit", "gone", "cut"],
)
def test_a_file_that_is_not_the_one_of_its_state_is_refused(
    damage: Any, name: str, scenario: Scenario, state: Path
) -> None:
    opened(scenario, state)
    damage(state / name)
    with pytest.raises(CorruptError, match=rf"{name}: .*; materialize the day again") as error:
        OnlineFeatures(scenario, state)
    assert error.value.exit_code == 4
    with closing(store_of(scenario)) as store, pytest.raises(CorruptError, match=name):
        load(state, store)
