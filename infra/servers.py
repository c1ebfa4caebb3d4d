"""Airflow and MLflow on this machine, for one person: loopback only, SQLite, everything below one folder.

The settings below are for two cores: few workers, short polling, because a demo's step takes seconds.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import requests

from feature_jobs.errors import RetryLaterError
from feature_jobs.schema import Scenario
from infra.processes import MARK, Started, find, start, stop

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
USER = "admin"
SERVING_PORT = 8085
START_TIMEOUT_S = 240.0  # Airflow takes 30 to 60 s on two free cores
# Airflow's log servers can't be bound to one address. Here they aren't needed: the API server reads the same files.
NO_LOG_SERVER = "--skip-serve-logs"
AIRFLOW = {
    "api-server": (),
    "scheduler": (NO_LOG_SERVER,),
    "dag-processor": (),
    # Nothing of ours defers, but without a triggerer Airflow's home page shows one that is down, in red.
    "triggerer": (NO_LOG_SERVER, "--capacity", "1"),
}

SERVERS = ("mlflow", *AIRFLOW)
"""Those that the days need."""


@dataclass
class Local:
    """The servers' ports, keys and processes; kept in `servers.json`, readable by the owner only."""

    home: Path
    airflow_port: int
    mlflow_port: int
    password: str
    keys: dict[str, str]
    token: str
    processes: list[Started] = field(default_factory=list)
    serving_ports: dict[str, int] = field(default_factory=dict)
    """The port of each scenario's server of ranked items."""

    @property
    def airflow_url(self) -> str:
        """Address of Airflow's UI and API."""
        return f"http://{HOST}:{self.airflow_port}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow's UI."""
        return f"http://{HOST}:{self.mlflow_port}"

    def runs_url(self, experiment: str) -> str | None:
        """Address of the experiment's runs in MLflow's UI; None while MLflow has no such experiment.

        MLflow's root address shows a welcome page instead. Without `workflowType` its menu is the one for LLM apps.
        """
        from tasks.tracking.pages import experiment_id

        number = experiment_id(self.mlflow_url, experiment)
        return number and f"{self.mlflow_url}/#/experiments/{number}/runs?workflowType=machine_learning"

    @property
    def store(self) -> Path:
        """The store to which the steps commit."""
        return self.home / "store"

    @property
    def tracking_uri(self) -> str:
        """MLflow's database itself, which works without a server too."""
        return f"sqlite:///{self.store / 'mlflow.db'}"

    @property
    def logs(self) -> Path:
        """Logs of the servers."""
        return self.home / "logs"

    def log(self, name: str) -> Path:
        """Log of one of the servers."""
        return self.logs / f"{name}.log"

    def require_running(self) -> None:
        """Raises RetryLaterError where a server has ended."""
        needed = [started for started in self.processes if started.name in SERVERS]
        if ended := [started for started in needed if not find(started)]:
            raise RetryLaterError(
                f"Airflow or MLflow is incomplete: {ended[0].name} has ended, see {self.log(ended[0].name)};"
                " `make demo` starts it again and goes on with the days"
            )

    def save(self) -> None:
        """Saves this for the next command."""
        document = {**asdict(self), "home": str(self.home)}
        write_private(self.home / "servers.json", json.dumps(document, indent=1))

    @classmethod
    def load(cls, home: Path) -> Local | None:
        """Loads the servers that an earlier command saved; None where there are none."""
        try:
            document = json.loads((home / "servers.json").read_text())
        except FileNotFoundError:
            return None
        processes = [Started(**started) for started in document.pop("processes")]
        names = {entry.name for entry in fields(cls)}  # an older release kept more ports
        known = {name: value for name, value in document.items() if name in names}
        return cls(**{**known, "home": home, "processes": processes})

    @classmethod
    def new(cls, home: Path) -> Local:
        """Free ports and fresh keys."""
        airflow, mlflow = free_ports(8080, 5000)
        fernet = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        keys = {"fernet": fernet, "jwt": secrets.token_urlsafe(48), "secret": secrets.token_urlsafe(32)}
        return cls(home, airflow, mlflow, secrets.token_urlsafe(12), keys, secrets.token_hex(16))


def start_servers(home: Path, say: Callable[[str], None]) -> Local:
    """Starts the servers that don't run yet and waits until they answer. Raises RetryLaterError if one doesn't."""
    local = Local.load(home) or Local.new(home)
    running = {started.name: started for started in local.processes if find(started)}
    ended = [started.name for started in local.processes if started.name not in running]
    if orphans := stop([], "", [local.log(name) for name in ended]):
        say(f"{' and '.join(ended)} had ended; stopped {orphans} processes that were left of it")
    if not running:  # ports and processes of an earlier start are obsolete; passwords and keys are kept
        local.airflow_port, local.mlflow_port = free_ports(local.airflow_port, local.mlflow_port)
    local.processes = list(running.values())
    home.mkdir(parents=True, exist_ok=True)
    for folder in (local.store, home / "airflow"):
        folder.mkdir(exist_ok=True)
    write_private(home / "airflow" / "passwords.json", json.dumps({USER: local.password}))
    write_private(home / "env.sh", "".join(f"export {k}='{v}'\n" for k, v in settings(local).items()))
    local.save()
    environment = {**inherited(), **settings(local), MARK: local.token}

    def ensure(name: str, *command: str) -> None:
        if name not in running:
            local.processes.append(start(name, command, environment, local.log(name)))
            local.save()

    say("starting MLflow and Airflow")
    ensure("mlflow", *mlflow_command(local))
    migrated, release = home / "airflow" / "migrated", version("apache-airflow-core")
    if not migrated.exists():
        (home / "airflow" / "airflow.db").unlink(missing_ok=True)  # incomplete: the call that created it was stopped
    if not migrated.exists() or migrated.read_text() != release:
        _migrate(environment, local.logs / "migrate.log")
        migrated.write_text(release)
    for name, options in AIRFLOW.items():
        ensure(name, _tool("airflow"), name, *options)
    _await(local, "api-server", f"{local.airflow_url}/api/v2/version")
    _await(local, "mlflow", f"{local.mlflow_url}/health")
    return local


def serve_scenario(local: Local, scenario: Scenario) -> str:
    """Starts the server that ranks items of a scenario, where it does not run yet; returns its address. Raises
    RetryLaterError where it does not answer."""
    name = f"serve-{scenario.name}"
    running = [started for started in local.processes if started.name == name and find(started)]
    if not running:
        (port,) = free_ports(local.serving_ports.get(scenario.name, SERVING_PORT))
        local.serving_ports[scenario.name] = port
        command = [sys.executable, "-P", "-m", "tasks", "serve", "--scenario", str(scenario.file)]
        environment = {**inherited(), **settings(local), MARK: local.token}
        local.processes = [started for started in local.processes if started.name != name]
        local.processes.append(
            start(
                name, [*command, "--store", str(local.store), "--http", f"{HOST}:{port}"], environment, local.log(name)
            )
        )
        local.save()
    url = f"http://{HOST}:{local.serving_ports[scenario.name]}"
    _await(local, name, f"{url}/v2/health/ready")
    return url


def stop_servers(home: Path) -> int:
    """Stops the servers; returns how many processes that were."""
    local = Local.load(home)
    if local is None:
        return 0
    ended = stop(local.processes, local.token, [local.log(name) for name in SERVERS])
    local.processes = []
    local.save()
    return ended


def settings(local: Local) -> dict[str, str]:
    """Environment of the servers and of everything that they start."""
    airflow = local.home / "airflow"
    return {
        "RECLOOP_STORE": str(local.store),
        "MLFLOW_TRACKING_URI": local.tracking_uri,
        "RECLOOP_MLFLOW_SERVER": local.mlflow_url,  # the same database, without each step importing MLflow
        # Else MLflow starts seven workers for jobs that nobody gives it, and runs become 50 times slower.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Beside a busy process, such as these servers, threads that spin made lookups 50 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "AIRFLOW_HOME": str(airflow),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        # With so few tasks and one API worker all of Airflow needs about 2 GB.
        "AIRFLOW__CORE__PARALLELISM": str(min(8, max(2, os.cpu_count() or 2))),
        "AIRFLOW__CORE__FERNET_KEY": local.keys["fernet"],
        # Does not follow from the port below: without it tasks ask port 8080 and fail with "Connection refused".
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{local.airflow_url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(airflow / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow / 'airflow.db'}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(airflow / "logs"),
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": str(local.airflow_port),
        "AIRFLOW__API__BASE_URL": local.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": local.keys["secret"],
        "AIRFLOW__API_AUTH__JWT_SECRET": local.keys["jwt"],
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",  # its default of 1 s is felt between short steps
        # Else a task whose scheduler or worker was killed looks as if it ran, for five minutes.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",  # parsing takes processor time from the steps
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def inherited() -> dict[str, str]:
    """Our own environment, without settings of another Airflow or MLflow, or of one scenario's data."""
    foreign = ("AIRFLOW_", "MLFLOW_", "RECLOOP_DATA", "RECLOOP_STORE")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def mlflow_command(local: Local) -> list[str]:
    """`mlflow server` on the store's database; artifacts are read where the steps put them."""
    uri, artifacts = local.tracking_uri, str(local.store / "mlartifacts")
    where = ["--host", HOST, "--port", str(local.mlflow_port), "--workers", "1"]
    stores = ["--backend-store-uri", uri, "--default-artifact-root", artifacts, "--no-serve-artifacts"]
    return [_tool("mlflow"), "server", *stores, *where]


def free_ports(*wanted: int) -> list[int]:
    """Each wanted port of the loopback, or another free one where it is taken."""
    sockets, ports = [], []
    for port in wanted:
        for candidate in (port, 0):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that a server has just left is free
            try:
                listener.bind((HOST, candidate))
            except OSError:
                listener.close()
                continue
            sockets.append(listener)  # held until all are chosen, so that no two are the same
            ports.append(listener.getsockname()[1])
            break
    for listener in sockets:
        listener.close()
    return ports


def write_private(path: Path, text: str) -> None:
    """Writes a file atomically, readable by its owner only."""
    aside = path.with_name(f".{path.name}.new")
    # Created with its rights: a file that exists would keep those that it has.
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    aside.rename(path)


def _tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _migrate(environment: dict[str, str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        command = [_tool("airflow"), "db", "migrate"]
        done = subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        raise RetryLaterError(f"airflow db migrate ended with {done.returncode}; see {log}")


def _await(local: Local, name: str, url: str) -> None:
    """Waits until the server answers."""
    log = local.log(name)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            requests.get(url, timeout=5).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.5)
        # A server that ended will never answer: say so at once, not after the timeout.
        if not any(find(started) for started in local.processes if started.name == name):
            raise RetryLaterError(f"{name} ended while starting; see {log}")
    raise RetryLaterError(f"{name} does not answer at {url} after {START_TIMEOUT_S:.0f} s; see {log}")
