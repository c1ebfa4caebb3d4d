"""Shows the progress of a long loop: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts rows up to `total`. `bar`: show a progress bar if stderr is a terminal; `quiet`: show nothing."""

    def __init__(self, title: str, total: int, bar: bool, quiet: bool = False) -> None:
        self.title, self.total, self.done, self.quiet = title, total, 0, quiet
        self._started = self._printed = time.monotonic()
        self._bar = None
        if bar and not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total)
            self._bar.start()

    def advance(self, rows: int, note: str) -> None:
        """Adds `rows` to the rows that are done, and shows `note` beside them."""
        self.done += rows
        if self._bar:
            self._bar.update(self._task, advance=rows, description=f"{self.title} {note}")
        elif time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._print(note)

    def close(self) -> None:
        """Ends the bar, or prints the last line."""
        if self._bar:
            self._bar.stop()
        else:
            self._print("done")

    def _print(self, note: str) -> None:
        self._printed = time.monotonic()
        if self.quiet:
            return
        speed = self.done / max(self._printed - self._started, 1e-9)
        print(f"{self.title}: {self.done}/{self.total} rows, {speed:.0f} rows/s, {note}", file=sys.stderr, flush=True)
