"""The space that a study searches: config paths of the scenario, their ranges, and the scenario with other values."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, SearchRange, place_of

# Samples and the rows that judge a trial must be the same for all trials.
FEATURE_FIELDS = ("enabled", "buckets", "scale", "table")
NOT_IN_TRAIN = ("holdout_share",)
SIGNIFICANT_DIGITS = 4  # of a searched number: what is written into the scenario is exactly what was tried


@dataclass(frozen=True)
class Dimension:
    """One config path and what it may be. `choices` are JSON texts, as lists are no categories to Optuna."""

    path: str
    champion: Any
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def is_int(self) -> bool:
        """Whether the path holds whole numbers: the scenario's own value tells."""
        return isinstance(self.champion, int)

    @property
    def distribution(self) -> Any:
        """As Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.is_int:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def champion_raw(self) -> Any:
        """The scenario's own value, as Optuna stores it."""
        return json.dumps(self.champion) if self.choices else self.champion

    def decode(self, raw: Any) -> Any:
        """The value for the scenario of what Optuna suggested."""
        if self.choices:
            return json.loads(raw)
        # The champion's own value must not be rounded: trial 0 is the scenario as it is.
        return raw if self.is_int or raw == self.champion else float(f"{raw:.{SIGNIFICANT_DIGITS}g}")


def read_space(scenario: Scenario) -> list[Dimension]:
    """The scenario's `tune.space`, `*` expanded, in order of path. The scenario's own values are always part of it.

    Raises BadInputError for a path that no trial can change, or a range that does not fit its field.
    """
    from feature_jobs.checks.check import expand

    if not scenario.tune.space:
        raise BadInputError(f"{scenario.file}: tune.space: empty; name config paths and ranges to search")
    document = _document(scenario)
    dimensions = {}
    for pattern, search in scenario.tune.space.items():
        for path in expand(scenario, pattern):
            _refuse_fixed(scenario, pattern, path)
            dimensions[path] = _dimension(scenario, path, search, _value_at(scenario, document, path))
    found = [dimensions[path] for path in sorted(dimensions)]
    for dimension in found:
        for value in _ends(dimension):
            with_values(scenario, {dimension.path: value})
    return found


def with_values(scenario: Scenario, values: Mapping[str, Any]) -> Scenario:
    """The scenario as it would be with these values at these paths. Raises BadInputError where it refuses them."""
    from pydantic import ValidationError

    document = _document(scenario)
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = document
        for part in parents:
            node = node[part]
        node[leaf] = value
    try:
        changed = Scenario.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        given = ", ".join(f"{path} = {value!r}" for path, value in values.items())
        raise BadInputError(f"{_place(scenario)}: tune.space: {given}: {first['msg']}; change the range") from None
    changed._file = scenario.file
    return changed


def started_from(scenario: Scenario, proposal: Mapping[str, Any]) -> bool:
    """Whether the scenario has the values that the proposal's changes begin with."""
    document = _document(scenario)
    return all(_lookup(document, path) == change["old"] for path, change in proposal["changes"].items())


def apply(scenario_file: Path, proposal: Mapping[str, Any]) -> None:
    """Writes a proposal's changes into the scenario file, comments and order kept.

    Raises BadInputError where the file no longer holds the values that the proposal started from, or can't be written.
    """
    import io

    from ruamel.yaml import YAML

    from feature_jobs.schema import load_scenario

    document = _document(load_scenario(scenario_file))
    yaml = YAML(typ="rt")
    yaml.preserve_quotes, yaml.width = True, 4096
    text = scenario_file.read_text(encoding="utf-8")
    edited = yaml.load(text)
    for path, change in sorted(proposal["changes"].items()):
        *parents, leaf = path.split(".")
        place = f"{place_of(scenario_file, *parents, leaf)}: {path}"
        now = _lookup(document, path)
        if now != change["old"]:
            raise BadInputError(
                f"{place}: is {now!r}, the proposal started from {change['old']!r}; tune again from what it is now"
            )
        node = edited
        for part in parents:
            if part not in node:
                node[part] = {}
            node = node[part]
        node[leaf] = change["new"]
    out = io.StringIO()
    yaml.dump(edited, out)
    aside = scenario_file.with_name(f".{scenario_file.name}.{os.getpid()}")
    try:
        aside.write_text(out.getvalue(), encoding="utf-8")
        aside.replace(scenario_file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise BadInputError(
            f"{scenario_file}: can't be written ({error.strerror}); where it can: recloop accept --ds {proposal['ds']}"
        ) from None


def _document(scenario: Scenario) -> Any:
    return scenario.model_dump(mode="json", by_alias=True)


def _place(scenario: Scenario) -> str:
    return place_of(scenario.file, "tune", "space")


def _lookup(document: Any, path: str) -> Any:
    """The value at a path; None where there is none."""
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _value_at(scenario: Scenario, document: Any, path: str) -> Any:
    """The scenario's own value. Raises BadInputError, with a did-you-mean, where the scenario has no such path."""
    place = place_of(scenario.file, "tune", "space", path)
    *parents, leaf = path.split(".")
    section = _lookup(document, ".".join(parents))
    if not isinstance(section, dict) or leaf not in section:
        known = list(section) if isinstance(section, dict) else []
        close = difflib.get_close_matches(leaf, known, n=1)
        remedy = (
            f"did you mean {'.'.join([*parents, close[0]])}?"
            if close
            else "name a path of the scenario that has a value"
        )
        raise BadInputError(f"{place}: tune.space: {path}: no such config path; {remedy}")
    return section[leaf]


def _refuse_fixed(scenario: Scenario, pattern: str, path: str) -> None:
    section, *rest = path.split(".")
    place = f"{place_of(scenario.file, 'tune', 'space', pattern)}: tune.space: {path}"
    if section == "features" and rest and rest[-1] not in FEATURE_FIELDS:
        raise BadInputError(
            f"{place}: would need another join, and trials replay the samples that are there;"
            f" of a feature a trial can change {', '.join(FEATURE_FIELDS)}"
        )
    if section == "train" and rest and rest[0] in NOT_IN_TRAIN:
        raise BadInputError(f"{place}: decides which rows judge a trial, and must be the same for all; take it out")
    if section not in ("model", "train", "features"):
        raise BadInputError(f"{place}: has no part in training; search in model, train or features")


def _dimension(scenario: Scenario, path: str, search: SearchRange, champion: Any) -> Dimension:
    place = f"{place_of(scenario.file, 'tune', 'space', path)}: tune.space: {path}"
    if search.choices is not None:
        choices = dict.fromkeys([json.dumps(champion), *map(json.dumps, search.choices)])
        return Dimension(path, champion, choices=tuple(choices))
    if search.low is None or search.high is None:
        raise BadInputError(f"{place}: has no range; give low and high, or choices")
    if isinstance(champion, bool) or not isinstance(champion, int | float):
        raise BadInputError(f"{place}: the scenario's {champion!r} is no number; give choices instead of low and high")
    low, high = min(search.low, champion), max(search.high, champion)
    if search.log and low <= 0:
        raise BadInputError(f"{place}: {low} has no logarithm; raise it above zero, or leave log out")
    if search.step is not None and not math.isclose((champion - low) / search.step % 1, 0, abs_tol=1e-9):
        raise BadInputError(f"{place}: the scenario's {champion} is not low + n·step; change low or step")
    return Dimension(path, champion, low=low, high=high, log=search.log, step=search.step)


def _ends(dimension: Dimension) -> list[Any]:
    if dimension.choices:
        return [json.loads(choice) for choice in dimension.choices]
    return [int(end) if dimension.is_int else end for end in (dimension.low, dimension.high)]
