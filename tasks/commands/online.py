"""Commands about the online store of features: skew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from feature_jobs.errors import BadInputError, GateError, ParentMissingError
from feature_jobs.schema.files import NEGATIVE, SAMPLES_FILE
from tasks.commands import arguments
from tasks.commands.common import Context, main, with_context
from tasks.commands.text_table import table
from tasks.steps import WRITERS

if TYPE_CHECKING:
    import pyarrow as pa


@main.command(short_help="Compares features of requests with the daily join.")
@click.option("--ds", type=arguments.day, required=True, metavar="DAY", help="The day of the requests, 2022-04-25.")
@click.option(
    "--requests",
    type=arguments.path_to("file"),
    help="Parquet file of a server's logged features; default: the day's own log is replayed as requests.",
)
@click.option("--most", type=click.IntRange(min=1), metavar="N", help="Replay only the first N requests.")
@with_context
def skew(context: Context, *, ds: str, requests: Path | None, most: int | None) -> None:
    """Compares the features of a day's requests with those of the daily join, feature by feature.

    Without --requests the day's log is replayed through a scratch store, event by event, from the state that
    `materialize` made of the day before. With it the file has a column for each feature, and the key columns of the
    samples that name a row (key.event_time and key.event_row, or key.request, key.user and key.item).

    Ends with exit code 3 where a value differs.
    """
    import pyarrow.compute as pc

    from feature_jobs.online.skew import skew as compared

    offline = _table(_read(context, "samples", ds) / SAMPLES_FILE)
    if NEGATIVE in offline.column_names:  # rows that no server saw
        offline = offline.filter(pc.invert(offline[NEGATIVE]))
    online = _table(requests) if requests else _replayed(context, ds, most)
    found = compared(online, offline, list(context.scenario.features), str(requests or f"replay of {ds}"))
    head = ["feature", "equal", "missing", "extra", "different", "by up to", "first rows"]
    rows = [
        [one.feature, *(f"{n:,}" for n in (one.equal, one.missing, one.extra, one.different)),
         "" if one.largest is None else f"{one.largest:.6g}", "; ".join(one.rows)]
        for one in found.unequal
    ]  # fmt: skip
    equal = len(found.features) - len(rows)
    lines = [
        f"{found.rows:,} rows compared, {equal} of {len(found.features)} features equal on all of them",
        *([f"{found.only_online:,} rows are not in the samples"] if found.only_online else []),
        *([f"{found.alike:,} rows share their keys with others and are paired in their order"] if found.alike else []),
        *(table(head, rows) if rows else []),
    ]
    context.show(asdict(found), "\n".join(lines))
    if found.unequal or not found.rows:
        worst = found.unequal[0].feature if found.unequal else "no row is in both"
        raise GateError(f"features of requests differ from the daily join: {worst}")


def _read(context: Context, output: str, ds: str) -> Path:
    step = WRITERS[output]
    commit = context.store.find(step, ds)
    if commit is None:
        remedy = f"recloop run {context.options} --ds {ds} --until {step}"
        raise ParentMissingError(f"{step} of {ds} is not committed; run it first: {remedy}", ds)
    return context.proven(commit)


def _replayed(context: Context, ds: str, most: int | None) -> pa.Table:
    from feature_jobs.online.replay import replay_in_scratch
    from feature_jobs.schema.days import previous_day

    before = previous_day(context.scenario, ds)
    if before is None:
        raise ParentMissingError(f"{ds} is the first day, so no state is before it; choose a later day", ds)
    state, events = _read(context, "online", before), _read(context, "events", ds)
    with context.store.scratch() as scratch:  # what a killed run leaves there is removed by the next one, or by gc
        return replay_in_scratch(context.scenario, state, events, scratch, most=most)


def _table(file: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table, which takes the names of folders for columns, and refuses names that come twice.
        return pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise BadInputError(f"{file}: not a Parquet file ({error}); give the features that a server logged") from None
