"""Shows the progress of a long loop: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows how far `total` rows are. `bar` asks for a rich progress bar where stderr is a terminal, `quiet` for
    nothing. Rows that are learned and rows that are scored both move it on; they are counted apart."""

    def __init__(self, title: str, total: int, bar: bool, quiet: bool = False) -> None:
        self.title, self.total, self.learned, self.scored, self.quiet = title, total, 0, 0, quiet
        self._started = self._printed = time.monotonic()
        self._bar = None
        if bar and not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total)
            self._bar.start()

    def advance(self, rows: int, note: str, *, scored: bool = False) -> None:
        """Counts `rows` more that are learned, or `scored`."""
        self.scored += rows if scored else 0
        self.learned += 0 if scored else rows
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
        done = self.learned + self.scored
        speed = done / max(self._printed - self._started, 1e-9)
        share = f"{done / max(self.total, 1):.0%}"
        rows = f"{self.learned:,} rows learned, {self.scored:,} scored"
        print(f"{self.title}: {share}, {rows}, {speed:,.0f} a second, {note}", file=sys.stderr, flush=True)
