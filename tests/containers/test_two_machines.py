"""A day trained by two machines: containers with the settings that the rendered Job gives its pods, on one network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_jobs.errors import RetryLaterError
from feature_jobs.schema import Scenario, load_scenario
from infra.platform import credentials
from tasks.run.runner import run_step
from tasks.store.keys import JOURNAL
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.containers.engine import containers, docker
from tests.object_store import NARROW, ObjectServer, proxy_of
from tests.paths import ROOT
from tests.small import days, write_small
from tests.waiting import awaited

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("torchrec", reason="pip install 'recloop[distributed]'")
[DAY] = days(1)
NETWORK, TIMEOUT_S, WITHIN_S = "recloop-training", 60, 120
TRAIN = (  # several blocks and snapshots; rows that stay with their rank, so that a day gone on with has the same bits
    "train: {batch_size: 32, threads: 1, shuffle_rows: 200, snapshot_rows: 200, distributed: {kind: table_wise,"
    f" default_capacity: 300, timeout_s: {TIMEOUT_S}}}}}"
)


@dataclass(frozen=True)
class Shop:
    """A scenario with a store in which the day is ready to be trained."""

    file: Path
    root: Path
    settings: dict[str, Any]

    @property
    def scenario(self) -> Scenario:
        return load_scenario(self.file, overrides=self.settings)

    def store(self, copy: str) -> ScenarioStore:
        """A copy of its own; the user of the containers owns it."""
        folder = self.root.with_name(copy)
        shutil.copytree(self.root, folder)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 10001, 10001)
        return open_store(folder, self.scenario.name)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """The Job's specification, as kustomize renders it."""
    command = [Path(sys.executable).with_name("kubectl"), "kustomize", ROOT / "infra" / "kubernetes" / "training"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    [found] = [document for document in yaml.safe_load_all(rendered) if document["kind"] == "Job"]
    return {"name": found["metadata"]["name"], **found["spec"]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, job: dict[str, Any]) -> Shop:
    folder = tmp_path_factory.mktemp("machines")
    file = write_small(folder / "shop", num_days=1, rows=6000)
    file.write_text(file.read_text().replace("train: {batch_size: 64, threads: 1}", TRAIN))
    [container] = job["template"]["spec"]["containers"]
    settings = dict(a.removeprefix("--set=").split("=") for a in container["args"] if a.startswith("--set="))
    shop = Shop(file, folder / "store", {name: yaml.safe_load(value) for name, value in settings.items()})
    for step in ("ingest", "summarize", "join", "validate"):
        run_step(step, shop.scenario, DAY, open_store(shop.root, "shop"), track=False)
    return shop


@pytest.fixture(scope="module")
def digest(shop: Shop) -> str:
    """Of the checkpoint that one machine trains, in this process."""
    outcome = run_step("train", shop.scenario, DAY, shop.store("one"), track=False)
    assert outcome.digest is not None
    return outcome.digest


class Nodes:
    """The job's pods as containers of one network."""

    def __init__(self, image: str, job: dict[str, Any], shop: Shop) -> None:
        self._image, self._job, self._shop = image, job, shop
        self.names = [f"{job['name']}-{index}" for index in range(job["completions"])]

    def start(self, *where: str) -> None:
        """`where`: options that lead to the store."""
        self.remove()
        for index, name in enumerate(self.names):
            options = [*self._options(index), *where]
            docker("run", "--detach", "--name", name, *options, self._image, *self._arguments())

    def place_of(self, volume: str) -> str:
        """Path at which the pods mount a volume."""
        [container] = self._job["template"]["spec"]["containers"]
        [place] = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == volume]
        return str(place)

    def _options(self, index: int) -> list[str]:
        pod = self._job["template"]["spec"]
        [container] = pod["containers"]
        security, user = container["securityContext"], pod["securityContext"]["runAsUser"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        options = ["--read-only", "--security-opt", "no-new-privileges", "--user", f"{user}:{user}"]
        options += [f"--tmpfs={self.place_of(volume)}" for volume in ("scratch", "cache")]
        options += [f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]]
        name = self.names[index]
        options += ["--network", NETWORK, "--hostname", name, "--network-alias", f"{name}.{pod['subdomain']}"]
        environment = {v["name"]: v["value"] for v in container["env"] if "value" in v}
        environment |= {"PET_NODE_RANK": str(index), "RECLOOP_NO_TRACK": "1"}
        options += [f"--env={name}={value}" for name, value in environment.items()]
        return [*options, f"--volume={self._shop.file.parent}:/shop:ro"]

    def _arguments(self) -> list[str]:
        """The Job's, with this scenario and its day."""
        [container] = self._job["template"]["spec"]["containers"]
        ours = {"--scenario": "/shop/shop.yaml", "--ds": DAY}
        options = [option.partition("=") for option in container["args"]]
        return [f"{name}={ours[name]}" if name in ours else f"{name}{equals}{value}" for name, equals, value in options]

    def ended(self) -> list[int]:
        """Exit codes, once all have ended."""
        awaited(lambda: not containers(f"network={NETWORK}", "status=running"), WITHIN_S, self.said, every_s=0.5)
        return [int(docker("wait", name)) for name in self.names]

    def results(self) -> list[dict[str, Any]]:
        """The JSON line of each."""
        return [json.loads(docker("logs", name)) for name in self.names]

    def said(self) -> str:
        return "\n".join(f"{name}: {docker('logs', name, check=False)}" for name in self.names)

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", *self.names, check=False)


@pytest.fixture(scope="module")
def machines(step_image: str, job: dict[str, Any], shop: Shop) -> Iterator[Nodes]:
    found = Nodes(step_image, job, shop)
    docker("network", "create", NETWORK)
    yield found
    found.remove()
    docker("network", "rm", NETWORK)


@pytest.fixture
def bucket(
    machines: Nodes, shop: Shop, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ScenarioStore, list[str]]]:
    """A store in a bucket, with the day ready to be trained, and the options with which a container reaches it."""
    for name, value in object_server.environment(RECLOOP_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    url = f"s3://{object_server.narrow_bucket}/{tmp_path.name}"
    for step in ("ingest", "summarize", "join", "validate"):
        run_step(step, shop.scenario, DAY, open_store(url, "shop"), track=False)
    login = tmp_path / "secret" / "store-credentials"
    login.parent.mkdir()
    login.write_text(credentials(NARROW, object_server.narrow_secret))
    [gateway] = [found["Gateway"] for found in json.loads(docker("network", "inspect", NETWORK))[0]["IPAM"]["Config"]]
    with proxy_of(object_server, gateway) as proxy:
        here = {"RECLOOP_STORE": url, "AWS_ENDPOINT_URL": f"http://{gateway}:{proxy.port}"}
        secret = f"--volume={login.parent}:{machines.place_of('store-credentials')}:ro"
        yield open_store(url, "shop"), [secret, *(f"--env={name}={value}" for name, value in here.items())]


def _in_folder(store: ScenarioStore) -> list[str]:
    """The options with which a container reaches a store in a folder that all machines share."""
    return [f"--volume={store.work.parent}:/store", "--env=RECLOOP_STORE=/store"]


def test_two_machines_train_what_one_trains(
    machines: Nodes, bucket: tuple[ScenarioStore, list[str]], digest: str
) -> None:
    store, where = bucket
    machines.start(*where)
    assert machines.ended() == [0, 0], machines.said()
    leading, helping = machines.results()
    assert (leading["outcome"], helping["outcome"]) == ("done", "helped")
    commit = store.find("train", DAY)
    assert commit is not None
    assert commit.digest == leading["digest"] == helping["digest"] == digest
    store.verify(commit)
    steps = [json.loads(line)["step"] for line in store.objects.lines(JOURNAL)]
    assert steps.count("train") == 1, "the helping machine writes nothing"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_machine_ends_the_other_and_the_day_is_gone_on_with(
    machines: Nodes, shop: Shop, digest: str, victim: int
) -> None:
    store = shop.store(f"killed-{victim}")
    machines.start(*_in_folder(store))
    awaited(lambda: list(store.work.glob(".resume/*/*/[0-9]*")), WITHIN_S, machines.said)
    docker("kill", machines.names[victim])
    begun = time.monotonic()
    codes = machines.ended()
    took_s = time.monotonic() - begun
    print(f"machine {victim} killed: the other has ended {took_s:.1f} s later")
    assert took_s < TIMEOUT_S
    assert codes.pop(victim) == 137
    assert codes == [RetryLaterError.exit_code], machines.said()
    said = docker("logs", machines.names[1 - victim], check=False)
    assert "other ranks of the 2 have ended" in said
    assert "Traceback" not in said and "frame #" not in said
    assert store.find("train", DAY) is None
    machines.start(*_in_folder(store))
    assert machines.ended() == [0, 0], machines.said()
    commit = store.find("train", DAY)
    assert commit is not None
    assert commit.digest == digest
