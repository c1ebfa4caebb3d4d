"""A day of training by several processes, on one node or on several. torchrun's agent starts and ends them together.

`train_day_on_ranks` writes the job into a folder, `main` runs it in each process, and rank 0's result or the first
error is returned through the same folder. Nodes share a key-value store of node 0. If the training fails, node 0
leaves the cause there: the other nodes would only see that their connections were lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs import errors
from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.imports import quick_imports
from models.distributed.nodes import Nodes
from models.training.job import TrainJob

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from models.distributed.process_group import Group
    from models.training.day import TrainMetrics

JOB, RESULT, ERRORS = "job.json", "result.json", "error-*.json"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
PR_SET_PDEATHSIG = 1  # Linux: sets the signal that a process gets when its parent ends
LOST = RetryLaterError.exit_code  # the exit code of a rank that only lost the others
CAUSE_S = 3  # a rank that lost the others waits, so that the agent sees the failed rank first
MESSAGE_S = 10  # how long nodes wait for each other's messages in the store


def train_day_on_ranks(job: TrainJob) -> TrainMetrics:
    """Trains like `train_day`, with `train.distributed.ranks` processes. Each node starts an equal share of them.

    All nodes are called with the same inputs. Node 0 writes its `output` and uses its `resume` folder, if it has one;
    the results of other nodes are empty. Raises the error of the first process that failed; a node whose processes only
    lost the others raises node 0's error. RetryLaterError: a process was killed, or a node was lost or did not connect.
    BadInputError: the nodes cannot share the processes equally, or have different inputs.
    """
    nodes = Nodes.from_environment()
    with tempfile.TemporaryDirectory(prefix="recloop-ranks-") as name:
        folder = Path(name)
        (folder / JOB).write_text(job.to_json())
        _start(job, folder, nodes)
        result: TrainMetrics = json.loads((folder / RESULT).read_text()) if nodes.is_leader else {}
    return result


def _start(job: TrainJob, folder: Path, nodes: Nodes) -> None:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    distributed = job.scenario.train.distributed
    num_local = nodes.share(distributed.ranks)
    store = nodes.meet(distributed.timeout_s)
    # Port 0: the kernel chooses a free one, so that several trainings can run on a machine.
    one = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1", "run_id": folder.name}
    # Static, as c10d would give the nodes ranks in an order of its own, and node 0 is the one that holds the store.
    several = {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{nodes.address}:{nodes.port}",
        "rdzv_configs": {"rank": nodes.rank, "timeout": distributed.timeout_s},
        "run_id": "train",
    }
    config = LaunchConfig(
        min_nodes=nodes.size,
        max_nodes=nodes.size,
        nproc_per_node=num_local,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        **(one if store is None else several),
    )
    handlers = {number: signal.getsignal(number) for number in SIGNALS}  # the agent replaces them
    failures: dict[int, ProcessFailure] = {}
    try:
        elastic_launch(config, sys.executable)("-m", "models.training.ranks", str(folder))
        return
    except ChildFailedError as error:
        failures = error.failures
    except DistError:  # the agent lost node 0's store: the same as a rank that lost the others
        pass
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
    cause, lost = _cause(failures, folder, job)
    raise _cause_of_all(cause, lost, nodes, store)


def _cause(failures: dict[int, ProcessFailure], folder: Path, job: TrainJob) -> tuple[Exception, bool]:
    """Returns the error that ended this node's ranks, and True if they only lost the others."""
    ds, distributed = job.ds, job.scenario.train.distributed
    goes_on = "the same command continues from the day's last snapshot"
    for file in folder.glob(ERRORS):  # all ranks raise the same error
        found = json.loads(file.read_text())
        return getattr(errors, found["type"])(found["message"]), False
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    # When a process is killed, the others lose their connections. Then the signal is the cause.
    for rank in (rank for rank, code in codes.items() if code < 0):
        return RetryLaterError(
            f"train of {ds}: rank {rank} of {distributed.ranks} was ended by {failures[rank].signal_name()} (SIGKILL"
            f" often means out of memory: lower train.distributed.ranks or capacity); {goes_on}"
        ), False
    for rank in (rank for rank, code in codes.items() if code != LOST):
        message = f"train of {ds}: rank {rank} of {distributed.ranks} failed, see its traceback above"
        return RuntimeError(message), False
    return RetryLaterError(
        f"train of {ds}: other ranks of the {distributed.ranks} have ended, or did not answer for"
        f" {distributed.timeout_s} s (train.distributed.timeout_s); the logs of their nodes say why; {goes_on}"
    ), True


def _cause_of_all(cause: Exception, lost: bool, nodes: Nodes, store: TCPStore | None) -> Exception:
    """Node 0's cause, if this node only lost the others. Node 0 waits until the other nodes have read it."""
    if store is None:
        return cause
    from torch.distributed import DistError

    others = [f"read/{rank}" for rank in range(1, nodes.size)]
    with contextlib.suppress(DistError):  # a node that has ended needs no message, or left none
        if nodes.is_leader:
            kind = type(cause).__name__ if isinstance(cause, RecloopError) else RecloopError.__name__
            store.set("cause", json.dumps({"type": kind, "message": str(cause)}))
            store.wait(others, timedelta(seconds=MESSAGE_S))
        elif lost:
            store.wait(["cause"], timedelta(seconds=MESSAGE_S))
            found = json.loads(store.get("cause"))
            cause = getattr(errors, found["type"])(f"node 0 of {nodes.size}: {found['message']}")
    if not nodes.is_leader:
        with contextlib.suppress(DistError):
            store.set(others[nodes.rank - 1], "")
    return cause


def main(folder: Path) -> None:
    """Runs the job in one process. torchrun's variables say which rank it is."""
    # A killed agent can't end its ranks itself.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.disable(logging.WARNING)  # TorchRec logs notes for its own developers
    warnings.simplefilter("ignore")
    # On one node over the loopback: gloo would listen at the address of the machine's name.
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

    with quick_imports():
        from models.distributed.process_group import joined, lost_the_others
        from models.training.day import train_day

    job = TrainJob.from_json((folder / JOB).read_text())
    try:
        with joined(job.scenario.train.distributed.timeout_s) as group:
            _check_same_inputs(job, group)
            # Reading a snapshot is collective, and only node 0 may have a folder: all ranks follow rank 0.
            if not group.broadcast_number(int(job.resume is not None)):
                job = replace(job, resume=None)
            result = train_day(job, group)
            group.broadcast_number(0)  # the others wait until rank 0 has written
    except RecloopError as error:
        file = folder / ERRORS.replace("*", os.environ["RANK"])
        file.with_suffix(".part").write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
        # Whole or not at all, as the agent may read it at any moment.
        file.with_suffix(".part").rename(file)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        if not lost_the_others(error):
            raise
        time.sleep(CAUSE_S)
        sys.exit(LOST)
    if group.is_leader:
        (folder / RESULT).write_text(json.dumps(result))


def _check_same_inputs(job: TrainJob, group: Group) -> None:
    """Raises BadInputError in all processes if one has another scenario, day or input. Paths of data may differ."""
    import torch

    # A committed folder is named by its digest.
    inputs = [folder and folder.name for folder in (job.samples, job.parent)]
    scenario = job.scenario.model_dump(mode="json", by_alias=True)
    compared = json.dumps([{**scenario, "data": None}, job.ds, inputs], sort_keys=True)
    # 7 bytes, as a tensor's integers are signed 64-bit numbers.
    digest = hashlib.blake2b(compared.encode(), digest_size=7).digest()
    digests_W1 = group.all_gather(torch.tensor([int.from_bytes(digest)]))
    if (digests_W1 != digests_W1[0]).any():
        raise BadInputError(
            f"train of {job.ds}: the nodes have different inputs; start `recloop train` on all of them with the same"
            " --scenario, --set, --ds and --store"
        )


if __name__ == "__main__":
    code: Any = 0
    try:
        main(Path(sys.argv[1]))
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written; in a normal exit torch's threads, which still run, can abort the process
