"""The table of days that `make demo` and `recloop run` end with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from feature_jobs.schema import Scenario
from tasks.commands.summary import day_facts
from tasks.deploy import HELD
from tasks.steps import daily_steps

if TYPE_CHECKING:
    from tasks.store.scenario_store import ScenarioStore

PROMOTED = "promoted"

_MOST_HEADS = 72  # of 80 columns, beside the day


def day_table(scenario: Scenario, store: ScenarioStore, days: Sequence[str]) -> RenderableType:
    """Returns a table of the days' results and steps' times, for `rich.console.Console.print`; fits into 80 columns."""
    return table_of(scenario, [day_facts(scenario, store, ds) for ds in days])


def table_of(scenario: Scenario, days: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The same from facts that are read already, one `day_facts` for each day."""
    reasons = [_reason(day) for day in days if day["gate"] not in (None, PROMOTED)]
    lines = [Text(line, no_wrap=True, overflow="ignore") for line in reasons]  # a wrapped command can't be copied
    return Group(_quality(days), Text(_legend(scenario)), *lines, _seconds(days, daily_steps(scenario)))


def _quality(days: Sequence[Mapping[str, Any]]) -> Table:
    # The second line of a heading names the rows of the AUC: values of different rows must not be compared.
    aucs = ("parent\nwhole day", "champion\nlast slice", "challenger\nlast slice")
    table = _plain("day", "rows", "AUC of", *aucs, "verdict")
    for column in table.columns[1:2] + table.columns[3:6]:
        column.justify = "right"
    table.columns[2].no_wrap, table.columns[2].overflow = False, "ellipsis"  # where 80 columns are not enough
    for day in days:
        parent, judged = day["auc_progressive"], day["gate_auc"]
        values = (_lines(side.values()) for side in (parent, judged["champion"], judged["challenger"]))
        rows = "-" if day["rows"] is None else f"{day['rows']:,}"
        table.add_row(day["ds"], rows, "\n".join(parent), *values, verdict_of(day))
    return table


def verdict_of(day: Mapping[str, Any]) -> str:
    """`promoted version 5`, `refused …`, `held …`; before a verdict `version 5` or `-`. A second line gives details."""
    gate: str | None = day["gate"]
    if gate is None:
        return "-" if day["version"] is None else f"version {day['version']}"
    if not gate.startswith(PROMOTED):
        no = "held" if gate.startswith(f"no: {HELD}") else "refused"
        return no if day["version"] is None else f"{no} version {day['version']}"
    word = gate.partition(":")[0].removeprefix(PROMOTED).strip(", ")
    return "\n".join([f"{PROMOTED} version {day['version']}", *([word] if word else [])])


def _reason(day: Mapping[str, Any]) -> str:
    promoted = day["gate"].startswith(PROMOTED)
    return f"{day['ds']} {'' if promoted else 'not promoted: '}{day['gate'].removeprefix('no: ')}"


def _legend(scenario: Scenario) -> str:
    # The numbers of this scenario: a reader asks why a lower AUC was promoted.
    share, allowed = scenario.train.holdout_share, scenario.deploy.max_auc_drop
    return (
        "parent: yesterday's checkpoint on all rows of the day, before they are learned. champion, challenger: on the"
        f" day's last {share:.0%} of rows. A drop of up to {allowed:g} AUC passes (deploy.max_auc_drop), a larger one"
        " if its interval reaches 0."
    )


def _seconds(days: Sequence[Mapping[str, Any]], steps: Sequence[str]) -> Table:
    heads = list(steps)
    if sum(len(name) + 1 for name in heads) > _MOST_HEADS:  # long names on two lines
        heads = [name if len(name) < 8 else f"{name[:5]}-\n{name[5:]}" for name in heads]
    table = _plain("seconds", *heads)
    for day in days:
        taken = day["seconds"]
        # Without the year, which is in the table above.
        table.add_row(day["ds"][5:], *(f"{taken[step]:.1f}" if step in taken else "-" for step in steps))
    return table


def _plain(*columns: str) -> Table:
    plain = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in columns:
        plain.add_column(column, no_wrap=True)
    return plain


def _lines(values: Iterable[float | None]) -> str:
    """Each value on a line of its own: three digits, or a dash."""
    return "\n".join("-" if value is None else f"{value:.3f}" for value in values)
