"""The store: committed outputs of steps, each a folder whose content decides its digest.

    STORE/SCENARIO/g0000/DS/STEP/commit.json            the commit record, put-if-absent: exists or not, never changes
    STORE/SCENARIO/g0000/DS/STEP/<digest>/manifest.json digest of every file, of inputs, config and code
    STORE/SCENARIO/g0000/DS/STEP/<digest>/...           the files
    STORE/SCENARIO/g0001/generation.json                from which day a corrected history replaces the older one
    STORE/SCENARIO/runs/, journal.jsonl, rejected/      times and metrics of runs; never part of a digest

A step writes into scratch, files are fsynced, the manifest comes last, the folder is moved in by one rename, and one
put-if-absent of the commit record makes it visible. Killed anywhere before that, nothing was written. Control records
go through `put_if_absent`, `read` and `keys` alone, which is what an object store offers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from feature_jobs.errors import BadInputError, CorruptError
from tasks.store.records import Facts, FileFacts, Generation, Manifest, RunRecord

MANIFEST, RECORD = "manifest.json", "commit.json"
JOURNAL = "journal.jsonl"
DEFAULT_STORE = ".recloop/store"


@dataclass(frozen=True)
class Commit:
    """A committed output: `digest` of its content, `folder` with its files."""

    step: str
    ds: str
    generation: int
    digest: str
    folder: Path

    @property
    def manifest(self) -> Manifest:
        """What the manifest says."""
        loaded: Manifest = json.loads((self.folder / MANIFEST).read_text())
        return loaded


def record_key(generation: int, ds: str, step: str) -> str:
    """Key of the record of a step's run: metrics, series, system metrics, seconds."""
    return f"runs/g{generation:04}/{ds}/{step}.json"


def canonical_json(value: Any) -> bytes:
    """Equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def sha256_of(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def files_of(folder: Path) -> dict[str, FileFacts]:
    """Digest and size of every file below `folder`, the manifest left out."""
    found: dict[str, FileFacts] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if name != MANIFEST:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name] = {"sha256": digest, "bytes": file.stat().st_size}
    return found


def open_store(url: str | Path, scenario_name: str) -> ScenarioStore:
    """The scenario's part of the store at a folder. Object-store URLs are refused until they are built."""
    text = str(url).removeprefix("file://")
    if "://" in text:
        raise BadInputError(f"--store {url}: only folders for now; give a path such as .recloop/store")
    return ScenarioStore(Path(text).resolve() / scenario_name)


class ScenarioStore:
    """Everything kept for one scenario, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scenario_option = f"-s {root.name}"  # a command knows more: the file, and what else it was given

    @property
    def option(self) -> str:
        """` --store PATH`, empty for the default: what a printed command needs so that it runs when it is copied."""
        store = self.root.parent
        return "" if store == Path(DEFAULT_STORE).resolve() else f" --store {shlex.quote(str(store))}"

    @property
    def options(self) -> str:
        """What a printed command needs to mean this scenario in this store."""
        return self.scenario_option + self.option

    # control records

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the record whole, or returns False where it exists already."""
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".put-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)  # noqa: PTH101 (mkstemp gives 0600; other users of a shared store must read)
            os.link(name, target)
        except FileExistsError:
            return False
        finally:
            Path(name).unlink(missing_ok=True)
        _fsync_folder(target.parent)
        return True

    def read(self, key: str) -> bytes | None:
        """The record, or None."""
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keys(self, prefix: str) -> list[str]:
        """Keys of all records below a prefix, sorted."""
        top = self.root / prefix
        return sorted(p.relative_to(self.root).as_posix() for p in top.rglob("*") if p.is_file())

    # generations

    def generations(self) -> list[Generation]:
        """All generations, oldest first."""
        found = [Generation(0, None, "first")]
        while (data := self.read(f"g{len(found):04}/generation.json")) is not None:
            record = json.loads(data)
            found.append(Generation(record["generation"], record["from"], record["reason"]))
        return found

    @property
    def generation(self) -> int:
        """The newest generation; the only one that is written to."""
        return len(self.generations()) - 1

    def new_generation(self, from_ds: str, reason: str) -> int:
        """Starts a generation whose days from `from_ds` on replace the older ones; those stay readable."""
        number = self.generation + 1
        record = {"generation": number, "from": from_ds, "reason": reason}
        if not self.put_if_absent(f"g{number:04}/generation.json", canonical_json(record)):
            raise BadInputError(
                f"generation {number} was started by another run just now; see recloop chain log {self.options}"
            )
        return number

    def generation_of(self, ds: str, generation: int | None = None) -> int:
        """The generation that holds day `ds` as seen from `generation` (default: the newest)."""
        records = self.generations()
        number = len(records) - 1 if generation is None else generation
        while number > 0 and ds < (records[number].from_ds or ""):
            number -= 1
        return number

    # committed outputs

    def find(self, step: str, ds: str, generation: int | None = None) -> Commit | None:
        """The committed output of a step on a day, or None."""
        number = self.generation_of(ds, generation)
        key = f"g{number:04}/{ds}/{step}"
        data = self.read(f"{key}/{RECORD}")
        if data is None:
            return None
        digest = json.loads(data)["digest"]
        return Commit(step, ds, number, digest, self.root / key / digest[:16])

    def commits(self) -> list[Commit]:
        """Every committed output of every generation, in the order generation, day, step."""
        found = []
        for path in sorted(self.root.glob(f"g[0-9][0-9][0-9][0-9]/*/*/{RECORD}")):
            generation, ds, step = int(path.parts[-4][1:]), path.parts[-3], path.parts[-2]
            digest = json.loads(path.read_bytes())["digest"]
            found.append(Commit(step, ds, generation, digest, path.parent / digest[:16]))
        return found

    def is_committed(self, digest: str, ds: str, generation: int) -> bool:
        """Whether a step's output with that digest is committed on a day of a generation."""
        records = (self.root / f"g{generation:04}" / ds).glob(f"*/{RECORD}")
        return any(json.loads(record.read_bytes())["digest"] == digest for record in records)

    def find_commit(self, step: str, digest: str) -> Commit | None:
        """The committed output with that digest, in whatever day and generation."""
        return next((c for c in self.commits() if c.step == step and c.digest == digest), None)

    def find_by_digest(self, step: str, digest: str) -> Path | None:
        """Its folder."""
        commit = self.find_commit(step, digest)
        return commit.folder if commit else None

    def commit(self, step: str, ds: str, folder: Path, facts: Facts) -> tuple[Commit, bool]:
        """Commits a finished folder; returns the commit that stands and whether it is ours.

        `facts` go into the manifest (inputs, config, code, gate). Where another run committed first, theirs stands.
        """
        files = files_of(folder)
        digest = sha256_of(canonical_json(files))
        manifest = canonical_json({**facts, "step": step, "ds": ds, "digest": digest, "files": files})
        for name in files:
            _fsync(folder / name)
        (folder / MANIFEST).write_bytes(manifest)
        _fsync(folder / MANIFEST)
        key = f"g{self.generation_of(ds):04}/{ds}/{step}"
        target = self.root / key / digest[:16]
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.read(f"{key}/{RECORD}") is None:
            if target.exists() and files_of(target) != files:  # torn by a crash of the machine
                shutil.rmtree(target)
            with contextlib.suppress(OSError):  # already there, from a killed or a concurrent run: one is enough
                folder.rename(target)
            _fsync_folder(target.parent)
        record = {"step": step, "ds": ds, "digest": digest, "manifest": sha256_of(manifest)}
        ours = self.put_if_absent(f"{key}/{RECORD}", canonical_json(record))
        standing = self.find(step, ds)
        assert standing is not None  # noqa: S101 (put_if_absent has just seen it)
        if not ours and standing.digest != digest and target.exists():
            shutil.rmtree(target)
        return standing, ours

    def verify(self, commit: Commit) -> None:
        """Raises CorruptError where a file, the manifest or the commit record disagree."""
        place = commit.folder.relative_to(self.root)
        data = self.read(f"{place.parent}/{RECORD}")
        record = json.loads(data) if data else {}
        try:
            manifest_bytes = (commit.folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise CorruptError(f"{commit.folder}: {MANIFEST} is missing; {self._remedy(commit)}") from None
        if sha256_of(manifest_bytes) != record.get("manifest"):
            raise CorruptError(
                f"{commit.folder / MANIFEST}: digest {sha256_of(manifest_bytes)[:12]} is not the committed "
                f"{str(record.get('manifest'))[:12]}; {self._remedy(commit)}"
            )
        expected, found = json.loads(manifest_bytes)["files"], files_of(commit.folder)
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                was, now = (side[name]["sha256"][:12] if name in side else "no such file" for side in (expected, found))
                raise CorruptError(
                    f"{commit.folder / name}: digest {now} is not the committed {was}; {self._remedy(commit)}"
                )

    def _remedy(self, commit: Commit) -> str:
        return (
            "restore the file from a backup, or compute the day again in a new generation:"
            f" recloop chain replay {self.options} --from {commit.ds}"
        )

    # scratch

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder to write into, on the store's own file system. Leftovers of killed runs are removed."""
        top = self.root / ".scratch"
        top.mkdir(parents=True, exist_ok=True)
        for old in top.iterdir():
            _remove_if_abandoned(old)
        folder = top / uuid.uuid4().hex
        with FileLock(_lock_of(folder)):
            folder.mkdir(0o700)  # under the lock: before it, others would take the folder for a leftover
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)

    @contextlib.contextmanager
    def resume_folder(self, name: str, key: str) -> Iterator[Path | None]:
        """A folder that a killed run leaves to the next one of equal `key`; a run that ends removes it, and so does one
        of another key. None where another process is at it: what it does is not shared."""
        place = self.resume_place(name, key)
        top = place.parent
        top.mkdir(parents=True, exist_ok=True)
        lock = FileLock(top.parent / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield None
            return
        with contextlib.ExitStack() as held:
            held.callback(lock.release)
            for other in top.iterdir():
                if other.name != key:
                    shutil.rmtree(other, ignore_errors=True)
            yield place
            shutil.rmtree(top, ignore_errors=True)

    def resume_place(self, name: str, key: str) -> Path:
        """Where that folder is, or would be."""
        return self.root / ".resume" / name / key

    def keep_rejected(self, step: str, ds: str, folder: Path) -> Path:
        """Keeps what a refused step wrote (a validation's docs), outside the committed history."""
        target = self.root / "rejected" / ds / step
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, target)
        return target

    def write_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Writes or replaces a record that no digest depends on."""
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        aside.write_bytes(canonical_json(record))
        aside.rename(target)

    def run_record(self, commit: Commit) -> RunRecord:
        """What the runner kept of the run that made a commit, see `record_key`; {} where it kept nothing."""
        data = self.read(record_key(commit.generation, commit.ds, commit.step))
        record: RunRecord = json.loads(data) if data else {}
        return record

    def note(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the journal of runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / JOURNAL).open("a") as stream:
            stream.write(json.dumps(entry, sort_keys=True) + "\n")


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_if_abandoned(path: Path) -> None:
    """Removes a scratch folder whose lock nobody holds, and the lock."""
    folder = path.with_name(path.name.removesuffix(".lock"))
    with contextlib.suppress(Timeout), FileLock(_lock_of(folder), blocking=False):
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)


def _fsync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
