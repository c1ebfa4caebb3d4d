"""The command that proposes expectations from committed days."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from feature_jobs.errors import BadInputError
from feature_jobs.sources.output_files import COUNTS_FILE
from tasks.commands.common import Context, main, with_context
from tasks.commands.days import day_options, scenario_days
from tasks.steps import WRITERS

if TYPE_CHECKING:
    from feature_jobs.proposals.expectations import SeenDay

DEFAULT_DAYS = 14
"""Each weekday twice."""


@main.command(short_help="Proposes expectations from committed days, as a diff.")
@day_options(f"the {{end}} of the newest {DEFAULT_DAYS} that passed")
@click.option("--write", is_flag=True, help="Write the suite's file; review it in git.")
@with_context
def expectations(context: Context, *, ds: str | None, first: str | None, last: str | None, write: bool) -> None:
    """Proposes expectations from the scenario and from committed days, and shows them as a diff of the suite's file.

    \b
        recloop expectations -s movielens
        recloop expectations -s movielens --from 1997-11-12 --write

    They are Great Expectations' own: shares of nulls, ranges, sets, means, label ratios, the number of rows, also
    beside the same weekday, shares of malformed, repeated and late rows, of rows that find their entity, and of
    outcomes that find their event. Each says in its `meta` the days and the range that was seen. A proposal replaces
    earlier proposals. An expectation that a person wrote or changed stays.
    """
    from feature_jobs.proposals.expectations import diff_of, propose_expectations
    from feature_jobs.validation.expectations import is_as_proposed, read_suite, suite_text

    days = list(_seen(context, _days(context, ds, first, last)))
    file, present = context.base.suite_file, read_suite(context.base)
    suite = propose_expectations(context.scenario, days, present)
    diff = diff_of(file.read_text(encoding="utf-8") if present else "", suite, str(file))
    if write and diff:
        file.write_text(suite_text(suite), encoding="utf-8")
    num_own = sum(not is_as_proposed(one) for one in suite["expectations"])
    facts = {
        "days": [day.ds for day in days],
        "file": str(file),
        "proposed": len(suite["expectations"]) - num_own,
        "own": num_own,
        "diff": diff,
        "written": bool(write and diff),
    }
    end = f"wrote {file}" if write else f"nothing is written; to write {file}, add --write"
    text = (
        f"{diff}{facts['proposed']} proposed from {len(days)} days ({days[0].ds} to {days[-1].ds}), {num_own} of your"
        f" own kept; {end if diff else 'nothing has changed'}"
    )
    context.show(facts, text)


def _days(context: Context, ds: str | None, first: str | None, last: str | None) -> list[str]:
    """The days that were asked for and are joined; by default the newest that passed their validation."""
    # A refused day has no commit of its validation. Bounds that include such a day would let the next one pass.
    passed = sorted({place.ds for place in context.store.commits() if place.step == WRITERS["validation"]})
    if ds or first or last:
        # A person may know better why a day was refused, so days that are named need not have passed.
        asked = scenario_days(context.scenario, ds, first, last)
        days = [day for day in asked if context.store.find(WRITERS["samples"], day)]
    else:
        days = [day for day in passed if _is_kept(context, day)][-DEFAULT_DAYS:]
    if not days:
        raise BadInputError(
            f"{context.store.url}: no such day is joined yet, so there is nothing to propose from; run some first:"
            f" recloop run {context.base.option}{context.store.option} --until {WRITERS['samples']}"
        )
    return days


def _is_kept(context: Context, ds: str) -> bool:
    """Says if the day's samples and counts were not deleted as no longer needed."""
    commits = [context.store.find(WRITERS[name], ds) for name in ("events", "samples")]
    return all(commit is not None and not context.store.is_collected(commit) for commit in commits)


def _seen(context: Context, days: list[str]) -> Iterator[SeenDay]:
    from feature_jobs.proposals.expectations import see_day
    from feature_jobs.validation.day_facts import ROWS, day_facts
    from feature_jobs.validation.day_samples import read_samples

    rows: dict[str, float] = {}
    for ds in days:
        events, samples = (context.store.find(WRITERS[name], ds) for name in ("events", "samples"))
        if events is None or samples is None:
            continue
        day = read_samples(context.proven(samples), context.scenario)
        counts = json.loads(context.store.file_of(events, COUNTS_FILE) or b"{}")
        facts = day_facts(context.scenario, ds, day, counts, rows)
        # For the days after it: the number of rows is also compared with that of the same weekday.
        rows[ds] = facts[ROWS] or 0.0
        yield see_day(context.scenario, ds, day, facts)
