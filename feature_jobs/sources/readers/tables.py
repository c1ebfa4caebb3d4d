"""The kinds of tables that a source can be, by the `format` that the scenario gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.schema.data import Table
from feature_jobs.sources.readers.delta import DeltaTable
from feature_jobs.sources.readers.iceberg import IcebergTable
from feature_jobs.sources.readers.kafka import KafkaTopic
from feature_jobs.sources.readers.postgres import PostgresTable
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.sources.source import Source


def _delta(table: Table, root: Path) -> RemoteTable:
    return DeltaTable(table.path if table.is_url else str(root / table.path))


KINDS: Mapping[str, tuple[str, Callable[[Table, Path], RemoteTable | KafkaTopic]]] = {
    "delta": ("deltalake", _delta),
    "iceberg": ("pyiceberg", lambda table, root: IcebergTable(table.path, str(table.catalog))),
    "kafka": ("confluent_kafka", lambda table, root: KafkaTopic(table.path, str(table.server))),
    "postgres": ("adbc_driver_postgresql", lambda table, root: PostgresTable(table.path, str(table.server))),
}
"""The library and the class of each kind."""


def open_table(scenario: Scenario, source: Source) -> RemoteTable | KafkaTopic:
    """The table of a source whose format is one of KINDS. Raises BadInputError where its library is not installed."""
    library, made = KINDS[source.table.format]
    if importlib.util.find_spec(library) is None:
        raise BadInputError(
            f"{scenario.file}: {source.place}.format: {source.table.format} needs {library}, which is not installed;"
            f" install the extra `sources`: pip install 'recloop[sources]'"
        )
    return made(source.table, Path(scenario.data.path))
