"""State files: runs and tiles as uncompressed Arrow files, mapped into memory.

A day looks up its own keys only, so that of a large tile a few pages are read; Parquet would decode all of it.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from feature_jobs.windows.runs import Run, run_from, run_table
from feature_jobs.windows.tiles import Tile, tile_from, tile_table


def write_run(run: Run, file: Path) -> None:
    """Writes a run; the same run gives the same bytes."""
    _write(run_table(run), file)


def write_tile(tile: Tile, file: Path) -> None:
    """Writes a tile; the same tile gives the same bytes."""
    _write(tile_table(tile), file)


def read_run(file: Path) -> Run:
    """The run of a file."""
    return run_from(_read(file))


def read_tile(file: Path) -> Tile:
    """The tile of a file."""
    return tile_from(_read(file))


def _write(table: pa.Table, file: Path) -> None:
    # One batch, so that a column read back is one piece of memory and never copied.
    whole = table.combine_chunks()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole)


def _read(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()
