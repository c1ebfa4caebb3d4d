"""Features that a scenario can declare, a class for each `kind`.

A text below a key is its sentence in docs/reference.md; a test requires one for each key.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from feature_jobs.schema.base import (
    Buckets,
    Name,
    Number,
    NumDays,
    NumRows,
    Positive,
    Section,
    VectorWidth,
    Whole,
)


class Feature(Section):
    """A feature of the samples, and of the model."""

    form: ClassVar[Literal["id", "ids", "number", "vector"]]
    """The input of the model: one id, a list of ids, a number, or a vector of numbers."""
    enabled: bool = True
    """Puts the feature into the model; false leaves it in the samples alone."""


class Embedding(Section):
    """Admission and eviction of a table's ids. Ids without a row share the table's default row."""

    min_count: Annotated[Whole, Field(ge=1, le=255)] = 1  # 255: a counter of the sketch is one byte
    """The times that an id must be seen to get a row; the count halves every day."""
    ttl_days: NumDays | None = None
    """The days of event time after which an unseen id loses its row."""
    capacity: NumRows | None = None
    """The rows that the table keeps: while it holds more, the least seen ids lose theirs."""


class EmbeddedFeature(Feature):
    """A feature of ids."""

    embedding: Embedding = Embedding()
    """The settings of its embedding table; a feature that shares another's table has none."""


class IdFeature(EmbeddedFeature):
    """One id (int or text), embedded."""

    form = "id"
    kind: Literal["id"]
    of: str | None = None
    """The column, `entity.column` or expression of the id; default: the column of the feature's name."""
    table: str | None = None
    """The id feature whose embedding table it shares."""


class IdsFeature(EmbeddedFeature):
    """Several ids from a list column, embedded and pooled."""

    form = "ids"
    kind: Literal["ids"]
    of: str | None = None
    """The list column, or `entity.column`; default: the column of the feature's name."""
    table: str | None = None
    """The id feature whose embedding table it shares."""
    weighted: bool = False
    """Says that the elements are texts `id:weight`, cut at the last colon; an id alone has the weight 1. Elements whose
    weight is not a finite number are left out; of a mean also those whose weight is not above 0."""
    pooling: Literal["mean", "sum"] = "mean"
    """The pooling of the embeddings. The mean of weighted ids is the sum of weight times embedding, divided by the sum
    of the weights. An empty list gives zeros."""


class CrossFeature(EmbeddedFeature):
    """The combination of columns (or expressions) as one id."""

    form = "id"
    kind: Literal["cross"]
    of: tuple[str, ...] = Field(min_length=2)  # of one column it would be a second table of the same ids
    """The columns, `entity.column`s or expressions that are combined."""


class NumberFeature(Feature):
    """A number."""

    form = "number"
    kind: Literal["number"]
    of: str | None = None
    """The column, `entity.column` or expression of the number; default: the column of the feature's name."""
    scale: Literal["log", "none", "quantile", "minmax"] = "log"
    """The scale on which the network reads it; log is sign(x)·log(1+|x|), quantile the number's rank, from 0 to 1,
    among 64 boundaries, and minmax its place, from 0 to 1, between the smallest and the largest number. The training
    learns boundaries and extremes from the days so far and keeps them in the checkpoint."""
    buckets: Buckets = 0
    """Embeds the number too: each unit of the scaled value has that many steps, each with a row; 0 does not."""

    @model_validator(mode="after")
    def _no_learned_steps(self) -> Self:
        _refuse_learned_steps(self.scale, self.buckets)
        return self


class VectorFeature(Feature):
    """A vector that another model made, such as the embedding of a title or of a picture."""

    form = "vector"
    kind: Literal["vector"]
    of: str | None = None
    """The `list[float]` column, `entity.column` or expression of it; default: the column of the feature's name."""
    width: VectorWidth
    """The number of values in each vector. The network reads each as a number, scaled by the mean and deviation of past
    days; all of them are unknown where the vector is."""


class Windowed(Section):
    """A feature of earlier events with the same `by`, in a window."""

    source: Name | None = None
    """The log of `data.logs` whose rows are the earlier events; default: the log of `data.events`."""
    by: tuple[str, ...] = Field(min_length=1)
    """The columns, or `entity.column`s, that an earlier event must have in common with this one; both logs have them by
    the same names."""
    where: str | None = None
    """The condition that an earlier event must fulfil to count."""
    window_days: NumDays | None = None
    """The days that it looks back; default: `join.lookback_days`."""
    window_hours: Annotated[Positive, Field(le=87_600)] | None = None  # ten years, as for window_days
    """The hours that it looks back, instead of `window_days`."""

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        if self.window_days is not None and self.window_hours is not None:
            raise ValueError(
                f"window_days ({self.window_days}) and window_hours ({self.window_hours}) are both given; remove one"
            )
        return self

    @property
    def window_s(self) -> int | None:
        """The window in seconds; None: `join.lookback_days`."""
        if self.window_hours is not None:
            return self.window_hours * 3600
        return None if self.window_days is None else self.window_days * 86_400


class TrailingFeature(Windowed, Feature):
    """A number computed from the earlier events with the same `by`."""

    form = "number"
    buckets: Buckets = 0
    """Embeds the number too: each unit of its logarithm (of a rate: of its logit) has that many steps; 0 does not."""


def _refuse_learned_steps(scale: str, buckets: int) -> None:
    if scale in ("quantile", "minmax") and buckets:
        raise ValueError(
            f"buckets ({buckets}) are steps of a fixed scale, but those of scale: {scale} are learned; leave buckets"
            f" out, or choose another scale"
        )


class CountFeature(TrailingFeature):
    """Number of earlier events."""

    kind: Literal["count"]


class RateFeature(TrailingFeature):
    """Share of earlier events for which `of` holds, smoothed towards `prior`."""

    kind: Literal["rate"]
    of: str
    """The condition whose share it is."""
    prior: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """The rate without any earlier event."""
    prior_weight: Annotated[Number, Field(gt=0, le=1e9)] = 10.0
    """The number of events that the prior counts for."""


class RecencyFeature(TrailingFeature):
    """Seconds since the last earlier event; null where there is none."""

    kind: Literal["recency"]


class NumbersFeature(TrailingFeature):
    """A number computed from the numbers of earlier events; those without one (null, NaN, infinite) do not count."""

    of: str
    """The column, `entity.column` or expression of the numbers."""
    decimals: Annotated[Whole, Field(ge=0, le=9)] | None = None
    """The decimal places that are kept, so that sums are exact; default: 4, and 0 where `of` gives whole numbers."""
    scale: Literal["log", "none", "quantile", "minmax"] = "log"
    """The scale on which the network reads it; log is sign(x)·log(1+|x|), quantile the number's rank, from 0 to 1,
    among 64 boundaries, and minmax its place, from 0 to 1, between the smallest and the largest number. The training
    learns boundaries and extremes from the days so far and keeps them in the checkpoint."""

    @model_validator(mode="after")
    def _no_learned_steps(self) -> Self:
        _refuse_learned_steps(self.scale, self.buckets)
        return self


class StatisticFeature(NumbersFeature):
    """Sum, average, smallest, largest, variance (of all, not of a sample) or standard deviation of earlier events'
    numbers. Without any the sum is 0, and the others are null."""

    kind: Literal["sum", "average", "min", "max", "variance", "stddev"]


class PercentileFeature(NumbersFeature):
    """The smallest of earlier events' numbers that at least `percent` of them do not exceed, at most 0.8 % off; null
    where there is none."""

    kind: Literal["percentile"]
    percent: Annotated[Number, Field(gt=0, lt=100)]
    """The share in percent, with at most three decimal places: 50 is the median."""

    @model_validator(mode="after")
    def _three_places(self) -> Self:
        if round(self.percent, 3) != self.percent:
            raise ValueError(f"percent ({self.percent}) has more than three decimal places; write fewer")
        return self


class UniqueCountFeature(TrailingFeature):
    """Number of different ids among earlier events; events without one do not count."""

    kind: Literal["unique_count"]
    of: str
    """The column, `entity.column` or expression of the ids."""
    exact_up_to: Annotated[Positive, Field(ge=16, le=65_536)] = 1024
    """The number of ids up to which the whole days of a window count exactly; from then on they count a sample of as
    many ids, whose standard error is 1 / √(this number): 3 % of 1,024."""


class ValueFeature(Windowed, EmbeddedFeature):
    """The id of the first or of the last earlier event, embedded; events without one do not count."""

    form = "id"
    kind: Literal["first", "last"]
    of: str
    """The column, `entity.column` or expression of the id."""
    table: str | None = None
    """The id feature whose embedding table it shares."""


class TopFeature(Windowed, EmbeddedFeature):
    """The most frequent ids of earlier events, the most frequent first, of equally frequent ones the newest first;
    embedded and averaged."""

    form = "ids"
    kind: Literal["top_k"]
    of: str
    """The column, `entity.column` or expression of the ids."""
    k: Annotated[Positive, Field(le=1_000)] = 3
    """The largest number of ids."""
    among: Annotated[Positive, Field(le=10_000)] = 100  # fits the 14 bits of a place in feature_jobs.windows.frequent
    """The number of newest events that are counted."""
    table: str | None = None
    """The id feature whose embedding table it shares."""


SECONDS_AGO = "seconds_ago"
"""As `of` of a sequence: the time from an earlier event to the row."""


class SequenceFeature(EmbeddedFeature):
    """The ids of the last earlier events with the same `by`, newest first, embedded and averaged."""

    form = "ids"
    kind: Literal["sequence"]
    source: Name | None = None
    """The log of `data.logs` whose rows are the earlier events; default: the log of `data.events`."""
    of: str
    """The column, or expression, of the ids. `seconds_ago` is the time from an earlier event to this one, in steps: n
    is less than 2^n whole seconds, and at least half of that."""
    known: str | None = None
    """The expression that must not be null for an earlier event to count; default: `of`. Sequences with the same
    `known`, `by`, `where` and `length` hold values of the same events: null where `of` is null."""
    by: str
    """The column that an earlier event must have in common with this one."""
    where: str | None = None
    """The condition that an earlier event must fulfil to count."""
    length: Annotated[Positive, Field(le=10_000)] = 20
    """The largest number of ids."""
    table: str | None = None
    """The id feature whose embedding table it shares."""
    history: str | None = None
    """An `entity.column` list of older ids, oldest first, with which it goes on where the log is too short."""


class RequestFeature(Feature):
    """A number of a row among the rows that were shown in the same request (`data.request`); null where the row is in
    no request, or `of` is unknown."""

    form = "number"
    kind: Literal["request"]
    operation: Literal["size", "position", "rank", "share"]
    """The number: size counts the rows; position numbers them from 1 in the order of the log, or from the smallest
    `of`; rank is 1 for the largest `of`, and equal values share a rank; share is `of` divided by the request's sum."""
    of: str | None = None
    """The column, `entity.column`, expression or other number feature by which the rows are compared."""
    buckets: Buckets = 0
    """Embeds the number too: each unit of its logarithm (of a share: of itself) has that many steps; 0 does not."""

    @model_validator(mode="after")
    def _has_values(self) -> Self:
        if self.of is None and self.operation in ("rank", "share"):
            raise ValueError(f"{self.operation} compares values; add of: with a column, an expression or a feature")
        if self.of is not None and self.operation == "size":
            raise ValueError("size counts the rows and compares no values; remove of")
        return self


class MatchFeature(Feature):
    """A number that says how an id of the row, such as the item or its author, matches a sequence feature of the row;
    null where the id is unknown."""

    form = "number"
    kind: Literal["match"]
    of: str
    """The column, `entity.column` or expression of the id."""
    sequence: Name
    """The sequence feature in which it is looked for; its ids must be of the same type."""
    operation: Literal["count", "position"] = "count"
    """The number: count says how often the sequence holds the id; position is the place of its newest occurrence, 1 for
    the newest id of the sequence, and null where it is not there."""
    buckets: Buckets = 0
    """Embeds the number too: each unit of its logarithm has that many steps; 0 does not."""


AnyFeature = Annotated[
    IdFeature
    | IdsFeature
    | CrossFeature
    | NumberFeature
    | VectorFeature
    | CountFeature
    | RateFeature
    | RecencyFeature
    | StatisticFeature
    | PercentileFeature
    | UniqueCountFeature
    | ValueFeature
    | TopFeature
    | SequenceFeature
    | RequestFeature
    | MatchFeature,
    Field(discriminator="kind"),
]
