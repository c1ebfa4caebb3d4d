"""Features that are computed from the row itself: one code for a day of rows and for the items of a request."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

from feature_jobs.joins.request import ValuesOf
from feature_jobs.joins.rules import SameRow, own_expressions, same_row_features
from feature_jobs.joins.values import cross, id_lists, ids, numbers, vectors
from feature_jobs.schema import CrossFeature, IdFeature, IdsFeature, NumberFeature, Scenario, VectorFeature


class SameRowFeatures:
    """The scenario's features of kind id, ids, cross, number and vector, read once for all days and requests; with
    `names` these of them."""

    def __init__(self, scenario: Scenario, names: Collection[str] | None = None) -> None:
        found = same_row_features(scenario)
        self._features = {name: one for name, one in found.items() if names is None or name in names}
        self._places = {name: own_expressions(name, feature) for name, feature in self._features.items()}
        self._expressions = {place: e for of_feature in self._places.values() for place, e in of_feature.items()}
        self._file = scenario.file

    def columns(self, values_of: ValuesOf) -> dict[str, pa.Array]:
        """Their columns [N]. `values_of` returns the values of expressions, by place."""
        values = values_of(self._expressions)
        return {
            name: _column(feature, [values[place] for place in self._places[name]], f"{self._file}: features.{name}")
            for name, feature in self._features.items()
        }


def _column(feature: SameRow, parts: list[pa.Array], place: str) -> pa.Array:
    match feature:
        case CrossFeature():
            return cross(parts, place)
        case NumberFeature():
            return numbers(parts[0], place)
        case VectorFeature(width=width):
            return vectors(parts[0], width, place)
        case IdsFeature():
            return id_lists(parts[0], place)
        case IdFeature():
            return ids(parts[0], place)
