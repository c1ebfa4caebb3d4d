"""The sections of a scenario about the judgement of data and versions: evaluate, validate, quantize, deploy.

A text below a key is its sentence in docs/reference.md; a test requires one for each key.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from feature_jobs.schema.base import ModelName, Name, Number, NumDays, NumRows, PathText, Positive, Section, Tolerance


class Evaluate(Section):
    """The comparison of the day's challenger with the champion."""

    segments: dict[Name, str] = {}
    """Groups of rows that are judged on their own too: a name, and a condition over event and entity columns."""
    rare_positives: NumRows = 100  # the standard error of such a number is 10 %
    """A label with fewer positives a day gets a warning, because its metrics of one day vary by chance."""
    bootstrap: Annotated[Positive, Field(le=100_000)] = 200
    """The number of resamples that an interval is made of."""
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = 0.95
    """The confidence of each interval."""
    ndcg_k: Annotated[Positive, Field(le=10_000)] = 10
    """The number of first places of a request that its NDCG looks at; metrics of requests need `data.request`."""


class Validate(Section):
    """The expectations of the day's samples, and their drift: the population stability index (Siddiqi 2006) of each
    judged column, and the shift of each label's mean.

    Growing counters are left out of the default columns, and one that differs from all trailing days must differ from
    the same weekday too (before there is one: from the same kind of day, weekend or not). Columns that are named are
    always judged, against the same weekday where `trailing_days` reaches back to one.
    """

    suite: PathText | None = None
    """The file of the expectations, relative to the scenario file; default: NAME.expectations.json."""
    trailing_days: NumDays = 7
    """The number of earlier days that the day is compared with."""
    drift_columns: tuple[str, ...] = ()
    """The columns judged for drift. By default the numbers and ids of few values that are read from the row itself:
    trailing counts and rates move as history grows, and features of `event_time` move with the weekday."""
    max_psi: Annotated[Number, Field(gt=0, le=1e9)] = 0.25  # a large change by the rule of thumb of credit scoring
    """The largest population stability index that is not a drift."""
    max_label_shift: Annotated[Number, Field(gt=0, le=1e9)] = 0.5
    """The largest change of a label's mean that is not a drift, as a share of the earlier mean."""
    drift_severity: Literal["blocking", "warning"] = "warning"
    """The effect of a drift: blocking refuses the day, warning only reports it."""


class Quantize(Section):
    """The size of the served model (its dense layers are int8), and the loss allowed against fp32."""

    embedding_bits: Literal[4, 8] = 8
    """The bits of each weight of the served embeddings."""
    max_auc_loss: Tolerance = 0.002
    """The largest loss of AUC that is allowed."""
    max_calibration_shift: Tolerance = 0.02
    """The largest change of calibration that is allowed."""
    calibration_rows: Annotated[Positive, Field(le=10_000_000)] = 2048
    """The rows of the day from which the ranges of the int8 layers are taken."""


class Deploy(Section):
    """The gates of a promotion. A gate refuses where the interval shows the loss, at `evaluate.confidence`."""

    model: ModelName | None = None
    """The registered name; default: the scenario's."""
    max_auc_drop: Tolerance = 0.01
    """The largest drop of AUC against the champion that is allowed."""
    max_segment_auc_drop: Tolerance = 0.05
    """The largest drop of AUC in a segment that is allowed."""
    max_calibration_error: Annotated[Number, Field(gt=0, le=1e9)] = 0.25
    """The largest distance of mean score / mean label from 1 that is allowed."""
    min_rows: NumRows = 200
    """The rows without which a comparison is unknown."""
    min_segment_rows: NumRows = 200
    """The rows without which a comparison in a segment is unknown."""
    min_positives: NumRows = 30  # a sum of fewer is not near a normal distribution
    """The positives, and negatives, without which a comparison is unknown."""
    when_unsure: Literal["promote", "hold"] = "promote"
    """The decision on a version that no gate refuses, but that could not be judged."""
    # hold by default: else the next day's promotion would silently undo what a person decided.
    after_rollback: Literal["hold", "promote"] = "hold"
    """The days after a rollback: hold does not promote them until a person lifts the hold."""
    tolerance: Annotated[Number, Field(gt=0, le=1e9)] = 1e-4
    """The largest difference between the stored scores and those of the loaded version."""
    keep_versions: Annotated[Positive, Field(le=1_000_000)] = 3
    """The number of last champions that a rollback can go back to."""
