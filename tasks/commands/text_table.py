"""Plain text tables for a terminal, a log or a ticket. None is wider than the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.contract import Table


@dataclass
class _Column:
    title: str
    cells: list[str]
    is_left: bool
    """It is aligned at its left side; the others at their right one."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines with aligned columns, the first `left` of them at their left side, the others at their right one.

    Where the terminal is too narrow, a column with one value in all rows becomes a line below; then config paths as
    headings become numbers with a legend; then some columns form a second table below, whose rows begin with the same
    cell. A cell that is wider than the terminal goes on in the next line. No text is left out.
    """
    width, legend = shutil.get_terminal_size().columns, list[str]()
    columns = [_Column(title, [row[place] for row in rows], is_left=place < left) for place, title in enumerate(head)]
    if _width(columns) > width:
        columns, legend = _without_equal(columns)
    if _width(columns) > width:
        legend += _number_headings(columns)
    lines: list[str] = []
    for block in _blocks(columns, width):
        lines += [*([""] if lines else []), *_drawn(block, width)]
    return [*lines, *legend]


def lines_of(parts: Sequence[str | Table]) -> list[str]:
    """Lines of text and tables as lines."""
    found: list[str] = []
    for part in parts:
        found += [part] if isinstance(part, str) else table(part.head, part.rows, part.left)
    return found


def _width(columns: list[_Column]) -> int:
    from rich.cells import cell_len

    return sum(max(map(cell_len, [column.title, *column.cells])) + 2 for column in columns) - 2


def _without_equal(columns: list[_Column]) -> tuple[list[_Column], list[str]]:
    """The columns with different cells, and the others in words."""
    kept, words = columns[:1], list[str]()
    for column in columns[1:]:
        if len(column.cells) < 2 or len(set(column.cells)) > 1:
            kept.append(column)
        elif column.cells[0]:
            words.append(f"{column.title} = {column.cells[0]}")
    return kept, [f"in all rows: {', '.join(words)}"] if words else []


def _number_headings(columns: list[_Column]) -> list[str]:
    """Replaces headings that are config paths and wider than their column's cells; returns the legend."""
    legend = list[str]()
    for column in columns[1:]:
        if "." in column.title and len(column.title) > max(map(len, column.cells)):
            legend.append(f"{len(legend) + 1}: {column.title}")
            column.title = str(len(legend))
    return legend


def _blocks(columns: list[_Column], width: int) -> list[list[_Column]]:
    """As few tables as fit, each with the first column; of these the ones with the narrowest widest table."""
    fewest = len(_filled(columns, width))
    return next(found for limit in range(1, width + 1) if len(found := _filled(columns, limit)) == fewest)


def _filled(columns: list[_Column], limit: int) -> list[list[_Column]]:
    first, blocks = columns[0], [columns[:1]]
    for column in columns[1:]:
        if len(blocks[-1]) > 1 and _width([*blocks[-1], column]) > limit:
            blocks.append([first])
        blocks[-1].append(column)
    return blocks


def _drawn(columns: list[_Column], width: int) -> list[str]:
    from rich.console import Console
    from rich.table import Table as Drawing
    from rich.text import Text

    drawing = Drawing(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in columns:
        # fold: a command or a path that is cut off can't be copied.
        drawing.add_column(Text(column.title), justify="left" if column.is_left else "right", overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        drawing.add_row(*map(Text, row))  # as Text, since brackets in cells would be read as markup
    # Without colours, whose codes would stand in a log.
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(drawing)
    return [line.rstrip() for line in captured.get().splitlines()]


def number(value: float | None, digits: int = 4) -> str:
    """`32,810` for a whole number, `0.7668` for another, `-` for an unknown one."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
