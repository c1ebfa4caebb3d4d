"""`make down`: ends what `make demo` started, and only that. The store, the runs and the models stay."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infra.servers import stop_servers


def main() -> int:
    """Ends the servers below --home."""
    parser = argparse.ArgumentParser(prog="make down", description=__doc__)
    parser.add_argument("--home", default=".recloop")
    ended = stop_servers(Path(parser.parse_args().home).resolve())
    print(f"ended {ended} processes" if ended else "nothing was running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
