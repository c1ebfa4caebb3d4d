"""Blocks: tables that a day adds, such as runs and tiles, one after the other in one file of uncompressed Arrow.

A reader maps the file into memory and looks up its own keys only, so that of a large tile a few pages are read;
Parquet would decode all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from feature_jobs.errors import CorruptError
from feature_jobs.windows.runs import Run, run_from, run_table
from feature_jobs.windows.tiles import Tile, tile_from, tile_table

Place: TypeAlias = tuple[int, int]
"""First byte and number of bytes of a block."""

REMEDY = "run summarize again for this day"
_ALIGNMENT = 64  # bytes; Arrow reads numbers in place only where they are aligned


def block_table(block: Run | Tile) -> pa.Table:
    """A run or a tile as a table."""
    return run_table(block) if isinstance(block, Run) else tile_table(block)


def write_blocks(blocks: Iterable[tuple[str, pa.Table]], file: Path) -> dict[str, Place]:
    """Writes blocks in this order and returns their places by name; equal blocks give equal bytes."""
    places = {}
    with pa.OSFile(str(file), "wb") as sink:
        for name, table in blocks:
            sink.write(b"\0" * (-sink.tell() % _ALIGNMENT))
            begin = sink.tell()
            # One batch, so that a column read back is one piece of memory and never copied.
            whole = table.combine_chunks()
            with pa.ipc.new_stream(sink, whole.schema) as writer:
                writer.write_table(whole)
            places[name] = (begin, sink.tell() - begin)
            del table, whole  # before the next block is made
    return places


def fills(places: list[Place], num_bytes: int) -> bool:
    """Says if blocks at these places, one after the other, fill a file of so many bytes."""
    end = 0
    for begin, size in sorted(places):
        if size <= 0 or begin != end + -end % _ALIGNMENT:
            return False
        end = begin + size
    return end == num_bytes


def digest_of_blocks(file: Path) -> str:
    """SHA-256 of a file of blocks, read as a stream: it may be larger than the memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_run(file: Path, place: Place) -> Run:
    """The run at a place of a file."""
    return run_from(read_block(file, place))


def read_tile(file: Path, place: Place) -> Tile:
    """The tile at a place of a file."""
    return tile_from(read_block(file, place))


def read_block(file: Path, place: Place) -> pa.Table:
    """The table at a place of a file. Raises CorruptError where the file or the place has none."""
    begin, size = place
    try:
        with pa.memory_map(str(file)) as source:
            source.seek(begin)
            # Its buffers are views of the map, which they keep when the file is closed.
            return pa.ipc.open_stream(source.read_buffer(size)).read_all()
    except (OSError, OverflowError, pa.ArrowInvalid) as error:
        raise CorruptError(f"{file}: no block of {size} bytes at {begin} ({error}); {REMEDY}") from None
