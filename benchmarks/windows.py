"""Cost of a day whose window is 1 or 90 days wide: the feature engine's windows alone, with their files.

    python -m benchmarks.windows [--rows 5000000] [--users 100000] [--days 100] [--widths 1 7 30 90] [--last 9]

Each day reads its runs and tiles from files, computes its aggregates, and writes its own run and the tiles that it
adds. Figures are CPU time. `day` is the median of the last days; `completing` is the dearest day, which adds
tiles of all levels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from feature_jobs.windows.blocks import Place, block_table, read_run, read_tile, write_blocks
from feature_jobs.windows.days import Partitions, TileId, Window, completed
from feature_jobs.windows.keys import Ints, group_rows, keys_of
from feature_jobs.windows.operations import Count, Listed, Newest, Operation, Sum
from feature_jobs.windows.query import Asked, Question, aggregate
from feature_jobs.windows.rows import Column, Summary
from feature_jobs.windows.runs import Run, run_of
from feature_jobs.windows.tiles import Tile, merge, tile_of

DAY_US = 86_400_000_000
START_US = 1_704_067_200_000_000  # 2024-01-01
ZIPF = 1.1
SETS: dict[str, dict[str, Operation]] = {
    "sums": {"clicks": Count(where="click"), "spent": Sum(of="price", where="click"), "newest": Newest()},
    "sums and last 20": {"clicks": Count(where="click"), "last": Listed(of=("item",), length=20)},
}


class DailyWindows:
    """The state of one window over days of 24 hours, in memory or as files of a folder."""

    def __init__(
        self, window: Window, operations: Mapping[str, Operation], start_us: int, folder: Path | None = None
    ) -> None:
        self.window, self.operations, self.start, self.folder = window, operations, start_us, folder
        self.max_level = max(window.width_us // DAY_US, 1).bit_length() - 1
        self.day = -1
        self._runs: dict[int, Run] = {}
        self._tiles: dict[TileId, Tile] = {}
        self._places: dict[int, tuple[Path, dict[str, Place]]] = {}

    def add_day(self, users: pa.Array, times: Ints, columns: Mapping[str, Column]) -> dict[str, Summary]:
        """The aggregates of the next day's rows, by their user."""
        self.day += 1
        groups = group_rows(*keys_of([users]))
        run = run_of(groups, times, columns)
        days = np.arange(self.day + 1)
        begins = self.start + days * DAY_US
        pieces = self.window.pieces(Partitions(days, begins, begins + DAY_US), self.day, self.max_level)
        runs = {day: run if day == self.day else self._run(day) for day in (*pieces.old, *pieces.new)}
        tiles = {tile: self._tile(tile) for tile in pieces.tiles}
        found = aggregate(Asked(groups, times), Question(self.window, pieces, runs, tiles, self.operations))
        self._keep(run)
        return found

    def _keep(self, run: Run) -> None:
        added: dict[TileId, Tile] = {}
        # A window of a day or less holds no day whole.
        wanted = completed(self.day - 1, self.day, 0, self.max_level) if self.window.width_us > DAY_US else []
        for tile in wanted:
            if tile.level:
                older, newer = tile.halves()
                added[tile] = merge(self._tile(older), added[newer], self.operations)
            else:
                added[tile] = tile_of(run, self.operations)
        if self.folder is None:
            self._runs[self.day] = run
            self._tiles |= added
            return
        file = self.folder / f"{self.day}.blocks"
        names: dict[str, Run | Tile] = {"run": run, **{f"{tile.level}": made for tile, made in added.items()}}
        self._places[self.day] = (
            file,
            write_blocks(((name, block_table(block)) for name, block in names.items()), file),
        )

    def _run(self, day: int) -> Run:
        if self.folder is None:
            return self._runs[day]
        file, places = self._places[day]
        return read_run(file, places["run"])

    def _tile(self, tile: TileId) -> Tile:
        if self.folder is None:
            return self._tiles[tile]
        file, places = self._places[tile.last]
        return read_tile(file, places[f"{tile.level}"])


def seconds_per_day(
    operations: Mapping[str, Operation], width_days: int, rows: int, users: int, days: int
) -> list[float]:
    """CPU seconds of each day, in the order of the days."""
    rng = np.random.default_rng(1)
    weights = np.cumsum(np.arange(1, users + 1) ** -ZIPF)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        state = DailyWindows(Window(width_days * DAY_US), operations, START_US, Path(folder))
        for day in range(days):
            num = rows // days
            times = np.sort(START_US + day * DAY_US + rng.integers(0, DAY_US, num))
            user = pa.array(np.searchsorted(weights, rng.random(num) * weights[-1]))
            columns = {
                "click": rng.random(num) < 0.2,
                "price": rng.integers(1, 10_000, num),
                "item": rng.integers(0, 20_000, num),
            }
            begun = time.process_time()
            state.add_day(user, times, columns)
            seconds.append(time.process_time() - begun)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 7, 30, 90])
    parser.add_argument("--last", type=int, default=9, help="days whose median is taken")
    given = parser.parse_args()
    print(f"{given.rows // given.days:,} rows a day, {given.users:,} users, {given.days} days; CPU milliseconds")
    print(f"{'operations':18} {'width':>6} {'day':>8} {'completing':>11}")
    for name, operations in SETS.items():
        for width in given.widths:
            cost = seconds_per_day(operations, width, given.rows, given.users, given.days)
            print(f"{name:18} {width:6} {1e3 * median(cost[-given.last :]):8.1f} {1e3 * max(cost[1:]):11.1f}")


if __name__ == "__main__":
    main()
