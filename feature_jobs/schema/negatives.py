"""Negative sampling.

A text below a key is its sentence in docs/reference.md; a test requires one for each key.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from feature_jobs.schema.base import Number, Positive, Section, Whole


class NegativeSampler(Section):
    """Negative rows: items that the log does not show with the user, as rows with the label 0. For logs of purchases
    alone, and for retrieval.

    Each positive row (one for which a label of the log holds; every row where other logs decide all labels) gets
    `num_sample` copies with another item. The items are those with an event before the row: in the
    `join.lookback_days` before its day, or on the day itself. Those of which the user has a row in this time, or later
    on the day, are left out; of a row without a user only its own item is. A copy has the user, the time and the other
    columns of its row; its features of the item are those known at this time, and its outcomes are unknown. It is in no
    window and no feature of another row. The samples have the column `key.negative`.

    The draw depends on the row and the seed alone, not on the order of the work, so that equal inputs give equal bytes.
    """

    num_sample: Annotated[Positive, Field(le=1_000)] = 1
    """The number of negative rows for each positive one; fewer where the user knows nearly all items."""
    distribution: Literal["uniform", "popularity"] = "uniform"
    """The probability of an item: the same for all, or in proportion to a power of its number of events in the
    `join.lookback_days` before the day (of a new item 1)."""
    alpha: Annotated[Number, Field(gt=0, le=1)] = 0.75
    """The power of the popularity."""
    item_columns: tuple[str, ...] = ()
    """Event columns that describe the item, such as its category: a negative row has those of its own item's newest
    event before the day, or of its first event of the day. Whole numbers or texts; other facts need an entity."""
    seed: Annotated[Whole, Field(ge=0, le=100_000_000)] = 7
    """The seed of the draw."""
