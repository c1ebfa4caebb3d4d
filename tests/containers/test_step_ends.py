"""Every end of a step in its container has its own error, and leaves no container."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, KilledError, RetryLaterError
from tasks.run.container import ContainerSettings
from tests.containers.engine import DOCKER, TAG, await_none, containers, docker
from tests.containers.probing import in_background, probe_step, relayed
from tests.paths import ROOT
from tests.waiting import awaited

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("none_left")]


def test_too_much_memory_is_reported_with_the_limit(probe: ContainerSettings, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError, match=r"out of memory: join needed more than its limit of 0\.25 GiB") as caught:
        probe_step(probe, shop, tmp_path, memory=True, memory_gib=0.25)
    assert caught.value.exit_code == 137


def test_a_container_that_someone_kills_is_reported_as_killed(
    probe: ContainerSettings, shop: Path, tmp_path: Path
) -> None:
    errors: list[BaseException] = []
    ended = in_background(lambda: probe_step(probe, shop, tmp_path, sleep=True), errors)
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
        "from pathlib import Path; from tests.containers.probing import ContainerSettings, probe_step\n"
        f"settings = ContainerSettings('probe', '{TAG}', 'host')\n"
        f"probe_step(settings, Path({str(shop)!r}), Path({str(tmp_path)!r}), sleep=True)"
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
    probe_step(probe, shop, tmp_path)
    await_none(besides=[strangers])
    docker("rm", strangers)


def test_a_refusal_of_the_engine_is_reported_as_bad_input(
    probe: ContainerSettings, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(BadInputError, match=r"refuses register: .*no-such-network.*RECLOOP_DOCKER_NETWORK"):
        probe_step(replace(probe, network="no-such-network"), shop, tmp_path, step="register")
    with pytest.raises(BadInputError, match=r"refuses join: .*CPUs"):
        probe_step(probe, shop, tmp_path, cpus=10_000)


def test_an_engine_that_is_lost_is_worth_a_retry(
    probe: ContainerSettings, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = os.environ["DOCKER_HOST"].removeprefix("unix://")
    with relayed(engine, tmp_path / "relay") as lose:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'relay'}")
        errors: list[BaseException] = []
        ended = in_background(lambda: probe_step(probe, shop, tmp_path, sleep=True), errors)
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
