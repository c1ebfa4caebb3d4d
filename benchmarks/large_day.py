"""Memory and seconds of a day of many events through `ingest`, `summarize` and `join`, each in a process of its own.

    python -m benchmarks.large_day [--rows 50000000] [--share 0] [--company] [--negatives 0] [--work FOLDER]
        [--output FILE.json]

The log is that of `benchmarks.spark`: Zipf-distributed users and items, of which one item has `--share` of the rows,
and 24 features, 20 of them of windows. A day of a tenth of the rows comes before the large one, so that windows of a
day see both. `own_mib` is the peak of what a process holds itself; `peak_mib` counts the pages of mapped files too,
which the system takes back when memory is short.

With `--company` the rows are those of requests of ten, with three features of the request and a match with a sequence,
and other logs decide the labels: clicks of request and item (20 % of the rows; learned on the day itself) and orders of
user and item (5 %, within a day; learned on the next day). So a third day follows, of a tenth of the rows, whose join
(`matured`) learns the large day's rows once more. `--negatives` is the number for each positive row, of which there are
20 %, with `--company` all; negatives have no features of a request.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.spark import ITEMS, SCENARIO, USERS
from benchmarks.three_days import DAY_US, DAYS, START_US, ZIPF, chosen
from feature_jobs.joins.join import join_day
from feature_jobs.joins.outcomes import days_maturing, days_of_outcomes
from feature_jobs.joins.summaries import days_of_entities, days_of_windows, days_to_merge
from feature_jobs.joins.summarize import summarize_day
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.windows.keys import Bools

BEFORE, LARGE, AFTER = DAYS
_ROWS_AT_ONCE = 1 << 20
_ROWS_OF_REQUEST = 10
_COMPANY = """\
  request: request
  logs:
    clicks:
      path: clicks.parquet
      format: parquet
      time: {column: at, unit: us}
      columns: {at: {type: int, required: true}, request: {type: int}, item: {type: int}}
    orders:
      path: orders.parquet
      format: parquet
      time: {column: at, unit: us}
      columns: {at: {type: int, required: true}, user: {type: int}, item: {type: int}, spent: {type: float}}
"""
_LABELS = """\
labels:
  clicked: {source: clicks, on: [request, item], window_hours: 1, maturity_days: 0}
  ordered: {source: orders, on: [user, item], window_hours: 24, value: spent}
outcomes: [click, spent]
"""
_MATCH = """\
  clicks_item: {kind: count, source: clicks, by: [item], windows: [1d, 7d]}
  again: {kind: match, of: item, sequence: last, operation: count}
"""
_OF_REQUEST = """\
  place: {kind: request, operation: position}
  rank: {kind: request, operation: rank, of: item_rate_1d}
  share: {kind: request, operation: share, of: item_seen_7d}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000_000, help="of the large day")
    parser.add_argument("--share", type=float, default=0.0, help="of the rows that one item has")
    parser.add_argument("--company", action="store_true", help="other logs decide the labels; rows have requests")
    parser.add_argument("--negatives", type=int, default=0, help="for each positive row")
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
        write_log(work, args.rows, args.share, company=args.company)
        (work / "skewed.yaml").write_text(scenario_text(args.company, args.negatives), encoding="utf-8")
        result: dict[str, Any] = {name: getattr(args, name) for name in ("rows", "share", "company", "negatives")}
        for day in DAYS if args.company else DAYS[:2]:
            for step in STEPS:
                of_step = [sys.executable, "-m", __spec__.name, "--step", step, "--day", day, "--work", str(work)]
                said = subprocess.run(of_step, check=True, stdout=subprocess.PIPE, text=True).stdout
                name = step if day == LARGE else "matured" if day == AFTER and step == "join" else None
                if name:
                    file = work / "join" / day / SAMPLES_FILE
                    digest = {"samples": _digest(file)} if step == "join" else {}
                    result[name] = {**json.loads(said.splitlines()[-1]), **digest}
                    print(name, json.dumps(result[name]), flush=True)
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


def scenario_text(company: bool, negatives: int) -> str:
    """The scenario of a log."""
    text = SCENARIO.replace(DAYS[-1], AFTER if company else LARGE)
    if company:
        text = text.replace("      click:", "      request: {type: int}\n      click:")
        text = text.replace("  user: user\n", f"{_COMPANY}  user: user\n")
        text = text.replace("labels: {clicked: click == 1}\noutcomes: [spent]\n", _LABELS) + _MATCH
        text += "" if negatives else _OF_REQUEST
    if negatives:
        text = text.replace("label_delay_s: 120", f"label_delay_s: 120, negative_sampler: {{num_sample: {negatives}}}")
    return text


def write_log(root: Path, num_rows: int, share: float, *, company: bool) -> None:
    """Writes events.parquet in parts, and for a company clicks.parquet and orders.parquet; the same arguments give the
    same bytes."""
    random = np.random.default_rng(1)
    users, items = (np.cumsum(np.arange(1, most + 1) ** -ZIPF) for most in (USERS, ITEMS))
    files, begun = dict[str, pq.ParquetWriter](), 0
    for day, num in enumerate((num_rows // 10, num_rows, num_rows // 10) if company else (num_rows // 10, num_rows)):
        for begin in range(0, num, _ROWS_AT_ONCE):
            size = min(_ROWS_AT_ONCE, num - begin)
            drawn = np.searchsorted(items, random.random(size) * items[-1])
            columns = {
                "at": START_US + day * DAY_US + (np.arange(begin, begin + size) * DAY_US) // num,
                "user": np.searchsorted(users, random.random(size) * users[-1]),
                "item": np.where(random.random(size) < share, 0, drawn),
                "tab": pa.array(["home", "search", "near", "live", "follow"]).take(
                    pa.array(random.integers(0, 5, size))
                ),
                "click": (random.random(size) < 0.2).astype(np.int64),
                "spent": np.round(random.random(size) * 90, 2),
            }
            tables = {"events": columns}
            if company:
                columns["request"] = (begun + np.arange(size)) // _ROWS_OF_REQUEST
                columns["user"] = columns["user"][np.arange(size) // _ROWS_OF_REQUEST * _ROWS_OF_REQUEST]
                late = random.random(size)
                tables["clicks"] = _of_log(columns, columns["click"] == 1, late, 1, ("request", "item"))
                tables["orders"] = _of_log(columns, columns["spent"] > 85, late, 12, ("user", "item", "spent"))
            for name, columns in tables.items():
                table = pa.table(columns)
                writer = files[name] = files.get(name) or pq.ParquetWriter(root / f"{name}.parquet", table.schema)
                writer.write_table(table)
            begun += size
    for writer in files.values():
        writer.close()


def _of_log(
    rows: Mapping[str, Any], some: Bools, late: npt.NDArray[np.float64], hours: int, names: tuple[str, ...]
) -> dict[str, Any]:
    """Columns of `some` of the rows, as a log has them that follows within `hours`."""
    at = rows["at"] + (late * hours * 3_600_000_000).astype(np.int64)
    return {"at": at[some], **{name: rows[name][some] for name in names}}


def _ingest(scenario: Scenario, work: Path, day: str) -> None:
    ingest_day(scenario, day, work / "ingest" / day)


def _summarize(scenario: Scenario, work: Path, day: str) -> None:
    outputs = _outputs(work, "summarize", before=day)
    before = max(outputs, default="")
    merged, carried = (chosen(choose, scenario, day, outputs, before) for choose in (days_to_merge, days_of_entities))
    summarize_day(
        scenario,
        day,
        work / "ingest" / day,
        yesterday=outputs.get(before),
        past=merged,
        past_events={},
        carried=carried,
        output=work / "summarize" / day,
    )


def _join(scenario: Scenario, work: Path, day: str) -> None:
    outputs = {**_outputs(work, "summarize", before=day), day: work / "summarize" / day}
    samples, events = _outputs(work, "join", before=day), _outputs(work, "ingest", before=day)
    join_day(
        scenario,
        day,
        work / "ingest" / day,
        summaries=outputs[day],
        past=chosen(days_of_windows, scenario, day, outputs, day),
        past_events={one: events[one] for one in days_of_outcomes(scenario, day)},
        matured={one: samples[one] for one in days_maturing(scenario, day)},
        output=work / "join" / day,
    )


def _outputs(work: Path, step: str, *, before: str) -> dict[str, Path]:
    return {one: work / step / one for one in DAYS if one < before}


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
