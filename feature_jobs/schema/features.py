"""Features that a scenario can declare, a class for each `kind`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from feature_jobs.schema.base import Buckets, Number, NumDays, NumRows, Positive, Section, Whole


class Feature(Section):
    """Common to all features. `enabled: false` leaves it out of the model, not of the samples."""

    enabled: bool = True


class Embedding(Section):
    """Admission and eviction of a table's ids. An id gets a row when it has been seen `min_count` times (a count that
    halves every day); it loses it when unseen for more than `ttl_days` of event time, or while the table holds more
    than `capacity` rows and it is among the least seen. Ids without a row share the table's default row."""

    min_count: Annotated[Whole, Field(ge=1, le=255)] = 1  # 255: a counter of the sketch is one byte
    ttl_days: NumDays | None = None
    capacity: NumRows | None = None


class EmbeddedFeature(Feature):
    """A feature of ids. `embedding` holds the settings of its table; a feature that shares another's has none."""

    embedding: Embedding = Embedding()


class IdFeature(EmbeddedFeature):
    """One id (int or text), embedded. `of`: column, `entity.column` or an expression; default: the feature's name.
    `table` shares the embeddings of another id feature."""

    kind: Literal["id"]
    of: str | None = None
    table: str | None = None


class IdsFeature(EmbeddedFeature):
    """Several ids from a list column, embedded and averaged."""

    kind: Literal["ids"]
    of: str | None = None
    table: str | None = None


class CrossFeature(EmbeddedFeature):
    """The combination of columns (or expressions) as one id."""

    kind: Literal["cross"]
    of: tuple[str, ...] = Field(min_length=2)


class NumberFeature(Feature):
    """A number. `scale: log` is sign(x)·log(1+|x|). `buckets`: embed it too, as one of about that many equal steps
    of the scaled value per unit."""

    kind: Literal["number"]
    of: str | None = None
    scale: Literal["log", "none"] = "log"
    buckets: Buckets = 0


class TrailingFeature(Feature):
    """Over the earlier events with the same `by` (columns or `entity.column`) for which `where` holds: those of the
    last `window_days` or `window_hours`, at most one of which is given; default: of `join.lookback_days`."""

    by: tuple[str, ...] = Field(min_length=1)
    where: str | None = None
    window_days: NumDays | None = None
    window_hours: Annotated[Positive, Field(le=87_600)] | None = None
    buckets: Buckets = 0

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


class CountFeature(TrailingFeature):
    """Number of earlier events."""

    kind: Literal["count"]


class RateFeature(TrailingFeature):
    """Share of earlier events for which `of` holds, smoothed towards `prior` as if `prior_weight` more events had that
    rate."""

    kind: Literal["rate"]
    of: str
    prior: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    prior_weight: Annotated[Number, Field(gt=0, le=1e9)] = 10.0


class RecencyFeature(TrailingFeature):
    """Seconds since the last earlier event; null where there is none."""

    kind: Literal["recency"]


class SequenceFeature(EmbeddedFeature):
    """The last `length` values of `of` over earlier events with the same `by` where `where` holds, newest first.
    `history` names an `entity.column` list (oldest first) to go on with where the log is too short."""

    kind: Literal["sequence"]
    of: str
    by: str
    where: str | None = None
    length: Annotated[Positive, Field(le=10_000)] = 20
    table: str | None = None
    history: str | None = None


AnyFeature = Annotated[
    IdFeature
    | IdsFeature
    | CrossFeature
    | NumberFeature
    | CountFeature
    | RateFeature
    | RecencyFeature
    | SequenceFeature,
    Field(discriminator="kind"),
]
