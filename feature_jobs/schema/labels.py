"""Labels that another log decides.

A text below a key is its sentence in docs/reference.md; a test requires one for each key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from feature_jobs.schema.base import Name, Positive, Section, Whole


class OutcomeLabel(Section):
    """A label that rows of a further log decide: 1 where one of them is attributed to the event, else 0.

    A row is attributed to an event with the same `on`, if it happened at the event's time or within the window after
    it. The model learns an event's label on the day on which it matures, with the features that the event had.
    """

    source: Name
    """The log of `data.logs` whose rows are the outcomes."""
    on: tuple[str, ...] = Field(min_length=1)
    """The columns that a row and its event have in common; an event without one of them has no label."""
    where: str | None = None
    """A condition over the columns of the log: only rows for which it holds are outcomes."""
    value: str | None = None
    """A number of an outcome, such as its price: an expression over the columns of the log. The samples have the sum of
    an event's outcomes as `value.NAME`, with four decimal places; 0 without one, and null where the label is unknown.
    See `train.value_weights`."""
    window_hours: Annotated[Positive, Field(le=8_760)] = 24
    """The hours after an event in which an outcome counts."""
    attribution: Literal["nearest", "all"] = "nearest"
    """The events to which a row is attributed: the newest of those that come into question, or all of them."""
    maturity_days: Annotated[Whole, Field(ge=0, le=366)] | None = None
    """The days after its own on which an event's label is learned, with all rows known by the end of that day; default:
    the window in days, rounded up. With fewer an event counts as it is known then, though its window is still open."""

    @property
    def days(self) -> int:
        """Days from an event's day to the one on which its label is learned."""
        return -(-self.window_hours // 24) if self.maturity_days is None else self.maturity_days


def _form(value: Any) -> str:
    return "outcome" if isinstance(value, dict | OutcomeLabel) else "condition"


Label = Annotated[
    Annotated[str, Tag("condition")] | Annotated[OutcomeLabel, Tag("outcome")],
    # By its form, so that a mistake in one of them is reported of this one alone.
    Discriminator(_form),
]
