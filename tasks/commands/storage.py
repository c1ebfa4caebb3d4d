"""Commands about what the store keeps: gc."""

from __future__ import annotations

import click

from feature_jobs.errors import BadInputError
from tasks.commands.common import Context, main, with_context
from tasks.commands.text_table import table


@main.command(short_help="Shows, and deletes, files that nothing needs any more.")
@click.option("--delete", is_flag=True, help="Delete them; without it they are only shown.")
@click.option("--keep-days", type=click.IntRange(min=1), help="Days to keep; default: store.keep_days of the scenario.")
@with_context
def gc(context: Context, *, delete: bool, keep_days: int | None) -> None:
    """Shows the committed files that nothing needs any more; with --delete it deletes them.

    Kept are the last days and what their next day reads, the champion, the versions that a rollback can go to, and the
    newest checkpoint of each generation. Records and manifests always stay: days remain done, and the chain proven.
    """
    from tasks.run.collect import collect, garbage, leftovers

    days = keep_days or context.scenario.store.keep_days
    if days is None:
        raise BadInputError(
            f"{context.scenario.file}: store.keep_days is not set, so every day is kept; set it, or give --keep-days"
        )
    found, left = garbage(context.scenario, context.store, days), leftovers(context.store)
    if delete:
        collect(context.store, found, left, f"recloop gc kept {days} days")
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
    lines = [f"{verb}: the files of {len(found.commits):,} commits, {found.bytes / 1e6:,.1f} MB"]
    if left:
        lines.append(f"{verb}: {len(left):,} leftovers of killed runs")
    context.show(facts, "\n".join([*(table(["step", "commits", "MB"], rows) if rows else []), *lines]))
