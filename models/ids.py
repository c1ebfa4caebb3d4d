"""From id keys to rows of the embeddings, and lists of them. Shared by training and serving; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_jobs.transforms import Ints


class IdMap:
    """int64 key → row, rows numbered from 1 in order of arrival; 0 where a key is unknown."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)  # ascending
        self._rows = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys_N: Ints) -> Ints:
        """Rows of keys."""
        if not len(self._keys) or not len(keys_N):
            return np.zeros(len(keys_N), np.int64)
        uniques_U, inverse_N = _factorize(keys_N)
        position_U = np.minimum(np.searchsorted(self._keys, uniques_U), len(self._keys) - 1)
        rows_U = np.where(self._keys[position_U] == uniques_U, self._rows[position_U], 0)
        return np.asarray(rows_U[inverse_N], np.int64)

    def add(self, keys_N: Ints) -> Ints:
        """Gives each unknown key the next row, in ascending order of key; returns those keys."""
        uniques_U = np.sort(_factorize(keys_N)[0])
        fresh_F: Ints = uniques_U[self.find(uniques_U) == 0]
        rows_F = np.arange(len(self) + 1, len(self) + 1 + len(fresh_F))
        place_F = np.searchsorted(self._keys, fresh_F)
        self._keys = np.insert(self._keys, place_F, fresh_F)
        self._rows = np.insert(self._rows, place_F, rows_F)
        return fresh_F

    def sorted(self) -> tuple[Ints, Ints]:
        """All keys, ascending, and their rows."""
        return self._keys, self._rows


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths: `values_V`, and `offsets` [N + 1] where each row's begin."""

    values_V: Ints
    offsets: Ints

    def take(self, index_B: Ints) -> Ragged:
        """The lists of some rows."""
        begin_B = self.offsets[index_B]
        offsets = np.concatenate([[0], np.cumsum(self.offsets[index_B + 1] - begin_B)])
        shift_B = begin_B - offsets[:-1]
        return Ragged(self.values_V[np.arange(offsets[-1]) + np.repeat(shift_B, np.diff(offsets))], offsets)

    def known(self) -> Ragged:
        """Without the values 0, which stand for ids never seen."""
        kept_V = self.values_V != 0
        before = np.concatenate([[0], np.cumsum(kept_V)])
        return Ragged(self.values_V[kept_V], before[self.offsets])

    def padded(self) -> Ints:
        """As a matrix [N, longest], at least one column wide, filled with 0."""
        lengths_N = np.diff(self.offsets)
        padded_NL = np.zeros((len(lengths_N), max(1, int(lengths_N.max(initial=0)))), np.int64)
        padded_NL[np.arange(padded_NL.shape[1]) < lengths_N[:, None]] = self.values_V
        return padded_NL


def _factorize(keys_N: Ints) -> tuple[Ints, Ints]:
    """Distinct keys in order of appearance, and each key's place among them; hashed, so faster than a sort."""
    encoded = pa.array(keys_N).dictionary_encode()
    return encoded.dictionary.to_numpy(), encoded.indices.to_numpy().astype(np.int64)
