"""Writes a proposed scenario as YAML from a template, so that each choice has its reason beside it."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from feature_jobs.proposals.days import DayChoice, DayCounts, typical
from feature_jobs.proposals.features import Proposed
from feature_jobs.proposals.labels import Answers
from feature_jobs.proposals.roles import FoundEntity, Log


@dataclass(frozen=True)
class Proposal:
    """All that was chosen. `data_path` is relative to the scenario's folder, `events_path` to it."""

    name: str
    data_path: str
    events_path: str
    log: Log
    entities: list[FoundEntity]
    answers: Answers
    counts: DayCounts
    days: DayChoice
    features: list[Proposed]

    @property
    def required(self) -> set[str]:
        """Columns of the log without which a row is quarantined: its keys, and labels that are never missing."""
        columns, labels = self.log.table.columns, {label.column for label in self.answers.labels}
        full = {name for name in labels if columns[name].known == self.log.table.num_sampled}
        return full | {key.name for key in self.log.keys}


def to_yaml(proposal: Proposal) -> str:
    """The proposal as a scenario file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(),  # off for YAML: `scalar` quotes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A tab begins each comment until all comments are aligned; `scalar` and `flow` write tabs as \t.
    environment.filters |= {"scalar": scalar, "flow": flow, "note": lambda text: text and f"\t# {text}"}
    counts = (f for f in proposal.features if f.fields and f.fields.get("by") == [proposal.log.user.name])
    text = environment.get_template("scenario.yaml.j2").render(
        vars(proposal),
        required=proposal.required,
        user_count=next(counts).name,
        is_small=sum(proposal.counts.rows.values()) < 50_000,
        batch_size=batch_size(typical(proposal.counts.rows)),
    )
    return re.sub(r"(?m)^([^\t\n]*)\t", lambda match: f"{match[1]:<48} ", text)


def batch_size(rows_a_day: int) -> int:
    """About 64 steps a day: a day is learned in one pass, and with fewer steps the model hardly leaves its start."""
    return min(max(2 ** round(math.log2(rows_a_day / 64)), 16), 512)


def flow(value: object) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, datetime.date):
        return str(value)
    return scalar(value) if isinstance(value, str) else json.dumps(value)


def scalar(text: str) -> str:
    """A text as a YAML scalar, quoted where it must be."""
    is_plain = re.fullmatch(r"[A-Za-z_./](?:[\w./*()<>=+ -]*[\w./*)])?", text, flags=re.ASCII)
    reserved = text.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n", "~")
    return text if is_plain and not reserved else json.dumps(text, ensure_ascii=False)
