"""Refuses columns whose type changed after older days were ingested: their values would mean something else."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources.casts import arrow_schema
from feature_jobs.sources.output_files import log_file


def refuse_retyped_events(scenario: Scenario, ds: str, past_ds: str, past: Path) -> None:
    """Compares the logs of an older day (its folder) with the columns that the scenario declares for `ds`.

    Raises BadInputError naming the column, both types and the remedy.
    """
    for source in (None, *scenario.data.logs):
        file = past / log_file(source)
        if source is None or file.exists():
            wanted = arrow_schema(scenario.data.log(source).columns)
            refuse_retyped(scenario, source, (ds, wanted), (past_ds, pq.read_schema(file)), file)


def refuse_retyped(
    scenario: Scenario, source: str | None, now: tuple[str, pa.Schema], past: tuple[str, pa.Schema], file: Path
) -> None:
    """`now` and `past` are days with the columns of a log; a column that only one has does not matter.

    Raises BadInputError naming the column, both types and the remedy.
    """
    (ds, wanted), (past_ds, found) = now, past
    place = "data.events" if source is None else f"data.logs.{source}"
    for name in (n for n in wanted.names if n in found.names):
        old, new = found.field(name).type, wanted.field(name).type
        if old != new:
            raise BadInputError(
                f"{file}: column {name!r} was {old} on {past_ds} and is {new} on {ds} ({scenario.file}: "
                f"{place}.columns.{name}.type); give the new type a new name, or ingest the older days again: "
                f"recloop chain replay {scenario.option} --from {scenario.data.days.first}"
            )
