"""Helpers of the tests of `recloop init`: proposals of made data."""

from collections.abc import Callable
from pathlib import Path

from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import Scenario, load_scenario

HOURS = [f"2024-03-0{day}T{hour:02}:00:00" for day in (1, 2, 3) for hour in range(24)]


def proposed(data: Path, out: Path) -> Scenario:
    write_proposal(data, out, "found")
    return load_scenario(out / "found.yaml")


def lines_of(make: Callable[[Path], None], folder: Path) -> tuple[Scenario, str]:
    """The proposal for what `make` writes into a folder, and the lines that init prints."""
    make(folder / "data")
    lines = write_proposal(folder / "data", folder / "scenarios", "found")
    return load_scenario(folder / "scenarios" / "found.yaml"), "\n".join(lines)


def csv_file(*rows: str) -> Callable[[Path], None]:
    """Writes log.csv with these lines into a folder."""

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "log.csv").write_text("\n".join(rows) + "\n")

    return make
