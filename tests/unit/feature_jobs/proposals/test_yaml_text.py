"""The text of a proposed scenario."""

import datetime

import pytest

from feature_jobs.proposals.yaml_text import batch_size, flow


@pytest.mark.parametrize(
    "text", ["a", "a b", "x == 1", "no", "null", "1", "a: b", "a #b", "'x'", "é", "-", "{ds}.csv", "*"]
)
def test_scalars_come_back(text: str) -> None:
    from ruamel.yaml import YAML

    assert YAML(typ="safe").load(f"{{a: {flow(text)}}}") == {"a": text}


@pytest.mark.parametrize(("rows", "expected"), [(3, 16), (1_000, 16), (15_000, 256), (1_000_000, 512)])
def test_small_days_are_learned_in_small_batches(rows: int, expected: int) -> None:
    assert batch_size({datetime.date(2024, 3, day): rows for day in (1, 2, 3)}) == expected
