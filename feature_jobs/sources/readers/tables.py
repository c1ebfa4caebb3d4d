"""The kinds of tables that a source can be, by the `format` that the scenario gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from feature_jobs.schema import Scenario
from feature_jobs.schema.data import Table
from feature_jobs.sources.readers.delta import DeltaTable
from feature_jobs.sources.readers.iceberg import IcebergTable
from feature_jobs.sources.readers.postgres import PostgresTable
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.sources.source import Source


def _delta(table: Table, root: Path) -> RemoteTable:
    return DeltaTable(table.path if table.is_url else str(root / table.path))


KINDS: Mapping[str, Callable[[Table, Path], RemoteTable]] = {
    "delta": _delta,
    "iceberg": lambda table, root: IcebergTable(table.path, str(table.catalog)),
    "postgres": lambda table, root: PostgresTable(table.path, str(table.server)),
}


def open_table(scenario: Scenario, source: Source) -> RemoteTable:
    """The table of a source whose format is one of KINDS."""
    return KINDS[source.table.format](source.table, Path(scenario.data.path))
