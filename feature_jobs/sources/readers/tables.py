"""The kinds of tables that a source can be, by the `format` that the scenario gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources.readers.delta import DeltaTable
from feature_jobs.sources.readers.hive import HiveTable
from feature_jobs.sources.readers.iceberg import IcebergTable
from feature_jobs.sources.readers.kafka import KafkaTopic
from feature_jobs.sources.readers.postgres import PostgresTable
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.sources.source import Source

_Made = Callable[[Scenario, Source, str], RemoteTable | KafkaTopic]


class _Kind(NamedTuple):
    """A kind of table: its library, the extra that installs it, and what makes a table of a path."""

    library: str
    extra: str
    made: _Made


def _delta(scenario: Scenario, source: Source, path: str) -> RemoteTable:
    return DeltaTable(path if source.table.is_url else str(Path(scenario.data.path) / path))


def _hive(scenario: Scenario, source: Source, path: str) -> RemoteTable:
    return HiveTable(path, str(source.table.server), source.zone, scenario)


KINDS: Mapping[str, _Kind] = {
    "delta": _Kind("deltalake", "sources", _delta),
    "hive": _Kind("pyspark", "spark", _hive),
    "iceberg": _Kind("pyiceberg", "sources", lambda _, source, path: IcebergTable(path, str(source.table.catalog))),
    "kafka": _Kind("confluent_kafka", "sources", lambda _, source, path: KafkaTopic(path, str(source.table.server))),
    "postgres": _Kind(
        "adbc_driver_postgresql", "sources", lambda _, source, path: PostgresTable(path, str(source.table.server))
    ),
}


def open_table(scenario: Scenario, source: Source, path: str) -> RemoteTable | KafkaTopic:
    """The table at a path of a source whose format is one of KINDS. Raises BadInputError where its library is not
    installed."""
    kind = KINDS[source.table.format]
    if importlib.util.find_spec(kind.library) is None:
        raise BadInputError(
            f"{scenario.file}: {source.place}.format: {source.table.format} needs {kind.library}, which is not"
            f" installed; install the extra `{kind.extra}`: pip install 'recloop[{kind.extra}]'"
        )
    return kind.made(scenario, source, path)
