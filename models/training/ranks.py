"""A day of training shared by processes, which torchrun's agent starts, watches and ends together: on this machine, or
on each of several.

`train_day_on_ranks` writes down what is to be done, `main` does it in each process, and the first one's result, or the
first error, is handed back through the same folder. Machines meet at a store of the leading one's. There it leaves what
ended its training, for the others, which otherwise only see that it is gone.
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
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs import errors
from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.schema import Scenario
from models.distributed.nodes import Nodes

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from models.distributed.process_group import Group

JOB, RESULT, ERRORS = "job.json", "result.json", "error-*.json"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends
LOST = RetryLaterError.exit_code  # a rank that lost the others ends with it, and without a word
CAUSE_S = 3  # what ended the others is seen before those that lost them
WORD_S = 10  # how long machines wait for each other's words


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
    """As `training.train_day`, by `train.distributed.ranks` processes, of which each machine starts an equal share.

    All machines are called alike, with the same inputs. The leading one's `output` is written and its `resume` used, if
    it has one; the others' results are empty. Raises what processes raise, in a machine that only lost the others what
    the leading one does; RetryLaterError where a process was killed or a machine was lost or did not come;
    BadInputError where machines can't share the processes equally or were told different things.
    """
    machines = Nodes.from_environment()
    with tempfile.TemporaryDirectory(prefix="recloop-ranks-") as name:
        folder = Path(name)
        paths = [str(path.resolve()) if path else None for path in (samples, parent, output, resume)]
        document = scenario.model_dump(mode="json", by_alias=True)
        job = {"scenario": document, "ds": ds, "paths": paths, "progress": progress}
        (folder / JOB).write_text(json.dumps(job))
        _launch(scenario, ds, folder, machines)
        result: dict[str, Any] = json.loads((folder / RESULT).read_text()) if machines.leads else {}
    return result


def _launch(scenario: Scenario, ds: str, folder: Path, machines: Nodes) -> None:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    distributed = scenario.train.distributed
    num_local = machines.share(distributed.ranks)
    meeting = machines.meet(distributed.timeout_s)
    one = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1", "run_id": folder.name}
    several = {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{machines.address}:{machines.port}",
        "rdzv_configs": {"rank": machines.rank, "timeout": distributed.timeout_s},
        "run_id": "train",
    }
    config = LaunchConfig(
        min_nodes=machines.size,
        max_nodes=machines.size,
        nproc_per_node=num_local,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        **(one if meeting is None else several),
    )
    handlers = {number: signal.getsignal(number) for number in SIGNALS}  # the agent puts its own in their place
    failures: dict[int, ProcessFailure] = {}
    try:
        elastic_launch(config, sys.executable)("-m", "models.training.ranks", str(folder))
        return
    except ChildFailedError as error:
        failures = error.failures
    except DistError:  # an agent lost the leading one's store: as a rank that lost the others
        pass
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
    cause, lost = _cause(failures, folder, scenario, ds)
    raise _cause_of_all(cause, lost, machines, meeting)


def _cause(failures: dict[int, ProcessFailure], folder: Path, scenario: Scenario, ds: str) -> tuple[Exception, bool]:
    """What ended this machine's ranks, and whether it is only that they lost the others."""
    distributed = scenario.train.distributed
    goes_on = "the same command goes on from where the day's last snapshot was"
    for file in folder.glob(ERRORS):  # all tell the same
        told = json.loads(file.read_text())
        return getattr(errors, told["type"])(told["message"]), False
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    # A process that is killed takes the others' connections with it: the signal is the cause, not their errors.
    for rank in (rank for rank, code in codes.items() if code < 0):
        return RetryLaterError(
            f"train of {ds}: rank {rank} of {distributed.ranks} was ended by {failures[rank].signal_name()} (SIGKILL is"
            f" often the end of memory: lower train.distributed.ranks or capacity); {goes_on}"
        ), False
    for rank in (rank for rank, code in codes.items() if code != LOST):
        told = f"train of {ds}: rank {rank} of {distributed.ranks} failed, see its traceback above"
        return RuntimeError(told), False
    return RetryLaterError(
        f"train of {ds}: others of the {distributed.ranks} ranks have ended, or were not heard of for"
        f" {distributed.timeout_s} s (train.distributed.timeout_s); what their machines say is the cause; {goes_on}"
    ), True


def _cause_of_all(cause: Exception, lost: bool, machines: Nodes, meeting: TCPStore | None) -> Exception:
    """The leading machine's cause, in those that only lost the others; it waits until they have it."""
    if meeting is None:
        return cause
    from torch.distributed import DistError

    others = [f"told/{rank}" for rank in range(1, machines.size)]
    with contextlib.suppress(DistError):  # whoever has gone needs no word, or left none
        if machines.leads:
            kind = type(cause).__name__ if isinstance(cause, RecloopError) else RecloopError.__name__
            meeting.set("cause", json.dumps({"type": kind, "message": str(cause)}))
            meeting.wait(others, timedelta(seconds=WORD_S))
        elif lost:
            meeting.wait(["cause"], timedelta(seconds=WORD_S))
            told = json.loads(meeting.get("cause"))
            cause = getattr(errors, told["type"])(f"machine 0 of {machines.size}: {told['message']}")
    if not machines.leads:
        with contextlib.suppress(DistError):
            meeting.set(others[machines.rank - 1], "")
    return cause


def main(folder: Path) -> None:
    """What each process does. torchrun's variables tell which it is."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.disable(logging.WARNING)  # TorchRec's notes to its developers
    warnings.simplefilter("ignore")
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

    from models.distributed.process_group import joined, lost_the_others
    from models.training.day import train_day

    job = json.loads((folder / JOB).read_text())
    scenario = Scenario.model_validate(job["scenario"])
    samples, parent, output, resume = (Path(path) if path else None for path in job["paths"])
    assert samples and output  # noqa: S101 (they always are)
    try:
        with joined(scenario.train.distributed.timeout_s) as group:
            _check_told_the_same(job, group)
            if not group.broadcast_number(int(resume is not None)):
                resume = None
            options = {"resume": resume, "progress": job["progress"]}
            result = train_day(scenario, job["ds"], samples, parent, output, **options, group=group)
            group.broadcast_number(
                0
            )  # whoever has no more to do ends with the leading one, which writes for all, and as it does
    except RecloopError as error:
        file = folder / ERRORS.replace("*", os.environ["RANK"])
        file.with_suffix(".part").write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
        file.with_suffix(".part").rename(file)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        if not lost_the_others(error):
            raise
        time.sleep(CAUSE_S)
        sys.exit(LOST)
    if group.leads:
        (folder / RESULT).write_text(json.dumps(result))


def _check_told_the_same(job: dict[str, Any], group: Group) -> None:
    """Raises BadInputError in all processes where one has another scenario, day or input. Data lies where it lies."""
    import torch

    inputs = [path and Path(path).name for path in job["paths"][:2]]  # a committed folder is named by its digest
    told = json.dumps([{**job["scenario"], "data": None}, job["ds"], inputs], sort_keys=True)
    digest = hashlib.blake2b(told.encode(), digest_size=7).digest()
    digests_W1 = group.all_gather(torch.tensor([int.from_bytes(digest)]))
    if (digests_W1 != digests_W1[0]).any():
        raise BadInputError(
            f"train of {job['ds']}: the machines were told different things; start `recloop train` on all of them with"
            " the same --scenario, --set, --ds and --store"
        )


if __name__ == "__main__":
    code: Any = 0
    try:
        main(Path(sys.argv[1]))
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written; torch's threads, still running, can abort a process that ends the long way
