"""Writes a synthetic click log in the shape of Criteo's: label, I1..I13 (floats, some null), C1..C26 (raw int64 ids).

    python -m benchmarks.click_log --output FILE [--rows 2000000] [--seed 1]

Ids follow a truncated Zipf(1.1) over vocabularies of 10 to 1e6 (5e6 in all). Labels are drawn from a hidden logistic
model: an effect of each id, products of latent vectors of some pairs of columns, linear effects of the numbers. Prints
the AUC of the hidden model's own probabilities: no model can be better on average.

Shapes: N rows, C id columns, K numbers, V ids of a vocabulary.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import auc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUM_NUMBERS, NUM_IDS = 13, 26
ZIPF_EXPONENT = 1.1
GROUP_ROWS = 131_072  # of a row group
NUM_PAIRS, LATENT_DIM = 16, 4
BIAS, ID_SCALE, PAIR_SCALE, NUMBER_SCALE, NULL_SHARE = -1.2, 0.2, 0.5, 0.08, 0.1
MEAN_LOG1P = 1.4  # about that of log1p of the numbers


def vocabulary_sizes(total: int = 5_000_000, smallest: int = 10, largest: int = 1_000_000) -> Ints:
    """Sizes [C] of the columns' vocabularies, log-spaced on a curve bent so that they sum to about `total`."""
    place_C = np.linspace(0, 1, NUM_IDS)
    low, high = 0.05, 5.0
    # Halved so often, the bend is as exact as a float can be.
    for _ in range(60):
        bend = (low + high) / 2
        sizes_C = np.round(smallest * (largest / smallest) ** (place_C**bend)).astype(np.int64)
        low, high = (bend, high) if sizes_C.sum() > total else (low, bend)
    return sizes_C


class HiddenModel:
    """The logistic model that labels are drawn from; a function of `seed`."""

    def __init__(self, sizes_C: Ints, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.cdf_V = [np.cumsum(np.arange(1, size + 1) ** -ZIPF_EXPONENT) for size in sizes_C]
        self.effect_V = [rng.normal(0, ID_SCALE, size).astype(np.float32) for size in sizes_C]
        self.pairs = [tuple(rng.choice(NUM_IDS, 2, replace=False)) for _ in range(NUM_PAIRS)]
        scale = (PAIR_SCALE / LATENT_DIM**0.5) ** 0.5
        self.latent_VL = [rng.normal(0, scale, (size, LATENT_DIM)).astype(np.float32) for size in sizes_C]
        self.number_effect_K = rng.normal(0, NUMBER_SCALE, NUM_NUMBERS)
        self.salt_C = rng.integers(0, 2**63, NUM_IDS, dtype=np.uint64)

    def draw(self, num_rows: int, rng: np.random.Generator) -> tuple[pa.RecordBatch, Floats]:
        """Rows, and the probability [N] of each row's label being 1."""
        # Inverse transform sampling: the cumulated odds of the ranks, read backwards.
        rank_CN = [np.searchsorted(cdf_V, rng.random(num_rows) * cdf_V[-1]) for cdf_V in self.cdf_V]
        numbers_KN = rng.lognormal(1.0, 1.0, (NUM_NUMBERS, num_rows)).astype(np.float32)
        null_KN = rng.random((NUM_NUMBERS, num_rows)) < NULL_SHARE
        logit_N = BIAS + self.number_effect_K @ np.where(null_KN, 0, np.log1p(numbers_KN) - MEAN_LOG1P)
        for effect_V, rank_N in zip(self.effect_V, rank_CN, strict=True):
            logit_N += effect_V[rank_N]
        for a, b in self.pairs:
            logit_N += (self.latent_VL[a][rank_CN[a]] * self.latent_VL[b][rank_CN[b]]).sum(1)
        probability_N = 1 / (1 + np.exp(-logit_N))
        columns = {"label": pa.array((rng.random(num_rows) < probability_N).astype(np.int8))}
        columns |= {f"I{k + 1}": pa.array(numbers_KN[k], mask=null_KN[k]) for k in range(NUM_NUMBERS)}
        columns |= {f"C{c + 1}": pa.array(_raw_ids(rank_CN[c], self.salt_C[c])) for c in range(NUM_IDS)}
        return pa.RecordBatch.from_pydict(columns), probability_N


def _raw_ids(rank_N: Ints, salt: np.uint64) -> Ints:
    """Ids that look like the hashes a real log holds: a bijection of the rank."""
    mixed_N = (rank_N.astype(np.uint64) ^ salt) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed_N ^ (mixed_N >> np.uint64(32))).view(np.int64)


def write(file: Path, num_rows: int, seed: int) -> float:
    """Writes the log as zstd Parquet; returns the AUC of the hidden model's probabilities."""
    # A stream of its own, so that the model does not depend on the number of rows.
    model, rng = HiddenModel(vocabulary_sizes(), seed), np.random.default_rng((seed, 1))
    writer, labels, probabilities = None, [], []
    for begin in range(0, num_rows, GROUP_ROWS):
        rows, probability_N = model.draw(min(GROUP_ROWS, num_rows - begin), rng)
        writer = writer or pq.ParquetWriter(file, rows.schema, compression="zstd")
        writer.write_batch(rows)
        labels.append(rows.column("label").to_numpy())
        probabilities.append(probability_N)
    if writer:
        writer.close()
    return auc(np.concatenate(labels), np.concatenate(probabilities))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.rows < 1:
        parser.error(f"--rows {args.rows}: a log has one row at least")
    begin = time.perf_counter()
    ceiling = write(args.output, args.rows, args.seed)
    megabytes = args.output.stat().st_size / 1e6
    print(f"{args.output}: {args.rows:,} rows, {megabytes:.0f} MB, {time.perf_counter() - begin:.0f} s;"
          f" AUC of the hidden model {ceiling:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
