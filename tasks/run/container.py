"""Execution mode `docker`: a step's function runs in a container that can reach its inputs, its output, and no more.

Folders have the same path inside as outside, so that messages name paths that a person can open. Inputs are read-only;
the output, a resumable step's notes and the folder of the store that a step declares are writable; all else is the
image's read-only file system and a /tmp in memory. Only steps that talk to the registry have a network. The container
ends with this process, even where that is killed: see tasks.run.exec_step.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.errors import BadInputError, KilledError, ParentMissingError, RecloopError, RetryLaterError
from models.distributed.nodes import Nodes
from tasks.contract import Step
from tasks.run.exec_step import request_of
from tasks.run.launchers import Call, Ran
from tasks.store.cache import FOLDER as CACHE
from tasks.store.places import is_remote
from tasks.store.scenario_store import ScenarioStore

if TYPE_CHECKING:
    from docker import APIClient

    from feature_jobs.schema import Scenario

NOBODY = 10001  # the user of our images
PIDS = 512
GIB = 1 << 30
KILLED = 128  # an exit code above is this plus the number of the signal that ended it
STDOUT = 1
ABANDONED_S = 120.0  # a container is started right after it was made
ERRORS: dict[int, type[RecloopError]] = {
    error.exit_code: error for error in (BadInputError, ParentMissingError, RetryLaterError)
}
REGISTRY_SETTINGS = ("MLFLOW_", "AWS_", "RECLOOP_MLFLOW_")
TMP = "/tmp"  # noqa: S108 (the container's, in memory)


@dataclass(frozen=True)
class ContainerSettings:
    """`images` and `tag` make up an image's name, recloop/step:0.1.0; `network` is the one that registry steps join."""

    images: str
    tag: str
    network: str = ""

    @classmethod
    def from_environment(cls) -> ContainerSettings:
        """Reads RECLOOP_IMAGES, RECLOOP_TAG, RECLOOP_DOCKER_NETWORK. The engine runs on this host; DOCKER_HOST names
        its socket if it is not the usual one."""
        images, tag, network = (os.environ.get(f"RECLOOP_{name}") for name in ("IMAGES", "TAG", "DOCKER_NETWORK"))
        return cls(images or "recloop", tag or release(), network or "")

    def image_of(self, declared: Step) -> str:
        """Name of the step's image."""
        return f"{self.images}/{declared.role}:{self.tag}"


def release() -> str:
    """The project's version, which its images are tagged with."""
    return version("recloop")


class ContainerLauncher:
    """See tasks.run.launchers.Launcher."""

    def __init__(self, settings: ContainerSettings) -> None:
        self._settings = settings

    @classmethod
    def from_environment(cls) -> ContainerLauncher:
        """Configured by the environment, see ContainerSettings."""
        return cls(ContainerSettings.from_environment())

    def launch(self, declared: Step, call: Call) -> Ran:
        """Raises the step's own error, KilledError with its cause, BadInputError where the engine refuses the call, or
        RetryLaterError where none answers, or no longer."""
        import docker
        import requests

        _refuse_several_machines(declared)
        # Only what the step declares: with the whole environment a password could reach every step.
        environment = {
            **registry_environment(declared),
            **store_environment(declared, call.config.store),
            **source_environment(declared, call.config.scenario),
        }
        writable = writable_folders(declared, call)
        _hand_over(writable)
        try:
            client = docker.from_env(timeout=60).api
            # Before a new one is made: the remains of killed tasks would fill the disk, and nobody else removes them.
            _sweep(client)
            run = _Run(client, self._create(client, declared, call, writable))
            try:
                code = run.until_end(json.dumps(request_of(declared, call, environment)))
                if code == 0:
                    return Ran(**json.loads(run.answer))
                raise error_of(declared, code, run.answer, out_of_memory=run.ran_out_of_memory(code))
            finally:
                run.remove()
        except docker.errors.ImageNotFound:
            name = self._settings.image_of(declared)
            raise BadInputError(f"{name}: no such image on this engine; build it (make images) or pull it") from None
        except (docker.errors.DockerException, requests.RequestException) as error:
            # The engine would refuse the same call again, so a retry is of no use.
            if isinstance(error, docker.errors.APIError) and error.is_client_error():
                refusal = (
                    f"the container engine at {engine_address()} refuses {declared.name}: {error.explanation or error}"
                )
                raise BadInputError(f"{refusal}; check its declaration and RECLOOP_DOCKER_NETWORK") from None
            raise RetryLaterError(f"the container engine at {engine_address()} does not answer: {error}") from None

    def _create(self, client: APIClient, declared: Step, call: Call, writable: list[Path]) -> str:
        scenario, resources = call.config.scenario, declared.resources
        memory_bytes = int(resources.memory_gib * GIB)
        uid, gid = identity()
        host = client.create_host_config(
            mounts=mounts_of(declared, call, writable),
            read_only=True,
            # The kernel counts files there as the container's memory, so a larger bound would mean nothing.
            tmpfs={TMP: f"rw,noexec,nosuid,nodev,size={memory_bytes},mode=1777"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=PIDS,
            # Equal limits of memory and of memory with swap: a step that swaps would only be slow, and never say why.
            mem_limit=memory_bytes,
            memswap_limit=memory_bytes,
            shm_size=memory_bytes // 2,  # processes that train together exchange tensors there
            nano_cpus=int(resources.cpus * 1e9),
            network_mode=self.network(declared, scenario),
            auto_remove=True,
            log_config={"Type": "none"},  # its output is passed on; the engine need not keep it too
            device_requests=_gpus(resources.gpus),
        )
        created: dict[str, str] = client.create_container(
            self._settings.image_of(declared),
            command=["exec-step"],
            stdin_open=True,
            user=f"{uid}:{gid}",
            # OpenMP counts the cores of the host, not the container's limit, and would start a thread for each.
            environment={"OMP_NUM_THREADS": str(resources.threads)},
            labels={"recloop.scenario": scenario.name, "recloop.step": declared.name, "recloop.ds": call.config.ds},
            host_config=host,
        )
        return created["Id"]

    def network(self, declared: Step, scenario: Scenario) -> str:
        """The engine's network that a step joins; most have none. Raises BadInputError where none is set."""
        reads_elsewhere = declared.source and any(table.is_elsewhere for table in scenario.data.tables)
        if not declared.registry and not reads_elsewhere:
            return "none"
        if not self._settings.network:
            other = "a source on another machine" if reads_elsewhere else "MLflow"
            raise BadInputError(
                f"{declared.name} talks to {other}: name the engine's network that reaches it in RECLOOP_DOCKER_NETWORK"
                " (`host` for a server on this machine's loopback)"
            )
        return self._settings.network


class _Run:
    """One container from its start to its end."""

    def __init__(self, client: APIClient, container: str) -> None:
        self._client, self._container = client, container
        self._begun = int(time.time()) - 1  # the engine's clock may be behind ours
        self._code: int | None = None
        self.answer = ""

    def until_end(self, request: str) -> int:
        """Starts it, sends it the request, passes its stderr on to ours, and returns its exit code."""
        streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        socket = self._client.attach_socket(self._container, params=streams)
        waiting = threading.Thread(target=self._wait, daemon=True)
        # Before the start: a container that ends at once and is removed could not be waited for any more.
        waiting.start()
        self._client.start(self._container)
        with contextlib.suppress(ConnectionError):
            socket._sock.sendall(request.encode() + b"\n")  # by the socket itself: the wrapper reads only
        for stream, data in _frames(socket):
            text = data.decode(errors="replace")
            if stream == STDOUT:
                self.answer += text
            else:
                sys.stderr.write(text)
                sys.stderr.flush()
        waiting.join()
        if self._code is None:
            raise RetryLaterError(f"the container engine at {engine_address()} was lost while its container ran")
        return self._code

    def _wait(self) -> None:
        import requests

        with contextlib.suppress(requests.RequestException):
            # next-exit: by default a container that was never started counts as ended.
            # No timeout: a training may take hours.
            self._code = self._client.wait(self._container, condition="next-exit", timeout=None)["StatusCode"]

    def ran_out_of_memory(self, code: int) -> bool:
        """Says if the kernel killed one of its processes at the memory limit; the engine can learn of it afterwards."""
        until = int(time.time()) + (3 if code > KILLED else 1)
        filters = {"container": self._container, "event": "oom"}
        return any(self._client.events(since=self._begun, until=until, filters=filters))

    def remove(self) -> None:
        """Ends it, if it is still there."""
        import requests

        with contextlib.suppress(requests.RequestException):  # the engine has removed it, is about to, or is lost
            self._client.remove_container(self._container, force=True, v=True)


def _frames(socket: Any) -> Iterator[tuple[int, bytes]]:
    from docker.utils.socket import frames_iter

    with contextlib.suppress(ConnectionError):  # of a lost engine: `_wait` sees it too
        yield from frames_iter(socket, tty=False)


def mounts_of(declared: Step, call: Call, writable: list[Path]) -> list[Any]:
    """The folders and files that a step may see, each at the same path as outside."""
    from docker.types import Mount

    scenario, store = call.config.scenario, call.config.store
    readable = [scenario.file, *(getattr(scenario, name) for name in declared.files)]
    for folder in call.folders.values():
        readable += folder.values() if isinstance(folder, dict) else [folder] if folder else []
    if declared.source:
        # The source is mounted only for the step that reads it: no other could learn from raw data by mistake.
        readable.append(Path(scenario.data.path))
    if declared.store_folder and store:
        readable += store.work.glob("g[0-9]*")  # the history; neither notes on runs nor unfinished files
    mounts = {str(path): True for path in readable if path.exists()} | {str(path): False for path in writable}
    return [Mount(path, path, type="bind", read_only=read_only) for path, read_only in mounts.items()]


def writable_folders(declared: Step, call: Call) -> list[Path]:
    """The folders that a step may write into; missing ones are created."""
    folders = [call.output]
    if call.config.resume:
        folders.append(call.config.resume)
    store = call.config.store
    if declared.store_folder and store and not (is_remote(store.url) and declared.registry):
        folders.append(store.work / declared.store_folder)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def identity() -> tuple[int, int]:
    """User and group of the container: ours, so that files have one owner, but never root."""
    return os.getuid() or NOBODY, os.getgid() or NOBODY


def _refuse_several_machines(declared: Step) -> None:
    num_machines = Nodes.from_environment().size if declared.shared else 1
    if num_machines > 1:
        raise BadInputError(
            f"PET_NNODES={num_machines}: in execution mode docker {declared.name} computes on one machine; set"
            " RECLOOP_EXECUTION=process, in a container on each machine if you like"
        )


def registry_environment(declared: Step) -> dict[str, str]:
    """Address and credentials of the registry, for a step that uses it. Raises BadInputError where it is a file."""
    if not declared.registry:
        return {}
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        raise BadInputError(
            f"MLFLOW_TRACKING_URI={uri}: {declared.name} runs in a container, which shares no database file; start"
            " `mlflow server` and give its address"
        )
    return {name: value for name, value in os.environ.items() if name.startswith(REGISTRY_SETTINGS)}


def store_environment(declared: Step, store: ScenarioStore | None) -> dict[str, str]:
    """Credentials of a store elsewhere, for a step that reads and writes its records there."""
    if store is None or not (declared.store_folder and declared.registry and is_remote(store.url)):
        return {}
    from feature_jobs.object_client import portable_settings

    return {**portable_settings(store.url), CACHE: f"{TMP}/recloop"}  # it fetches no outputs, so this cache stays empty


def source_environment(declared: Step, scenario: Scenario) -> dict[str, str]:
    """Addresses and credentials of the sources that are elsewhere, for the step that reads them."""
    if not declared.source:
        return {}
    from feature_jobs.object_client import portable_settings

    found: dict[str, str] = {}
    for table in scenario.data.tables:
        if table.is_url:
            found |= portable_settings(table.path)
        prefixes = ("PYICEBERG_", "AWS_") if table.catalog else ()
        found |= {
            name: value for name, value in os.environ.items() if name == table.server or name.startswith(prefixes)
        }
    return found


def error_of(declared: Step, code: int, answer: str, *, out_of_memory: bool) -> RecloopError:
    """The error that a container's end stands for, the same as if its function had been called here."""
    if out_of_memory:
        return KilledError(declared.out_of_memory, max(code, KILLED + 9))
    if code > KILLED:
        return KilledError(f"{declared.name}: signal {code - KILLED} ended its container", code)
    try:
        message = json.loads(answer)["error"]
    except (ValueError, KeyError):
        message = f"{declared.name} ended with exit code {code}; its messages are above"
    return ERRORS.get(code, RecloopError)(message)


def _sweep(client: APIClient) -> None:
    """Removes containers that were never started: the command that created them was killed in between."""
    import docker

    for found in client.containers(all=True, filters={"status": "created", "label": "recloop.step"}):
        if time.time() - found["Created"] > ABANDONED_S:
            with contextlib.suppress(docker.errors.APIError):  # another has removed it
                client.remove_container(found["Id"], force=True, v=True)


def _hand_over(folders: list[Path]) -> None:
    """Gives root's folders to the container's user."""
    if os.getuid() == 0:
        for folder in folders:
            os.chown(folder, NOBODY, NOBODY)
            for path in folder.rglob("*"):
                os.chown(path, NOBODY, NOBODY)


def _gpus(number: int) -> Any:
    from docker.types import DeviceRequest

    return [DeviceRequest(count=number, capabilities=[["gpu"]])] if number else None


def engine_address() -> str:
    """Returns the address of this host's container engine: DOCKER_HOST, or the usual socket."""
    return os.environ.get("DOCKER_HOST") or "/var/run/docker.sock"
