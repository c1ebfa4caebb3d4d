"""Facts that `recloop check` found, as its --json prints them."""

from __future__ import annotations

from typing import Required, TypedDict

# The days of a long log would hide all else that was found.
_MOST_DAYS = 15


class EntityFacts(TypedDict):
    """Rows of an entity table, and the share of the log's keys that it has (None where the log's sample is empty)."""

    rows: int
    keys_found: float | None


class RequestFacts(TypedDict):
    """Requests of the sample: their number, mean number of rows, and the longest time between two rows of one."""

    num: int
    rows: float
    longest_s: float


class Facts(TypedDict, total=False):
    """All but `warnings` come from the data: rows by day, means of labels, malformed rows of the sample by reason.

    `warm_up_rows`: rows before the first day, which it ingests too. `rows_of_no_day`: rows of the log outside of
    `data.days`, which no day reads.
    `undated`: rows of the sample without a readable time, by table. `sample_of`: the day. `heads`: number of files
    read at their head, where that was not all.
    """

    warnings: Required[list[str]]
    log: str
    days: dict[str, int]
    warm_up_rows: int
    rows_of_no_day: int
    labels: dict[str, float | None]
    requests: RequestFacts
    entities: dict[str, EntityFacts]
    malformed: dict[str, dict[str, int]]
    undated: dict[str, int]
    sample_of: str
    heads: str


def fact_lines(facts: Facts) -> list[str]:
    """The facts for a person, a line each; warnings are not among them."""
    lines = [f"log: {facts['log']}"] if "log" in facts else []
    days = facts.get("days", {})
    shown = [f"{ds}: {num:,}" for ds, num in days.items()]
    if len(shown) > _MOST_DAYS:
        # The last day stays: it says how far the log reaches.
        shown = [*shown[: _MOST_DAYS - 1], "...", shown[-1]]
    lines += [f"rows by day: {'; '.join(shown)}"] if shown else []
    if warm_up := facts.get("warm_up_rows"):
        lines.append(f"the first day also ingests and learns {warm_up:,} rows before it (data.days.warm_up_from)")
    if num_other := facts.get("rows_of_no_day"):
        lines.append(f"rows of no day of data.days, which are never read: {num_other:,}")
    sample = f"the sample of {facts['sample_of']}" if "sample_of" in facts else "the sample"
    for name, reasons in facts.get("malformed", {}).items():
        kinds = "; ".join(f"{reason} ({num:,})" for reason, num in reasons.items())
        lines.append(f"malformed rows of {name} in {sample}: {kinds}")
    for name, num in facts.get("undated", {}).items():
        lines.append(
            f"rows of {name} without a readable time in {sample}: {num:,}; each day that reads the file "
            f"quarantines them"
        )
    means = [
        f"{name} {'unknown' if mean is None else f'{mean * 100:.1f} %'}"
        for name, mean in facts.get("labels", {}).items()
    ]
    lines += [f"labels in {sample}: {', '.join(means)}"] if means else []
    if requests := facts.get("requests"):
        lines.append(
            f"requests in {sample}: {requests['num']:,} of {requests['rows']:,.1f} rows on average, "
            f"at most {requests['longest_s']:,.0f} s long"
        )
    for name, entity in facts.get("entities", {}).items():
        found = entity["keys_found"]
        known = "" if found is None else f", knows {found * 100:.1f} % of the log's keys in {sample}"
        lines.append(f"entity {name}: {entity['rows']:,} rows{known}")
    return lines + ([f"heads of files: {facts['heads']}"] if "heads" in facts else [])
