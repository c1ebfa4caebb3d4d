"""Commands about versions: status, rollback, resume-promotions, accept, report, delta, apply-delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feature_jobs.errors import BadInputError, GateError
from tasks.commands import arguments
from tasks.commands.common import Context, main, with_context
from tasks.commands.days import day_options, scenario_days
from tasks.commands.text_table import number, table
from tasks.steps import DAILY, STEPS, WRITERS, daily_steps

if TYPE_CHECKING:
    from tasks.store.scenario_store import Commit, ScenarioStore


@main.command(short_help="Shows days, steps, AUCs, the chain and the versions.")
@click.option("--repair", is_flag=True, help="First show in MLflow commits that it lacks after an outage.")
@with_context
def status(context: Context, repair: bool) -> None:
    """Shows the days with their steps and AUCs, the head of the chain, and the versions with their aliases.

    The AUC of a day is that of its parent: yesterday's checkpoint on all rows of the day, before they are learned.
    """
    from tasks.commands.summary import parent_auc
    from tasks.run.rollback import status_facts
    from tasks.run.shown import not_shown, show
    from tasks.store.chain import head
    from tasks.store.records import holder_of

    scenario, store = context.scenario, context.store
    if repair:
        show(scenario, store, not_shown(store))
    commits, generations = store.commits(), store.generations()
    current = [commit for commit in commits if holder_of(commit.ds, generations) == commit.generation]
    # Of the newest generation alone: an older one's refusal would stand beside a day that was repaired.
    states = _states(store, [commit for commit in current if commit.step in DAILY])
    days = sorted({commit.ds for commit in commits})
    link = head(store, commits)
    facts: dict[str, Any] = {
        "scenario": scenario.name,
        "store": store.url,
        "generation": store.generation,
        "days": {day: {name: states.get((day, name), "-") for name in daily_steps(scenario)} for day in days},
        "auc": dict(zip(days, store.objects.each(lambda day: parent_auc(scenario, store, day), days), strict=True)),
        "chain_head": vars(link) if link else None,
        "not_shown": [{"ds": c.ds, "step": c.step, "generation": c.generation} for c in not_shown(store)],
        **status_facts(scenario, store),
    }
    context.show(facts, "\n".join(_status_lines(facts, scenario.tasks, context.options)))


def _states(store: ScenarioStore, commits: list[Commit]) -> dict[tuple[str, str], str]:
    """Day and step of each commit → "done", or "no" where a gate refused it."""
    # Several at once, because an object store takes its time for each.
    manifests = store.objects.each(lambda commit: commit.manifest, commits)
    return {
        (commit.ds, commit.step): "no" if manifest.get("gate") else "done"
        for commit, manifest in zip(commits, manifests, strict=True)
    }


def _status_lines(facts: dict[str, Any], tasks: tuple[str, ...], options: str) -> list[str]:
    from tasks.run.plan import in_words

    link, targets = facts["chain_head"], ", ".join(facts["rollback_targets"])
    # A version that was deleted in MLflow can't serve, and only MLflow knows it.
    unchecked = "" if facts["mlflow"].startswith("ok") else " (not checked, as MLflow does not answer)"
    rows = [
        [day, in_words(steps), *(number(facts["auc"][day][task]) for task in tasks)]
        for day, steps in facts["days"].items()
    ]
    return [
        f"{facts['scenario']} in {facts['store']}, generation {facts['generation']}",
        *table(["day", "steps", *(f"AUC {task}" for task in tasks)], rows, left=2),
        f"chain head: {link['ds']} {link['checkpoint'][:12]}" if link else "no checkpoint is committed yet",
        *map(_version_line, facts["versions"]),
        f"rollback can go to: {targets}{unchecked}" if targets else "rollback: no earlier version",
        *([f"deleted in MLflow, can't serve: {', '.join(facts['deleted'])}"] if facts["deleted"] else []),
        *([f"damaged in the store, can't serve: {', '.join(facts['damaged'])}"] if facts["damaged"] else []),
        f"promotions: {facts['promotions']}",
        *([] if facts["mlflow"] == "ok" else [f"MLflow: {facts['mlflow']}"]),
        *_not_shown_lines(facts, options),
    ]


def _not_shown_lines(facts: dict[str, Any], options: str) -> list[str]:
    waiting = [f"{step['ds']} {step['step']}" for step in facts["not_shown"]]
    if not waiting:
        return []
    named = ", ".join(waiting[:3]) + (f" and {len(waiting) - 3} more" if len(waiting) > 3 else "")
    return [f"MLflow does not show yet: {named}; to show them: recloop status {options} --repair"]


def _version_line(version: dict[str, Any]) -> str:
    aliases = f"  <- {', '.join(version['aliases'])}" if version["aliases"] else ""
    return (
        f"version {version['version']}: {version['ds']} {str(version['checkpoint'])[:12]} {version['verdict']}{aliases}"
    )


@main.command(short_help="Makes an earlier version serve again.")
@click.option(
    "--to", "to_version", metavar="VERSION", help="Version to go back to; default: the one that served before."
)
@with_context
def rollback(context: Context, to_version: str | None) -> None:
    """Makes an earlier version serve again: the one before, or the one of --to.

    --to may name one of the last `deploy.keep_versions` champions, or a version that a rollback replaced. Until
    `recloop resume-promotions`, later days do not promote.
    """
    from tasks.run.rollback import rollback as go_back

    change = go_back(context.scenario, context.store, to_version)
    context.show(change.as_json(), change.message)


@main.command("resume-promotions", short_help="Allows promotions again after a rollback.")
@with_context
def resume_promotions(context: Context) -> None:
    """Allows promotions again after a rollback; the version that serves stays until a later day is promoted."""
    from tasks.run.rollback import resume_promotions as resume

    change = resume(context.scenario, context.store)
    context.show(change.as_json(), change.message)


@main.command(short_help="Writes a tuning proposal into the scenario file.")
@click.option("--ds", required=True, type=arguments.day, help="Day of the tuning run whose proposal to accept.")
@with_context
def accept(context: Context, ds: str) -> None:
    """Writes a tuning run's proposed values into the scenario file, keeping its comments.

    The proposal must be as it was committed, and only settings of `tune.space` are written.
    """
    from tasks.run.runner import output_name_of
    from tasks.tuning.proposal import apply, doubt, read_proposal

    scenario = context.scenario
    commit = context.store.find(output_name_of(STEPS[WRITERS["proposal"]], scenario), ds)
    if commit is None:
        raise BadInputError(
            f"{context.store.url}: no proposal of {ds} for the present tune.space; search first:"
            f" recloop tune {context.options} --ds {ds}"
        )
    # Proven first: its values are written into the scenario, so nobody may have changed them since.
    proposal = read_proposal(context.proven(commit))
    if proposal["better"] and (reason := doubt(proposal)):
        click.secho(f"warning: {reason}", err=True, fg="yellow")
    apply(scenario, proposal["changes"], ds)
    lines = [f"{path}: {change['old']} -> {change['new']}" for path, change in sorted(proposal["changes"].items())]
    context.show(proposal["changes"], f"{scenario.file}:\n" + ("\n".join(lines) or "nothing to change"))


@main.command(short_help="Writes the days' metrics for `dvc metrics`.")
@day_options()
@click.option(
    "--out", type=arguments.path_to("folder"), required=True, help="Folder for metrics.json and progressive.csv."
)
@with_context
def report(context: Context, ds: str | None, first: str | None, last: str | None, out: Path) -> None:
    """Collects the days' metrics into files that `dvc metrics` and `dvc plots` read."""
    from tasks.commands.summary import write_report

    write_report(context.scenario, context.store, scenario_days(context.scenario, ds, first, last), out)
    click.echo(f"{out}/metrics.json, {out}/progressive.csv")


@main.command(short_help="Writes the difference between two days' exports.")
@click.option("--from", "base_ds", type=arguments.day, required=True, help="Day whose export the servers have.")
@click.option("--to", "target_ds", type=arguments.day, required=True, help="Day whose export the servers get.")
@click.option("--out", type=arguments.path_to("folder"), required=True, help="Folder for the delta.")
@with_context
def delta(context: Context, base_ds: str, target_ds: str, out: Path) -> None:
    """Writes the difference between the exports of two days: new, changed and removed rows, and the dense part."""
    from models.runtime.delta import write_delta

    facts = write_delta(_export(context, base_ds), _export(context, target_ds), out)
    share = facts["delta_bytes"] / facts["full_bytes"]
    text = (
        f"{out}: {facts['rows']:,} rows, {facts['changed']:,} of them changed, {facts['new']:,} new;"
        f" {facts['gone']:,} removed\n"
        f"{facts['delta_bytes']:,} bytes, {share:.0%} of the whole export's {facts['full_bytes']:,}"
    )
    context.show(facts, text)


def _export(context: Context, ds: str) -> Path:
    commit = context.store.find(WRITERS["export"], ds)
    if commit is None:
        raise BadInputError(
            f"{context.store.url}: no export of {ds}; make one: recloop run {context.options} --ds {ds}"
        )
    folder = context.proven(commit)
    # A delta of an export that a gate refused would bring it to servers by another way.
    if gate := commit.manifest.get("gate"):
        raise GateError(f"the export of {ds} is not to serve: {gate}")
    return folder


@main.command("apply-delta", short_help="Applies a delta to an export.")
@click.argument("base", type=arguments.path_to("folder", exists=True))
@click.argument("delta", type=arguments.path_to("folder", exists=True))
@click.argument("output", type=arguments.path_to("folder"))
def apply_delta(base: Path, delta: Path, output: Path) -> None:
    """Applies DELTA to the export BASE and writes the newer export to OUTPUT."""
    from models.runtime.delta import apply_delta as apply

    facts = apply(base, delta, output)
    click.echo(f"{output}: export {facts['target'][:12]}, {facts['rows']:,} rows")
