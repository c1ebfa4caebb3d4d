"""Encoded features of items, kept while they hold: most items of a request were ranked a moment ago.

Features that depend on the item alone (its own columns, and windows of numbers by it) are the same in every request
until a row of the item enters or leaves a window. Kept are their embeddings and numbers, as the network reads them.
Shapes: M items of the state, N of a request, P features that are kept, K numbers of them, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.rules import key_of, own_expressions, same_row_features, trailing_features
from feature_jobs.joins.values import key_column
from feature_jobs.online.cache import keys_of_set
from feature_jobs.online.key_index import KeyIndex
from feature_jobs.online.opening import OnlineFeatures
from feature_jobs.online.request import Request, RequestPath
from feature_jobs.online.typed import typed
from feature_jobs.schema import RecencyFeature, Scenario
from feature_jobs.transforms import Floats
from feature_jobs.windows.keys import Keys, keys_of
from models.runtime.frozen_kernels import copy_rows
from models.runtime.onnx_model import OnnxModel
from models.runtime.sides import Part

_MOST_BYTES = 1 << 29


def features_of_item(scenario: Scenario, path: RequestPath) -> set[str]:
    """Features that depend on the item and the state alone, and of which the path knows how long they hold."""
    item = scenario.data.item
    entities = scenario.data.entities_by(item)

    def is_of_item(expressions: Collection[str]) -> bool:
        names = set().union(*map(columns_of, expressions))
        return bool(names) and all(name == item or name.rpartition(".")[0] in entities for name in names)

    own = {n for n, one in same_row_features(scenario).items() if is_of_item([*own_expressions(n, one).values()])}
    for name, feature in trailing_features(scenario).items():
        if key_of(feature) == (item,) and not isinstance(feature, RecencyFeature) and path.knows_how_long(name):
            own.add(name)
    return own


class ItemRows:
    """The embeddings and numbers of features that depend on the item alone. One thread at a time uses it."""

    def __init__(self, features: OnlineFeatures, model: OnnxModel, names: Collection[str]) -> None:
        scenario, facts = features.path.scenario, features.path.facts
        self._model, self._part = model, Part(model.layout, [n for n in model.layout.columns if n in names])
        self._path, self._reading = RequestPath(scenario, facts, names), features.reading
        self._index = KeyIndex(_keys_of_items(features.path))
        self._begin_M, self._until_M = np.zeros((2, len(self._index.keys)), np.int64)
        num_places, num = len(self._part.places), len(self._index.keys)
        # Pages that no request asks for take no memory.
        self._emb_MPD = np.zeros((num, num_places, model.table.dim), np.float32)
        self._numbers_MK = np.zeros((num, len(self._part.number_places)), np.float32)
        self._place_P, self._number_K = (
            np.array(places, np.int64) for places in (self._part.places, self._part.number_places)
        )
        self._seen: dict[str, int] = {}

    @staticmethod
    def are_worth(features: OnlineFeatures, model: OnnxModel, names: Collection[str]) -> bool:
        """Says if there is anything to keep, and room for it."""
        part = Part(model.layout, [name for name in model.layout.columns if name in names])
        width = len(part.places) * model.table.dim + len(part.number_places)
        return 0 < width * 4 * len(_keys_of_items(features.path)) <= _MOST_BYTES

    def fill(self, items: pa.Array, time: int, emb_BFD: Floats, numbers_BL: Floats) -> None:
        """Writes the features of N items at a time in µs to their places in embeddings [N, F, D] and numbers [N, L]."""
        self._forget_changed()
        scenario = self._path.scenario
        keys, known_N = keys_of([key_column(typed(scenario, scenario.data.item, items), scenario.data.item)])
        at_N = self._index.find(keys)
        at_N[~known_N] = -1
        is_held = (at_N >= 0) & (self._begin_M[at_N] <= time) & (time < self._until_M[at_N])
        if not is_held.all():
            rows = np.flatnonzero(~is_held)
            columns = self._path.columns(Request(time, None, items.take(pa.array(rows))), self._reading)
            encoded = self._part.encoder.of(columns, len(rows))
            emb_RPD = self._model.embed(encoded, self._part.places)[:, self._part.places]
            emb_BFD[np.ix_(rows, self._place_P)] = emb_RPD
            numbers_BL[np.ix_(rows, self._number_K)] = encoded.numbers_NK
            has_place = at_N[rows] >= 0
            at = at_N[rows[has_place]]
            self._emb_MPD[at], self._numbers_MK[at] = emb_RPD[has_place], encoded.numbers_NK[has_place]
            self._begin_M[at], self._until_M[at] = self._path.times_of_items(keys.take(rows[has_place]))
            at_N[rows] = -1
        copy_rows(self._emb_MPD, self._numbers_MK, at_N, self._place_P, self._number_K, emb_BFD, numbers_BL)

    def _forget_changed(self) -> None:
        self._seen, keys = self._reading.changed(self._seen)
        for layout in self._path.layouts if keys else ():
            if changed := keys_of_set(keys, layout):
                at = self._index.find(changed)
                self._until_M[at[at >= 0]] = 0


def _keys_of_items(path: RequestPath) -> Keys:
    """The keys of the items that the state knows."""
    for name in path.scenario.data.entities_by(path.scenario.data.item):
        if name in path.facts.entities:
            return path.facts.entities[name].keys
    return Keys(np.zeros(0, np.int64))
