"""`train` on several machines, each of them a process of this machine that gets its place by environment variables."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, RetryLaterError
from infra.servers import free_ports
from tasks.contract import DayConfig
from tasks.run.container import ContainerLauncher, ContainerSettings
from tasks.run.launchers import Call, Ran
from tasks.run.runner import run_step
from tasks.steps import STEPS
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.paths import ROOT
from tests.unit.tasks import little

DAY = little.DAYS[0]
TORCHREC = {"train.backend": "torchrec", "train.distributed.ranks": 2, "train.distributed.default_capacity": 300}


@pytest.fixture
def machine(monkeypatch):
    """Makes this process one of two machines."""

    def make(rank):
        for name, value in variables(rank, 29500).items():
            monkeypatch.setenv(name, value)

    return make


def variables(rank, port):
    return {
        "PET_NNODES": "2",
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def ready(folder: Path, num_rows: int = 200) -> ScenarioStore:
    """A store in which the day is ready to be trained."""
    store = open_store(folder / "store", "little")
    little.write_samples(folder / "samples", DAY, num_rows)
    little.write_validation(folder / "validation")
    little.commit(store, "join", DAY, folder / "samples")
    little.commit(store, "validate", DAY, folder / "validation")
    return store


@pytest.mark.parametrize("rank", [0, 1])
def test_a_backend_of_one_machine_is_refused_on_two(tmp_path, machine, rank):
    machine(rank)
    store = ready(tmp_path)
    with pytest.raises(BadInputError, match=r"train\.backend: native: .*PET_NNODES=2 .*set train\.backend: torchrec"):
        run_step("train", little.little_scenario(tmp_path), DAY, store, track=False)
    assert store.find("train", DAY) is None


def test_ranks_that_machines_cannot_share_are_refused(tmp_path, machine):
    machine(1)
    scenario = little.little_scenario(tmp_path, **{**TORCHREC, "train.distributed.ranks": 3})
    with pytest.raises(BadInputError, match=r"train\.distributed\.ranks: 3 .*PET_NNODES=2"):
        run_step("train", scenario, DAY, ready(tmp_path), track=False)


def test_mode_docker_is_refused_by_name(tmp_path, machine):
    machine(0)
    call = Call(DayConfig(little.little_scenario(tmp_path, **TORCHREC), DAY), {}, tmp_path)
    with pytest.raises(BadInputError, match="PET_NNODES=2: in execution mode docker train computes on one machine"):
        ContainerLauncher(ContainerSettings("recloop", "none")).launch(STEPS["train"], call)


class Computed:
    """A launcher: this machine's part is done at once; then it calls `meanwhile`."""

    def __init__(self, meanwhile=lambda: None):
        self.meanwhile = meanwhile

    def launch(self, declared, call):
        assert not any(call.output.iterdir())
        self.meanwhile()
        return Ran({}, {}, {"compute": 0.0})


def test_a_helping_machine_is_done_when_the_leader_has_committed(tmp_path, machine):
    machine(1)
    store = ready(tmp_path)
    files = {path.relative_to(store.work) for path in store.work.rglob("*")}
    scenario = little.little_scenario(tmp_path, **TORCHREC, **{"train.distributed.timeout_s": 1})
    with pytest.raises(RetryLaterError, match=r"leader has committed nothing .* within 1 s"):
        run_step("train", scenario, DAY, store, track=False, launcher=Computed())
    assert {path.relative_to(store.work) for path in store.work.rglob("*")} == files, "it writes nothing"
    leads = Computed(lambda: little.commit(store, "train", DAY, tmp_path / "samples"))
    outcome = run_step("train", scenario, DAY, store, track=False, launcher=leads)
    assert (outcome.outcome, outcome.exit_code) == ("helped", 0)
    assert run_step("train", scenario, DAY, store, track=False).outcome == "already_done"


@pytest.mark.slow
def test_two_machines_commit_what_one_does(tmp_path):
    pytest.importorskip("torchrec", reason="pip install 'recloop[distributed]'")
    scenario, store = little.little_scenario(tmp_path, **TORCHREC), ready(tmp_path)
    shutil.copytree(store.work, tmp_path / "one" / "little")
    one = run_step("train", scenario, DAY, open_store(tmp_path / "one", "little"), track=False)
    ended = machines(tmp_path)
    assert [machine.returncode for machine in ended] == [0, 0]
    leading, helping = (json.loads(machine.stdout) for machine in ended)
    assert (leading["outcome"], helping["outcome"]) == ("done", "helped")
    assert leading["digest"] == helping["digest"] == one.digest
    assert journal(store) == ["train"]


@pytest.mark.slow
def test_what_ends_the_leading_machine_alone_ends_the_other_too(tmp_path):
    """Its disk is full when it writes the result of both."""
    pytest.importorskip("torchrec", reason="pip install 'recloop[distributed]'")
    little.little_scenario(tmp_path, **TORCHREC)
    store = ready(tmp_path, num_rows=2000)
    leading, helping = machines(tmp_path, leading="ulimit -f 24; ")
    assert "File too large" in leading.stderr
    assert "node 0 of 2: train of 2024-01-01: rank 0 of 2 failed" in helping.stderr
    assert "Traceback" not in helping.stderr
    assert (leading.returncode, helping.returncode) == (1, 1)
    assert store.find("train", DAY) is None


def journal(store):
    return [json.loads(line)["step"] for line in (store.work / "journal.jsonl").read_text().splitlines()]


def machines(folder, leading=""):
    """Both ended processes, started as a person would; the leader comes late. `leading`: first command of its shell."""
    [port] = free_ports(0)
    command = [sys.executable, "-P", "-m", "tasks", "train", "-s", folder / "little.yaml", "--ds", DAY, "--no-track"]
    command += ["--store", folder / "store", *(f"--set={name}={value}" for name, value in TORCHREC.items())]

    def run(rank):
        time.sleep(1 - rank)
        shell = ["bash", "-c", f'{"" if rank else leading}exec "$@"', "bash", *command]
        environment = {**os.environ, **variables(rank, port)}
        done = subprocess.run(
            shell, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=False
        )
        print(done.stderr)
        return done

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(run, range(2)))
