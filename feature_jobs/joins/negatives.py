"""The negative rows of a day in a file, and among the rows of its log (`feature_jobs.joins.sample_negatives`)."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.schema.files import NEGATIVE
from feature_jobs.sources.tables import write_parquet
from feature_jobs.windows.keys import Bools

NEGATIVES_FILE = "negatives.parquet"
ROW = "key.event_row"
_SETTINGS, _WANTED = b"negative_sampler", b"wanted"


class Negatives(NamedTuple):
    """Negative rows, ordered by the row of the log that each is a copy of (ROW): the columns of their items. `wanted`:
    the number that was asked for."""

    rows: pa.Table
    wanted: int


def write_negatives(scenario: Scenario, negatives: Negatives, folder: Path) -> None:
    """Writes the negatives of a day with the settings that they were sampled by."""
    about = {_SETTINGS: _settings(scenario), _WANTED: str(negatives.wanted).encode()}
    rows = negatives.rows.replace_schema_metadata(about)
    write_parquet(rows.to_batches(), rows.schema, folder / NEGATIVES_FILE)


def read_negatives(scenario: Scenario, ds: str, folder: Path) -> Negatives:
    """The negatives of a day. Raises BadInputError where there are none, or other settings sampled them."""
    file = folder / NEGATIVES_FILE
    about = (pq.read_schema(file).metadata or {}) if file.exists() else {}
    if about.get(_SETTINGS) != _settings(scenario):
        raise BadInputError(
            f"{scenario.file}: join.negative_sampler was changed after {ds} was summarized; compute the day again:"
            f" recloop chain replay {scenario.option} --from {ds}"
        )
    return Negatives(pq.read_table(file).replace_schema_metadata(None), int(about[_WANTED]))


def _settings(scenario: Scenario) -> bytes:
    sampler = scenario.join.negative_sampler
    return json.dumps(sampler.model_dump(mode="json") if sampler else None, sort_keys=True).encode()


def add_negatives(events: pa.Table, negatives: pa.Table, unknown: Collection[str]) -> tuple[pa.Table, Bools]:
    """Rows of a log, each followed by its negatives, with new numbers; and a mask of the negatives.

    A negative has its own item's columns, null in the `unknown` ones, and all else of the row that it is a copy of.
    """
    num = events.num_rows
    place_N = np.concatenate([np.arange(num), np.asarray(negatives[ROW])])
    order_N = np.argsort(place_N, kind="stable")
    is_negative_N: Bools = order_N >= num
    columns = {}
    for name in events.column_names:
        column = events[name].combine_chunks()
        if name == ROW:
            column = pa.array(np.arange(len(order_N)))
        elif name in negatives.column_names:
            column = pa.concat_arrays([column, negatives[name].combine_chunks()]).take(pa.array(order_N))
        else:
            # A null index takes a null.
            is_unknown = is_negative_N if name in unknown else None
            column = column.take(pa.array(place_N[order_N], mask=is_unknown))
        columns[name] = column
    return pa.table(columns), is_negative_N


def for_rows(labels: pa.Array, rows: pa.Table) -> pa.Array | None:
    """Labels of the log's rows, for samples that may have negatives among them: these have the label 0. None where the
    numbers of rows differ."""
    is_negative = pa.array(np.zeros(len(rows), bool))
    if NEGATIVE in rows.column_names:
        is_negative = rows[NEGATIVE].combine_chunks()
    own_N = np.cumsum(~np.asarray(is_negative))
    if len(labels) != (own_N[-1] if len(own_N) else 0):
        return None
    # A negative follows its row, so that the place is one of the log's in any case.
    return pc.if_else(is_negative, pa.scalar(0, labels.type), labels.take(pa.array(own_N - 1)))
