"""Scores the items of one request: what they have in common is encoded and looked up once.

Shapes: N items, F features, D embedding dim, K numbers, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pyarrow as pa

from feature_jobs.transforms import Encoder, Floats, Layout
from models.runtime.onnx_model import BATCH_ROWS, OnnxModel

Fill = Callable[[Floats, Floats], None]
"""Writes features to embeddings [N, F, D] and numbers [N, K]."""


class Sides:
    """The layout of a model in two parts: `common` columns have one row for all items, the others a row for each.
    Those that are `kept` are in neither."""

    def __init__(self, model: OnnxModel, common: Collection[str], kept: Collection[str] = ()) -> None:
        self._model, columns = model, [name for name in model.layout.columns if name not in kept]
        self._parts = [
            Part(model.layout, [name for name in columns if (name in common) == is_common])
            for is_common in (True, False)
        ]
        self._has_own = bool(self._parts[1].encoder.layout.columns)

    def score(self, columns: Mapping[str, pa.Array], num_items: int, fill: Fill | None = None) -> Floats:
        """Probabilities [N, T], each as if its row were scored alone. `fill` writes the features that are `kept`.

        Raises BadInputError as `encode` does.
        """
        emb_BFD, numbers_BK = self._inputs(columns, num_items)
        if fill is not None:
            fill(emb_BFD, numbers_BK)
        found = [
            self._model.run_inputs(emb_BFD[begin : begin + BATCH_ROWS], numbers_BK[begin : begin + BATCH_ROWS])
            for begin in range(0, num_items, BATCH_ROWS)
        ]
        return np.concatenate(found) if len(found) > 1 else found[0] if found else self._model.no_scores

    def _inputs(self, columns: Mapping[str, pa.Array], num_items: int) -> tuple[Floats, Floats]:
        """The graph's inputs: embeddings [N, F, D] and numbers [N, K]."""
        common, own = self._parts
        encoded = common.encoder.of(columns, 1)
        emb_BFD = self._model.embed(encoded, common.places)
        numbers_BK = np.empty((1, len(self._model.layout.numbers)), np.float32)
        numbers_BK[:, common.number_places] = encoded.numbers_NK
        if num_items != 1:
            emb_BFD, numbers_BK = np.repeat(emb_BFD, num_items, 0), np.repeat(numbers_BK, num_items, 0)
        if self._has_own:
            encoded = own.encoder.of(columns, num_items)
            # Added to the zeros that the other part has left there.
            self._model.embed(encoded, own.places, emb_BFD)
            numbers_BK[:, own.number_places] = encoded.numbers_NK
        return emb_BFD, numbers_BK


class Part:
    """The features of some columns, with their places among all."""

    def __init__(self, layout: Layout, names: Collection[str]) -> None:
        slots = [s for s, slot in enumerate(layout.slots) if slot.column in names]
        bags = [b for b, bag in enumerate(layout.bags) if bag.name in names]
        self.number_places = [k for k, number in enumerate(layout.numbers) if number.column in names]
        self.places = [*slots, *(len(layout.slots) + b for b in bags)]
        self.encoder = Encoder(
            Layout(
                tuple(layout.slots[s] for s in slots),
                tuple(layout.bags[b] for b in bags),
                tuple(layout.numbers[k] for k in self.number_places),
            )
        )
