"""Commands over days: run, plan, check, init, fetch, chain, dvc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feature_jobs.errors import BadInputError, GateError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range
from tasks.commands.common import Commands, Context, execution_option, main, scenario_file, with_context
from tasks.run.launchers import Launcher
from tasks.run.modes import launcher_of
from tasks.steps import DAILY

TRAINED = DAILY[: DAILY.index("train") + 1]


def scenario_days(scenario: Scenario, ds: str | None, first: str | None, last: str | None) -> list[str]:
    """The days of --ds, or of --from and --to, which default to the scenario's."""
    if ds and (first or last):
        raise click.UsageError("give --ds, or --from and --to, not both")
    if ds:
        return [ds]
    last = last or (str(scenario.data.days.last) if scenario.data.days.last else None)
    if last is None:
        raise BadInputError(f"{scenario.file}: data.days.last is open; say with --to where to stop")
    return day_range(scenario, first or str(scenario.data.days.first), last)


def day_options(command: Any) -> Any:
    """Adds --ds, --from and --to."""
    for option in (
        click.option("--to", "last", help="Last day; default: the scenario's."),
        click.option("--from", "first", help="First day; default: the scenario's."),
        click.option("--ds", help="One day, 2022-04-25."),
    ):
        command = option(command)
    return command


@main.command()
@day_options
@execution_option
@with_context
def run(context: Context, ds: str | None, first: str | None, last: str | None, execution: str) -> None:
    """Runs the daily steps of one day or of several, in order.

    What is done already is left as it is. A gate's no to one version ends its day; the chain goes on with the next.
    """
    context.check()
    outcomes = run_days(context, scenario_days(context.scenario, ds, first, last), launcher_of(execution))
    context.show(outcomes)
    refused = [o for o in outcomes if o["exit_code"] and o["step"] != "deploy"]
    click.get_current_context().exit(3 if refused else 0)


def run_days(context: Context, days: list[str], launcher: Launcher | None = None) -> list[dict[str, Any]]:
    """Runs all daily steps of each day; returns an outcome per step, with its exit code."""
    from tasks.commands.summary import table_lines
    from tasks.run.runner import run_step

    outcomes: list[dict[str, Any]] = []
    for day in days:
        for name in DAILY:
            try:
                outcome = run_step(
                    name,
                    context.scenario,
                    day,
                    context.store,
                    progress=not context.as_json,
                    track=context.track,
                    launcher=launcher,
                )
            except GateError as error:
                if name in TRAINED:  # without this day's checkpoint the next day can't learn
                    raise
                click.secho(f"{day} {name}: {error}", err=True, fg="yellow")
                outcomes.append({"step": name, "ds": day, "outcome": "gate_no", "gate": str(error), "exit_code": 3})
                break
            outcomes.append({**outcome.as_json(), "exit_code": outcome.exit_code})
            lines = [f"{day} {name:<9} {_told(outcome)}", *(f"    {line}" for line in table_lines(outcome.metrics))]
            click.echo("\n".join(lines), err=True)
    return outcomes


def _told(outcome: Any) -> str:
    """One step's outcome in a line: how it ended, how long, and its few most telling numbers."""
    if outcome.outcome == "already_done":
        return "done before"
    told = {k: v for k, v in outcome.metrics.items() if k != "tables"}
    metrics = {k: v for k, v in flat(told).items() if k.endswith(("rows", "auc", "version"))}
    numbers = "  ".join(
        f"{key} {value:.4g}" for key, value in list(metrics.items())[:6] if isinstance(value, int | float)
    )
    return f"{outcome.seconds['total']:6.1f} s  {f'gate said no: {outcome.gate}  ' if outcome.gate else ''}{numbers}"


def flat(metrics: Any, prefix: str = "") -> dict[str, Any]:
    """Nested metrics as dotted names."""
    found: dict[str, Any] = {}
    for key, value in metrics.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@main.command()
@day_options
@with_context
def plan(context: Context, ds: str | None, first: str | None, last: str | None) -> None:
    """Says what `run` would do, without doing it: for each day and step done, to do, or in the way.

    Then what the first training would begin with: rows and bytes of each table; and, where the scenario is not that of
    the checkpoint it starts from, what is restored, new, resized or dropped.
    """
    from tasks.run.plan import plan_days, plan_table, plan_training, training_table

    planned = plan_days(context.scenario, context.store, scenario_days(context.scenario, ds, first, last))
    training = plan_training(context.scenario, context.store, planned)
    context.show({"days": planned, "training": training}, f"{plan_table(planned)}\n\n{training_table(training)}")


@main.command()
@click.option("--no-data", is_flag=True, help="Look at the scenario only.")
@with_context
def check(context: Context, no_data: bool) -> None:
    """Checks the whole scenario and a sample of its data, before compute is spent on them."""
    from feature_jobs.checks.check import check as check_all

    facts = check_all(context.scenario, with_data=not no_data)
    context.show({"ok": True, **facts}, None)
    if not context.as_json:
        for key, value in facts.items():
            if key != "warnings":
                click.echo(f"{key}: {value}")
        for warning in facts["warnings"]:
            click.secho(f"warning: {warning}", fg="yellow")
        click.secho(f"{context.scenario.file.name}: no problems found", fg="green")


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the scenario; default: the folder's.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("scenarios"), show_default=True, help="Folder for it."
)
def init(path: Path, name: str | None, out: Path) -> None:
    """Proposes a scenario for the log files below PATH, for you to read and edit.

    It guesses the events table, entity tables, types, time column, labels, and columns that would leak the answer.
    """
    from feature_jobs.proposals.propose import write_proposal

    for line in write_proposal(path, out, name):
        click.echo(line)


@main.command()
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Setting of a generator.")
@with_context
def fetch(context: Context, options: tuple[str, ...]) -> None:
    """Brings the scenario's data (`data.fetch`) to its data folder. A second call finds it there."""
    from feature_jobs.datasets.fetch import fetch as fetch_data

    settings = dict(option.split("=", 1) for option in options if "=" in option)
    for line in fetch_data(context.scenario, Path(context.scenario.data.path), options=settings):
        click.echo(line)


@main.group(cls=Commands)
def chain() -> None:
    """The checkpoints of a scenario: log, verify, replay."""


@chain.command("log")
@with_context
def chain_log(context: Context) -> None:
    """Shows every checkpoint with its parent."""
    from tasks.store.chain import log

    links = log(context.store)
    lines = [
        f"{link.ds}  {link.checkpoint[:12]} <- {(link.parent or 'none')[:12]:<12}  generation {link.generation}"
        f"{'' if link.current else '  (replaced)'}"
        for link in links
    ]
    context.show([vars(link) for link in links], "\n".join(lines) or "no checkpoint is committed yet")


@chain.command("verify")
@with_context
def chain_verify(context: Context) -> None:
    """Proves the digest of every committed file and every parent."""
    from tasks.store.chain import require_sound

    facts = require_sound(context.scenario, context.store)
    context.show(facts, f"{facts['commits']} commits, {facts['bytes'] / 1e6:.1f} MB: every digest is right")


@chain.command("replay")
@click.option("--from", "first", required=True, help="The first day to rebuild.")
@click.option("--to", "last", help="Last day; default: the newest committed one.")
@click.option("--reason", default="corrected data", show_default=True, help="Kept in the generation's record.")
@click.option("--no-run", is_flag=True, help="Only start the generation; let Airflow run the days.")
@with_context
def chain_replay(context: Context, first: str, last: str | None, reason: str, no_run: bool) -> None:
    """Starts a new generation from a day on and rebuilds it; the older one stays readable."""
    from feature_jobs.schema.days import check_day
    from tasks.store.chain import head

    check_day(context.scenario, first)
    newest = head(context.store)
    if newest is None:
        raise BadInputError(f"{context.store.root}: no checkpoint to replay; use `recloop run`")
    generation = context.store.new_generation(first, reason)
    days = [] if no_run else day_range(context.scenario, first, last or max(newest.ds, first))
    outcomes = run_days(context, days)
    context.show({"generation": generation, "outcomes": outcomes}, f"generation {generation} from {first} on")


@main.command("dvc-render")
@click.option("--scenario", "-s", "name", required=True, help="Name in scenarios/, or path of a YAML file.")
@click.option("--from", "first", help="First day; default: the scenario's.")
@click.option("--to", "last", help="Last day; default: the scenario's.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("dvc.yaml"), show_default=True, help="File to write."
)
def dvc_render(name: str, first: str | None, last: str | None, out: Path) -> None:
    """Writes dvc.yaml: the same steps of the same days, for `dvc repro`."""
    from feature_jobs.schema import load_scenario
    from tasks.run.dvc import render

    scenario = load_scenario(scenario_file(name))
    out.write_text(render(scenario, scenario_file(name), scenario_days(scenario, None, first, last)))
    click.echo(f"{out}: {len(scenario_days(scenario, None, first, last))} days; next: dvc repro")
