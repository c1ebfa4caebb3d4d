"""Commands about versions: status, rollback, resume-promotions, accept, report, delta, apply-delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feature_jobs.errors import BadInputError, GateError
from tasks.commands.common import Context, main, with_context
from tasks.commands.days import day_options, scenario_days
from tasks.steps import DAILY


@main.command()
@with_context
def status(context: Context) -> None:
    """Shows the days and their steps, the head of the chain, and the versions with their aliases."""
    from tasks.run.rollback import status_facts
    from tasks.store.chain import head

    days = sorted({commit.ds for commit in context.store.commits()})
    steps = {day: {name: _state(context, name, day) for name in DAILY} for day in days}
    link = head(context.store)
    facts: dict[str, Any] = {
        "scenario": context.scenario.name,
        "store": str(context.store.root),
        "generation": context.store.generation,
        "days": steps,
        "chain_head": vars(link) if link else None,
        **status_facts(context.scenario, context.store),
    }
    context.show(facts)
    if not context.as_json:
        _print_status(facts)


def _state(context: Context, name: str, day: str) -> str:
    commit = context.store.find(name, day)
    if commit is None:
        return "-"
    return "no" if commit.manifest.get("gate") else "done"


def _print_status(facts: dict[str, Any]) -> None:
    link, width = facts["chain_head"], max(map(len, DAILY)) + 1
    rows = [("day", list(DAILY)), *((day, list(steps.values())) for day, steps in facts["days"].items())]
    click.echo(f"{facts['scenario']} in {facts['store']}, generation {facts['generation']}")
    for day, cells in rows:
        click.echo(f"{day:<12}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip())
    click.echo(f"chain head: {link['ds']} {link['checkpoint'][:12]}" if link else "no checkpoint is committed yet")
    for version in facts["versions"]:
        aliases = f"  <- {', '.join(version['aliases'])}" if version["aliases"] else ""
        checkpoint = str(version["checkpoint"])[:12]
        click.echo(f"version {version['version']}: {version['ds']} {checkpoint} {version['verdict']}{aliases}")
    targets = ", ".join(facts["rollback_targets"])
    click.echo(f"rollback can go to: {targets}" if targets else "rollback: no earlier version")
    click.echo(f"promotions: {facts['promotions']}")
    if facts["mlflow"] != "ok":
        click.echo(f"MLflow: {facts['mlflow']}")


@main.command()
@click.option("--to", "to_version", help="Version to go back to; default: the one that served before.")
@with_context
def rollback(context: Context, to_version: str | None) -> None:
    """Makes an earlier version serve again: the one before, or the one of --to.

    --to may name one of the last `deploy.keep_versions` champions, or a version that a rollback replaced. Later days do
    not promote until `recloop resume-promotions`.
    """
    from tasks.run.rollback import rollback as go_back

    change = go_back(context.scenario, context.store, to_version)
    context.show(change.as_json(), change.message)


@main.command("resume-promotions")
@with_context
def resume_promotions(context: Context) -> None:
    """Allows promotions again after a rollback; the version that serves stays until a later day is promoted."""
    from tasks.run.rollback import resume_promotions as resume

    change = resume(context.scenario, context.store)
    context.show(change.as_json(), change.message)


@main.command()
@click.option("--ds", required=True, help="Day of the tuning run whose proposal to accept.")
@with_context
def accept(context: Context, ds: str) -> None:
    """Writes a tuning run's proposed values into the scenario file, keeping its comments."""
    from tasks.run.runner import output_name_of
    from tasks.steps import STEPS
    from tasks.tuning.proposal import apply, read_proposal

    scenario = context.scenario
    commit = context.store.find(output_name_of(STEPS["tune"], scenario), ds)
    if commit is None:
        raise BadInputError(
            f"{context.store.root}: no proposal of {ds} for the present tune.space; search first:"
            f" recloop tune -s {scenario.name} --ds {ds}"
        )
    proposal = read_proposal(commit.folder)
    if proposal["better"] and not proposal["certain"]:
        click.secho("warning: the gain may be chance: its interval includes 0", err=True, fg="yellow")
    apply(scenario.file, proposal["changes"], ds)
    lines = [f"{path}: {change['old']} -> {change['new']}" for path, change in sorted(proposal["changes"].items())]
    context.show(proposal["changes"], f"{scenario.file}:\n" + ("\n".join(lines) or "nothing to change"))


@main.command()
@day_options
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for metrics.json and progressive.csv."
)
@with_context
def report(context: Context, ds: str | None, first: str | None, last: str | None, out: Path) -> None:
    """Collects the days' metrics into files that `dvc metrics` and `dvc plots` read."""
    from tasks.commands.summary import write_report

    write_report(context.scenario, context.store, scenario_days(context.scenario, ds, first, last), out)
    click.echo(f"{out}/metrics.json, {out}/progressive.csv")


@main.command()
@click.option("--from", "base_ds", required=True, help="Day whose export the servers have.")
@click.option("--to", "target_ds", required=True, help="Day whose export they are to have.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the delta.")
@with_context
def delta(context: Context, base_ds: str, target_ds: str, out: Path) -> None:
    """Writes what changed between the exports of two days: rows new, changed or gone, and the dense part."""
    from models.runtime.delta import write_delta

    facts = write_delta(_export(context, base_ds), _export(context, target_ds), out)
    share = facts["delta_bytes"] / facts["full_bytes"]
    text = (
        f"{out}: of {facts['rows']} rows {facts['changed']} changed, {facts['new']} new; {facts['gone']} gone\n"
        f"{facts['delta_bytes']} bytes, {share:.0%} of the whole export's {facts['full_bytes']}"
    )
    context.show(facts, text)


def _export(context: Context, ds: str) -> Path:
    commit = context.store.find("quantize", ds)
    if commit is None:
        raise BadInputError(f"{context.store.root}: no export of {ds}; `recloop run --ds {ds}` makes one")
    if gate := commit.manifest.get("gate"):
        raise GateError(f"the export of {ds} is not to serve: {gate}")
    return commit.folder


@main.command("apply-delta")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("delta", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def apply_delta(base: Path, delta: Path, output: Path) -> None:
    """Makes of the export BASE and a DELTA from it the export that the delta leads to, in OUTPUT."""
    from models.runtime.delta import apply_delta as apply

    facts = apply(base, delta, output)
    click.echo(f"{output}: export {facts['target'][:12]}, {facts['rows']} rows")
