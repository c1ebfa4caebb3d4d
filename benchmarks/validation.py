"""Cost of validating a day of many rows and 60 columns: seconds of each part, and the peak of memory.

    python -m benchmarks.validation [--rows 10000000] [--sample-rows 500000]

The suite is proposed from three earlier, smaller days. With `--sample-rows` of all rows, Great Expectations sees
every row.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.proposals.expectations import propose_expectations, see_day
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.days import day_start
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.validation import drift
from feature_jobs.validation.day_facts import day_facts
from feature_jobs.validation.day_samples import SAMPLE_ROWS, read_samples
from feature_jobs.validation.leaks import find_leaks
from feature_jobs.validation.run_suite import run_suite

NUM_IDS, NUM_FEW, NUM_NUMBERS, NUM_LISTS = 12, 10, 26, 5  # with 4 keys and 3 labels: 60 columns
NULL_SHARE, CHUNK_ROWS = 0.05, 131_072
DAY_US = 86_400_000_000
SEEN, JUDGED = ("2024-01-01", "2024-01-02", "2024-01-03"), "2024-01-04"


def scenario_in(folder: Path) -> Scenario:
    """A scenario with these columns."""
    columns = {"t": "int", "user": "int", "item": "int", **{f"outcome{i}": "int" for i in range(3)}}
    columns |= {f"id{i}": "int" for i in range(NUM_IDS)} | {f"few{i}": "string" for i in range(NUM_FEW)}
    columns |= {f"number{i}": "float" for i in range(NUM_NUMBERS)} | {f"list{i}": "list[int]" for i in range(NUM_LISTS)}
    kinds = {"id": "id", "few": "id", "number": "number", "list": "ids"}
    features = {name: {"kind": kinds[kind]} for name in columns if (kind := name.rstrip("0123456789")) in kinds}
    events = {
        "path": "events.csv",
        "format": "csv",
        "time": {"column": "t"},
        "columns": {name: {"type": kind, "required": name.startswith("outcome")} for name, kind in columns.items()},
    }
    text = {
        "name": "wide",
        "data": {"path": ".", "events": events, "user": "user", "item": "item", "days": {"first": SEEN[0]}},
        "labels": {f"label{i}": f"outcome{i} == 1" for i in range(3)},
        "features": features,
    }
    (folder / "wide.yaml").write_text(json.dumps(text))  # JSON is YAML
    return load_scenario(folder / "wide.yaml")


def write_day(folder: Path, scenario: Scenario, ds: str, num_rows: int) -> None:
    """Samples of a day, written in chunks."""
    rng, begin = np.random.default_rng(int(ds[-2:])), day_start(scenario, ds)
    folder.mkdir()
    writer = None
    for first in range(0, num_rows, CHUNK_ROWS):
        num = min(CHUNK_ROWS, num_rows - first)
        rows = np.arange(first, first + num)
        columns: dict[str, Any] = {
            "key.event_time": begin + rows * (DAY_US // num_rows),
            "key.event_row": rows,
            "key.user": rng.integers(0, 1_000_000, num),
            "key.item": rng.integers(0, 100_000, num),
        }
        for i in range(NUM_IDS):
            columns[f"id{i}"] = rng.integers(0, 10 ** (2 + i % 5), num) * 1_000_003
        for i in range(NUM_FEW):
            texts = [f"value {n}" for n in range(5 + 4 * i)]
            codes = pa.array(rng.integers(0, len(texts), num), mask=rng.random(num) < NULL_SHARE)
            columns[f"few{i}"] = pa.DictionaryArray.from_arrays(codes, texts).cast("string")
        for i in range(NUM_NUMBERS):
            columns[f"number{i}"] = pa.array(rng.lognormal(0, 1, num), mask=rng.random(num) < NULL_SHARE)
        for i in range(NUM_LISTS):
            ends = np.concatenate([[0], np.cumsum(rng.integers(0, 6, num))]).astype(np.int32)
            columns[f"list{i}"] = pa.ListArray.from_arrays(ends, rng.integers(0, 1000, ends[-1]))
        columns |= {f"label.label{i}": (rng.random(num) < 0.1).astype(np.int8) for i in range(3)}
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(folder / SAMPLES_FILE, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def measure(folder: Path, num_rows: int, sample_rows: int) -> dict[str, Any]:
    """Seconds of each part of a validation, and the peak of the process's memory."""
    scenario = scenario_in(folder)
    days = []
    for ds in SEEN:
        write_day(folder / ds, scenario, ds, min(num_rows, 100_000))
        days.append(see_day(scenario, ds, read_samples(folder / ds, scenario), {}))
    suite = propose_expectations(scenario, days, None)
    write_day(folder / JUDGED, scenario, JUDGED, num_rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds: dict[str, float] = {}

    def timed(name: str, call: Any, *given: Any, **named: Any) -> Any:
        begin, cpu = time.perf_counter(), time.process_time()
        result = call(*given, **named)
        seconds[f"{name}_s"] = round(time.perf_counter() - begin, 1)
        seconds[f"{name}_cpu_s"] = round(time.process_time() - cpu, 1)
        return result

    day = timed("read", read_samples, folder / JUDGED, scenario, sample_rows)
    profiles = timed("profile", drift.profile_days, JUDGED, day.frame, scenario)
    leaks = timed("leaks", find_leaks, day.frame, scenario, day.lists)
    facts = timed("facts", day_facts, scenario, JUDGED, day, {"rows": num_rows}, {})
    judged = timed("judge", run_suite, day, facts, suite, "suite", ds=JUDGED, docs=folder / "docs")
    return {
        "rows": num_rows,
        "columns": len(pq.read_schema(folder / JUDGED / SAMPLES_FILE).names),
        "expectations": len(suite["expectations"]),
        "saw_a_sample": judged.num_sampled,
        "blocking": sum(failure.severity == "blocking" for failure in judged.failures),
        "warnings": sum(failure.severity == "warning" for failure in judged.failures),
        "leaks": len(leaks),
        "profiled": len(profiles[JUDGED]["columns"]),
        **seconds,
        "total_s": round(sum(value for name, value in seconds.items() if not name.endswith("cpu_s")), 1),
        "total_cpu_s": round(sum(value for name, value in seconds.items() if name.endswith("cpu_s")), 1),
        "rss_before_mib": round(before),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--sample-rows", type=int, default=SAMPLE_ROWS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.rows, args.sample_rows)
    print(json.dumps(result) if args.json else "\n".join(f"{name:16} {value:,}" for name, value in result.items()))


if __name__ == "__main__":
    main()
