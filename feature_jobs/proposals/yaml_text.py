"""Writes a proposed scenario as YAML, by hand, so that each guess has its reason beside it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from feature_jobs.proposals.features import Proposed
from feature_jobs.proposals.labels import Guessed
from feature_jobs.proposals.profiles import Profile, Table
from feature_jobs.proposals.roles import DayChoice, FoundEntity, Log


@dataclass(frozen=True)
class Proposal:
    """All that was guessed. `data_path` is relative to the scenario's folder, `events_path` to it."""

    name: str
    data_path: str
    events_path: str
    log: Log
    entities: list[FoundEntity]
    guessed: Guessed
    days: DayChoice
    features: list[Proposed]


def to_yaml(proposal: Proposal) -> str:
    """The proposal as a scenario file."""
    return _Text(proposal).text()


class _Text:
    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal
        self.log, self.guessed, self.days = proposal.log, proposal.guessed, proposal.days
        self.lines: list[str] = []

    def text(self) -> str:
        """The whole file."""
        self._head()
        self._events()
        self._entities()
        self._days()
        self._labels()
        self._features()
        self._rest()
        return "\n".join(self.lines) + "\n"

    def _add(self, line: str, comment: str = "") -> None:
        self.lines.append(f"{line:<48} # {comment}" if comment else line)

    def _head(self) -> None:
        self._add("# Proposed by `recloop init` from the files alone. Read every line: each guess may be wrong.")
        self._add(f"name: {self.proposal.name}")
        labels = ", ".join(label.name for label in self.guessed.labels)
        self._add(f"description: Predicts {labels} for a user and an item.")
        self._add("")
        self._add("data:")
        self._add(f"  path: {scalar(self.proposal.data_path)}", "relative to this file; --data replaces it")

    def _events(self) -> None:
        log = self.log
        self._add("  events:")
        self._table(log.table, self.proposal.events_path, "    ")
        zone = "the zone whose midnight begins a day, and of times without an offset"
        self._add(f"    time: {{column: {scalar(log.time.name)}, unit: {log.unit}, zone: UTC}}", zone)
        self._add("    columns:")
        answers = {label.column for label in self.guessed.labels}
        for column in log.table.columns.values():
            is_answered = column.name in answers and column.known == log.table.num_sampled
            required = column in (log.time, log.user, log.item) or is_answered
            self._column(log.table, column, "      ", required=required)

    def _table(self, table: Table, path: str, indent: str) -> None:
        num = len(table.group.files)
        self._add(f"{indent}path: {scalar(path)}", f"{table.num_rows} rows in {num} file{'s' * (num > 1)}")
        self._add(f"{indent}format: {table.group.format}")
        if table.group.format == "csv":
            self._add(f"{indent}delimiter: {json.dumps(table.group.delimiter)}")

    def _column(self, table: Table, column: Profile, indent: str, *, required: bool) -> None:
        fields: dict[str, Any] = {} if column.source == column.name else {"from": column.source}
        fields["type"] = column.type
        if column.separator is not None:
            fields["separator"] = column.separator
        if required:
            fields["required"] = True
        missing = 1 - column.known / max(table.num_sampled, 1)
        comment = f"{column.distinct} values" + (f", {missing:.1%} missing" if missing > 0 else "")
        self._add(f"{indent}{scalar(column.name)}: {flow(fields)}", comment)

    def _entities(self) -> None:
        if self.proposal.entities:
            self._add("  entities:")
        for entity in self.proposal.entities:
            self._add(f"    {entity.name}:", f"tells of {entity.matched:.0%} of the log's {entity.event_key.name}")
            self._table(entity.table, entity.table.group.glob, "      ")
            self._add(f"      key: {scalar(entity.event_key.name)}")
            if entity.time is not None:
                since = "a row holds from this time on"
                self._add(f"      time: {{column: {scalar(entity.time.name)}, unit: {entity.unit}, zone: UTC}}", since)
            self._add("      columns:")
            for column in entity.table.columns.values():
                is_key = column is entity.key
                named = column if not is_key else _renamed(column, entity.event_key.name)
                self._column(entity.table, named, "        ", required=is_key)

    def _days(self) -> None:
        self._add(f"  user: {scalar(self.log.user.name)}")
        self._add(f"  item: {scalar(self.log.item.name)}")
        counts, chosen = self.days.counts, {}
        if self.days.warm_up_from is not None:
            chosen["warm_up_from"] = str(self.days.warm_up_from)
        chosen |= {"first": str(self.days.first), "last": str(self.days.last)}
        inside = [counts.get(day, 0) for day in counts if self.days.first <= day <= self.days.last]
        spread = f"{min(inside)} to {max(inside)} rows a day; the log has {min(counts)} to {max(counts)}"
        days = ", ".join(f"{key}: {value}" for key, value in chosen.items())
        self._add(f"  days: {{{days}}}", spread)

    def _labels(self) -> None:
        self._add("")
        self._add("labels:")
        for label in self.guessed.labels:
            self._add(f"  {label.name}: {scalar(label.expression)}", f"{label.mean:.1%} of rows; {label.why}")
        if self.guessed.outcomes:
            self._add("")
            self._add("outcomes:", "known only after the event: never a feature of its own row")
            for name, why in self.guessed.outcomes.items():
                self._add(f"  - {scalar(name)}", why)

    def _missing(self) -> None:
        """Rows without a time, a user or an item are quarantined; where there are many, that is allowed for."""
        log = self.log
        share = sum(1 - column.known / log.table.num_sampled for column in (log.time, log.user, log.item))
        if share > 0.005:
            self._add("")
            self._add("ingest:")
            why = f"{share:.1%} of rows lack a time, a user or an item, and are quarantined"
            self._add(f"  max_quarantined_share: {min(2 * share + 0.01, 0.3):.2f}", why)

    def _features(self) -> None:
        self._missing()
        self._add("")
        self._add("join:")
        start = self.days.warm_up_from or self.days.first
        lookback = min(60, max(7, (self.days.last - start).days + 1))
        self._add(f"  lookback_days: {lookback}")
        self._add("")
        self._add("features:")
        for feature in self.proposal.features:
            if feature.fields is None:
                self._add(f"  # {feature.name}: left out, {feature.why}")
            else:
                self._add(f"  {scalar(feature.name)}: {flow(feature.fields)}", feature.why)

    def _rest(self) -> None:
        small = self.log.table.num_rows < 50_000
        count = next(f for f in self.proposal.features if f.fields and f.fields.get("by") == [self.log.user.name])
        self.lines += [
            "",
            "model:",
            "  architecture: shared_bottom",
            f"  embedding_dim: {8 if small else 16}",
            "",
            "train:",
            f"  batch_size: {128 if small else 512}",
            "",
            "evaluate:",
            "  segments:",
            f"    new_user: {count.name} < 5",
        ]


def _renamed(column: Profile, name: str) -> Profile:
    return replace(column, name=name)


def flow(fields: dict[str, Any]) -> str:
    """A mapping in YAML's flow style."""
    return "{" + ", ".join(f"{key}: {_value(value)}" for key, value in fields.items()) + "}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return scalar(value) if isinstance(value, str) else json.dumps(value)


def scalar(text: str) -> str:
    """A text as a YAML scalar, quoted where it must be."""
    is_plain = re.fullmatch(r"[A-Za-z_./](?:[\w./*()<>=+ -]*[\w./*)])?", text, flags=re.ASCII)
    reserved = text.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n", "~")
    return text if is_plain and not reserved else json.dumps(text, ensure_ascii=False)
