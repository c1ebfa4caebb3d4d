"""Writes a proposed scenario as YAML, line by line, so that each choice has its reason beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from feature_jobs.proposals.days import DayChoice, DayCounts
from feature_jobs.proposals.features import Proposed
from feature_jobs.proposals.labels import Answers
from feature_jobs.proposals.profiles import Profile, Table
from feature_jobs.proposals.roles import Clock, FoundEntity, Log

_SPACE = """
tune:                                            # `recloop tune` searches these; nothing serves before a person accepts
  trials: 8
  replay_days: {replay_days}
  space:
    train.learning_rate: {{low: 0.0003, high: 0.01, log: true}}
    train.embedding_learning_rate: {{low: 0.005, high: 0.2, log: true}}
    model.embedding_dim: {{choices: [8, 16, 32]}}
    model.dropout: {{low: 0.0, high: 0.3}}
"""


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


def to_yaml(proposal: Proposal) -> str:
    """The proposal as a scenario file."""
    labels = ", ".join(label.name for label in proposal.answers.labels)
    lines = [
        "# Proposed by `recloop init` from the files alone. Read every line: each choice may be wrong.",
        f"name: {proposal.name}",
        f"description: Predicts {labels} for a user and an item.",
        "",
        "data:",
        _line(f"  path: {scalar(proposal.data_path)}", "relative to this file; --data replaces it"),
        *_events(proposal),
        *_entities(proposal),
        f"  user: {scalar(proposal.log.user.name)}",
        f"  item: {scalar(proposal.log.item.name)}",
        *_days(proposal),
        *_answers(proposal),
        *_join(proposal),
        *_features(proposal),
        *_model(proposal),
    ]
    return "\n".join(lines) + "\n"


def _line(line: str, comment: str = "") -> str:
    return f"{line:<48} # {comment}" if comment else line


def _events(proposal: Proposal) -> list[str]:
    log = proposal.log
    answers = {label.column for label in proposal.answers.labels}
    zone = "the zone whose midnight begins a day, and of times without an offset"
    lines = ["  events:", *_table(log.table, proposal.events_path, "    ")]
    lines += [_line(f"    time: {_time(log.clock)}", zone), "    columns:"]
    for column in log.table.columns.values():
        is_answered = column.name in answers and column.known == log.table.num_sampled
        lines.append(_column(log.table, column, "      ", required=column in log.keys or is_answered))
    return lines


def _table(table: Table, path: str, indent: str) -> list[str]:
    dialect = table.group.dialect
    lines = [_line(f"{indent}path: {scalar(path)}", table.size), f"{indent}format: {dialect.format}"]
    return lines + [f"{indent}delimiter: {json.dumps(dialect.delimiter)}"] * (dialect.format == "csv")


def _time(clock: Clock) -> str:
    return flow({"column": clock.column.name} | ({"unit": clock.unit} if clock.unit else {}) | {"zone": "UTC"})


def _column(table: Table, column: Profile, indent: str, *, required: bool) -> str:
    optional = {"separator": column.separator, "date_format": column.date_format, "required": required or None}
    fields: dict[str, object] = {} if column.source == column.name else {"from": column.source}
    fields |= {"type": column.type} | {key: value for key, value in optional.items() if value is not None}
    missing = table.missing(column)
    comment = f"{column.distinct:,} values" + (f", {missing:.1%} missing" if missing > 0 else "")
    return _line(f"{indent}{scalar(column.name)}: {flow(fields)}", comment)


def _entities(proposal: Proposal) -> list[str]:
    lines = ["  entities:"] if proposal.entities else []
    for entity in proposal.entities:
        known = f"knows {entity.matched:.0%} of the log's {entity.event_key.name}"
        lines += [_line(f"    {entity.name}:", known), *_table(entity.table, entity.table.group.glob, "      ")]
        lines.append(f"      key: {scalar(entity.event_key.name)}")
        if entity.clock is not None:
            until = "a row holds from this time to the key's next row"
            lines.append(_line(f"      time: {_time(entity.clock)}", until))
        lines.append("      columns:")
        for column in entity.table.columns.values():
            is_key = column is entity.key
            named = replace(column, name=entity.event_key.name) if is_key else column
            lines.append(_column(entity.table, named, "        ", required=is_key))
    return lines


def _days(proposal: Proposal) -> list[str]:
    days = proposal.days
    chosen = {"warm_up_from": days.warm_up_from, "first": days.first, "last": days.last}
    fields = ", ".join(f"{key}: {value}" for key, value in chosen.items() if value is not None)
    lines = [f"  # {why.removeprefix('days: ')}" for why in days.why]
    skip = f", skip: [{', '.join(map(str, days.skip))}]" if days.skip else ""
    return [*lines, f"  days: {{{fields}{skip}}}"]


def _answers(proposal: Proposal) -> list[str]:
    lines = ["", "labels:"]
    for label in proposal.answers.labels:
        lines.append(_line(f"  {label.name}: {scalar(label.expression)}", f"{label.mean:.1%} of rows; {label.why}"))
    if proposal.answers.outcomes:
        lines += ["", _line("outcomes:", "known only after the event: never a feature of its own row")]
        lines += [_line(f"  - {scalar(name)}", why) for name, why in proposal.answers.outcomes.items()]
    return lines


def _join(proposal: Proposal) -> list[str]:
    days, share, lines = proposal.days, proposal.counts.incomplete, [""]
    if share > 0.005:
        why = f"up to {share:.1%} of a day's rows lack the user or the item"
        lines += ["ingest:", _line(f"  max_quarantined_share: {min(1.2 * share + 0.02, 0.99):.2f}", why), ""]
    lookback = min(60, max(7, (days.last - (days.warm_up_from or days.first)).days + 1))
    delay = _line(f"  label_delay_s: {proposal.answers.delay_s}", proposal.answers.why_delay)
    return [*lines, "join:", f"  lookback_days: {lookback}", delay]


def _features(proposal: Proposal) -> list[str]:
    lines = ["", "features:"]
    for feature in proposal.features:
        if feature.fields is None:
            lines.append(f"  # {feature.name}: left out, {feature.why}")
        else:
            lines.append(_line(f"  {scalar(feature.name)}: {flow(feature.fields)}", feature.why))
    return lines


def _model(proposal: Proposal) -> list[str]:
    by_user = [proposal.log.user.name]
    count = next(f for f in proposal.features if f.fields and f.fields.get("by") == by_user)
    small = sum(proposal.counts.rows.values()) < 50_000
    replay_days = max(1, min(2, (proposal.days.last - proposal.days.first).days))
    return [
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
        *_SPACE.format(replay_days=replay_days).rstrip().splitlines(),
    ]


def flow(fields: Mapping[str, object]) -> str:
    """A mapping in YAML's flow style."""
    return "{" + ", ".join(f"{key}: {_value(value)}" for key, value in fields.items()) + "}"


def _value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return scalar(value) if isinstance(value, str) else json.dumps(value)


def scalar(text: str) -> str:
    """A text as a YAML scalar, quoted where it must be."""
    is_plain = re.fullmatch(r"[A-Za-z_./](?:[\w./*()<>=+ -]*[\w./*)])?", text, flags=re.ASCII)
    reserved = text.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n", "~")
    return text if is_plain and not reserved else json.dumps(text, ensure_ascii=False)
