"""A worker and its server: what comes in, and what is said of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from feature_jobs.errors import CorruptError
from serving import worker
from serving.release import Release
from serving.server import Addresses, Server
from serving.service import Service

FACTS = {"ds": "2024-03-01", "checkpoint": "c", "settings": {}, "state": "2024-03-02", "digest": "d"}


def release(version: str, folder: Path) -> Release:
    return Release(
        model="shop", version=version, scenario=f"{folder}/none.yaml", export=str(folder), online=str(folder), **FACTS
    )  # fmt: skip


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("defect", [None, OSError("the disk is gone"), MemoryError()])
def test_whatever_fails_in_a_release_the_next_one_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, defect: Exception | None
) -> None:
    if defect is not None:

        def load(_: Release) -> None:
            raise defect

        monkeypatch.setattr(worker, "Loaded", load)
    service = Service("shop")
    lines = b"".join(release(version, tmp_path).to_json() + b"\n" for version in ("7", "8"))
    seen = []
    for _ in worker._releases(service, io.BytesIO(lines + b'{"alarm": "gone"}\n')):
        seen.append(service.alarm)
    assert seen == [f"version {version} does not serve; see the log of the server" for version in ("7", "8")]
    assert not service.is_ready
    events = said(capsys)
    assert [(event["event"], event["version"]) for event in events] == [("refused", "7"), ("refused", "8")]
    assert ("none.yaml" if defect is None else repr(defect)) in events[0]["reason"]


def test_a_store_that_can_not_be_read_ends_nothing_and_is_said_once(tmp_path: Path) -> None:
    answers: list[Release | Exception] = [
        release("1", tmp_path), OSError("stale handle"), OSError("stale handle"), CorruptError("a record"),
        release("2", tmp_path), release("2", tmp_path),
    ]  # fmt: skip

    def newest() -> Release:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    events: list[dict[str, Any]] = []
    server = Server(Addresses(("127.0.0.1", 0)), 1, newest, events.append)
    for _ in range(5):
        server._follow()
    assert [event["reason"] for event in events] == ["OSError('stale handle')", "a record"]
    assert server._given.version == "2"
