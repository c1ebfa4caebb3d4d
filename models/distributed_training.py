"""A day of training shared by processes of this machine, which torchrun's agent starts, watches and ends together.

`train_day_on_ranks` writes down what is to be done, `main` does it in each process, and the first one's result, or the
first error, is handed back through the same folder.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from feature_jobs import errors
from feature_jobs.errors import RecloopError, RetryLaterError
from feature_jobs.schema import Scenario

JOB, RESULT, ERRORS = "job.json", "result.json", "error-*.json"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


def train_day_on_ranks(
    scenario: Scenario,
    ds: str,
    samples: Path,
    parent: Path | None,
    output: Path,
    *,
    resume: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """As `training.train_day`, by `train.distributed.ranks` processes.

    Raises what they raise, and RetryLaterError where one was killed.
    """
    with tempfile.TemporaryDirectory(prefix="recloop-ranks-") as name:
        folder = Path(name)
        paths = [str(path.resolve()) if path else None for path in (samples, parent, output, resume)]
        document = scenario.model_dump(mode="json", by_alias=True)
        job = {"scenario": document, "ds": ds, "paths": paths, "progress": progress}
        (folder / JOB).write_text(json.dumps(job))
        _launch(scenario.train.distributed.ranks, ds, folder)
        result: dict[str, Any] = json.loads((folder / RESULT).read_text())
    return result


def _launch(num_ranks: int, ds: str, folder: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    handlers = {number: signal.getsignal(number) for number in SIGNALS}  # the agent puts its own in their place
    try:
        elastic_launch(config, sys.executable)("-m", "models.distributed_training", str(folder))
    except ChildFailedError as error:
        for file in folder.glob(ERRORS):  # all tell the same
            told = json.loads(file.read_text())
            raise getattr(errors, told["type"])(told["message"]) from None
        # A process that is killed takes the others' connections with it: the signal is the cause, not their errors.
        rank, failure = min(error.failures.items(), key=lambda item: item[1].exitcode >= 0)
        if failure.exitcode < 0:
            raise RetryLaterError(
                f"train of {ds}: rank {rank} of {num_ranks} was ended by {failure.signal_name()} (SIGKILL is often the"
                " end of memory: lower train.distributed.ranks or capacity); the same command goes on from where the"
                " day's last snapshot was"
            ) from None
        raise RuntimeError(f"train of {ds}: rank {rank} of {num_ranks} failed, see its traceback above") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)


def main(folder: Path) -> None:
    """What each process does. torchrun's variables tell which it is."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.disable(logging.WARNING)  # TorchRec's notes to its developers
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

    from models.group import joined
    from models.training import train_day

    job = json.loads((folder / JOB).read_text())
    scenario = Scenario.model_validate(job["scenario"])
    samples, parent, output, resume = (Path(path) if path else None for path in job["paths"])
    assert samples and output  # noqa: S101 (they always are)
    options = {"resume": resume, "progress": job["progress"]}
    try:
        with joined(scenario.train.distributed.timeout_s) as group:
            result = train_day(scenario, job["ds"], samples, parent, output, **options, group=group)
    except RecloopError as error:
        file = folder / ERRORS.replace("*", os.environ["RANK"])
        file.with_suffix(".part").write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
        file.with_suffix(".part").rename(file)
        sys.exit(error.exit_code)
    if group.leads:
        (folder / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
