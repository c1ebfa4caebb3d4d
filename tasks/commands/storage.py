"""Commands that remove data from the store: gc, forget."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from feature_jobs.errors import BadInputError, GateError
from feature_jobs.schema.user_file import read_user_text
from tasks.commands import arguments
from tasks.commands.common import Context, execution_option, main, with_context
from tasks.commands.text_table import table

if TYPE_CHECKING:
    from tasks.run.forget import Cost

MOST_BYTES = 64 << 20  # of a file of ids: some millions
MOST_SHOWN = 20


@main.command(short_help="Shows, and deletes, files that are no longer needed.")
@click.option("--delete", is_flag=True, help="Delete them; without it they are only shown.")
@click.option(
    "--keep-days",
    type=click.IntRange(min=1),
    metavar="DAYS",
    help="Days to keep; default: store.keep_days of the scenario.",
)
@with_context
def gc(context: Context, *, delete: bool, keep_days: int | None) -> None:
    """Shows the committed files that are no longer needed; with --delete it deletes them.

    It keeps the last days and the inputs of their next day, the champion, the versions that a rollback can go to, and
    the newest checkpoint of each generation. Of days that `recloop forget` left rows out of, it keeps nothing older.
    Records and manifests always stay: days remain done, and the chain proven.
    """
    from models.metrics.judgement import counted
    from tasks.run.collect import collect, garbage, leftovers

    days = keep_days or context.scenario.store.keep_days
    found, left = garbage(context.scenario, context.store, days), leftovers(context.store)
    # Without a number of days there can still be files of days that users were left out of.
    if days is None and not found.commits:
        raise BadInputError(
            f"{context.scenario.file}: store.keep_days is not set, so every day is kept; set it, or give --keep-days"
        )
    if delete:
        collect(context.store, found, left, f"recloop gc kept {days or 'all'} days")
    by_step = found.by_step()
    facts = {
        "deleted": delete,
        "keep_days": days,
        "commits": len(found.commits),
        "bytes": found.bytes,
        "steps": {step: {"commits": count, "bytes": size} for step, (count, size) in by_step.items()},
        "leftovers": left,
    }
    rows = [[step, f"{count:,}", f"{size / 1e6:,.1f}"] for step, (count, size) in by_step.items()]
    verb = "deleted" if delete else "would delete, with --delete"
    lines = [f"{verb}: the files of {counted(len(found.commits), 'commit')}, {found.bytes / 1e6:,.1f} MB"]
    if left:
        lines.append(f"{verb}: {counted(len(left), 'leftover')} of killed runs")
    context.show(facts, "\n".join([*(table(["step", "commits", "MB"], rows) if rows else []), *lines]))


@main.command(short_help="Computes the days again without some users' rows.")
@click.option("--user", "users", multiple=True, metavar="ID", help="A user, as the events name it; may be repeated.")
@click.option(
    "--users", "file", type=arguments.path_to("file", exists=True), help="A file with one id in each line, in UTF-8."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="COLUMN",
    help="One more column that names users, shared_by or viewer.friends: cells that hold an id, also inside a text,"
    " become empty; may be repeated.",
)
@click.option("--yes", is_flag=True, help="Do it; without it only the cost is shown.")
@execution_option
@with_context
def forget(
    context: Context, *, users: tuple[str, ...], file: Path | None, columns: tuple[str, ...], yes: bool, execution: str
) -> None:
    """Leaves the rows of users out of every day, from the first that holds them on, in a new generation.

    The column that names the user is the scenario's `data.user`; in columns whose features share its embedding table,
    and in each --column, the id is taken out. Other columns that hold an equal value, or an id inside a text, are
    listed. Without --yes only the cost is shown. The ids are kept nowhere: give the same command again where it was
    interrupted. Versions that learned from the rows are deleted in MLflow. The files of the older generation stay until
    `recloop gc --delete`, which erases them. The source's own files are not changed.
    """
    from feature_jobs.sources.user_ids import users_of
    from tasks.commands.days import run_days
    from tasks.run.erase import erase_from_registry, keep_newest_alone
    from tasks.run.forget import begin_forgetting, cost_of
    from tasks.run.modes import launcher_of

    # A mistake in the scenario would show only after rows were read, and a day of a new generation was begun.
    context.check()
    named = users_of(context.scenario, [*users, *_lines(file)], columns)
    if not named.ids:
        raise click.UsageError("name the users: --user ID, or --users FILE")
    cost = cost_of(context.scenario, context.store, named)
    # With --json a call prints one document, so the cost is in the one at the end.
    if not yes or not context.as_json:
        context.show({"done": False, **asdict(cost)}, "\n".join(_cost_lines(context, cost, yes=yes)))
    if not yes:
        return
    launcher = launcher_of(execution)
    if cost.days:
        begun = begin_forgetting(context.scenario, context.store, named, cost, launcher)
        # Steps that do not read the changed days are taken over, so this costs what the printed cost says.
        ended = run_days(context, begun.days, launcher)
        if ended.error is not None:
            raise ended.error
    keep_newest_alone(context.scenario, context.store)
    erased = erase_from_registry(context.scenario, context.store)
    lines = [
        f"deleted in MLflow: {len(erased.versions)} versions, {erased.runs} runs",
        f"to erase the files of older generations: recloop gc {context.options} --delete",
        f"not changed: {context.scenario.data.places}; delete the rows there before the next day is ingested",
    ]
    context.show({"done": erased.serves is None, **asdict(cost), **asdict(erased)}, "\n".join(lines))
    # A gate's code and not an error's: all was done that can be, and another day has to go on.
    if erased.serves is not None:
        raise GateError(
            f"version {erased.serves} still serves, and has learned from the rows: no version of the new days was"
            f" promoted. See recloop status {context.options}; a later day, or a rollback, replaces it, and then give"
            " this command again"
        )


def _lines(file: Path | None) -> list[str]:
    """The ids of a file, as they are: spaces belong to an id of text. Editors may write a byte order mark first, and
    end lines with \\r\\n."""
    if file is None:
        return []
    lines = read_user_text(file, MOST_BYTES).removeprefix("\N{BYTE ORDER MARK}").split("\n")
    return [line for line in (line.removesuffix("\r") for line in lines) if line]


def _cost_lines(context: Context, cost: Cost, *, yes: bool) -> list[str]:
    """The cost for a person."""
    lines = _days_lines(context, cost)
    if cost.unknown:
        shown = ", ".join(map(repr, cost.unknown[:MOST_SHOWN])) + (", …" if len(cost.unknown) > MOST_SHOWN else "")
        lines.append(f"no committed day knows {len(cost.unknown):,} of the {cost.users:,} ids: {shown}")
    if cost.elsewhere:
        counts = ", ".join(f"{column} ({num:,})" for column, num in sorted(cost.elsewhere.items()))
        lines.append(
            f"other values equal an id or hold one in a text, and stay: {counts}. Where such a column names users, add"
            " --column COLUMN"
        )
    return lines if yes or not cost.days else [*lines, "nothing was changed; to do it, add --yes"]


def _days_lines(context: Context, cost: Cost) -> list[str]:
    from models.metrics.judgement import counted

    if not cost.days:
        return ["no committed day holds rows of these users, except outputs that gc erases"]
    if cost.resumed:
        return [f"goes on with generation {context.store.generation}: {cost.days[0]} to {cost.days[-1]}"]
    seconds = sum(step["seconds"] for step in cost.steps.values())
    rows = [[step, f"{facts['days']:,}", f"{facts['seconds']:,.1f}"] for step, facts in cost.steps.items()]
    lines = [
        f"{counted(sum(cost.rows.values()), 'row')} on {counted(len(cost.rows), 'day')}; a new generation from"
        f" {cost.days[0]} to {cost.days[-1]}, {counted(len(cost.days), 'day')}",
        *table(["step", "days to compute", "seconds before"], rows),
        f"at most {seconds:,.0f} s of computing, by past runs; gc then erases {cost.bytes / 1e6:,.1f} MB",
    ]
    if cost.from_source:
        lines.append(
            f"read again from the source: {counted(len(cost.from_source), 'day')}, whose events gc has deleted or"
            " a replay has not read again yet"
        )
    if cost.aside:
        lines.append(f"deleted at once, because they hold rows of these days: {', '.join(cost.aside)}")
    return lines
