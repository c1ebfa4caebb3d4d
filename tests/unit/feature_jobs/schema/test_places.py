"""The place of a table: what a scenario may say, and that a secret in the wrong place is never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from tests.unit.feature_jobs.small_source import scenario_in

SECRET = "geheim-4711"
WRONG = {
    "a URL in place of the name of a variable": (
        {"format": "postgres", "path": "a.b", "server": f"postgresql://user:{SECRET}@host/db"},
        "server: is not a name",
    ),
    "a URL with a password": ({"path": f"s3://key:{SECRET}@bucket/x"}, "path: a URL has no user and password"),
    "no server": ({"format": "kafka", "path": "topic"}, "server: missing; add its name"),
    "no catalog": ({"format": "iceberg", "path": "a.b"}, "catalog: missing; add its name"),
    "a server of files": ({"server": "SHOP"}, "server: format csv has none; remove it"),
    "a name without a schema": (
        {"format": "postgres", "path": "a", "server": "SHOP"},
        "is not the name of a table",
    ),
    "a topic with a space": ({"format": "kafka", "path": "a b", "server": "SHOP"}, "'a b' is not the name of a topic"),
    "a table of Hive by its folder": (
        {"format": "hive", "path": "/warehouse/shop", "server": "SHOP"},
        "is not the name of a table; write it as shop.events, or with a partition",
    ),
    "a Delta table a day": ({"format": "delta", "path": "x/{ds}"}, "a Delta table is read by time"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_place_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    changes, message = WRONG[name]
    with pytest.raises(BadInputError) as caught:
        scenario_in(tmp_path, {f"data.events.{key}": value for key, value in changes.items()})
    assert "small.yaml:4: data.events: " in str(caught.value) and message in str(caught.value)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_no_older_partition_of_hive_is_searched(tmp_path: Path) -> None:
    entity = {"format": "hive", "path": "shop.item/dt={ds}", "server": "SHOP", "key": "item", "max_age_days": 3}
    with pytest.raises(BadInputError, match=r"data.entities.item: max_age_days: not with format hive"):
        scenario_in(tmp_path, {"data.entities": {"item": {**entity, "columns": {"item": {"type": "int"}}}}})


def test_the_folder_of_the_source_may_not_be_a_url(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="'s3://bucket': is a URL, not a folder"):
        scenario_in(tmp_path, {"data.path": "s3://bucket"})
