"""Features that are computed from the row itself: one code for a day of rows and for the items of a request."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pyarrow as pa

from feature_jobs.joins.request import ValuesOf
from feature_jobs.joins.rules import SameRow, own_expressions, same_row_features
from feature_jobs.joins.values import Joined, cross, id_lists, ids, joined_texts, numbers, vectors
from feature_jobs.schema import CrossFeature, IdFeature, IdsFeature, NumberFeature, Scenario, VectorFeature

Made = Callable[[list[pa.Array], str], pa.Array]
"""Makes a column from the values of the feature's expressions, at a place for messages."""


class SameRowFeatures:
    """The scenario's features of kind id, ids, cross, number and vector, read once for all days and requests; with
    `names` these of them. `joined` makes the texts of crosses."""

    def __init__(self, scenario: Scenario, names: Collection[str] | None = None, joined: Joined = joined_texts) -> None:
        self._features: list[tuple[str, Made, list[str], str]] = []
        self._expressions: dict[str, str] = {}
        for name, feature in same_row_features(scenario).items():
            if names is None or name in names:
                own = own_expressions(name, feature)
                self._features.append((name, _made(feature, joined), [*own], f"{scenario.file}: features.{name}"))
                self._expressions |= own

    def columns(self, values_of: ValuesOf) -> dict[str, pa.Array]:
        """Their columns [N]. `values_of` returns the values of expressions, by place."""
        values = values_of(self._expressions)
        return {name: made([values[one] for one in own], place) for name, made, own, place in self._features}


def _made(feature: SameRow, joined: Joined) -> Made:
    match feature:
        case CrossFeature():
            return lambda parts, place: cross(parts, place, joined)
        case NumberFeature():
            return lambda parts, place: numbers(parts[0], place)
        case VectorFeature(width=width):
            return lambda parts, place: vectors(parts[0], width, place)
        case IdsFeature():
            return lambda parts, place: id_lists(parts[0], place)
        case IdFeature():
            return lambda parts, place: ids(parts[0], place)
