"""Whole days with the store in a bucket of a real S3-compatible server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from tasks.run.registry import require_one_registry
from tasks.store.scenario_store import open_store
from tests import warm
from tests.environment import inherited
from tests.object_store import ObjectServer, proxy_of
from tests.plain_days import Digests, digests_of
from tests.small import DAILY, days, write_small

BEGIN = f"--from={days(1)[0]}"
UNTIL_TRAIN = ("--until", "train", "--no-track")


class Machine:
    """Runs commands with a cache and a folder for temporary files of its own."""

    def __init__(self, folder: Path, scenario: Path, store: str, **environment: str) -> None:
        self.scenario, self.store = scenario, store
        for name in ("tmp", "cache"):
            (folder / name).mkdir(parents=True)
        own = {"RECLOOP_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
        self.environment = {**inherited("AWS_"), **own, **environment}

    def start(self, command: str, *options: str) -> warm.Warm:
        words = (*command.split(), "-s", str(self.scenario), "--store", self.store, *options)
        return warm.start(words, self.scenario.parent, self.environment)

    def run(self, command: str, *options: str, exit_code: int = 0) -> str:
        done = self.start(command, *options).ended()
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        assert done.returncode == exit_code, f"{command}: exit {done.returncode}\n{said}"
        return said


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("shop"), num_days=2)


@pytest.fixture
def bucket(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URL of an empty bucket, which this process reads, too."""
    for name, value in object_server.environment(RECLOOP_CACHE=str(tmp_path / "own-cache")).items():
        monkeypatch.setenv(name, value)
    return object_server.new_url()


@pytest.mark.slow
def test_days_in_a_bucket_have_the_digests_of_a_folder(
    shop: Path, plain_days: Digests, bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    shared = object_server.environment(MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")
    first, second = (Machine(tmp_path / name, shop, bucket, **shared) for name in ("first", "second"))
    first.run("run", "--ds", days(2)[0])
    second.run("run", "--ds", days(2)[1])
    assert digests_of(bucket, shop) == plain_days
    assert len(plain_days) == 2 * len(DAILY)
    assert "every digest is right" in second.run("chain verify")
    assert "version 2" in first.run("status")
    first.run("rollback", "--to", "1")
    assert "rollback to version 1" in second.run("status")


@pytest.mark.slow
def test_two_machines_race(
    shop: Path, plain_days: Digests, bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    racers = [Machine(tmp_path / name, shop, bucket, **object_server.environment()) for name in ("one", "other")]
    started = [racer.start("run", BEGIN, *UNTIL_TRAIN) for racer in racers]
    for one in started:
        done = one.ended()
        assert done.returncode == 0, done.stderr
    found = digests_of(bucket, shop)
    assert found == {key: digest for key, digest in plain_days.items() if key in found}
    assert {step for _, step in found} == {"ingest", "summarize", "join", "validate", "train"}


@pytest.mark.slow
def test_a_bad_day_of_the_store_ends_a_day_of_ours_with_a_known_exit(
    shop: Path, plain_days: Digests, bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    """Throttled, silent, cut off, without credentials; and when it is over, the same command goes on."""
    with proxy_of(object_server) as proxy:
        environment = object_server.environment(proxy.port, RECLOOP_STORE_TIMEOUT_S="1")
        machine = Machine(tmp_path / "machine", shop, bucket, **environment)
        proxy.fault = lambda method, path, count: "busy" if count % 3 == 0 else None
        machine.run("ingest", "--ds", days(1)[0])
        proxy.fault = lambda method, path, count: "refused" if path.endswith("commit.json") else None
        assert "refuses access (403 AccessDenied)" in machine.run("summarize", "--ds", days(1)[0], exit_code=4)
        proxy.fail_always("cut upload", method="PUT")
        assert "try again later" in machine.run("summarize", "--ds", days(1)[0], exit_code=6)
        assert {step for _, step in digests_of(bucket, shop)} == {"ingest"}
        proxy.fault = lambda method, path, count: {3: "lost answer", 7: "reset"}.get(count % 11)
        machine.run("run", BEGIN, *UNTIL_TRAIN)
    found = digests_of(bucket, shop)
    assert found == {key: digest for key, digest in plain_days.items() if key in found}
    assert len(found) == 10
    for name, value, exit_code in (
        ("AWS_SECRET_ACCESS_KEY", "wrong", 4),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", 6),
    ):
        lost = Machine(tmp_path / name, shop, bucket, **object_server.environment(**{name: value}))
        said = lost.run("chain log", exit_code=exit_code)
        assert object_server.secret not in said


def test_versions_are_numbered_in_one_place(
    object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two machines with a database each would both have a version 1."""
    store = open_store(bucket, "shop")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/one/mlflow.db")
    require_one_registry(store)
    assert "set MLFLOW_TRACKING_URI to an MLflow server" in capsys.readouterr().err
    require_one_registry(store)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(socket, "gethostname", lambda: "the-other")
    with pytest.raises(BadInputError, match="registered in sqlite:////home/one/mlflow"):
        require_one_registry(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    require_one_registry(store)
