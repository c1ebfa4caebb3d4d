"""The negative rows of a day in a file (`feature_jobs.joins.sample_negatives`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.joins.rows import RowsOfFile
from feature_jobs.schema import Scenario
from feature_jobs.sources.tables import write_parquet

NEGATIVES_FILE = "negatives.parquet"
_SETTINGS, _WANTED = b"negative_sampler", b"wanted"


class Negatives(NamedTuple):
    """Negative rows, ordered by the row of the log that each is a copy of (`rows.ROW`): the columns of their items.
    `wanted`: the number that was asked for."""

    rows: RowsOfFile
    wanted: int


def write_negatives(
    scenario: Scenario, tables: Iterable[pa.Table], schema: pa.Schema, wanted: int, folder: Path
) -> None:
    """Writes the negatives of a day with the settings that they were sampled by."""
    schema = schema.with_metadata({_SETTINGS: _settings(scenario), _WANTED: str(wanted).encode()})
    batches = (batch for table in tables for batch in table.replace_schema_metadata(schema.metadata).to_batches())
    write_parquet(batches, schema, folder / NEGATIVES_FILE)


def read_negatives(scenario: Scenario, ds: str, folder: Path) -> Negatives:
    """The negatives of a day. Raises BadInputError where there are none, or other settings sampled them."""
    file = folder / NEGATIVES_FILE
    about = (pq.read_schema(file).metadata or {}) if file.exists() else {}
    if about.get(_SETTINGS) != _settings(scenario):
        raise BadInputError(
            f"{scenario.file}: join.negative_sampler was changed after {ds} was summarized; compute the day again:"
            f" recloop chain replay {scenario.option} --from {ds}"
        )
    return Negatives(RowsOfFile(file), int(about[_WANTED]))


def _settings(scenario: Scenario) -> bytes:
    sampler = scenario.join.negative_sampler
    return json.dumps(sampler.model_dump(mode="json") if sampler else None, sort_keys=True).encode()
