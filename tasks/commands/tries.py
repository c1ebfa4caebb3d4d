"""Commands that answer "would this be better?": try, compare."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from feature_jobs.errors import BadInputError, RecloopError
from tasks.commands.common import Context, main, read_setting, with_context
from tasks.commands.days import day_options, scenario_days
from tasks.commands.text_table import number, table

if TYPE_CHECKING:
    from tasks.run.tries_plan import Try, Variant
    from tasks.run.tries_scores import Comparison, Quality, Side, TaskComparison

DEFAULT_DAYS = 5
QUALITY = {
    "rows": "rows", "AUC": "auc", "GAUC": "gauc", "NE": "normalized_entropy", "calibration": "calibration",
    "request AUC": "request_auc", "NDCG": "ndcg", "MRR": "mrr",
}  # fmt: skip
"""Columns of the tables: the names of their values in a `Quality`."""
PER_REQUEST = ("request AUC", "NDCG", "MRR")
DIFFERENCE = ("AUC difference", "interval", "verdict")


@main.command("try", short_help="Trains some days with other settings, and compares.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="'NAME: PATH=VALUE,…'",
    help="Settings to try under a name; give it several times to try several at once. --set then holds for all.",
)
@click.option("--jobs", type=click.IntRange(1, 1024), help="Variants trained at once; default: as many as fit.")
@day_options("the {end} trained one; without any day, the newest five")
@with_context
def try_(
    context: Context,
    *,
    variants: tuple[str, ...],
    jobs: int | None,
    ds: str | None,
    first: str | None,
    last: str | None,
) -> None:
    """Trains some committed days with other settings, beside the chain, and compares the results.

    \b
        recloop try -s movielens --set model.architecture=dcnv2 \\
            --from 1997-11-12 --to 1997-11-16
        recloop try -s movielens --variant 'wide: model.bottom=[256,128]' \\
            --variant 'fast: train.learning_rate=0.003'

    Each variant starts from the checkpoint before the first day and learns the samples that are committed; days are
    joined again only where a feature changed. It is compared with the committed chain on the same rows: on the first
    day those of the holdout, on later days all rows, scored before they are learned. The committed chain stays as it
    is. Without days it takes the newest five that are trained. An equal try is found again, not repeated; a try of the
    same name and other settings is refused.
    """
    from tasks.run.tries import run_tries

    begun = time.perf_counter()
    wanted = _variants(context, variants)
    days = _days(context, ds, first, last)
    # A container may have fewer cores than the machine.
    workers = jobs or max(1, len(os.sched_getaffinity(0)) // context.scenario.train.threads)
    with _progress([v.name or "try" for v in wanted], len(days), shown=not context.as_json) as done:
        found = run_tries(context.base, wanted, days, context.store, workers=workers, done=done)
    if context.track:
        _track(context, found)
    seconds = round(time.perf_counter() - begun, 1)
    context.show({"tries": [asdict(one) for one in found], "seconds": seconds}, "\n".join(_try_lines(found, seconds)))
    # The first failure decides the code; the tries that ended well stand.
    click.get_current_context().exit(next((one.exit_code for one in found if one.error), 0))


@main.command(short_help="Compares days, generations, tries, or the chain.")
@click.argument("first")
@click.argument("second")
@with_context
def compare(context: Context, first: str, second: str) -> None:
    """Compares two things that exist: days, generations, tries, or the committed chain.

    \b
        a try against the chain:
            recloop compare -s movielens committed try-3f9a2c1b
        two generations, on the days that both have:
            recloop compare -s movielens g0 g1
        two days, each on its own rows:
            recloop compare -s movielens 1997-11-13 1997-11-14

    Where both scored the same rows, the difference has an interval (paired bootstrap); where not, it says so.
    """
    from tasks.run.tries_scores import compare_sides

    found = compare_sides(context.scenario, _side(context, first), _side(context, second))
    lines = _comparison_lines(found)
    context.show(asdict(found), "\n".join(lines))


def _variants(context: Context, texts: Sequence[str]) -> list[Variant]:
    """One for each --variant; without any, one of the --set values."""
    from feature_jobs.checks.check import check
    from tasks.run.tries_plan import Variant

    given: list[tuple[str | None, dict[str, Any]]] = [parse_variant(text) for text in texts] or [(None, {})]
    found = []
    for name, own in given:
        # A variant's own value wins over that of --set.
        changes = {**context.overrides, **own}
        try:
            scenario = context.with_overrides(changes)
            check(scenario, with_data=False)
        except BadInputError as error:
            raise BadInputError(_of_variant(name, str(error)) if name else str(error)) from None
        found.append(Variant(name, changes, scenario))
    return found


def _of_variant(name: str, messages: str) -> str:
    """Messages about a variant's values, which came with --variant and not with --set."""
    return "\n".join(f"variant {name}: {line.removeprefix('--set ')}" for line in messages.splitlines())


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME: PATH=VALUE,PATH=VALUE`, where a value is YAML of any type: commas in brackets or quotes belong to it."""
    name, colon, rest = text.partition(":")
    if not colon or not name.strip() or "=" in name:
        raise BadInputError(
            f"--variant {text!r}: write it as 'NAME: model.architecture=dcnv2,train.learning_rate=0.01'"
        )
    pieces = [piece for piece in _split(rest) if piece.strip()]
    return name.strip(), dict(read_setting(piece.strip(), "--variant") for piece in pieces)


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside brackets and quotes."""
    begin, depth, quote = 0, 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == "," and not depth:
            yield text[begin:place]
            begin = place + 1
    yield text[begin:]


def _days(context: Context, ds: str | None, first: str | None, last: str | None) -> list[str]:
    from tasks.run.tries import trained_days

    trained = trained_days(context.store)
    if not trained and not (ds or first):
        raise BadInputError(
            f"{context.store.url}: no day is trained yet, so there is nothing to compare with; run some first:"
            f" recloop run {context.base.option}{context.store.option}"
        )
    if ds:
        return scenario_days(context.scenario, ds, first, last)
    if first or last:
        return scenario_days(context.scenario, None, first or trained[0], last or (trained[-1] if trained else None))
    return trained[-DEFAULT_DAYS:]


def _side(context: Context, name: str) -> Side:
    """The folders of predictions that a name on the command line means."""
    from tasks.run.tries import load_side, trained_days
    from tasks.run.tries_plan import COMMITTED, TRAIN
    from tasks.run.tries_scores import Side

    store = context.store
    generation = None
    if re.fullmatch(r"g\d+", name):
        generation, newest = int(name[1:]), store.generation
        if generation > newest:
            raise BadInputError(f"{store.url}: no generation {name}; the newest is g{newest}")
    # These names first: a try can't have one of them.
    is_day = re.fullmatch(r"\d{4}-\d\d-\d\d", name)
    if generation is None and name != COMMITTED and not is_day:
        return load_side(store, name)
    found = {ds: store.find(TRAIN.name, ds, generation) for ds in ([name] if is_day else trained_days(store))}
    # Of a range, deleted days are passed over; a day that is named alone is an error below.
    there = {ds: commit for ds, commit in found.items() if commit and (is_day or not store.is_collected(commit))}
    days = {ds: context.proven(commit) for ds, commit in there.items()}
    if not days:
        raise BadInputError(
            f"{store.url}: {name} has no trained day whose files are kept; `recloop status {context.options}` shows"
            " the days and their files"
        )
    return Side(name, days)


@contextmanager
def _progress(names: Sequence[str], num_days: int, *, shown: bool) -> Iterator[Callable[[str, str], None]]:
    """Yields the function to call after each day of a variant: it draws bars on a terminal, prints lines in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tasks.run.tries_plan import JOIN

    # On stderr, so that the table on stdout can be piped.
    console = Console(stderr=True, quiet=not shown)
    if not console.is_terminal:
        yield lambda name, label: console.print(f"{name}: {label} done", highlight=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks = {name: bars.add_task(name, total=num_days) for name in names}

        def done(name: str, label: str) -> None:
            if name not in tasks:  # an unnamed variant, or a join that several share
                only = next(iter(tasks)) if len(tasks) == 1 and name != JOIN.name else None
                tasks[name] = tasks[only] if only else bars.add_task(name, total=None)
            bars.update(tasks[name], advance=1, description=f"{name} {label}")

        yield done


def _track(context: Context, found: Sequence[Try]) -> None:
    """Shows finished tries in MLflow. MLflow is a view: where it does not answer, the tries still stand."""
    from tasks.tracking.tries import TryRun, record_try

    for one in found:
        mark = f"tracked/tries/{one.key}"
        if one.comparison is None or context.store.read(mark) is not None:
            continue
        params = {path: str(value)[:500] for path, value in one.changes.items()}  # older MLflow refuses longer ones
        params |= {"days": f"{one.days[0]}..{one.days[-1]}", "baseline": "the committed chain, on the same rows"}
        try:
            record_try(TryRun(context.scenario, one.name, one.key, params, _metrics(one), one.seconds))
        except RecloopError as error:
            # And nothing is asked for the others: each would wait for MLflow as long.
            click.secho(f"not shown in MLflow (an equal try later shows it): {error}", err=True, fg="yellow")
            return
        context.store.put_if_absent(mark, b"")  # asking MLflow about each try again would cost seconds


def _metrics(one: Try) -> list[tuple[str, float, int]]:
    """Metrics over all judged rows, the difference, and the AUC of each day as a series."""
    found: list[tuple[str, float | None, int]] = [("seconds", one.seconds, 0), ("cpu_seconds", one.cpu_s, 0)]
    for task, facts in one.comparison.tasks.items() if one.comparison else ():
        found += [(f"{name}/{task}", value, 0) for name, value in asdict(facts.second).items()]
        interval = facts.difference
        found += [(f"auc_difference/{task}", interval.auc, 0)]
        found += [(f"auc_difference_low/{task}", interval.low, 0), (f"auc_difference_high/{task}", interval.high, 0)]
    for step, ds in enumerate(one.days):
        found += [(f"daily_auc/{task}", quality.auc, step) for task, quality in one.curve.get(ds, {}).items()]
    return [(name, float(value), step) for name, value, step in found if value is not None]


def _try_lines(found: Sequence[Try], seconds: float) -> list[str]:
    """One table per task, the committed chain first; then notes that a reader needs for the figures."""
    from tasks.run.tries import settings_text

    judged = [one for one in found if one.comparison]
    lines: list[str] = []
    if judged:
        first = judged[0].comparison
        assert first is not None  # noqa: S101 (judged tries have one)
        lines.append(f"{found[0].days[0]} to {found[0].days[-1]}, on rows that were not learned yet:")
        for task in first.tasks:
            head = _quality_head(first.tasks[task])
            rows = [[*_quality_row(first.first, first.tasks[task].first, head), *[""] * len(DIFFERENCE), ""]]
            rows += [_row(one.comparison, task, one, head) for one in judged if one.comparison]
            lines += [*table((task, *head, *DIFFERENCE, "seconds"), rows), ""]
        lines += _reading(first, len(judged))
    for one in found:
        changes = settings_text(one.changes)
        again = " (done before)" if one.outcome == "already_done" else ""
        joined = "; its days were joined again" if one.joined_again else ""
        lines.append(f"{one.name}{again}: {changes or 'the scenario as it is today'}{joined}")
        lines += [f"  {note}" for note in one.notes]
        lines += [f"  failed: {one.error}"] if one.error else []
    return [*lines, f"{seconds:.1f} s in all"]


def _reading(comparison: Comparison, num_variants: int) -> list[str]:
    """Explains the interval."""
    text = f"interval: {comparison.confidence:.0%} of the AUC difference, rows paired"
    if num_variants > 1:
        text += (
            f"; not corrected for {num_variants} variants: the best one is better by chance too, try it on other days"
        )
    return [text]


def _row(comparison: Comparison, task: str, one: Try, head: Sequence[str]) -> list[str]:
    facts = comparison.tasks[task]
    return [
        *_quality_row(one.name, facts.second, head),
        *_difference_cells(facts.difference),
        f"{one.seconds:.1f}",
    ]


def _quality_head(facts: TaskComparison) -> Sequence[str]:
    """The columns of a task's qualities; those of requests where one side has them."""
    of_requests = (facts.first.request_auc, facts.second.request_auc) != (None, None)
    return tuple(name for name in QUALITY if of_requests or name not in PER_REQUEST)


def _quality_row(name: str, quality: Quality, head: Sequence[str]) -> list[str]:
    return [name, *(number(getattr(quality, QUALITY[column])) for column in head)]


def _difference_cells(difference: Any) -> list[str]:
    change = "-" if difference.auc is None else f"{difference.auc:+.4f}"
    interval = "-" if difference.low is None else f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    return [change, interval, "" if difference.low is None else difference.verdict]


def _comparison_lines(found: Comparison) -> list[str]:
    lines: list[str] = []
    for task, facts in found.tasks.items():
        head = _quality_head(facts)
        first = _quality_row(found.first, facts.first, head)
        second = _quality_row(found.second, facts.second, head)
        rows = [[*first, *[""] * len(DIFFERENCE)], [*second, *_difference_cells(facts.difference)]]
        lines += [*table((task, *head, *DIFFERENCE), rows), ""]
    if not found.tasks:
        side = " and ".join(found.without_scores) or "both sides together"
        lines.append(
            f"nothing to compare: {side} scored no row before it was learned; a first day has no parent to do so"
        )
        return lines
    if found.not_paired:
        return [*lines, f"not paired, so without an interval: {found.not_paired}"]
    days = f"{found.days[0]} to {found.days[-1]}" if len(found.days) > 1 else found.days[0]
    holdout = f"; of {', '.join(found.holdout_days)} only the holdout counts" if found.holdout_days else ""
    return [*lines, *_reading(found, 1), f"on the same rows of {days}, scored before they were learned{holdout}"]
