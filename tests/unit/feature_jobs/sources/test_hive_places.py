"""A table of Hive before Java starts: its library, and a metastore that can be reached."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.small_source import scenario_in

DS, VARIABLE = "1970-01-02", "SHOP_METASTORE"
PLACE = {"data.events.format": "hive", "data.events.path": "shop.events", "data.events.server": VARIABLE}


def test_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(BadInputError, match=r"hive needs pyspark.* install the extra `spark`"):
        ingest_day(scenario_in(tmp_path, PLACE), DS, tmp_path / "out")


@pytest.mark.parametrize("url", ["", "host:9083", "thrift://host", "thrift://user:geheim@host:9083", "thrift://a:1,b"])
def test_the_address(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, url)
    with pytest.raises(BadInputError, match=f"^{VARIABLE}: is not .*; set it to thrift://HOST:PORT") as caught:
        ingest_day(scenario_in(tmp_path, PLACE), DS, tmp_path / "out")
    assert "geheim" not in str(caught.value)


def test_none_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv(VARIABLE, f"thrift://127.0.0.1:{port},thrift://127.0.0.1:{port}")
    with pytest.raises(RetryLaterError, match="the metastore cannot be reached"):
        ingest_day(scenario_in(tmp_path, PLACE), DS, tmp_path / "out")
