"""The store: committed outputs of steps, each a folder whose content decides its digest.

    STORE/SCENARIO/g0000/DS/STEP/commit.json              the commit record, put-if-absent: exists or not, never changes
    STORE/SCENARIO/g0000/DS/STEP/<manifest>/manifest.json digest of every file, of inputs, config and code
    STORE/SCENARIO/g0000/DS/STEP/<manifest>/...           the files
    STORE/SCENARIO/g0001/generation.json                  from which day a corrected history replaces the older one
    STORE/SCENARIO/runs/, journal.jsonl, rejected/        times and metrics of runs; never part of a digest

A step writes into scratch, files are fsynced, the manifest comes last, the folder is moved in by one rename, and one
put-if-absent of the commit record makes it visible. Killed anywhere before that, nothing was written. The folder's name
is the digest of its manifest: a record can't point to the folder of a run with other inputs, config or code.
Only `tasks.store.objects` touches the place itself.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from feature_jobs.control_records import RESTORE, checked_name, read_record
from feature_jobs.errors import BadInputError, CorruptError, RetryLaterError
from tasks.store.digests import MANIFEST, canonical_json, finite, sha256_of
from tasks.store.keys import JOURNAL, RECORD, collected_key, commit_key, generation_key, record_key
from tasks.store.objects import LocalObjects, Objects, files_of, remove_empty_folders
from tasks.store.places import is_remote, objects_at
from tasks.store.records import (
    Collected,
    CommitRecord,
    Facts,
    Generation,
    GenerationRecord,
    Manifest,
    RunRecord,
    Source,
)

DEFAULT_STORE = ".recloop/store"
FOLDER_NAME = 16  # hex digits of the manifest's digest
T = TypeVar("T")


@dataclass(frozen=True)
class Commit:
    """A committed output: `digest` of its files, `manifest_digest` of all that is known of it, `name` of its folder."""

    step: str
    ds: str
    generation: int
    digest: str
    manifest_digest: str
    name: str
    store: ScenarioStore = field(repr=False, compare=False)

    @property
    def key(self) -> str:
        """Key below which its files and its manifest lie."""
        return f"{commit_key(self.generation, self.ds, self.step)}/{self.name}"

    @property
    def uri(self) -> str:
        """Where its files lie."""
        return f"{self.store.url}/{self.key}"

    @property
    def source(self) -> Source:
        """How another manifest names it."""
        return {
            "record": f"{commit_key(self.generation, self.ds, self.step)}/{RECORD}",
            "manifest": self.manifest_digest,
        }

    @property
    def folder(self) -> Path:
        """Its files, in a folder on this machine."""
        return self.store.objects.fetch(self.key, self.manifest["files"])

    @property
    def manifest(self) -> Manifest:
        """What the manifest says. Raises CorruptError where it is not the committed one."""
        return self.store.manifest_of(self)


def open_store(url: str | Path, scenario_name: str) -> ScenarioStore:
    """The scenario's part of the store: below a folder, or below the URL of an object store."""
    text = str(url).removeprefix("file://")
    place = text.rstrip("/") if is_remote(text) else Path(text).resolve()
    return ScenarioStore(objects_at(f"{place}/{scenario_name}"))


class ScenarioStore:
    """Everything kept for one scenario: in the folder `place`, or in what Objects stands for."""

    def __init__(self, place: Path | Objects) -> None:
        self.objects: Objects = LocalObjects(place) if isinstance(place, Path) else place
        self.scenario_option = f"-s {self.url.rpartition('/')[2]}"  # a command knows more: the file, and its settings

    @property
    def url(self) -> str:
        """Where the scenario's part is, as messages name it."""
        return self.objects.url

    @property
    def work(self) -> Path:
        """A folder on this machine for locks and for unfinished work. Where the store is local, it is the store's."""
        return self.objects.scratch.work

    @property
    def option(self) -> str:
        """` --store PATH`, empty for the default: what a printed command needs so that it runs when it is copied."""
        store = self.url.rpartition("/")[0]
        return "" if store == str(Path(DEFAULT_STORE).resolve()) else f" --store {shlex.quote(store)}"

    @property
    def options(self) -> str:
        """What a printed command needs to mean this scenario in this store."""
        return self.scenario_option + self.option

    # control records

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the record whole, or returns False where it exists already."""
        return self.objects.put_if_absent(key, data)

    def read(self, key: str, remedy: str = RESTORE) -> bytes | None:
        """The record, or None."""
        return self.objects.read(key, remedy)

    def keys(self, pattern: str) -> list[str]:
        """Keys of the records that match a pattern, sorted; see Objects."""
        return self.objects.keys(pattern)

    def record(self, key: str, kind: type[T], remedy: str) -> tuple[T, str] | None:
        """A record with its digest, or None. Raises CorruptError, with the remedy, where it is not of that kind."""
        data = self.read(key, remedy)
        return None if data is None else (read_record(data, kind, f"{self.url}/{key}", remedy), sha256_of(data))

    def newest(self, log: str) -> Source | None:
        """How a manifest names the newest record of a log, a folder of numbered records; None where it is empty."""
        keys = self.keys(f"{log}/*.json")
        return {"record": keys[-1], "manifest": sha256_of(self.read(keys[-1]) or b"")} if keys else None

    # generations

    def generations(self) -> list[Generation]:
        """All generations, oldest first. Raises CorruptError where a record does not follow the one before."""
        found = [Generation(0, None, None, "first", None)]
        while True:
            key = generation_key(len(found))
            remedy = (
                "restore it from a backup, or move this generation's folder out of the store and start it again:"
                f" recloop chain replay {self.options}"
            )
            if (read := self.record(key, GenerationRecord, remedy)) is None:
                return found
            record, digest = read
            if record["generation"] != len(found) or not follows(record.get("previous"), found[-1].digest):
                raise CorruptError(f"{self.url}/{key}: does not follow the generation before; {remedy}")
            found.append(Generation(len(found), record["from"], record.get("to"), record["reason"], digest))

    @property
    def generation(self) -> int:
        """The newest generation; the only one that is written to."""
        return len(self.generations()) - 1

    def new_generation(self, from_ds: str, reason: str, to_ds: str | None = None) -> int:
        """Starts a generation whose days from `from_ds` on replace the older ones; those stay readable."""
        newest = self.generations()[-1]
        record: GenerationRecord = {
            "generation": newest.number + 1,
            "from": from_ds,
            "to": to_ds,
            "reason": reason,
            "previous": newest.digest,
        }
        if not self.put_if_absent(generation_key(newest.number + 1), canonical_json(record)):
            raise RetryLaterError(
                f"generation {newest.number + 1} was started by another run just now; see"
                f" recloop chain log {self.options} and run this again"
            )
        return newest.number + 1

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
        return self.commit_at(commit_key(self.generation_of(ds, generation), ds, step))

    def commit_at(self, key: str) -> Commit | None:
        """The commit whose record lies below `key`."""
        generation, ds, step = key.split("/")
        found = self.record(f"{key}/{RECORD}", CommitRecord, self.remedy(ds))
        if found is None:
            return None
        record, _ = found
        if (record["step"], record["ds"]) != (step, ds):
            raise CorruptError(
                f"{self.url}/{key}/{RECORD}: is the record of {record['step']} of {record['ds']}; {self.remedy(ds)}"
            )
        folder = record.get("folder") or record["digest"][:FOLDER_NAME]  # earlier releases named it by its files
        checked_name(folder, f"{self.url}/{key}/{RECORD}", self.remedy(ds))
        return Commit(step, ds, int(generation[1:]), record["digest"], record["manifest"], folder, self)

    def manifest_of(self, commit: Commit) -> Manifest:
        """The manifest that a commit record names. Raises CorruptError where another one lies there, or none."""
        key, remedy = f"{commit.key}/{MANIFEST}", self.remedy(commit.ds)
        data = self.read(key, remedy)
        if data is None:
            raise CorruptError(f"{self.url}/{key}: missing; {remedy}")
        if (found := sha256_of(data)) != commit.manifest_digest:
            raise CorruptError(
                f"{self.url}/{key}: digest {found[:12]} is not the committed {commit.manifest_digest[:12]}; {remedy}"
            )
        manifest = read_record(data, Manifest, f"{self.url}/{key}", remedy)
        said, is_so = (manifest["step"], manifest["ds"], manifest["digest"]), (commit.step, commit.ds, commit.digest)
        if said != is_so or sha256_of(canonical_json(manifest["files"])) != commit.digest:
            raise CorruptError(f"{self.url}/{key}: does not describe what the commit record names; {remedy}")
        for name in manifest["files"]:
            checked_name(name, f"{self.url}/{key}", remedy)
        return manifest

    def commit_keys(self) -> list[str]:
        """Where the outputs of all generations lie that have a commit record, readable or not."""
        return [key.removesuffix(f"/{RECORD}") for key in self.keys(f"g*/*/*/{RECORD}")]

    def commits(self) -> list[Commit]:
        """Every committed output of every generation, in the order generation, day, step."""
        found = (self.commit_at(key) for key in self.commit_keys())
        return [commit for commit in found if commit is not None]

    def commits_of(self, ds: str) -> list[Commit]:
        """What is committed of a day, as seen from the newest generation."""
        keys = self.keys(f"g{self.generation_of(ds):04}/{ds}/*/{RECORD}")
        found = (self.commit_at(key.removesuffix(f"/{RECORD}")) for key in keys)
        return [commit for commit in found if commit is not None]

    def is_committed(self, digest: str, ds: str, generation: int) -> bool:
        """Whether a step's output with that digest is committed on a day of a generation."""
        keys = self.keys(f"g{generation:04}/{ds}/*/{RECORD}")
        return any((c := self.commit_at(key.removesuffix(f"/{RECORD}"))) and c.digest == digest for key in keys)

    def find_commit(self, step: str, digest: str) -> Commit | None:
        """The committed output with that digest, in whatever day and generation."""
        return next((c for c in self.commits() if c.step == step and c.digest == digest), None)

    def find_by_digest(self, step: str, digest: str) -> Path | None:
        """Its folder."""
        commit = self.find_commit(step, digest)
        return commit.folder if commit else None

    def commit(
        self, step: str, ds: str, folder: Path, facts: Facts, generation: int | None = None
    ) -> tuple[Commit, bool]:
        """Commits a finished folder; returns the commit that stands and whether it is ours.

        `facts` go into the manifest (inputs, config, code, gate). `generation` held the day when the inputs were read
        (default: the one that holds it now). Where another run committed first, theirs stands. Raises RetryLaterError
        where a newer generation holds the day by now: the inputs were those of the older one.
        """
        number = self.generation_of(ds) if generation is None else generation
        source = self.generations()[number].source
        self._require_current(step, ds, number)
        remove_empty_folders(folder)
        files = files_of(folder)
        digest = sha256_of(canonical_json(files))
        described: Manifest = {**facts, "step": step, "ds": ds, "digest": digest, "files": files, "generation": source}
        manifest = canonical_json(described)
        (folder / MANIFEST).write_bytes(manifest)
        name = sha256_of(manifest)[:FOLDER_NAME]
        mine = Commit(step, ds, number, digest, sha256_of(manifest), name, self)
        key = commit_key(number, ds, step)
        if (standing := self.commit_at(key)) is None:
            self.objects.publish(folder, mine.key, files)
            record: CommitRecord = {
                "step": step,
                "ds": ds,
                "digest": digest,
                "manifest": mine.manifest_digest,
                "folder": name,
            }
            self._require_current(step, ds, number)
            if self.put_if_absent(f"{key}/{RECORD}", canonical_json(record)):
                self._remove_leftovers(key, keep=mine)
                return mine, True
            standing = self.commit_at(key)
            assert standing is not None  # noqa: S101 (put_if_absent has just seen it)
            if standing != mine:
                self.objects.delete(mine.key)
        return standing, False

    def _remove_leftovers(self, key: str, keep: Commit) -> None:
        """Removes what killed runs published below `key` without a commit. The record stands, so no run needs it."""
        for other in {found.rsplit("/", 1)[0] for found in self.keys(f"{key}/*/*")} - {keep.key}:
            self.objects.delete(other)

    def _require_current(self, step: str, ds: str, generation: int) -> None:
        newest = self.generation_of(ds)
        if newest != generation:
            raise RetryLaterError(
                f"{step} of {ds}: was computed for generation {generation}, but generation {newest} holds the day now;"
                f" nothing was committed, run it again: recloop chain log {self.options} shows the generations"
            )

    def verify(self, commit: Commit) -> None:
        """Proves what `commit.folder` gives to a step. Raises CorruptError where a file, the manifest or the commit
        record disagree, and BadInputError where the files were deleted as no longer needed."""
        files = commit.manifest["files"]
        if self.is_collected(commit):
            raise BadInputError(
                f"{commit.uri}: its files were deleted as no longer needed ({self._collected(commit)}); to have them"
                f" again, compute this day again from one that is kept: recloop chain replay {self.options}"
            )
        try:
            self.objects.proven(commit.key, files)
        except CorruptError as error:
            raise CorruptError(f"{error}; {self.remedy(commit.ds)}") from None

    # files that are no longer needed

    def collect(self, commit: Commit, reason: str) -> None:
        """Deletes the files of a commit. Its record and manifest stay, so that other digests still have their proof."""
        files = commit.manifest["files"]
        self.put_if_absent(collected_key(commit.generation, commit.ds, commit.step), canonical_json({"reason": reason}))
        for name in files:
            self.objects.delete(f"{commit.key}/{name}")

    def is_collected(self, commit: Commit) -> bool:
        """Whether its files were deleted as no longer needed."""
        return self.read(collected_key(commit.generation, commit.ds, commit.step)) is not None

    def _collected(self, commit: Commit) -> str:
        found = self.record(collected_key(commit.generation, commit.ds, commit.step), Collected, self.remedy(commit.ds))
        return found[0]["reason"] if found else ""

    def remedy(self, ds: str) -> str:
        """What to do where an output of a day is damaged."""
        return (
            "restore the file from a backup, or compute the day again in a new generation:"
            f" recloop chain replay {self.options} --from {ds}"
        )

    # scratch, and what no digest depends on

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """A folder to write into. Leftovers of killed runs are removed."""
        return self.objects.scratch.folder()

    def keep_rejected(self, step: str, ds: str, folder: Path) -> str:
        """Keeps what a refused step wrote (a validation's docs), outside the committed history; returns where."""
        key = f"rejected/{ds}/{step}"
        self.objects.delete(key)
        self.objects.publish(folder, key, files_of(folder))
        return f"{self.url}/{key}"

    def write_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Writes or replaces a record that no digest depends on; a number that is not finite becomes null."""
        self.objects.put(key, canonical_json(finite(dict(record))))

    def run_record(self, commit: Commit) -> RunRecord:
        """What the runner kept of the run that made a commit, see `record_key`; {} where it kept nothing."""
        key = record_key(commit.generation, commit.ds, commit.step)
        found = self.record(key, RunRecord, "remove it: it holds only times and metrics")
        return found[0] if found else {}

    def committed_at(self, commit: Commit) -> float:
        """When the commit record was written, in seconds since 1970; no digest depends on it."""
        return self.objects.time_of(f"{commit_key(commit.generation, commit.ds, commit.step)}/{RECORD}")

    def note(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the journal of runs."""
        self.objects.append(JOURNAL, (json.dumps(entry, sort_keys=True) + "\n").encode())

    def journal(self) -> Iterator[dict[str, Any]]:
        """The lines of the journal that can be read, oldest first."""
        for line in self.objects.lines(JOURNAL):
            with contextlib.suppress(ValueError):  # a line that a crash of the machine cut short
                yield json.loads(line)


def follows(named: str | None, before: str | None) -> bool:
    """Whether a record of a log names the one before it, if it names any: records of earlier releases do not."""
    return named is None or named == before
