"""A step's side of a container: the request says all, the answer is one line, and the lifeline ends it."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_jobs.errors import BadInputError, KilledError, RecloopError
from feature_jobs.schema import load_scenario
from tasks.contract import DayConfig
from tasks.run.container import (
    ContainerLauncher,
    ContainerSettings,
    error_of,
    mounts_of,
    source_environment,
    store_environment,
    writable_folders,
)
from tasks.run.exec_step import call_of, request_of
from tasks.run.launchers import Call
from tasks.steps import STEPS
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import open_store
from tasks.store.source_digest import code_digest
from tests.object_store import NARROW, ObjectServer
from tests.paths import ROOT, SCENARIOS
from tests.small import days, write_small


def _call(folder: Path, step: str) -> Call:
    scenario = load_scenario(write_small(folder, num_days=1))
    output = folder / "out"
    output.mkdir(exist_ok=True)
    config = DayConfig(scenario, days(1)[0], open_store(folder / "store", scenario.name), resume=folder / "resume")
    events = folder / "earlier"
    events.mkdir(exist_ok=True)
    folders: dict[str, Any] = {"events": events, "history": {"2024-02-29": events}, "parent": None}
    return Call(config, {"yesterday": None} if step == "ingest" else folders, output)


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "tasks", "exec-step"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def _ask(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with _start() as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.read()
        return process.wait(timeout=60), json.loads(answer)


@pytest.mark.parametrize("file", sorted(SCENARIOS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_scenario_comes_through_whole(file: Path, tmp_path: Path) -> None:
    scenario = load_scenario(file, overrides={"train.threads": 1})
    call = Call(
        DayConfig(scenario, "2024-03-01", options={"worker": 1}), {"samples": tmp_path, "parent": None}, tmp_path
    )
    got = call_of(json.loads(json.dumps(request_of(STEPS["train"], call, {}))))
    assert got.config.scenario == scenario
    assert got.config.scenario.file == file
    assert (got.folders, got.output, got.config.options) == (call.folders, call.output, call.config.options)


def test_a_request_is_run_and_answered(tmp_path: Path) -> None:
    call = _call(tmp_path, "ingest")
    code, answer = _ask(request_of(STEPS["ingest"], call, {}))
    assert code == 0
    assert answer["metrics"]["rows"] == 400
    assert set(answer["seconds"]) == {"compute", "imports"}
    assert (call.output / "counts.json").is_file()


def test_an_expected_error_is_answered_with_its_exit_code(tmp_path: Path) -> None:
    request = {**request_of(STEPS["ingest"], _call(tmp_path, "ingest"), {}), "ds": "2024-03-02"}
    code, answer = _ask(request)
    assert code == BadInputError.exit_code
    assert "2024-03-02" in answer["error"]


def test_other_code_than_that_of_the_project_is_refused(tmp_path: Path) -> None:
    code, answer = _ask({**request_of(STEPS["ingest"], _call(tmp_path, "ingest"), {}), "code": "0" * 64})
    assert code == BadInputError.exit_code
    assert code_digest("ingest")[:12] in answer["error"]


def test_the_end_of_the_lifeline_ends_the_step(tmp_path: Path) -> None:
    with _start() as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request_of(STEPS["ingest"], _call(tmp_path, "ingest"), {})) + "\n")
        process.stdin.close()
        begun = time.monotonic()
        assert process.wait(timeout=20) == 143
    assert time.monotonic() - begun < 20


def test_only_inputs_are_mounted_and_only_outputs_can_be_written(tmp_path: Path) -> None:
    def mounted(step: str) -> dict[str, bool]:
        call = _call(tmp_path, step)
        mounts = mounts_of(STEPS[step], call, writable_folders(STEPS[step], call))
        return {str(Path(mount["Target"]).relative_to(tmp_path)): mount["ReadOnly"] for mount in mounts}

    assert mounted("join") == {"shop.yaml": True, "earlier": True, "out": False, "resume": False}
    assert mounted("ingest") == {"shop.yaml": True, "data": True, "out": False, "resume": False}
    for folder in ("g0000", ".scratch", "runs"):
        (tmp_path / "store" / "shop" / folder).mkdir(parents=True)
    kept = {name: read_only for name, read_only in mounted("deploy").items() if name.startswith("store")}
    assert kept == {"store/shop/g0000": True, "store/shop/champion": False}


def test_a_source_elsewhere_is_reached_by_ingest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SHOP_DATABASE": "postgresql://reader:secret@host/shop",
        "OTHER_DATABASE": "postgresql://reader:secret@host/other",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "GOOGLE_BASE_URL": "http://host",
        "PYICEBERG_CATALOG__LAKE__URI": "http://host",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    scenario = load_scenario(write_small(tmp_path, num_days=1))
    events, ingest = scenario.data.events, STEPS["ingest"]
    places: dict[str, tuple[dict[str, str], set[str]]] = {
        "files": ({}, set()),
        "delta": ({"format": "delta", "path": "events"}, set()),
        "postgres": ({"format": "postgres", "path": "a.b", "server": "SHOP_DATABASE"}, {"SHOP_DATABASE"}),
        "hive": ({"format": "hive", "path": "a.b", "server": "OTHER_DATABASE"}, {"OTHER_DATABASE"}),
        "objects": ({"path": "s3://bucket/events"}, {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
        "iceberg": (
            {"format": "iceberg", "path": "a.b", "catalog": "lake"},
            {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PYICEBERG_CATALOG__LAKE__URI"},
        ),
    }
    settings = ContainerSettings("recloop", "0", "outside")
    for kind, (changes, names) in places.items():
        table = events.model_copy(update=changes)
        changed = scenario.model_copy(update={"data": scenario.data.model_copy(update={"events": table})})
        assert source_environment(ingest, changed).keys() & given.keys() == names, kind
        assert source_environment(STEPS["train"], changed) == {}
        assert ContainerLauncher(settings).network(ingest, changed) == ("outside" if names else "none")
        assert ContainerLauncher(settings).network(STEPS["train"], changed) == "none"
        assert changed.data.places.split(", ") == [scenario.data.path, *([table.path] if names else [])]
        if names:
            with pytest.raises(BadInputError, match="ingest talks to a source on another machine"):
                ContainerLauncher(replace(settings, network="")).network(ingest, changed)


def test_a_store_elsewhere_is_reached_by_deploy_alone(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other steps get folders. The credentials are in no file that the container would have to see."""
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = {NARROW}\naws_secret_access_key = {object_server.narrow_secret}\n")
    given = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    for name, value in object_server.environment(**given, RECLOOP_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    url = f"s3://{object_server.narrow_bucket}/stores"
    call = _call(tmp_path, "deploy")
    call = replace(call, config=replace(call.config, store=open_store(url, "shop"), resume=None))
    for step in ("train", "tune"):
        assert store_environment(STEPS[step], call.config.store) == {}
        assert "s3://" not in str(request_of(STEPS[step], call, {})["store"])
    deploy = STEPS["deploy"]
    mounts = mounts_of(deploy, call, writable_folders(deploy, call))
    assert [mount["Target"] for mount in mounts if not mount["ReadOnly"]] == [str(call.output)]
    request = request_of(deploy, call, store_environment(deploy, call.config.store))
    file.unlink()
    for name in given:
        monkeypatch.delenv(name)
    for name, value in request["environment"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RECLOOP_CACHE", str(tmp_path / "inside"))
    inside = call_of(json.loads(json.dumps(request))).config.store
    assert inside is not None
    assert inside.url == f"{url}/shop"
    entry = Entry("promotion", "shop", "1", days(1)[0], 0, "0" * 64)
    assert ChampionLog(inside).promote(0, entry).sequence == 1


@pytest.mark.parametrize(
    ("code", "answer", "out_of_memory", "kind", "said"),
    [
        (4, '{"error": "s.yaml: no"}', False, BadInputError, "s.yaml: no"),
        (1, "", False, RecloopError, "train ended with exit code 1"),
        (137, "", False, KilledError, "signal 9 ended its container"),
        (137, "", True, KilledError, "out of memory: train needed more than its limit of 8 GiB"),
        (1, "", True, KilledError, "out of memory"),
    ],
)
def test_what_an_end_means(code: int, answer: str, out_of_memory: bool, kind: type[RecloopError], said: str) -> None:
    error = error_of(STEPS["train"], code, answer, out_of_memory=out_of_memory)
    assert type(error) is kind
    assert said in str(error)
    assert error.exit_code == (137 if out_of_memory else code)


@pytest.mark.parametrize(
    "request_line", ["", "x", "[]", '{"step": "ingest"}', "[" * 100_000], ids=lambda text: text[:20]
)
def test_what_is_not_a_request_is_refused(request_line: str) -> None:
    with _start() as process:
        stdout, stderr = process.communicate(request_line + "\n", timeout=60)
    assert process.returncode == BadInputError.exit_code
    assert json.loads(stdout)["error"].startswith("stdin: ") and "Traceback" not in stderr


def test_a_request_for_an_unknown_step_is_refused(tmp_path: Path) -> None:
    code, answer = _ask({**request_of(STEPS["ingest"], _call(tmp_path, "ingest"), {}), "step": "digest"})
    assert code == BadInputError.exit_code
    assert "'digest' is not a step" in answer["error"]
