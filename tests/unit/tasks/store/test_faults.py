"""Faults that were found by attacking the store: each must be impossible, or found and named with a remedy."""

import contextlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_jobs.errors import CorruptError, RetryLaterError
from tasks.run.collect import garbage, leftovers
from tasks.run.shown import not_shown
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.objects import LocalObjects
from tasks.store.scenario_store import Commit, ScenarioStore, open_store
from tasks.store.verify import require_sound, verify
from tests.unit.tasks.little import DAYS


class Killed(BaseException):
    """The end of a process in these tests."""


def _commit(store: ScenarioStore, step: str, ds: str, content: str = "", generation: int | None = None, **facts):
    with store.scratch() as scratch:
        output = scratch / "out"
        (output / "deep").mkdir(parents=True)
        (output / "a.txt").write_text(content or f"{step} {ds}")
        (output / "deep" / "b.txt").write_text("b")
        return store.commit(step, ds, output, facts, generation)[0]


def _history(store: ScenarioStore) -> list[Commit]:
    """Two days of a chain, with the champion that the second one promoted."""
    first_in = _commit(store, "ingest", DAYS[0])
    first = _commit(store, "train", DAYS[0], parent=None, sources=[first_in.source])
    second_in = _commit(store, "ingest", DAYS[1])
    second = _commit(store, "train", DAYS[1], parent=first.digest, sources=[first.source, second_in.source])
    log = ChampionLog(store)
    log.promote(0, Entry("promotion", "little", "1", DAYS[0], 0, first.digest))
    log.promote(1, Entry("promotion", "little", "2", DAYS[1], 0, second.digest))
    deploy = _commit(store, "deploy", DAYS[1], sources=[second.source], appended=store.newest("champion"))
    _commit(store, "train", DAYS[2], parent=second.digest, sources=[second.source])
    return [first_in, first, second_in, second, deploy]


def test_a_leftover_of_another_config_is_not_adopted(scenario, store, monkeypatch):
    """Killed between the folder's rename and the record, then run again with other facts and the same bytes."""
    with monkeypatch.context() as patched:
        patched.setattr(ScenarioStore, "put_if_absent", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            _commit(store, "train", DAYS[0], "same", parent=None, config="old")
    made = _commit(store, "train", DAYS[0], "same", parent=None, config="new")
    assert made.manifest["config"] == "new"
    require_sound(scenario, store)
    assert [path.name for path in made.folder.parent.iterdir() if path.is_dir()] == [made.name]


LEFTOVERS = {
    "a file has other bytes": lambda folder: (folder / "a.txt").write_text("emas"),
    "the manifest is gone": lambda folder: (folder / "manifest.json").unlink(),
    "the manifest is another": lambda folder: (folder / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", LEFTOVERS.values(), ids=LEFTOVERS)
def test_a_damaged_leftover_is_replaced(scenario, store, monkeypatch, damage):
    """Of a run that was killed before its record, and that is run again as it was."""
    with monkeypatch.context() as patched:
        patched.setattr(ScenarioStore, "put_if_absent", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            _commit(store, "train", DAYS[0], "same", parent=None)
    (folder,) = (path for path in (store.work / "g0000" / DAYS[0] / "train").iterdir())
    damage(folder)
    assert _commit(store, "train", DAYS[0], "same", parent=None).folder == folder
    require_sound(scenario, store)


def _race(root: Path, number: int, begin) -> None:
    store = open_store(root, "little")
    begin.wait()
    _commit(store, "train", DAYS[0], "same" if number % 2 else "other", parent=None, config=f"c{number % 3}")


@pytest.mark.slow
def test_processes_that_commit_one_day_leave_one_whole_commit(scenario, store, tmp_path):
    """With equal and with other bytes, with equal and with other facts; none of them fails."""
    context = multiprocessing.get_context("fork")
    for attempt in range(20):
        begin = context.Barrier(6)
        root = tmp_path / f"store{attempt}"
        processes = [context.Process(target=_race, args=(root, number, begin)) for number in range(6)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 6
        raced = open_store(root, "little")
        (commit,) = raced.commits()
        require_sound(scenario, raced)
        assert [path.name for path in commit.folder.parent.iterdir() if path.is_dir()] == [commit.name]
        assert list((raced.work / ".scratch").iterdir()) == []


def test_a_step_of_an_older_generation_commits_nothing_into_the_newer(store):
    begun = store.generation_of(DAYS[1])
    _commit(store, "train", DAYS[0], parent=None)
    store.new_generation(DAYS[0], "corrected")
    with pytest.raises(RetryLaterError, match="computed for generation 0, but generation 1 holds the day now"):
        _commit(store, "train", DAYS[1], generation=begun)
    assert store.find("train", DAYS[1]) is None
    assert _commit(store, "train", DAYS[0], generation=1).generation == 1


def test_a_generation_that_begins_later_does_not_disturb_an_earlier_day(store):
    store.new_generation(DAYS[2], "corrected")
    assert _commit(store, "train", DAYS[0], parent=None, generation=0).generation == 0


def _replace_consistently(commit: Commit) -> None:
    """As somebody would who knows the format: other bytes, with a manifest and a record that agree."""
    store = commit.store
    shutil.rmtree(commit.folder.parent)
    _commit(store, commit.step, commit.ds, "replaced")


def _edit(path: Path, **changes) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **changes}))


def _flip_last_digit(record: Path, field: str) -> None:
    value = json.loads(record.read_text())[field]
    _edit(record, **{field: value[:-1] + ("0" if value[-1] != "0" else "1")})


def _replace_by_link(path: Path, aside: Path) -> None:
    shutil.move(path, aside)
    path.symlink_to(aside)


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _rename(folder: Path) -> None:
    folder.rename(folder.with_name("0" * 16))
    _edit(folder.parent / "commit.json", folder="0" * 16)


def _replace_by_another_day(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    shutil.copytree(folder.parents[2] / DAYS[2] / "train", folder.parent)


ATTACKS = {
    "last digit of a commit's digest": lambda c, folder: _flip_last_digit(folder.parent / "commit.json", "digest"),
    "last digit of a manifest's digest": lambda c, folder: _flip_last_digit(folder.parent / "commit.json", "manifest"),
    "an output replaced consistently": lambda c, _: _replace_consistently(c),
    "a file becomes a symlink to equal bytes": lambda c, folder: _replace_by_link(folder / "a.txt", c.store.work / "x"),
    "the folder becomes a symlink to an equal one": lambda c, folder: _replace_by_link(folder, c.store.work / "x"),
    "an added symlink": lambda _, folder: (folder / "more").symlink_to("a.txt"),
    "an added FIFO": lambda _, folder: os.mkfifo(folder / "more"),
    "an added empty folder": lambda _, folder: (folder / "more").mkdir(),
    "an added file": lambda _, folder: (folder / "more").write_text(""),
    "a file is gone": lambda _, folder: (folder / "deep" / "b.txt").unlink(),
    "a record is a FIFO": lambda _, folder: _replace_by_fifo(folder.parent / "commit.json"),
    "a commit of another day": lambda _, folder: _replace_by_another_day(folder),
    "the folder has another name": lambda _, folder: _rename(folder),
    "the record is written otherwise": lambda _, folder: _edit(folder.parent / "commit.json"),
}


@pytest.mark.parametrize("number", range(4), ids=["ingest 1", "train 1", "ingest 2", "train 2"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_verify_finds(scenario, store, attack, number):
    attacked = _history(store)[number]
    assert verify(scenario, store).problems == []
    attack(attacked, attacked.folder)
    problems = verify(scenario, store).problems
    assert problems and all(DAYS[0] in problem or DAYS[1] in problem for problem in problems), problems
    assert all("recloop chain replay" in problem for problem in problems), problems


STRANGERS = {
    "g0000/2024-01-01/train/link": lambda path: path.symlink_to("/etc/passwd"),
    "g0000/2024-01-01/train/fifo": os.mkfifo,
    "g0000/2024-01-01/train/backup": lambda path: path.mkdir(),
    "g0000/2024-01-01/notes.txt": lambda path: path.write_text("x"),
    "g0000/zzz": lambda path: shutil.copytree(path.with_name("2024-01-01"), path),
    "g0000/2024-02-31": lambda path: shutil.copytree(path.with_name("2024-01-01"), path),
    "champion/zzz.json": lambda path: path.write_text("{}"),
    "champion/000009.json": lambda path: shutil.copyfile(path.with_name("000001.json"), path),
    "champion/more": lambda path: path.mkdir(),
}


@pytest.mark.parametrize(("key", "put"), STRANGERS.items(), ids=STRANGERS)
def test_verify_names_what_lies_among_the_records(scenario, store, key, put):
    """And nothing else is disturbed by it: the next commit names the same records as without it."""
    _history(store)
    newest, commits = store.newest("champion"), store.commits()
    put(store.work / key)
    problems = verify(scenario, store).problems
    assert problems and all(f"{store.url}/{key}" in problem and "move it out" in problem for problem in problems)
    assert store.newest("champion") == newest
    assert [commit for commit in store.commits() if commit.generation == 0] == commits


@pytest.mark.parametrize("key", ["g0000", "g0000/2024-01-01", "g0000/2024-01-01/train", "champion"])
def test_verify_follows_no_symlink(scenario, store, key):
    _history(store)
    _replace_by_link(store.work / key, store.work / "x")
    assert f"{store.url}/{key}" in "".join(verify(scenario, store).problems)


@pytest.mark.parametrize("name", ["gold", "g0000.bak", "g", "notes"])
def test_a_folder_of_another_name_is_not_a_generation(scenario, store, name):
    _history(store)
    shutil.copytree(store.work / "g0000", store.work / name)
    (store.work / "runs" / name / DAYS[0]).mkdir(parents=True)
    (store.work / "runs" / name / DAYS[0] / "train.json").write_text("{}")
    require_sound(scenario, store)
    assert {commit.generation for commit in store.commits()} == {0}
    assert not_shown(store) == []


def test_verify_finds_a_champion_whose_checkpoint_is_not_there(scenario, store):
    _history(store)
    ChampionLog(store).promote(2, Entry("promotion", "little", "3", DAYS[1], 7, "ab" * 32))
    [problem] = verify(scenario, store).problems
    assert "champion/000003.json" in problem and "generation 7" in problem
    with pytest.raises(CorruptError, match="generation 7 is named by a record, but the newest is 0"):
        store.generation_of(DAYS[1], 7)


def test_deleted_files_excuse_missing_ones_alone(scenario, store):
    first = _history(store)[0]
    folder = first.folder
    store.collect(first, "no longer needed")
    require_sound(scenario, store)
    (folder / "a.txt").write_text("changed")
    (folder / "evil").symlink_to("/etc/passwd")
    assert len(verify(scenario, store).problems) == 2
    (folder.parent / "collected.json").write_text("garbage")
    assert any("collected.json: not a readable record" in problem for problem in verify(scenario, store).problems)


def test_what_was_damaged_is_sound_once_it_was_computed_again(scenario, store):
    first = _history(store)[0]
    (first.folder / "a.txt").write_text("changed")
    assert len(verify(scenario, store).problems) == 1
    store.new_generation(DAYS[0], "corrected", DAYS[2])
    assert len(verify(scenario, store).problems) == 1  # nothing has replaced it yet
    _commit(store, "ingest", DAYS[0])
    proof = require_sound(scenario, store)
    assert len(proof.replaced) == 1 and "generation 1 holds it now" in proof.replaced[0]


@pytest.mark.parametrize("name", ["a.txt", "manifest.json", "commit.json"])
def test_what_is_damaged_in_a_replaced_generation_stops_nothing(scenario, store, name):
    """A replay from the first day is the remedy; the champions of the older generation are its days' comparators."""
    _, first, *_ = _history(store)
    damaged = first.folder / name if name != "commit.json" else first.folder.parent / name
    log = ChampionLog(store)
    assert log.as_of(DAYS[1])[0].ds == DAYS[0]
    damaged.write_text("{}")
    store.new_generation(DAYS[0], "corrected", DAYS[2])
    for ds in DAYS[:3]:
        champion = log.as_of(ds)[0]
        # From the second day on the checkpoint that the replay made again counts, not the damaged one.
        assert champion is None if ds == DAYS[0] else champion.generation == 1
        parent = store.find("train", DAYS[0])
        _commit(store, "ingest", ds)
        _commit(store, "train", ds, parent=parent.digest if parent else None)
        _commit(store, "deploy", ds)
    assert verify(scenario, store).replaced
    assert log.rollback_targets(3) == [] or name != "commit.json"
    assert garbage(scenario, store, 1).commits
    assert leftovers(store) == []


def test_a_lost_generation_is_not_passed_over(scenario, store):
    """The days would silently be the older ones again, and the next step would commit there."""
    _history(store)
    for number in (1, 2):
        assert store.new_generation(DAYS[1], "corrected") == number
    (store.work / "g0003").mkdir()  # a run was killed before it wrote the record
    assert store.generation == 2
    lost = (store.work / "g0001" / "generation.json").rename(store.work / "aside")
    with pytest.raises(CorruptError, match=r"g0001/generation\.json: missing.*chain replay .* --from DAY"):
        store.find("train", DAYS[1])
    assert "generation.json: missing" in verify(scenario, store).problems[0]
    lost.rename(store.work / "g0001" / "generation.json")
    _commit(store, "ingest", DAYS[1])
    (store.work / "g0002" / "generation.json").unlink()
    shutil.copytree(store.work / "g0000", store.work / "g0007")
    with pytest.raises(CorruptError, match=r"g0002/generation\.json: missing, although g0002/"):
        store.find("train", DAYS[1])


@pytest.mark.parametrize("name", [".scratch", ".resume", f".resume/{DAYS[0]}.train", "journal.jsonl", "g0000"])
def test_a_symlink_in_the_store_leads_nowhere(store, tmp_path, name):
    """Its target is not read, changed or removed."""
    _commit(store, "ingest", DAYS[0])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("mine")
    place = store.work / name
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(tmp_path / "aside")
    place.symlink_to(outside / "thesis.txt" if name.endswith("l") else outside)
    actions: list[Callable[[], object]] = [
        lambda: store.note({"step": "train"}),
        lambda: list(store.journal()),
        lambda: _commit(store, "train", DAYS[0]),
        store.objects.scratch.remove_abandoned,
        store.objects.scratch.resumable,
        lambda: store.objects.scratch.remove_resumable(f"{DAYS[0]}.train"),
        lambda: _resume(store),
    ]
    for action in actions:
        with contextlib.suppress(CorruptError):
            action()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"thesis.txt": "mine"}


def _resume(store: ScenarioStore) -> None:
    with store.objects.scratch.resume_folder(f"{DAYS[0]}.train", "key") as folder:
        assert folder is not None
        folder.mkdir()


def test_a_journal_that_is_a_fifo_does_not_stop_a_run_for_ever(store):
    store.work.mkdir(parents=True, exist_ok=True)
    os.mkfifo(store.work / "journal.jsonl")
    with pytest.raises(CorruptError, match=r"journal\.jsonl: not a regular file; remove it"):
        store.note({"step": "train"})


@pytest.mark.parametrize("sequence", [1, 2])
def test_verify_finds_an_altered_champion_record(scenario, store, sequence):
    _history(store)
    _edit(store.work / "champion" / f"{sequence:06}.json", version="7")
    problems = verify(scenario, store).problems
    assert problems and all("champion/" in problem for problem in problems), problems


@pytest.mark.parametrize("changes", [{"from": DAYS[2]}, {"reason": "other"}, {"generation": 2}, {"previous": "0" * 64}])
def test_verify_finds_an_altered_generation(scenario, store, changes):
    _commit(store, "train", DAYS[0], parent=None)
    store.new_generation(DAYS[1], "corrected")
    _commit(store, "train", DAYS[1], parent=store.find("train", DAYS[0]).digest)
    require_sound(scenario, store)
    _edit(store.work / "g0001" / "generation.json", **changes)
    assert any("g0001" in problem for problem in verify(scenario, store).problems)


def test_verify_finds_a_generation_that_was_moved(scenario, store):
    _commit(store, "train", DAYS[0], parent=None)
    shutil.copytree(store.work / "g0000", store.work / "aside")
    store.new_generation(DAYS[0], "corrected")
    shutil.copytree(store.work / "aside", store.work / "g0001", dirs_exist_ok=True)
    assert any("was committed in another generation" in problem for problem in verify(scenario, store).problems)


def test_the_head_names_the_newest_records_too(scenario, store):
    """Nothing in the store names them: a digest that was kept elsewhere does."""
    *_, deploy = _history(store)
    before = verify(scenario, store)
    assert verify(scenario, store).head == before.head
    _replace_consistently(deploy)
    after = verify(scenario, store)
    assert after.problems == [] and after.head != before.head


HOSTILE = {
    "empty": b"",
    "torn": b'{"step": "train", "ds',
    "deeply nested": b"[" * 100_000 + b"]" * 100_000,
    "a list": b"[]",
    "null": b"null",
    "wrong types": b'{"step": 1, "ds": [], "digest": {}, "manifest": null, "generation": "x", "from": 3, "kind": 0}',
    "not UTF-8": b'{"step": "\xff"}',
    "huge": b" " * (20 << 20) + b"{}",
    "a name that leads out": b'{"step":"train","ds":"%s","digest":"%s","manifest":"%s","folder":"../../x"}'
    % (DAYS[0].encode(), b"a" * 64, b"b" * 64),
}
PLACES = {
    "commit record": f"g0000/{DAYS[0]}/train/commit.json",
    "generation": "g0001/generation.json",
    "champion record": "champion/000001.json",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_record_is_named_with_a_remedy(scenario, store, place, data):
    _history(store)
    store.new_generation(DAYS[1], "corrected")
    (store.work / place).write_bytes(data)
    with pytest.raises(CorruptError, match=place):
        require_sound(scenario, store)
    with pytest.raises(CorruptError, match=rf"{place}.*recloop chain replay"):
        store.find("train", DAYS[0])
        ChampionLog(store).history()


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_named_with_a_remedy(scenario, store, data):
    commit = _history(store)[1]
    (commit.folder / "manifest.json").write_bytes(data)
    with pytest.raises(CorruptError, match=r"manifest\.json.*recloop chain replay"):
        require_sound(scenario, store)


def test_a_hostile_record_of_a_run_costs_nothing(store):
    commit = _history(store)[1]
    (store.work / "runs" / "g0000" / DAYS[0]).mkdir(parents=True)
    (store.work / "runs" / "g0000" / DAYS[0] / "train.json").write_text("{")
    with pytest.raises(CorruptError, match="it holds only times and metrics"):
        store.run_record(commit)


def test_a_lock_that_cannot_be_opened_does_not_stop_a_step(store, monkeypatch):
    with store.scratch():
        pass
    (store.work / ".scratch" / "theirs").mkdir()
    (store.work / ".scratch" / "theirs.lock").symlink_to("/proc/1/mem")  # opening it is refused, also to root
    with store.scratch() as scratch:
        assert scratch.is_dir()


def test_nothing_is_left_of_a_killed_put(store, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            store.put_if_absent("champion/000001.json", b"{}")
    assert list((store.work / "champion").iterdir()) == []
    assert store.put_if_absent("champion/000001.json", b"{}")


def test_a_resumed_folder_leaves_no_lock(store):
    with store.objects.scratch.resume_folder("day.train", "key") as folder:
        folder.mkdir(parents=True)
    assert list((store.work / ".resume").iterdir()) == []


def test_a_torn_folder_is_replaced(scenario, store, monkeypatch):
    """A crash of the machine can lose the bytes of files whose folder was renamed already."""
    with monkeypatch.context() as patched:
        patched.setattr(ScenarioStore, "put_if_absent", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            _commit(store, "train", DAYS[0], parent=None)
    (torn,) = [path for path in (store.work / "g0000" / DAYS[0] / "train").iterdir() if path.is_dir()]
    (torn / "a.txt").write_bytes(b"")
    _commit(store, "train", DAYS[0], parent=None)
    require_sound(scenario, store)


def test_a_folder_that_was_published_without_manifest_is_not_the_commit(scenario, store):
    objects = LocalObjects(store.work)
    commit = _commit(store, "train", DAYS[0], parent=None)
    (commit.folder / "manifest.json").unlink()
    assert list(objects.problems_of(commit.key, {})) != []
    with pytest.raises(CorruptError, match=r"manifest\.json: missing"):
        store.verify(commit)
