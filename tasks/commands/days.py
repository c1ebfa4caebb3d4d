"""Commands over days: run, plan, check, init, fetch, chain, dvc."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from feature_jobs.errors import BadInputError, GateError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, day_range
from tasks.commands import arguments
from tasks.commands.common import Commands, Context, errors_as_json, execution_option, main, scenario_file, with_context
from tasks.run.launchers import Launcher
from tasks.run.modes import launcher_of
from tasks.run.runner import Outcome
from tasks.steps import DAILY, STEPS, WRITERS, daily_steps

NEEDED_NEXT_DAY = DAILY[: DAILY.index(WRITERS["checkpoint"]) + 1]
"""Steps without which the next day can't learn."""
MAX_DAYS = 3_660  # of one command; a wrong century must not plan for minutes


def scenario_days(scenario: Scenario, ds: str | None, first: str | None, last: str | None) -> list[str]:
    """The days of --ds, or of --from and --to; default: all days of the scenario."""
    if ds and (first or last):
        raise click.UsageError("give --ds, or --from and --to, not both")
    if ds:
        check_day(scenario, ds)
        return [ds]
    # An open end has no default: "today" would make the same command mean other days tomorrow.
    given = [day for day in (first, last) if day]
    last = last or (str(scenario.data.days.last) if scenario.data.days.last else None)
    if last is None:
        raise BadInputError(f"{scenario.file}: data.days.last is open; give the last day with --to")
    first = first or str(scenario.data.days.first)
    if len(given) == 1 and last < first:
        check_day(scenario, given[0])
    days = day_range(scenario, first, last)
    if not 0 < len(days) <= MAX_DAYS:
        raise BadInputError(f"{first} to {last}: {len(days):,} days; choose 1 to {MAX_DAYS:,}")
    # The ends are enough: days between them lie inside, too, and skipped ones are left out already.
    for day in (days[0], days[-1]):
        check_day(scenario, day)
    return days


def day_options(default: str = "the scenario's") -> Callable[[Any], Any]:
    """Adds --ds, --from and --to; `default` describes the days without them, with {end} for oldest or newest."""

    def add(command: Any) -> Any:
        for option in (
            click.option(
                "--to", "last", type=arguments.day, help=f"Last day; default: {default.format(end='newest')}."
            ),
            click.option(
                "--from", "first", type=arguments.day, help=f"First day; default: {default.format(end='oldest')}."
            ),
            click.option("--ds", type=arguments.day, help="One day, 2022-04-25."),
        ):
            command = option(command)
        return command

    return add


@main.command(short_help="Runs the daily steps of one day or of several.")
@day_options()
@errors_as_json
@click.option(
    "--until",
    type=click.Choice(DAILY),
    metavar="STEP",
    help=f"The last step to run of each day: {', '.join(DAILY)}; default: all.",
)
@execution_option
@with_context
def run(
    context: Context, *, ds: str | None, first: str | None, last: str | None, until: str | None, execution: str
) -> None:
    """Runs the daily steps of one day or of several, in order, and ends with a table of the days.

    Steps that are done stay as they are; where they were done with other settings than the scenario's of today, the
    end says so. A version that a gate refuses ends its day; the next day goes on. A day without a checkpoint ends the
    run, because the next day learns from it. With --json the last line lists the finished steps and, if the run was
    stopped, the error.
    """
    context.check()
    days = scenario_days(context.scenario, ds, first, last)
    ended = run_days(context, days, launcher_of(execution), until=until)
    context.show(ended.as_json())
    if not context.as_json:
        _print_end(context, days)
    if ended.error is not None:
        raise ended.error
    click.get_current_context().exit(ended.exit_code)


@dataclass(frozen=True)
class RunEnd:
    """The outcome of each step that ran, and the error that stopped the run. `refused`: steps that a gate stopped."""

    outcomes: list[Outcome] = field(default_factory=list)
    error: Exception | None = None
    stopped_at: tuple[str, str] | None = None

    @property
    def exit_code(self) -> int:
        """3 where a gate failed a day, else 0. A refusal by a step with `on_no: skip` does not count."""
        # A refused version is an ordinary day, and a script must not stop at it.
        failed = [o for o in self.outcomes if o.exit_code and STEPS[o.step].on_no == "fail"]
        return GateError.exit_code if failed else 0

    def as_json(self) -> list[dict[str, Any]]:
        """An entry for each step; the last one is the error where there is one. Dicts, as `Outcome.as_json` is one."""
        entries = [{**outcome.as_json(), "exit_code": outcome.exit_code} for outcome in self.outcomes]
        if self.error is not None and self.stopped_at is not None:
            ds, step = self.stopped_at
            kind, code = type(self.error).__name__, getattr(self.error, "exit_code", 1)  # 1: a defect of ours
            entries.append({"step": step, "ds": ds, "outcome": kind, "message": str(self.error), "exit_code": code})
        return entries


def run_days(context: Context, days: list[str], launcher: Launcher | None = None, until: str | None = None) -> RunEnd:
    """Runs the daily steps of each day, up to `until`. An error ends the run and is returned, not raised."""
    from tasks.commands.summary import outcome_lines
    from tasks.run.plan import blocked_step
    from tasks.run.runner import run_step

    ended = RunEnd()
    last = DAILY.index(until) if until else len(DAILY)
    steps = [name for name in daily_steps(context.scenario) if DAILY.index(name) <= last]
    # Before the first step, so that a day that can't be learned yet leaves nothing in the store.
    if days and (blocked := blocked_step(steps, context.scenario, days[0], context.store)):
        return replace(ended, error=blocked.error, stopped_at=(days[0], blocked.step))
    for day in days:
        for name in steps:
            try:
                outcome = run_step(
                    name, context.scenario, day, context.store,
                    progress=not context.as_json, track=context.track, launcher=launcher,
                )  # fmt: skip
                context.after(STEPS[name], outcome)
            except Exception as error:  # a program must learn of finished steps also where one has a defect
                return replace(ended, error=error, stopped_at=(day, name))
            nothing_committed = outcome.gate is not None and outcome.digest is None
            if nothing_committed and name in NEEDED_NEXT_DAY:
                # The next day would miss its parent: stop with the reason, not with its consequence.
                return replace(ended, error=GateError(str(outcome.gate)), stopped_at=(day, name))
            ended.outcomes.append(outcome)
            if not context.as_json:
                click.echo("\n".join(outcome_lines(outcome)), err=True)
            if nothing_committed:  # later steps need it; the next day does not
                break
    return ended


def _print_end(context: Context, days: list[str]) -> None:
    """The table of the days that have begun, and those that were made with other settings."""
    from rich.console import Console

    from tasks.commands.day_table import day_table
    from tasks.run.plan import changed_steps

    # Days that the run did not come to would be rows of dashes.
    begun = [ds for ds in days if any(context.store.find(name, ds) for name in DAILY)]
    if not begun:
        return
    # crop: below the table commands are named, which must be whole to be copied.
    Console(stderr=True, highlight=False).print(day_table(context.scenario, context.store, begun), crop=False)
    changed = {ds: steps for ds in begun if (steps := changed_steps(context.scenario, context.store, ds))}
    for ds, steps in changed.items():
        text = f"{ds}: made with other settings than the scenario has today: {', '.join(steps)}"
        click.secho(text, err=True, fg="yellow")
    if changed:
        remedy = f"recloop chain replay {context.options} --from {min(changed)}"
        click.secho(f"to make these days again with today's settings: {remedy}", err=True, fg="yellow")


@main.command(short_help="Shows the plan of `run`, without running it.")
@click.option("--source", is_flag=True, help="Read the source of committed days again, to find late or corrected data.")
@day_options()
@with_context
def plan(context: Context, ds: str | None, first: str | None, last: str | None, source: bool) -> None:
    """Shows the plan of `run`, without running it: each step of each day is done, to run, or blocked.

    Then the state that the first training would begin with: rows and bytes of each table; and, where the scenario has
    changed since the checkpoint that it starts from, the parts that are restored, new, resized or dropped.

    With --source, also the committed days whose source reads differently by now, and what they touch: days, features,
    labels, versions.
    """
    from tasks.commands.text_table import lines_of
    from tasks.run.corrected import corrected_lines, find_corrected
    from tasks.run.plan import plan_days, plan_table, plan_training, training_table

    planned = plan_days(context.scenario, context.store, scenario_days(context.scenario, ds, first, last))
    training = plan_training(context.scenario, context.store, planned)
    facts = {"days": [asdict(day) for day in planned], "training": training.as_json()}
    lines = [plan_table(planned, context.options), "", *lines_of(training_table(training))]
    if source:
        corrected = find_corrected(context.scenario, context.store, [day.ds for day in planned])
        facts["corrected"] = asdict(corrected)
        lines += ["", *corrected_lines(corrected, context.options)]
    elif any(step.state == "done" for day in planned for step in day.steps.values()):
        lines[0] += "\ncommitted days are not compared with their source; recloop plan --source does that"
    context.show(facts, "\n".join(lines))


@main.command(short_help="Checks the scenario and a sample of its data.")
@click.option("--no-data", is_flag=True, help="Check the scenario alone, not its data.")
@with_context
def check(context: Context, no_data: bool) -> None:
    """Checks the whole scenario and a sample of its data, before compute is spent on them."""
    from feature_jobs.checks.check import check as check_all
    from feature_jobs.checks.facts import fact_lines

    facts = check_all(context.scenario, with_data=not no_data)
    # With --json one document on stdout, warnings in it; people get lines with colours.
    context.show({"ok": True, **facts}, None)
    if not context.as_json:
        for line in fact_lines(facts):
            click.echo(line)
        for warning in facts["warnings"]:
            click.secho(f"warning: {warning}", fg="yellow")
        but = ", but read the warnings" if facts["warnings"] else ""
        click.secho(f"{context.scenario.file.name}: no problems found{but}", fg="yellow" if but else "green")


@main.command(short_help="Proposes a scenario for log files or EasyRec configs.")
@click.argument("path", type=arguments.path_to("file or folder", exists=True), required=False)
@click.option("--name", type=arguments.name, help="Name of the scenario; default: that of the folder or the config.")
@click.option(
    "--out", type=arguments.path_to("folder"), default=Path("scenarios"), show_default=True, help="Folder to write to."
)
@click.option(
    "--label",
    "labels",
    type=arguments.pair,
    multiple=True,
    metavar="NAME=CONDITION",
    help="Label to predict, as in bought='outcome == \"purchased\"'; can be repeated. Default: by the columns' names.",
)
@click.option(
    "--from-easyrec",
    "config",
    type=arguments.path_to("file", exists=True),
    metavar="FILE",
    help="Pipeline config of EasyRec or TorchEasyRec, or fg.json, to write as a scenario. It says features, labels, "
    "model and training; PATH or --data, if given, is where columns, types and days are found.",
)
@click.option(
    "--data", type=arguments.path_to("file or folder", exists=True), help="Log files, as PATH, for --from-easyrec."
)
def init(
    path: Path | None,
    *,
    name: str | None,
    out: Path,
    labels: tuple[tuple[str, str], ...],
    config: Path | None,
    data: Path | None,
) -> None:
    """Proposes a scenario for the log files below PATH, for you to read and edit.

    It proposes the events table, other tables, the types of columns, the columns of time, user and item, the labels,
    the days and the features, with a reason for each. It prints the parts that it left out, with reasons: columns that
    give a label away, ids of rows, days with few rows. A scenario file that exists is never changed.

    With --from-easyrec, it lists each setting of the config that it could not carry over, with the reason; the
    scenario has the same lines as comments.
    """
    from feature_jobs.proposals.easyrec import write_port
    from feature_jobs.proposals.propose import write_proposal

    files = path or data
    if files is None and config is None:
        raise click.UsageError("name the folder of the log files, or --from-easyrec FILE")
    if path and data:
        raise click.UsageError(f"PATH ({path}) and --data ({data}) are both given; leave one out")
    given = dict(labels)
    lines = write_port(config, out, name, files, given) if config else write_proposal(files, out, name, given)
    for line in lines:
        click.echo(line)


@main.command(short_help="Brings the scenario's data to its data folder.")
@click.option(
    "--option", "options", type=arguments.pair, multiple=True, metavar="NAME=VALUE", help="Setting of generated data."
)
@with_context
def fetch(context: Context, options: tuple[tuple[str, str], ...]) -> None:
    """Downloads or generates the scenario's data (`data.fetch`) into its data folder; existing files stay."""
    from feature_jobs.datasets.fetch import fetch as fetch_data

    for line in fetch_data(context.scenario, Path(context.scenario.data.path), options=dict(options)):
        click.echo(line)


@main.group(cls=Commands)
def chain() -> None:
    """The chain of daily checkpoints: log, verify, replay."""


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


@chain.command("verify", short_help="Proves every commit, record and file.")
@with_context
def chain_verify(context: Context) -> None:
    """Proves every commit, record and file, from the newest back to the first.

    It ends with one digest over all of them. Nothing in the store names its newest records, so only a digest that was
    kept elsewhere shows that nobody replaced them.
    """
    from tasks.store.verify import require_sound

    proof = require_sound(context.scenario, context.store)
    right = "every digest is right" + (" that the chain stands on" if proof.replaced else "")
    replaced = [f"damaged, but computed again since: {problem}" for problem in proof.replaced]
    lines = [f"{proof.commits:,} commits, {proof.bytes / 1e6:.1f} MB: {right}", *replaced, f"head {proof.head}"]
    context.show(asdict(proof), "\n".join(lines))


@chain.command("replay", short_help="Computes days again, in a new generation.")
@click.option("--from", "first", type=arguments.day, required=True, help="The first day to rebuild.")
@click.option("--to", "last", type=arguments.day, help="Last day; default: the newest committed one.")
@click.option("--reason", default="corrected data", show_default=True, help="Kept in the generation's record.")
@click.option("--no-run", is_flag=True, help="Only start the generation; Airflow then runs the days.")
@click.option("--restart", is_flag=True, help="Start over, also where the newest generation is not finished.")
@click.option(
    "--source-cleaned", is_flag=True, help="The source no longer holds the rows that `recloop forget` left out."
)
@click.option("--all", "computes_all", is_flag=True, help="Compute also steps that would write the same files again.")
@with_context
def chain_replay(context: Context, first: str, last: str | None, reason: str, *, no_run: bool, **how: bool) -> None:
    """Starts a new generation from a day on and computes its days again; the older one stays readable.

    The source of each day is read again. A later step whose inputs, settings and code are as before has the output of
    the older generation; with --all it is computed too, for example after an upgrade of a library.

    A replay that was interrupted goes on where it stopped when the same command is given again.
    """
    from tasks.run.replay import begin_replay

    replay = begin_replay(context.scenario, context.store, first, last, reason, **how)
    begun = "goes on with generation" if replay.resumed else "generation"
    click.echo(f"{begun} {replay.generation}: {replay.days[0]} to {replay.days[-1]}", err=True)
    ended = run_days(context, [] if no_run else replay.days)
    facts = {"generation": replay.generation, "resumed": replay.resumed, "outcomes": ended.as_json()}
    context.show(facts, f"generation {replay.generation} from {first} on")
    if ended.error is not None:
        raise ended.error


@main.command("dvc-render", short_help="Writes dvc.yaml, for `dvc repro`.")
@click.option("--scenario", "-s", "name", required=True, help="Name in scenarios/, or path of a YAML file.")
@click.option("--from", "first", type=arguments.day, help="First day; default: the scenario's.")
@click.option("--to", "last", type=arguments.day, help="Last day; default: the scenario's.")
@click.option(
    "--out", type=arguments.path_to("file"), default=Path("dvc.yaml"), show_default=True, help="File to write."
)
def dvc_render(name: str, first: str | None, last: str | None, out: Path) -> None:
    """Writes dvc.yaml: the same steps of the same days, for `dvc repro`."""
    from feature_jobs.schema import load_scenario
    from tasks.run.dvc import render

    scenario = load_scenario(scenario_file(name))
    days = scenario_days(scenario, None, first, last)
    out.write_text(render(scenario, scenario_file(name), days))
    click.echo(f"{out}: {len(days)} days; next: dvc repro")
