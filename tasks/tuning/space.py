"""The space that a study searches: config paths of the scenario, their ranges, and the scenario with other values."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, SearchRange
from feature_jobs.schema.days import maturing_days
from feature_jobs.schema.explain import explain

SAME_SAMPLES = ("enabled", "buckets", "scale", "table", "embedding")
"""Fields of a feature that decide on the reading of a sample, not on its content."""
SERVED = ("model", "train", "features")
"""Sections that decide on the content of a checkpoint."""
SEARCHED = ("model", "train", "features", "join")
JUDGING = ("data", "ingest", "labels", "outcomes", "evaluate")
SIGNIFICANT_DIGITS = 4  # of a searched number: exactly the value that was tried is written into the scenario
MISSING = object()


@dataclass(frozen=True)
class Dimension:
    """One config path and its possible values. `champion` is the value that serves, `own` the scenario's. `choices` are
    JSON texts, as Optuna takes no lists for categories."""

    path: str
    champion: Any
    own: Any
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def is_int(self) -> bool:
        """True where the path holds whole numbers, as the scenario's own value does."""
        return isinstance(self.own, int)

    @property
    def distribution(self) -> Any:
        """As Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.is_int:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def encode(self, value: Any) -> Any:
        """The value as Optuna stores it."""
        return json.dumps(value) if self.choices else value

    def decode(self, raw: Any) -> Any:
        """The value for the scenario that Optuna's value stands for."""
        if self.choices:
            return json.loads(raw)
        # Known values must not be rounded: trial 0 has exactly the champion's.
        if self.is_int or raw in (self.champion, self.own):
            return raw
        return float(f"{raw:.{SIGNIFICANT_DIGITS}g}")


def read_space(scenario: Scenario, served: Mapping[str, Any] | None = None) -> list[Dimension]:
    """The scenario's `tune.space`, `*` expanded, in order of path.

    `served` holds the sections that the champion was trained with. Its values and the scenario's own are always part of
    the space. Raises BadInputError for a path that no trial can change, or a range that does not fit its field.
    """
    if not scenario.tune.space:
        raise BadInputError(f"{scenario.file}: tune.space: empty; name config paths and ranges to search")
    document = _document(scenario)
    dimensions = {}
    for path, (pattern, search) in _searched(scenario).items():
        _refuse_fixed(scenario, pattern, path)
        own = _own_value(scenario, document, path)
        champion = value_in(served or {}, path, own)
        dimensions[path] = _dimension(scenario, path, search, champion, own)
    found = [dimensions[path] for path in sorted(dimensions)]
    for dimension in found:
        # Before the search: an end that the schema refuses would otherwise fail after hours, in some trial.
        for value in _ends(dimension):
            with_values(scenario, {dimension.path: value})
    return found


def _searched(scenario: Scenario) -> dict[str, tuple[str, SearchRange]]:
    """Every path of the space with the pattern that it comes from and its range."""
    from feature_jobs.checks.check import expand

    space = scenario.tune.space.items()
    return {path: (pattern, search) for pattern, search in space for path in expand(scenario, pattern)}


def searched_paths(scenario: Scenario) -> set[str]:
    """The paths of `tune.space`, `*` expanded: all that a search may change."""
    return set(_searched(scenario))


def own_value(scenario: Scenario, path: str) -> Any:
    """The scenario's own value at a path. Raises BadInputError where it has no such path."""
    return _own_value(scenario, _document(scenario), path)


def serving_scenario(scenario: Scenario, served: Mapping[str, Any] | None) -> Scenario:
    """The scenario with the settings that the champion was trained with; the scenario itself where those are not known
    or not valid any more (a feature was renamed, say)."""
    from pydantic import ValidationError

    document = {**_document(scenario), **{key: served[key] for key in SERVED if served and key in served}}
    try:
        serving = Scenario.model_validate(document)
    except ValidationError:
        return scenario
    # A validated copy has none of the private attributes.
    serving._file, serving._given = scenario._file, scenario._given
    return serving


def joins_again(path: str) -> bool:
    """Says if another value at the path needs other samples than those that are committed."""
    section, *rest = path.split(".")
    return section == "join" or (section == "features" and len(rest) > 1 and rest[1] not in SAME_SAMPLES)


def event_days(scenario: Scenario) -> int:
    """Returns the number of days of events before the tuned one that a study reads: 0 where no trial joins again."""
    joining = {path: search for path, (_, search) in _searched(scenario).items() if joins_again(path)}
    if not joining:
        return 0
    lookback = joining.get("join.lookback_days")
    ends = [lookback.high, *(lookback.choices or ())] if lookback else []
    longest = int(max([scenario.join.lookback_days, *(end for end in ends if end)]))
    return scenario.tune.replay_days + longest + 1 + maturing_days(scenario)  # see history_days


def with_values(scenario: Scenario, values: Mapping[str, Any]) -> Scenario:
    """The scenario as it would be with these values at these paths. Raises BadInputError where it refuses them."""
    from pydantic import ValidationError

    # By way of the whole document: pydantic's copies with changes are not checked.
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
        explained = explain(scenario.file, document, error.errors(include_url=False)[0])
        wrong = explained.removeprefix(f"{scenario.file}: ").rpartition("; ")[0]
        given = ", ".join(f"{path} = {value!r}" for path, value in values.items())
        raise BadInputError(f"{_place(scenario)}: tune.space: {given}: {wrong}; change the range") from None
    changed._file = scenario.file
    return changed


def _document(scenario: Scenario) -> Any:
    return scenario.model_dump(mode="json", by_alias=True)


def _place(scenario: Scenario) -> str:
    return scenario.place_of("tune", "space")


def value_in(document: Any, path: str, default: Any = None) -> Any:
    """The value at a path, or the default where the document has none."""
    for part in path.split("."):
        if not isinstance(document, Mapping) or part not in document:
            return default
        document = document[part]
    return document


def _own_value(scenario: Scenario, document: Any, path: str) -> Any:
    """The scenario's own value. Raises BadInputError, with a did-you-mean, where the scenario has no such path."""
    place = scenario.place_of("tune", "space", path)
    *parents, leaf = path.split(".")
    section = value_in(document, ".".join(parents))
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
    section = path.split(".", maxsplit=1)[0]
    place = f"{scenario.place_of('tune', 'space', pattern)}: tune.space: {path}"
    if section in JUDGING or path == "train.holdout_share":
        raise BadInputError(f"{place}: selects the rows that judge a trial, and must be the same for all; take it out")
    if section not in SEARCHED:
        raise BadInputError(f"{place}: has no part in training; search in {', '.join(SEARCHED)}")


def _dimension(scenario: Scenario, path: str, search: SearchRange, champion: Any, own: Any) -> Dimension:
    place = f"{scenario.place_of('tune', 'space', path)}: tune.space: {path}"
    if search.choices is not None:
        choices = dict.fromkeys(json.dumps(value) for value in (champion, own, *search.choices))
        return Dimension(path, champion, own, choices=tuple(choices))
    if search.low is None or search.high is None:
        raise BadInputError(f"{place}: has no range; give low and high, or choices")
    # In Python True is an int, too.
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (champion, own)):
        raise BadInputError(f"{place}: the scenario's {own!r} is not a number; give choices instead of low and high")
    # Optuna replaces known values that lie outside of the range, and trial 0 must have the champion's.
    low, high = min(search.low, champion, own), max(search.high, champion, own)
    if search.log and low <= 0:
        raise BadInputError(f"{place}: {low} has no logarithm; raise it above zero, or leave log out")
    if search.step is not None and not all(
        math.isclose((value - low) / search.step % 1, 0, abs_tol=1e-9) for value in (champion, own)
    ):
        raise BadInputError(f"{place}: the scenario's {own} is not low + n·step; change low or step")
    return Dimension(path, champion, own, low=low, high=high, log=search.log, step=search.step)


def _ends(dimension: Dimension) -> list[Any]:
    if dimension.choices:
        return [json.loads(choice) for choice in dimension.choices]
    return [int(end) if dimension.is_int else end for end in (dimension.low, dimension.high)]
