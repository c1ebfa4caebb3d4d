"""Memory and seconds of a day of many events through `ingest`, `summarize` and `join`, each in a process of its own.

    python -m benchmarks.large_day [--rows 50000000] [--share 0] [--work FOLDER] [--output FILE.json]

The log is that of `benchmarks.spark`: Zipf-distributed users and items, of which one item has `--share` of the rows,
and 24 features, 20 of them of windows. A day of a tenth of the rows comes before the large one, so that windows of a
day see both. `own_mib` is the peak of what a process holds itself; `peak_mib` counts the pages of mapped files too,
which the system takes back when memory is short.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.spark import ITEMS, SCENARIO, USERS
from benchmarks.three_days import DAY_US, START_US, ZIPF, chosen
from feature_jobs.joins.join import join_day
from feature_jobs.joins.summaries import days_of_windows
from feature_jobs.joins.summarize import summarize_day
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.sources.ingest import ingest_day

BEFORE, LARGE = "2024-01-01", "2024-01-02"
_ROWS_AT_ONCE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000_000, help="of the large day")
    parser.add_argument("--share", type=float, default=0.0, help="of the rows that one item has")
    parser.add_argument("--work", type=Path, help="an empty folder for the data")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--day", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(measured(args.step, args.work, args.day)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        write_log(work, args.rows, args.share)
        result: dict[str, Any] = {"rows": args.rows, "share": args.share}
        for day in (BEFORE, LARGE):
            for step in STEPS:
                of_step = [sys.executable, "-m", __spec__.name, "--step", step, "--day", day, "--work", str(work)]
                said = subprocess.run(of_step, check=True, capture_output=True, text=True).stdout
                if day == LARGE:
                    result[step] = json.loads(said.splitlines()[-1])
                    print(step, json.dumps(result[step]), flush=True)
        result["samples"] = _digest(work / "join" / LARGE / SAMPLES_FILE)
    print(json.dumps(result, indent=1))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measured(step: str, work: Path, day: str) -> dict[str, float]:
    """Seconds and peaks of memory of a step, in this process."""
    peak, done = [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(peak, done))
    watch.start()
    begun, cpu = time.perf_counter(), time.process_time()
    STEPS[step](load_scenario(work / "skewed.yaml"), work, day)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    done.set()
    watch.join()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "own_mib": peak[0] >> 10,
        "peak_mib": peak_kib >> 10,
    }


def write_log(root: Path, num_rows: int, share: float) -> None:
    """Writes events.parquet and skewed.yaml in parts; the same arguments give the same bytes."""
    random = np.random.default_rng(1)
    users, items = (np.cumsum(np.arange(1, most + 1) ** -ZIPF) for most in (USERS, ITEMS))
    before = num_rows // 10
    writer = None
    for day, num in ((0, before), (1, num_rows)):
        for begin in range(0, num, _ROWS_AT_ONCE):
            size = min(_ROWS_AT_ONCE, num - begin)
            drawn = np.searchsorted(items, random.random(size) * items[-1])
            table = pa.table(
                {
                    "at": START_US + day * DAY_US + (np.arange(begin, begin + size) * DAY_US) // num,
                    "user": np.searchsorted(users, random.random(size) * users[-1]),
                    "item": np.where(random.random(size) < share, 0, drawn),
                    "tab": pa.array(["home", "search", "near", "live", "follow"]).take(
                        pa.array(random.integers(0, 5, size))
                    ),
                    "click": (random.random(size) < 0.2).astype(np.int64),
                    "spent": np.round(random.random(size) * 90, 2),
                }
            )
            writer = writer or pq.ParquetWriter(root / "events.parquet", table.schema)
            writer.write_table(table)
    if writer:
        writer.close()
    (root / "skewed.yaml").write_text(SCENARIO.replace("2024-01-03", LARGE), encoding="utf-8")


def _ingest(scenario: Scenario, work: Path, day: str) -> None:
    ingest_day(scenario, day, work / "ingest" / day)


def _summarize(scenario: Scenario, work: Path, day: str) -> None:
    yesterday = work / "summarize" / BEFORE if day == LARGE else None
    summarize_day(
        scenario,
        day,
        work / "ingest" / day,
        yesterday=yesterday,
        past={BEFORE: yesterday} if yesterday else {},
        past_events={},
        carried={},
        output=work / "summarize" / day,
    )


def _join(scenario: Scenario, work: Path, day: str) -> None:
    outputs = {one: work / "summarize" / one for one in (BEFORE, day)}
    join_day(
        scenario,
        day,
        work / "ingest" / day,
        summaries=outputs[day],
        past=chosen(days_of_windows, scenario, day, outputs, day),
        output=work / "join" / day,
    )


STEPS: dict[str, Callable[[Scenario, Path, str], None]] = {"ingest": _ingest, "summarize": _summarize, "join": _join}


def _watch(peak: list[int], done: threading.Event) -> None:
    """Keeps the largest size in KiB of the process's own memory."""
    while not done.wait(0.02):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        peak[0] = max(peak[0], *(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    main()
