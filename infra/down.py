"""`make down`: stops the processes that `make demo` started. The store, the runs and the models stay."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infra.servers import stop_servers


def main() -> int:
    """Stops the servers of --home."""
    parser = argparse.ArgumentParser(prog="make down", description=__doc__)
    parser.add_argument("--home", default=".recloop")
    stopped = stop_servers(Path(parser.parse_args().home).resolve())
    print(f"stopped {stopped} processes" if stopped else "nothing was running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
