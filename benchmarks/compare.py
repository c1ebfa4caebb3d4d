"""Compares our training with the peers on one log: medians and ranges of runs in turn, each in its own process.

    python -m benchmarks.compare --data FILE [--rounds 5] [--deepctr-rows N] [--only ours] [--output JSON]

Prints a line when a run ends, then a Markdown table; `--output` keeps every run's figures. Runs do not overlap.
DeepCTR-Torch needs `make benchmark-peers` first; without it, it is left out with a message.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
FIGURES = {"samples_per_s": ",.0f", "auc": ".4f", "peak_rss_mib": ",.0f", "train_s": ".1f", "cpu_us_per_sample": ".1f"}


@dataclass(frozen=True)
class System:
    """A system to compare: its command, and the number of rounds."""

    name: str
    command: Sequence[str]
    rounds: int


def systems(args: argparse.Namespace) -> list[System]:
    """Ours and the peers, whose name contains one of `--only`."""
    data = ["--data", str(args.data.resolve()), "--json"]
    ours = [sys.executable, "-m", "benchmarks.train_throughput", *data]
    torchrec = [sys.executable, "-m", "benchmarks.peers.torchrec_deepfm", *data]
    deepctr = [str(PEERS_PYTHON), "-m", "benchmarks.peers.deepctr_deepfm", *data]
    if args.deepctr_rows:
        deepctr += ["--rows", str(args.deepctr_rows)]
    listed = [
        System("ours bf16", [*ours, "--precision", "bfloat16"], args.rounds),
        System("ours fp32", [*ours, "--precision", "float32"], args.fp32_rounds),
        System("FBGEMM TBE bf16", [*torchrec, "--embedding", "tbe", "--precision", "bf16"], args.rounds),
        System("TorchRec EBC bf16", [*torchrec, "--embedding", "collection", "--precision", "bf16"], args.rounds),
        System("FBGEMM TBE fp32", [*torchrec, "--embedding", "tbe", "--precision", "fp32"], args.fp32_rounds),
    ]
    if PEERS_PYTHON.exists():
        listed.append(System("DeepCTR-Torch fp32", deepctr, args.deepctr_rounds))
    else:
        print("DeepCTR-Torch is left out: `make benchmark-peers` makes its environment", file=sys.stderr)
    return [s for s in listed if not args.only or any(part.lower() in s.name.lower() for part in args.only)]


def run(system: System) -> dict[str, Any]:
    """The figures that a run prints, and the load of the host before it."""
    load = os.getloadavg()[0]
    done = subprocess.run(system.command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{system.name} ended with {done.returncode}: {' '.join(system.command)}\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures | {"load_before": round(load, 2)}


def markdown(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each system: medians, with the smallest and largest value in brackets."""
    head = ["system", *FIGURES, "rows learned", "runs"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, figures in runs.items():
        cells = [name]
        for key, style in FIGURES.items():
            values = sorted(f[key] for f in figures)
            spread = f" ({values[0]:{style}}–{values[-1]:{style}})" if len(values) > 1 else ""
            cells.append(f"{median(values):{style}}{spread}")
        lines.append(" | ".join([*cells, f"{figures[0]['num_samples']:,}", str(len(figures))]))
    return "\n".join(f"| {line} |" for line in lines)


def ratios(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Our samples per second, at its best precision, over those of each peer that learned as many rows: the median over
    rounds, of runs in the same turn."""
    ours = max((n for n in runs if n.startswith("ours")), key=lambda n: median(_rates(runs[n])), default=None)
    if ours is None:
        return {}
    num_samples = runs[ours][0]["num_samples"]
    peers = {name: f for name, f in runs.items() if name[:4] != "ours" and f[0]["num_samples"] == num_samples}
    pairs = {name: zip(_rates(runs[ours]), _rates(figures), strict=False) for name, figures in peers.items()}
    return {name: round(median(mine / theirs for mine, theirs in pair), 3) for name, pair in pairs.items()}


def _rates(figures: list[dict[str, Any]]) -> list[float]:
    return [f["samples_per_s"] for f in figures]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fp32-rounds", type=int, default=1)
    parser.add_argument("--deepctr-rounds", type=int, default=1)
    parser.add_argument("--deepctr-rows", type=int, help="DeepCTR-Torch learns of the first rows only: it is slow")
    parser.add_argument("--only", nargs="*", help="systems whose name contains one of these")
    parser.add_argument("--output", type=Path, help="every run's figures as JSON")
    args = parser.parse_args()
    chosen = systems(args)
    runs: dict[str, list[dict[str, Any]]] = {}
    for turn in range(max((s.rounds for s in chosen), default=0)):
        for system in chosen:
            if turn < system.rounds:
                figures = run(system)
                runs.setdefault(system.name, []).append(figures)
                shown = {key: figures[key] for key in (*FIGURES, "load_before")}
                print(f"round {turn + 1}  {system.name:20} {shown}", file=sys.stderr, flush=True)
    print(markdown(runs))
    for name, ratio in ratios(runs).items():
        print(f"\nours / {name}: {ratio:.2f} times the samples per second")
    if args.output:
        machine = {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()}
        document = {"data": args.data.name, "machine": machine, "ratios": ratios(runs), "runs": runs}
        args.output.write_text(json.dumps(document, indent=1) + "\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
