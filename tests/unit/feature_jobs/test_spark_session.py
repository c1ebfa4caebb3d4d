"""Messages name what Spark lacks, and the remedy, before a day is read; no secret is in one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.spark_session import master_of, spark_session
from tests.unit.feature_jobs.small_source import scenario_in


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return scenario_in(tmp_path, {"engine": "spark"})


def _java(folder: Path, version: str) -> str:
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2021-01-19' >&2\n")
    program.chmod(0o755)
    return str(folder)


def _refusal(scenario: Scenario) -> str:
    with pytest.raises(BadInputError) as found, spark_session(scenario):
        pass
    return str(found.value)


def test_no_java(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    said = _refusal(scenario)
    assert "small.yaml:" in said
    assert "engine: spark: Spark needs Java, and there is none; install Java 17 or later" in said
    assert "infra/engine.sh install" in said


@pytest.mark.parametrize("version", ["11.0.10", "1.8.0_282"])
def test_an_old_java(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("JAVA_HOME", _java(tmp_path / "old", version))
    assert f"java is Java {version.partition('.')[0]}; install Java 17 or later" in _refusal(scenario)


def test_no_pyspark(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", _java(tmp_path / "new", "17.0.15"))
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    assert "is not installed; install Recloop's extra `spark`" in _refusal(scenario)


def test_a_secret_is_refused_and_not_repeated(tmp_path: Path) -> None:
    settings = {"spark.hadoop.fs.s3a.secret.key": "hunter2"}
    with pytest.raises(BadInputError) as found:
        scenario_in(tmp_path, {"spark": {"settings": settings}})
    assert "write it into spark-defaults.conf" in str(found.value)
    assert "hunter2" not in str(found.value)


def test_the_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, named = scenario_in(tmp_path), scenario_in(tmp_path / "named", {"spark": {"master": "yarn"}})
    monkeypatch.delenv("RECLOOP_SPARK_MASTER", raising=False)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    assert (master_of(plain), master_of(named)) == ("local[2]", "yarn")
    monkeypatch.setenv("RECLOOP_SPARK_MASTER", "spark://host:7077")
    assert (master_of(plain), master_of(named)) == ("spark://host:7077", "yarn")
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert master_of(plain) is None
