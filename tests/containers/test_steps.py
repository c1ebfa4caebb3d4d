"""Steps in containers, on a real engine: their limits, their ends, and that their output is the same."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feature_jobs.errors import BadInputError, KilledError, RetryLaterError
from feature_jobs.schema import load_scenario
from infra.images import FOLDER, Parts, build, code_digest, write_sbom
from infra.platform import credentials
from infra.servers import free_ports
from tasks.contract import DayConfig
from tasks.run.container import NOBODY, ContainerLauncher, ContainerSettings
from tasks.run.launchers import Call, InProcess
from tasks.run.runner import run_step
from tasks.steps import DAILY, STEPS
from tasks.store.scenario_store import open_store
from tasks.store.verify import require_sound
from tests.containers.engine import DOCKER, TAG, await_none, containers, docker
from tests.environment import inherited
from tests.mlflow_server import mlflow_server
from tests.object_store import NARROW, REGION, ObjectServer
from tests.paths import ROOT
from tests.small import days, write_small
from tests.waiting import awaited

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900)]
PURE = DAILY[: DAILY.index("register")]
MAX_IMAGE_BYTES = 1.6e9
MAX_START_S = 1.5
SECRET = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def probe(step_image: str) -> ContainerSettings:
    """A step image in whose place a probe runs."""
    docker("build", "--tag", f"probe/step:{TAG}", str(ROOT / "tests" / "containers" / "probe"), env={**os.environ})
    return ContainerSettings("probe", TAG, "host")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write_small(tmp_path / "shop", num_days=2)


def _recloop(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"RECLOOP_TAG": TAG, "RECLOOP_NO_TRACK": "1", **environment}
    command = [sys.executable, "-P", "-m", "tasks", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**inherited(), **settings}, cwd=ROOT, check=False
    )


@pytest.fixture(autouse=True)
def none_left(engine: str) -> Iterator[None]:
    """Checks that no container of a step stays, after any end of it."""
    yield
    try:
        await_none()
    finally:
        docker("rm", "--force", *containers(), check=False)  # else the next test would fail too


def _probe(
    settings: ContainerSettings, scenario: Path, folder: Path, step: str = "join", **options: Any
) -> dict[str, Any]:
    """Returns the findings of a probe in the place of the step; it reads `folder`/events and writes `folder`/out."""
    declared = STEPS[step]
    resources = {name: options[name] for name in ("memory_gib", "cpus") if name in options}
    declared = replace(declared, resources=replace(declared.resources, **resources))
    events, out = folder / "events", folder / "out"
    for made in (events, out):
        made.mkdir(exist_ok=True)
    loaded = load_scenario(scenario)
    config = DayConfig(loaded, days(1)[0], open_store(folder / "store", loaded.name), options=options)
    ran = ContainerLauncher(settings).launch(declared, Call(config, {"events": events}, out))
    return dict(ran.metrics)


# the image


def test_the_image_is_small_runs_as_nobody_and_says_what_code_it_holds(step_image: str) -> None:
    [image] = json.loads(docker("image", "inspect", step_image))
    assert image["Size"] < MAX_IMAGE_BYTES
    assert image["Config"]["User"] == f"{NOBODY}:{NOBODY}"
    assert image["Config"]["Entrypoint"] == ["recloop"]
    assert image["Config"]["Labels"]["recloop.code"] == code_digest()
    print(f"{step_image}: {image['Size'] / 1e9:.2f} GB")


def test_the_image_holds_no_build_tools_and_no_more_of_the_project_than_its_role_needs(step_image: str) -> None:
    tools = "for t in pip pip3 uv gcc cc make git ld; do command -v $t; done; ls -A /opt/app; ls -A /build /src 2>&1"
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", step_image, "-c", tools, check=False)
    rooms = {"feature_jobs", "models", "serving", "tasks", "scenarios"}
    found = {line for line in said.split("\n") if line and "No such file" not in line}
    assert {line for line in found if not line.endswith(".dist-info")} == rooms


def test_recloop_is_the_entry_and_works_on_a_read_only_file_system(step_image: str) -> None:
    hardened = ["--read-only", "--network", "none", "--cap-drop", "ALL", "--tmpfs", "/tmp"]
    said = docker("run", "--rm", *hardened, step_image, "train", "--help")
    assert "Scores the day with its parent" in said
    assert "recloop, version" in docker("run", "--rm", *hardened, step_image, "--version")


def test_a_notebook_asks_for_its_token_and_does_not_start_without_one(
    step_image: str, parts: Parts, tmp_path: Path
) -> None:
    image = build("notebook", parts, TAG)
    hardened = ["--rm", "--read-only", "--network", "host", "--cap-drop", "ALL", "--tmpfs", "/tmp"]
    assert "no token of 16 characters" in docker("run", *hardened, image, check=False)
    [port] = free_ports(0)
    token = tmp_path / "token"
    token.write_text(SECRET)
    os.chown(token, NOBODY, NOBODY)
    token.chmod(0o400)
    work = tmp_path / "work"
    work.mkdir()
    given = [f"--volume={token}:/run/secrets/jupyter_token:ro", f"--volume={work}:/work:ro"]
    place = ["--ip", "127.0.0.1", "--port", str(port), "--no-browser"]
    notebook = docker("run", "--detach", *hardened, *given, image, *place).strip()

    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    try:
        awaited(lambda: status("api"), within_s=60)
        paths = ("api/contents", "api/kernels", "api/terminals")
        assert {path: status(path) for path in paths} == dict.fromkeys(paths, 403)
        assert status("api/contents", Authorization=f"token {SECRET}") == 200
        assert SECRET not in docker("logs", notebook, check=False) + docker("inspect", notebook)
    finally:
        docker("rm", "--force", notebook)


def test_the_list_of_what_the_image_holds_names_every_package(step_image: str, tmp_path: Path) -> None:
    write_sbom("step", TAG, tmp_path / "sbom.json")
    packages = json.loads((tmp_path / "sbom.json").read_text())["packages"]
    listed = {(package["name"].lower().replace("_", "-"), package.get("versionInfo", "")) for package in packages}
    locked = {tuple(line.split("==")) for line in (FOLDER / "step.lock").read_text().split()}
    names = {(name.replace(".", "-"), version.partition("+")[0]) for name, version in listed}
    assert locked - names == set()


# the limits of a step


def test_a_step_writes_its_output_and_nothing_else(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    kept = ["/", "/etc", "/opt/app", "/opt/recloop", "/usr/bin", "/var/tmp", str(tmp_path / "events"), str(tmp_path)]
    found = _probe(probe, shop, tmp_path, write=[str(tmp_path / "out"), "/tmp", *kept])
    assert found["write"].pop(str(tmp_path / "out")) == "ok"
    assert found["write"].pop("/tmp") == "ok"  # memory of the container's own
    assert set(found["write"]) == set(kept)
    assert not {place: error for place, error in found["write"].items() if error not in ("OSError", "PermissionError")}


def test_a_step_gains_no_rights_and_is_limited(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    found = _probe(probe, shop, tmp_path)
    assert found["uid"] == (os.getuid() or NOBODY)
    assert (found["setuid"], found["chown"], found["mknod"]) == ("PermissionError",) * 3
    assert int(found["capabilities"], 16) == 0
    assert found["no_new_privileges"] == "1"
    assert 100 < found["children"] < 512


def test_a_step_reaches_no_network_unless_it_declares_one(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    with socket_server() as port:
        places = [f"127.0.0.1:{port}", "1.1.1.1:443", "pypi.org:443"]
        found = _probe(probe, shop, tmp_path, connect=places)
        assert "ok" not in found["connect"].values()
        assert found["interfaces"] == ["lo"]
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        try:
            found = _probe(probe, shop, tmp_path, step="register", connect=places[:1])
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]
        assert found["connect"] == {places[0]: "ok"}


def test_a_step_sees_neither_the_source_nor_another_scenario(
    probe: ContainerSettings, shop: Path, tmp_path: Path
) -> None:
    other = write_small(tmp_path / "other", num_days=1)
    secret = tmp_path / "store" / "another" / "g0000" / "commit.json"
    secret.parent.mkdir(parents=True)
    secret.write_text("{}")
    (tmp_path / "store" / "shop").mkdir()
    hidden = [secret, other, other.parent / "data", tmp_path / "store" / "shop", "/var/run/docker.sock", "/root/.ssh"]
    found = _probe(probe, shop, tmp_path, read=[str(shop), str(shop.parent / "data"), *map(str, hidden)])
    assert found["read"].pop(str(shop)) == shop.stat().st_size
    assert set(found["read"].values()) <= {"FileNotFoundError", "PermissionError"}
    landed = _probe(probe, shop, tmp_path, step="ingest", read=[str(shop.parent / "data"), *map(str, hidden)])
    assert isinstance(landed["read"].pop(str(shop.parent / "data")), int)
    assert set(landed["read"].values()) <= {"FileNotFoundError", "PermissionError"}


def test_a_password_is_in_no_image_environment_label_or_log(
    probe: ContainerSettings,
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", SECRET)
    ended = _in_background(lambda: _probe(probe, shop, tmp_path, step="register", sleep=True))
    [container] = awaited(containers)
    awaited(lambda: "sleeping" in capfd.readouterr().err)
    said = docker("inspect", container) + docker("top", container, "-eo", "pid,args")
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
    docker("kill", container)
    ended.join()
    image = docker("history", "--no-trunc", f"recloop/step:{TAG}") + docker("image", "inspect", f"recloop/step:{TAG}")
    assert SECRET not in said + kept + image
    assert not re.search(r"(?i)(password|secret|token|api_key)=", image)
    found = _probe(probe, shop, tmp_path, step="join")
    assert not {name for name in found["environment"] if name.startswith(("MLFLOW", "AWS", "AIRFLOW", "RECLOOP"))}


# how a step ends


def test_too_much_memory_is_told_with_the_limit(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError, match=r"out of memory: join needed more than its limit of 0\.25 GiB") as caught:
        _probe(probe, shop, tmp_path, memory=True, memory_gib=0.25)
    assert caught.value.exit_code == 137


def test_a_container_that_someone_kills_is_told_as_killed(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []
    ended = _in_background(lambda: _probe(probe, shop, tmp_path, sleep=True), errors)
    [container] = awaited(containers)
    awaited(lambda: "Up" in docker("ps", "--filter", f"id={container}"))
    docker("kill", container)
    ended.join()
    [error] = errors
    assert isinstance(error, KilledError)
    assert (error.exit_code, str(error)) == (137, "join: signal 9 ended its container")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_task_leaves_no_container(
    probe: ContainerSettings, shop: Path, tmp_path: Path, number: signal.Signals
) -> None:
    code = (
        "from pathlib import Path; from tests.containers.test_steps import ContainerSettings, _probe\n"
        f"_probe(ContainerSettings('probe', '{TAG}', 'host'), Path({str(shop)!r}), Path({str(tmp_path)!r}), sleep=True)"
    )
    task = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert task.stderr is not None
    assert "sleeping" in task.stderr.readline()
    assert containers()
    task.send_signal(number)
    task.wait(timeout=10)


def test_a_container_that_was_made_and_never_started_is_swept(
    probe: ContainerSettings, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.run.container.ABANDONED_S", -1.0)
    docker("create", "--label", "recloop.step=join", f"probe/step:{TAG}")
    strangers = docker("create", f"probe/step:{TAG}").strip()
    _probe(probe, shop, tmp_path)
    await_none(besides=[strangers])
    docker("rm", strangers)


def test_what_the_engine_refuses_is_told_as_a_persons_to_mend(
    probe: ContainerSettings, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(BadInputError, match=r"refuses register: .*no-such-network.*RECLOOP_DOCKER_NETWORK"):
        _probe(replace(probe, network="no-such-network"), shop, tmp_path, step="register")
    with pytest.raises(BadInputError, match=r"refuses join: .*CPUs"):
        _probe(probe, shop, tmp_path, cpus=10_000)


def test_an_engine_that_is_lost_is_worth_a_retry(
    probe: ContainerSettings, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = os.environ["DOCKER_HOST"].removeprefix("unix://")
    with relayed(engine, tmp_path / "relay") as lose:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'relay'}")
        errors: list[BaseException] = []
        ended = _in_background(lambda: _probe(probe, shop, tmp_path, sleep=True), errors)
        awaited(lambda: containers("status=running"))
        lose()
        ended.join(timeout=20)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{engine}")
    [error] = errors
    assert isinstance(error, RetryLaterError)
    assert "relay" in str(error)


def test_an_image_of_other_code_is_refused(step_image: str) -> None:
    request = json.dumps({"step": "join", "code": "0" * 64, "environment": {}})
    command = [DOCKER, "run", "--rm", "--network", "none", "-i", step_image, "exec-step"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdin is not None and container.stdout is not None
        container.stdin.write(request + "\n")
        container.stdin.flush()
        answer = container.stdout.read()
    assert container.returncode == BadInputError.exit_code
    assert "the image holds other code" in json.loads(answer)["error"]


# the same days


def test_the_same_day_has_the_same_digests(
    step_image: str, shop: Path, tmp_path: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes with the store in a folder, as containers with the store in a bucket that they cannot reach.

    A second day is part of test_platform.py and test_pods.py.
    """
    for name, value in object_server.environment(RECLOOP_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    scenario, digests = load_scenario(shop), {}
    in_containers = ContainerLauncher(ContainerSettings("recloop", TAG))
    for place, launcher in ((str(tmp_path / "folder"), InProcess()), (object_server.new_url(), in_containers)):
        store = open_store(place, scenario.name)
        for step in PURE:
            run_step(step, scenario, days(1)[0], store, track=False, launcher=launcher)
        digests[place] = {(c.ds, c.step): (c.digest, c.manifest["code"]) for c in store.commits()}
    processes, containers = digests.values()
    assert containers == processes
    assert len(containers) == len(PURE)


def test_an_airflow_task_runs_its_step_in_a_container(
    step_image: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.airflow_home import executed  # isort: skip (before the first import of Airflow)
    from dags.step_operator import StepOperator

    settings = {"EXECUTION": "docker", "TAG": TAG, "STORE": str(tmp_path / "store"), "NO_TRACK": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"RECLOOP_{name}", value)
    monkeypatch.chdir(ROOT)
    seen: set[str] = set()
    watching = _in_background(lambda: seen.update(awaited(containers, within_s=60)))
    operator = StepOperator(task_id="ingest", step="ingest", scenario=str(shop))
    day = datetime.datetime.fromisoformat(days(1)[0]).replace(tzinfo=datetime.UTC)
    interval = {"data_interval_start": day, "data_interval_end": day + datetime.timedelta(days=1)}
    context = {
        "dag_run": SimpleNamespace(run_id="r", run_type="scheduled"),
        "logical_date": day,
        "params": {},
        **interval,
    }
    result = executed(operator, context)
    watching.join()
    commit = open_store(tmp_path / "store", "shop").find("ingest", days(1)[0])
    assert commit is not None and result["digest"] == commit.digest
    assert seen, "no container ran"


def test_registering_and_deploying_in_containers(
    step_image: str, shop: Path, tmp_path: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the store in a bucket, and a credential that opens no other; `deploy` reads and writes its records there."""
    login = tmp_path / "credentials"
    login.write_text(credentials(NARROW, object_server.narrow_secret))
    bucket = {"AWS_ENDPOINT_URL": object_server.endpoint, "AWS_REGION": REGION}
    bucket |= {"AWS_SHARED_CREDENTIALS_FILE": str(login), "RECLOOP_CACHE": str(tmp_path / "cache")}
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{object_server.narrow_bucket}/{tmp_path.name}", "shop")
    with mlflow_server(tmp_path / "mlflow") as uri:
        where = ("-s", str(shop), "--store", store.url.rpartition("/")[0], "--json", "--ds", days(1)[0])
        track = {**bucket, "MLFLOW_TRACKING_URI": uri, "RECLOOP_EXECUTION": "docker"}
        for step in PURE:
            run_step(step, load_scenario(shop), days(1)[0], store, track=False)
        refused = _recloop("register", *where, **track)
        assert refused.returncode == BadInputError.exit_code
        assert "RECLOOP_DOCKER_NETWORK" in refused.stderr
        for step in ("register", "deploy"):
            done = _recloop(step, *where, **track, RECLOOP_DOCKER_NETWORK="host")
            assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["promoted"] is True
    require_sound(load_scenario(shop), store)


def test_a_container_adds_little_to_a_step_that_does_nothing(step_image: str) -> None:
    def best(command: list[str]) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            times.append(time.perf_counter() - begun)
        return min(times)

    hardened = ["--rm", "--read-only", "--network", "none", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    process = best([sys.executable, "-P", "-m", "tasks", "train", "--help"])
    empty = best([DOCKER, "run", *hardened, "--entrypoint", "/bin/true", step_image])
    container = best([DOCKER, "run", *hardened, step_image, "train", "--help"])
    print(
        f"a step that does nothing: process {process:.2f} s, container {container:.2f} s, empty container {empty:.2f} s"
    )
    assert container - process < MAX_START_S


def test_two_builds_hold_the_same_files(step_image: str, parts: Parts, tmp_path: Path) -> None:
    again = build("step", parts, "again", fresh=True)
    first, second = (_files_of(image, tmp_path / "image.tar") for image in (step_image, again))
    assert len(first) > 10_000
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == set()


def _files_of(image: str, archive: Path) -> dict[str, tuple[int, str]]:
    """Mode, and digest of the content or target of the link, of every file of an image's file system."""
    container = docker("create", image).strip()
    docker("export", "--output", str(archive), container)
    docker("rm", container)
    found = {}
    with tarfile.open(archive) as files:
        for member in files:
            stream = files.extractfile(member) if member.isfile() else None
            content = hashlib.file_digest(stream, "sha256").hexdigest() if stream else member.linkname
            found[member.name] = (member.mode, content)
    return found


# helpers


class socket_server:  # noqa: N801 (a context manager)
    """Listens on a port of this machine's loopback."""

    def __enter__(self) -> int:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@contextmanager
def relayed(target: str, place: Path) -> Iterator[Callable[[], None]]:
    """A socket at `place` that leads to the one at `target`; yields a function that cuts all its connections."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()
    ends: list[socket.socket] = [listener]

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.socket(socket.AF_UNIX)
                far.connect(target)
                ends.extend([near, far])
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    def lose() -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield lose
    finally:
        lose()
        for end in ends:
            end.close()


def _in_background(action: Any, errors: list[BaseException] | None = None) -> threading.Thread:
    def run() -> None:
        try:
            action()
        except BaseException as error:
            (errors if errors is not None else []).append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
