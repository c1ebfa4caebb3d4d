"""The server of ranked items: the CPU time of a request in process, and answers a second over HTTP.

    python -m benchmarks.serving [--scenario FILE --store STORE] [--items 500] [--seconds 10] [--output FILE.json]

Without a scenario it makes one: three days of a log of Zipf-distributed users and items with 26 features, and a DeepFM
of dimension 16 with layers 256-128-64, learned, quantized and promoted. Then, one after the other:

- `in_process`: CPU time of a request by ids, as a whole and by part; beside it the same rows scored as a whole, which
  is what MLflow's model does, and by torch;
- `http`: `recloop serve` with two workers, and `benchmarks.load` in a process of its own: the most answers a second
  (closed loop), and latencies at 70 % of these (open loop), with JSON and with binary tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.online import SCENARIO, write_log
from benchmarks.three_days import DAYS
from feature_jobs.schema import Scenario, load_scenario
from serving.protocol import Asked
from serving.release import ITEMS, USER, Loaded
from tasks.run.releases import Releases
from tasks.run.runner import run_step
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import open_store

_MODEL = """\
online: {}
model: {architecture: deepfm, embedding_dim: 16, bottom: [256, 128, 64]}
"""
_STEPS = ("ingest", "summarize", "join", "materialize", "validate", "train", "quantize")
_REQUESTS = 200
_CONNECTIONS = 16
_SHARE = 0.7
_PORT = 8095

_Ids = npt.NDArray[np.int64]


def main() -> None:
    """Measures, and prints a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=Path, help="a scenario with a champion in --store")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the log that is made")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if args.scenario:
            scenario, store = load_scenario(args.scenario), args.store
        else:
            scenario, store = _made(root, args.rows), root / "store"
        loaded = Loaded(Releases(scenario, open_store(store, scenario.name)).newest())
        requests = [*_requests(loaded, args.items)]
        found = {
            "scenario": scenario.name,
            "features": len(loaded.columns),
            "items": args.items,
            "in_process_ms": _in_process(loaded, requests),
        }
        loaded.close()
        with _server(scenario, store):
            found["http"] = {
                form: _over_http(scenario, requests, root / form, args.seconds, is_binary=form == "binary")
                for form in ("binary", "json")
            }
    print(json.dumps(found, indent=1))
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _made(root: Path, num_rows: int) -> Scenario:
    """A scenario with a champion in `root/store`."""
    write_log(root, num_rows, num_users=30_000, num_items=20_000)
    file = root / "asked.yaml"
    file.write_text(SCENARIO + _MODEL, encoding="utf-8")
    scenario = load_scenario(file)
    store = open_store(root / "store", scenario.name)
    for ds in DAYS:
        for step in _STEPS:
            outcome = run_step(step, scenario, ds, store, track=False)
            if step == "train":
                checkpoint = outcome.digest
    ChampionLog(store).promote(0, Entry("promotion", scenario.name, "1", DAYS[-1], store.generation, str(checkpoint)))
    return scenario


def _requests(loaded: Loaded, num_items: int) -> Iterator[Asked]:
    """Requests of users and items of the state, each with further columns of the log as null."""
    random, data = np.random.default_rng(2), loaded.scenario.data
    users, items = loaded.ids(data.user), loaded.ids(data.item)
    context = {name: pa.nulls(1) for name in loaded.context}
    for _ in range(_REQUESTS):
        user = users.take([int(random.integers(len(users)))])
        some = items.take(random.integers(0, len(items), num_items))
        yield Asked({USER: user, ITEMS: some, **context}, {})


def _in_process(loaded: Loaded, requests: list[Asked]) -> dict[str, dict[str, float]]:
    now = round(loaded.begin.timestamp() * 1e6) + 3_600_000_000
    columns = [loaded.features_of(asked, now) for asked in requests]
    num = len(requests[0].inputs[ITEMS])
    tables = [
        pa.table({name: pa.repeat(c[0], num) if len(c) == 1 else c for name, c in one.items()}) for one in columns
    ]
    return {
        "answer": _times(lambda at: loaded.answer(requests[at], now)),
        "features": _times(lambda at: loaded.features_of(requests[at], now)),
        "scores": _times(lambda at: loaded.scorer.score_request(columns[at], num)),
        "scores_of_whole_rows": _times(lambda at: loaded.scorer.score(tables[at])),
    }


def _times(call: Callable[[int], object]) -> dict[str, float]:
    taken = []
    for at in [*range(_REQUESTS)] * 2:
        begun = time.process_time()
        call(at)
        taken.append((time.process_time() - begun) * 1e3)
    # The second time: users and items were asked for before.
    return {f"p{share}": round(float(np.percentile(taken[_REQUESTS:], share)), 3) for share in (50, 99)}


@contextmanager
def _server(scenario: Scenario, store: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "tasks", "serve", "--scenario", str(scenario.file), "--store", str(store)]
    process = subprocess.Popen([*command, "--http", f"127.0.0.1:{_PORT}"])
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{_PORT}/v2/health/ready", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        time.sleep(3)  # both workers
        yield
    finally:
        process.terminate()
        process.wait()


def _over_http(
    scenario: Scenario, requests: list[Asked], folder: Path, seconds: float, *, is_binary: bool
) -> dict[str, object]:
    folder.mkdir()
    for number, asked in enumerate(requests):
        (folder / f"{number:05}").write_bytes(_request_of(scenario.name, asked, is_binary=is_binary))

    def load(rate: float = 0.0) -> dict[str, object]:
        command = [sys.executable, "-m", "benchmarks.load", f"127.0.0.1:{_PORT}", str(folder)]
        options = ["--connections", str(_CONNECTIONS), "--seconds", str(seconds), "--rate", str(rate)]
        done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    load()  # users and items are asked for once
    most = load()
    return {"closed_loop": most, "open_loop": load(_SHARE * float(str(most["answers_per_s"])))}


def _request_of(model: str, asked: Asked, *, is_binary: bool) -> bytes:
    """A request as it goes over the wire."""
    inputs, tensors = [], []
    for name, column in asked.inputs.items():
        one = {"name": name, "shape": [len(column)], "datatype": "INT64"}
        if is_binary and not column.null_count:
            tensors.append(np.asarray(column).astype("<i8").tobytes())
            inputs.append({**one, "parameters": {"binary_data_size": len(tensors[-1])}})
        else:
            inputs.append({**one, "data": column.to_pylist()})
    document = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": is_binary}}).encode()
    body = document + b"".join(tensors)
    head = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    if is_binary:
        head.append(f"Inference-Header-Content-Length: {len(document)}")
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


if __name__ == "__main__":
    main()
