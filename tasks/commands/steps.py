"""`recloop ingest`, `recloop train`, …: one command for each declared step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tasks.commands import arguments
from tasks.commands.common import Context, execution_option, json_line, main, with_context
from tasks.commands.text_table import lines_of
from tasks.contract import Step
from tasks.run.modes import launcher_of
from tasks.steps import STEPS


def _process_started() -> float:
    """Returns this process's start time, so that a step's seconds include the interpreter's start and all imports."""
    import psutil

    started: float = psutil.Process().create_time()
    return started


def _add(declared: Step) -> None:
    @click.option("--ds", required=True, type=arguments.day, help="The day, 2022-04-25.")
    @click.option(
        "--no-is-done", is_flag=True, help="Exit with 0, not 3, where a gate refuses and its verdict is kept."
    )
    @execution_option
    @with_context
    def command(context: Context, ds: str, no_is_done: bool, execution: str, **options: Any) -> None:
        from tasks.run.runner import run_step

        if "data" in declared.config:  # a mistake in the scenario would show only after the source was read
            context.check()
        given = {name: value for name, value in options.items() if value is not None}
        outcome = run_step(
            declared.name,
            context.scenario,
            ds,
            context.store,
            options=given,
            progress=not context.as_json,
            track=context.track,
            started=_process_started(),
            launcher=launcher_of(execution),
        )
        context.after(declared, outcome)
        if declared.shows and outcome.uri and not context.as_json:
            click.echo("\n".join(lines_of(declared.shows(Path(outcome.uri), context.options))), err=True)
        if outcome.gate:
            click.secho(f"gate: {outcome.gate}", err=True, fg="yellow")
        elif said := outcome.metrics.get("verdict"):
            click.echo(said, err=True)
        click.echo(json_line(outcome.as_json()))
        click.get_current_context().exit(0 if no_is_done and outcome.digest else outcome.exit_code)

    for name, option in declared.options.items():
        number = click.IntRange(0, 1024)
        command = click.option(f"--{name}", type=number, metavar="NUMBER", help=option.help)(command)
    first = declared.doc.replace("\n", " ")
    main.command(declared.name, help=f"{first}\n\nEnds with one JSON line on stdout.")(command)


for _declared in STEPS.values():
    _add(_declared)


@main.command("exec-step", hidden=True)
def exec_step() -> None:
    """The entry of a step's container: one request on stdin, one answer on stdout."""
    from tasks.run.exec_step import exec_step

    click.get_current_context().exit(exec_step())
