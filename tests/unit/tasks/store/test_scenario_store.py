"""The store: whole or not at all, first commit stands, any flipped byte is found."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, CorruptError
from tasks.store.objects import files_of
from tasks.store.scenario_store import ScenarioStore, open_store
from tasks.store.scratch import Scratch


def _write(store: ScenarioStore, content: str, step: str = "train", ds: str = "2024-01-01") -> tuple:
    with store.scratch() as scratch:
        output = scratch / "out"
        (output / "deep").mkdir(parents=True)
        (output / "a.txt").write_text(content)
        (output / "deep" / "b.txt").write_text("b")
        return store.commit(step, ds, output, {"parent": None})


@pytest.fixture
def store(tmp_path: Path) -> ScenarioStore:
    return open_store(tmp_path / "store", "demo")


def test_equal_content_has_equal_digest_and_different_content_not(store: ScenarioStore) -> None:
    first, _ = _write(store, "x", ds="2024-01-01")
    second, _ = _write(store, "x", ds="2024-01-02")
    third, _ = _write(store, "y", ds="2024-01-03")
    assert first.digest == second.digest != third.digest


def test_first_commit_stands(store: ScenarioStore) -> None:
    first, ours = _write(store, "x")
    second, also_ours = _write(store, "y")
    assert ours
    assert not also_ours
    assert second == first
    assert (second.folder / "a.txt").read_text() == "x"
    assert [p.name for p in first.folder.parent.iterdir() if p.is_dir()] == [first.folder.name]


def _as_another_user(call: Callable[[], object]) -> bool:
    """Says if the call ends without an error in a process that is not root's."""
    child = os.fork()
    if child == 0:
        is_done = False
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)  # the real user stays root: os.access would find the store's folder writable
            call()
            is_done = True
        finally:
            os._exit(0 if is_done else 1)
    return os.waitpid(child, 0)[1] == 0


def test_leftovers_of_another_user_disturb_nobody() -> None:
    with tempfile.TemporaryDirectory() as top:  # not tmp_path: another user can't look into that
        scratch, name = Scratch(Path(top)), "2024-01-01.train"
        closed = [Path(top) / ".resume" / name, Path(top) / ".scratch" / ("a" * 32)]
        for folder in closed:
            folder.mkdir(parents=True)
            folder.with_name(f"{folder.name}.lock").touch(mode=0)
            folder.chmod(0)
            folder.parent.chmod(0o777)
        Path(top).chmod(0o777)

        def use() -> None:
            scratch.remove_abandoned()
            scratch.remove_resumable(name)
            with scratch.folder(), scratch.resume_folder(name, "key") as resume:
                assert resume is None

        assert _as_another_user(use)
        assert all(folder.is_dir() for folder in closed)


def test_a_record_can_be_put_where_only_its_own_folder_is_writable() -> None:
    with tempfile.TemporaryDirectory() as top:
        log = Path(top) / "demo" / "champion"
        log.mkdir(parents=True)
        for folder, mode in ((Path(top), 0o755), (log.parent, 0o555), (log, 0o777)):
            folder.chmod(mode)
        assert _as_another_user(lambda: open_store(Path(top), "demo").put_if_absent("champion/000001.json", b"{}"))
        assert (log / "000001.json").read_bytes() == b"{}"
        log.parent.chmod(0o755)


def test_concurrent_commits_leave_one(store: ScenarioStore) -> None:
    results = []
    threads = [threading.Thread(target=lambda i=i: results.append(_write(store, f"content {i}"))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ours for _, ours in results) == 1
    assert len({commit.digest for commit, _ in results}) == 1
    store.verify(results[0][0])


def test_flipped_byte_missing_and_extra_file_are_found(store: ScenarioStore) -> None:
    commit, _ = _write(store, "some content")
    store.verify(commit)
    file = commit.folder / "deep" / "b.txt"
    file.write_bytes(b"c")
    with pytest.raises(CorruptError, match=r"b\.txt: digest .* is not .*replay -s demo --store .* --from 2024-01-01"):
        store.verify(commit)
    file.write_bytes(b"b")
    store.verify(commit)
    (commit.folder / "extra").write_text("")
    with pytest.raises(CorruptError, match="extra"):
        store.verify(commit)
    (commit.folder / "extra").unlink()
    manifest = json.loads((commit.folder / "manifest.json").read_text())
    (commit.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptError, match=r"manifest\.json"):
        store.verify(commit)


def test_generations_replace_days_from_theirs_on(store: ScenarioStore) -> None:
    for day in ("2024-01-01", "2024-01-02", "2024-01-03"):
        _write(store, f"old {day}", ds=day)
    assert store.new_generation("2024-01-02", "late data") == 1
    assert store.find("train", "2024-01-02") is None
    new, _ = _write(store, "new", ds="2024-01-02")
    assert new.generation == 1
    assert store.find("train", "2024-01-01").generation == 0
    assert (store.find("train", "2024-01-02", generation=0).folder / "a.txt").read_text() == "old 2024-01-02"


def test_put_if_absent_never_replaces(store: ScenarioStore) -> None:
    assert store.put_if_absent("champion/000001.json", b"one")
    assert not store.put_if_absent("champion/000001.json", b"two")
    assert store.read("champion/000001.json") == b"one"
    assert store.keys("champion/*") == ["champion/000001.json"]


def test_scratch_of_a_killed_run_is_removed_and_of_a_running_one_kept(store: ScenarioStore) -> None:
    script = (
        "import sys, time; from tasks.store.scenario_store import ScenarioStore; from pathlib import Path\n"
        "with ScenarioStore(Path(sys.argv[1])).scratch() as s:\n"
        "  (s / 'half').write_text('x'); print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(store.work)], stdout=subprocess.PIPE)
    process.stdout.readline()
    with store.scratch():
        assert len(list((store.work / ".scratch").rglob("half"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with store.scratch():
        assert list((store.work / ".scratch").rglob("half")) == []


def test_a_url_that_is_not_one_of_a_store_is_refused_in_words() -> None:
    with pytest.raises(BadInputError, match="ftp:// is not supported; give a folder or s3://, gs://, az://"):
        open_store("ftp://host/x", "demo")


def test_a_folder_can_be_given_as_a_url(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}", "demo").url == open_store(tmp_path, "demo").url == f"{tmp_path}/demo"


def test_files_of_leaves_out_the_manifest(store: ScenarioStore) -> None:
    commit, _ = _write(store, "x")
    assert sorted(files_of(commit.folder)) == ["a.txt", "deep/b.txt"]
