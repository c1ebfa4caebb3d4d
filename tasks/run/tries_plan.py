"""The plan of a try and the checks that it can run, from the commit records, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feature_jobs.errors import BadInputError, ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, history_days, maturing_days, previous_day, trailing_days
from tasks.run.runner import config_digest
from tasks.run.tries_scores import Comparison, Quality, Side
from tasks.steps import STEPS, WRITERS
from tasks.store.digests import canonical_json, sha256_of
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.store.source_digest import code_digest

COMMITTED = "committed"
TRIED = ("model", "train", "features", "join", "outcomes")
"""Sections of the scenario that a try can change."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OTHER_MEANING = re.compile(rf"{COMMITTED}|g\d+|\d{{4}}-\d\d-\d\d")
TRAIN, JOIN = STEPS[WRITERS["checkpoint"]], STEPS[WRITERS["samples"]]  # by output: generic code names no step
PARENT = next(argument for argument, source in TRAIN.reads.items() if source.is_parent)


@dataclass(frozen=True)
class Variant:
    """Settings to try: `scenario` is the base with `changes` (config path → value) applied. No `name`: it is made from
    the settings."""

    name: str | None
    changes: Mapping[str, Any]
    scenario: Scenario


@dataclass(frozen=True)
class Try:
    """A try that ended. `error` is the reason why it failed; there is then no `comparison`.

    `baseline`: the compared checkpoints of the chain by day. `curve`: metrics by day and task.
    """

    name: str
    key: str
    changes: Mapping[str, Any]
    days: tuple[str, ...]
    parent: str | None
    baseline: Mapping[str, str]
    joined_again: bool
    notes: tuple[str, ...] = ()
    outcome: str = "done"
    seconds: float = 0.0
    cpu_s: float = 0.0
    comparison: Comparison | None = None
    curve: Mapping[str, Mapping[str, Quality]] = field(default_factory=dict)
    error: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class Base:
    """Base that all variants of a call share: the scenario without their changes, and the committed days."""

    scenario: Scenario
    store: ScenarioStore
    days: tuple[str, ...]
    checkpoints: Mapping[str, Commit]
    parent: Commit | None

    @property
    def side(self) -> Side:
        """The chain, judged as a try of the same days is."""
        return Side(COMMITTED, {ds: commit.folder for ds, commit in self.checkpoints.items()}, self.days[0])

    def made_with(self, step: Any) -> list[str]:
        """Days whose output was committed with other settings than the scenario's of today."""
        wanted, found = config_digest(self.scenario, step), []
        for ds in self.days:
            commit = self.store.find(step.name, ds)
            if commit is None or commit.manifest.get("config") != wanted:
                found.append(ds)
        return found


@dataclass(frozen=True)
class Planned:
    """A variant with its name and key. `join_key` is None where it learns the committed samples."""

    record: Try
    scenario: Scenario
    join_key: str | None


def committed_days(scenario: Scenario, days: tuple[str, ...], store: ScenarioStore) -> Base:
    """Finds the days, all committed on one chain. Raises ParentMissingError or BadInputError where they are not."""
    checkpoints = {}
    for ds in days:
        check_day(scenario, ds)
        commit = store.find(TRAIN.name, ds)
        if commit is None:
            raise ParentMissingError(
                f"{store.url}: {ds} is not trained, and a try is compared with the committed chain; run it first:"
                f" recloop run {scenario.option}{store.option} --to {ds}",
                ds,
            )
        checkpoints[ds] = commit
    before = previous_day(scenario, days[0])
    parent = store.find(TRAIN.name, before) if before else None
    # A new generation may have replaced the day before: two trainings from two parents can't be compared.
    if checkpoints[days[0]].manifest.get("parent") != (parent.digest if parent else None):
        raise BadInputError(
            f"{store.url}: {days[0]} has not learned from the checkpoint of {before} that is committed now; a try"
            " would start elsewhere. Rebuild it: recloop chain replay"
            f" {scenario.option}{store.option} --from {days[0]}"
        )
    return Base(scenario, store, days, checkpoints, parent)


def _on(days: Sequence[str]) -> str:
    return f"on {days[0]}" if len(days) == 1 else f"on {len(days)} days from {days[0]} to {days[-1]}"


def plan(base: Base, variant: Variant) -> Planned:
    """Decides on the work of a variant, and its key: equal keys give equal results."""
    _refuse(base.scenario, variant)
    scenario, store = variant.scenario, base.store
    other_samples, other_chain = base.made_with(JOIN), base.made_with(TRAIN)
    if not variant.changes and not other_samples and not other_chain:
        raise BadInputError(
            f"{scenario.file}: nothing differs from the committed chain; change a value with --set PATH=VALUE"
        )
    notes = []
    if other_chain:
        notes.append(
            f"the committed chain was trained with other settings than today's scenario {_on(other_chain)}: the"
            " difference holds those changes too"
        )
    # Samples of other settings would be learned under today's name, though no feature of the variant differs.
    joins_again = bool(other_samples) or _samples_of(scenario) != _samples_of(base.scenario)
    samples: dict[str, Any] = {}
    for ds in base.days:
        if joins_again:
            samples[ds] = [_digests(days_joined(scenario, ds, store, output)) for output in ("events", "summaries")]
        else:
            samples[ds] = _find(store, JOIN.name, ds).digest
    join_key = sha256_of(canonical_json([_samples_of(scenario), samples])) if joins_again else None
    baseline = {ds: commit.digest for ds, commit in base.checkpoints.items()}
    parent = base.parent.digest if base.parent else None
    rules = scenario.evaluate
    # Neither the name nor the changes as they were typed: the same settings under two names are computed once.
    facts = {
        "config": config_digest(scenario, TRAIN),
        "code": [code_digest(step.name) for step in (TRAIN, JOIN)],  # a try of older code is not found again
        "samples": join_key or samples,
        "parent": parent,
        "baseline": baseline,
        "judged": [rules.bootstrap, rules.confidence],  # in the key, because the kept verdict depends on it
    }
    key = sha256_of(canonical_json(facts))
    name = variant.name or f"try-{key[:8]}"
    record = Try(name, key, dict(variant.changes), base.days, parent, baseline, joins_again, tuple(notes))
    return Planned(record, scenario, join_key)


def _refuse(base: Scenario, variant: Variant) -> None:
    """Raises BadInputError for a name that means something else, and for settings that no training here can try."""
    scenario, name = variant.scenario, variant.name
    if name is not None and (not NAME.fullmatch(name) or OTHER_MEANING.fullmatch(name)):
        raise BadInputError(
            f"variant {name!r}: not a name for a try; use letters, digits, '.', '_' and '-', and not a day, g0 or"
            f" {COMMITTED!r}, which `recloop compare` reads as such"
        )
    title = f"variant {name}" if name else "--set"
    for path in variant.changes:
        if path.split(".")[0] not in TRIED:
            raise BadInputError(
                f"{title}: {path}: a try trains on rows and labels that are committed, so it can't change this;"
                f" change something in {', '.join(TRIED)}"
            )
    if scenario.train.holdout_share != base.train.holdout_share:
        raise BadInputError(
            f"{title}: train.holdout_share: selects the rows that judge a try and must be the same as the committed"
            f" chain's, {base.train.holdout_share}; take it out"
        )


def _samples_of(scenario: Scenario) -> Any:
    """All settings that decide on the content of the samples."""
    document = scenario.model_dump(mode="json", by_alias=True)
    only_training = {"enabled", "buckets", "scale", "table", "embedding"}  # `models` reads these; a join does not
    features = {n: {k: v for k, v in f.items() if k not in only_training} for n, f in document["features"].items()}
    return [features, *(document[section] for section in ("join", "labels", "outcomes"))]


def _digests(found: Any) -> Any:
    return {ds: c.digest for ds, c in found.items()} if isinstance(found, dict) else found.digest if found else None


def _find(store: ScenarioStore, step: str, ds: str) -> Commit:
    commit = store.find(step, ds)
    if commit is None:
        raise ParentMissingError(f"{store.url}: the output of {step} of {ds} is not committed", ds)
    return commit


def days_joined(scenario: Scenario, ds: str, store: ScenarioStore, output: str) -> dict[str, Commit]:
    """The events or summaries from which a day is joined again: its own, and those that its windows reach."""
    num_days = history_days(scenario) + maturing_days(scenario)
    return {day: _find(store, WRITERS[output], day) for day in [*trailing_days(scenario, ds, num_days), ds]}


def committed_inputs(base: Base) -> list[Commit]:
    """Committed outputs that tries learn from or are compared with."""
    samples = [_find(base.store, JOIN.name, ds) for ds in base.days]
    return [*samples, *base.checkpoints.values(), *([base.parent] if base.parent else [])]
