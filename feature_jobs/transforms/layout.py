"""The inputs of a network: the columns of a scenario's enabled features, and how each is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from feature_jobs.control_records import read_record
from feature_jobs.errors import CorruptError

if TYPE_CHECKING:
    from feature_jobs.schema import Scenario

SCALES = ("none", "quantile", "minmax", "log", "log1p", "logit")


@dataclass(frozen=True)
class Slot:
    """A column embedded as one id. With `buckets`, the column is a number and the id is floor(scaled · buckets)."""

    name: str
    column: str
    namespace: str
    scale: str = "none"
    buckets: int = 0


@dataclass(frozen=True)
class Bag:
    """A list column, embedded and pooled: the mean or the sum. With `weighted` its elements are texts `id:weight`."""

    name: str
    namespace: str
    weighted: bool = False
    pooling: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True)
class Number:
    """A numeric column; `scale` is one of `none`, `log`, `log1p`, `logit`, `quantile`, `minmax`; for the last two the
    network reads its place among quantiles, or between extremes, that it learned. NAME:3 is the fourth value of a
    vector."""

    name: str
    scale: str

    @property
    def column(self) -> str:
        """The feature's column."""
        return self.name.partition(":")[0]

    @property
    def place(self) -> int | None:
        """The place in a vector; None for a number."""
        place = self.name.partition(":")[2]
        return int(place) if place else None


@dataclass(frozen=True)
class Layout:
    """The inputs of a network, in the order of the scenario."""

    slots: tuple[Slot, ...]
    bags: tuple[Bag, ...]
    numbers: tuple[Number, ...]

    @classmethod
    def from_scenario(cls, scenario: Scenario) -> Layout:
        """The layout of the scenario's enabled features."""
        slots: list[Slot] = []
        bags: list[Bag] = []
        numbers: list[Number] = []
        for name, feature in scenario.enabled_features.items():
            if feature.form == "id":
                slots.append(Slot(name, name, getattr(feature, "table", None) or name))
            elif feature.kind == "ids":
                bags.append(Bag(name, feature.table or name, feature.weighted, feature.pooling))
            elif feature.form == "ids":
                bags.append(Bag(name, feature.table or name))
            elif feature.form == "vector":
                # No feature's name has ":", so the names of its parts are unique.
                numbers += [Number(f"{name}:{place}", "none") for place in range(feature.width)]
            else:
                scale = _scale_of(feature)
                numbers.append(Number(name, scale))
                if feature.buckets:
                    slots.append(Slot(f"{name}:bucket", name, f"{name}:bucket", scale, feature.buckets))
        return cls(tuple(slots), tuple(bags), tuple(numbers))

    @property
    def columns(self) -> list[str]:
        """The feature columns that `encode` reads, each once."""
        names = [s.column for s in self.slots] + [b.name for b in self.bags] + [n.column for n in self.numbers]
        return list(dict.fromkeys(names))

    @property
    def widths(self) -> dict[str, int]:
        """The width of each vector, by column."""
        return Counter(number.column for number in self.numbers if number.place is not None)

    @property
    def feature_namespaces(self) -> list[str]:
        """The namespace of each slot, then of each bag."""
        return [s.namespace for s in self.slots] + [b.namespace for b in self.bags]

    @property
    def namespaces(self) -> list[str]:
        """Every namespace of ids, each once."""
        return list(dict.fromkeys(self.feature_namespaces))

    @property
    def feature_tables(self) -> list[int]:
        """The namespace of each slot, then of each bag, as its index in `namespaces`."""
        names = self.namespaces
        return [names.index(name) for name in self.feature_namespaces]

    def to_json(self) -> dict[str, Any]:
        """The layout as JSON, a dict only on its way into a file; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any], place: str = "layout") -> Layout:
        """Reads the JSON that `to_json` returns. Raises CorruptError, with the place that it comes from."""
        layout = read_record(json.dumps(document).encode(), cls, f"{place}: layout")
        scales = {slot.scale for slot in layout.slots} | {number.scale for number in layout.numbers}
        wrong = sorted(scales.difference(SCALES))
        if wrong:
            raise CorruptError(f"{place}: layout: {wrong[0]!r} is not a scale; restore the file from a backup")
        return layout


def _scale_of(feature: Any) -> str:
    """The scale on which the network reads a number."""
    if scale := getattr(feature, "scale", None):
        return str(scale)
    if feature.kind == "rate":
        return "logit"  # spreads rates that crowd near 0 and 1
    if feature.kind == "request" and feature.operation == "share":
        return "none"  # of a sum with negative values it may be any number
    return "log1p"  # counts, places and seconds span several powers of ten
