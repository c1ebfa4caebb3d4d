"""The store: committed outputs of steps, each a folder whose content decides its digest.

    STORE/SCENARIO/g0000/DS/STEP/commit.json              the commit record, put-if-absent: exists or not, never changes
    STORE/SCENARIO/g0000/DS/STEP/<manifest>/manifest.json digest of every file, of inputs, config and code
    STORE/SCENARIO/g0000/DS/STEP/<manifest>/...           the files
    STORE/SCENARIO/g0001/generation.json                  the day from which a corrected history replaces the older
    STORE/SCENARIO/runs/, journal.jsonl, rejected/        times and metrics of runs; never part of a digest

A step writes into scratch, files are fsynced, the manifest comes last, the folder is moved in by one rename, and one
put-if-absent of the commit record makes it visible. Killed anywhere before that, nothing was written. The folder's name
is the digest of its manifest: a record can't point to the folder of a run with other inputs, config or code.
Only `tasks.store.objects` touches the place itself.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from feature_jobs.control_records import checked_name, read_record
from feature_jobs.errors import BadInputError, CorruptError, RetryLaterError
from tasks.store.digests import MANIFEST, canonical_json, sha256_of
from tasks.store.keys import FOLDER_NAME, RECORD, Place, collected_key, commit_key, place_of, record_key
from tasks.store.objects import files_of, remove_empty_folders
from tasks.store.places import normalized, objects_at
from tasks.store.record_store import RecordStore
from tasks.store.records import (
    Collected,
    CommitRecord,
    Facts,
    Manifest,
    RunRecord,
    Source,
    holder_of,
)

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
    _read: list[Manifest] = field(default_factory=list, repr=False, compare=False)

    @property
    def key(self) -> str:
        """Key below which its files and its manifest lie."""
        return f"{commit_key(self.generation, self.ds, self.step)}/{self.name}"

    @property
    def uri(self) -> str:
        """Path or URL of its files."""
        return f"{self.store.url}/{self.key}"

    @property
    def source(self) -> Source:
        """Its record, as another manifest names it."""
        return {
            "record": f"{commit_key(self.generation, self.ds, self.step)}/{RECORD}",
            "manifest": self.manifest_digest,
        }

    @property
    def folder(self) -> Path:
        """Its files, in a folder on this machine. Raises BadInputError where they were deleted as no longer needed."""
        self.store.require_kept(self)
        return self.store.objects.fetch(self.key, self.manifest["files"])

    @property
    def manifest(self) -> Manifest:
        """The manifest, read once. Raises CorruptError where it is not the committed one."""
        if not self._read:  # functools.cached_property would hold one lock for all commits while it reads
            self._read.append(self.store.manifest_of(self))
        return self._read[0]


Output = TypeVar("Output", Place, Commit)


def open_store(url: str | Path, scenario_name: str, scenario_option: str | None = None) -> ScenarioStore:
    """The scenario's part of the store: below a folder, or below the URL of an object store.

    `scenario_option`: see `Scenario.option`; default `-s scenario_name`. Raises BadInputError, see `normalized`.
    """
    return ScenarioStore(objects_at(f"{normalized(str(url))}/{scenario_name}"), scenario_option)


class ScenarioStore(RecordStore):
    """Everything kept for one scenario: its records, and the committed outputs of its steps."""

    # committed outputs

    def find(self, step: str, ds: str, generation: int | None = None) -> Commit | None:
        """The committed output of a step on a day, or None."""
        return self.commit_at(commit_key(self.generation_of(ds, generation), ds, step))

    def commit_at(self, key: str) -> Commit | None:
        """The commit whose record lies below `key`."""
        found = self.read_commit(key)
        return found[0] if found else None

    def read_commit(self, key: str) -> tuple[Commit, bool] | None:
        """The same, and if the record has exactly the bytes that its writer gave it."""
        place = place_of(key)
        if place is None:
            return None
        generation, ds, step = place
        found = self.record(f"{key}/{RECORD}", CommitRecord, self.remedy(ds))
        if found is None:
            return None
        record, record_digest = found
        folder = record["digest" if "folder" not in record else "manifest"][:FOLDER_NAME]  # earlier releases: by files
        if (record["step"], record["ds"], record.get("folder", folder)) != (step, ds, folder):
            raise CorruptError(f"{self.url}/{key}/{RECORD}: is not the record of {step} of {ds}; {self.remedy(ds)}")
        checked_name(folder, f"{self.url}/{key}/{RECORD}", self.remedy(ds))
        commit = Commit(step, ds, generation, record["digest"], record["manifest"], folder, self)
        return commit, record_digest == sha256_of(canonical_json(record))

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
        # Its digest is right, but the record that names it may have been changed to name another output's.
        said, is_so = (manifest["step"], manifest["ds"], manifest["digest"]), (commit.step, commit.ds, commit.digest)
        if said != is_so or sha256_of(canonical_json(manifest["files"])) != commit.digest:
            raise CorruptError(f"{self.url}/{key}: does not describe the output that the commit record names; {remedy}")
        for name in manifest["files"]:
            checked_name(name, f"{self.url}/{key}", remedy)
        return manifest

    def file_of(self, commit: Commit, name: str) -> bytes | None:
        """A file of a commit, None where it has no such file. Raises CorruptError where it is not the committed one."""
        self.require_kept(commit)
        file, key = commit.manifest["files"].get(name), f"{commit.key}/{name}"
        if file is None:
            return None
        data = self.read(key, self.remedy(commit.ds))
        if data is None or sha256_of(data) != file["sha256"]:
            raise CorruptError(f"{self.url}/{key}: is not the committed file; {self.remedy(commit.ds)}")
        return data

    def commit_keys(self) -> list[str]:
        """Returns the keys of all generations' outputs that have a commit record, readable or not."""
        return [commit_key(*place) for place in self.places()]

    def places(self) -> list[Place]:
        """Generation, day and step of each commit record, readable or not."""
        found = (place_of(key.removesuffix(f"/{RECORD}")) for key in self.keys(f"g*/*/*/{RECORD}"))
        return [place for place in found if place is not None]

    def commits(self) -> list[Commit]:
        """Every committed output of every generation, in the order generation, day, step.

        A damaged record of a day that a newer generation holds is left out: computing it again was the remedy.
        """
        found = self.unless_replaced(lambda place: self.commit_at(commit_key(*place)), self.places())
        return [commit for commit in found if commit is not None]

    def unless_replaced(self, read: Callable[[Output], T], outputs: Iterable[Output]) -> list[T]:
        """The result of `read` for each output. An output for which it raises CorruptError is left out where a newer
        generation holds its day: computing it again was the remedy."""
        generations = self.generations()

        def attempt(output: Output) -> list[T]:
            try:
                return [read(output)]
            except CorruptError:
                if holder_of(output.ds, generations) == output.generation:
                    raise
                return []

        return list(itertools.chain.from_iterable(self.objects.each(attempt, outputs)))

    def commits_of(self, ds: str) -> list[Commit]:
        """Returns the commits of a day, as seen from the newest generation."""
        return self.commits_on(ds, self.generation_of(ds))

    def commits_on(self, ds: str, generation: int) -> list[Commit]:
        """Returns the commits of a day in a generation."""
        keys = self.keys(f"g{generation:04}/{ds}/*/{RECORD}")
        found = self.objects.each(self.commit_at, [key.removesuffix(f"/{RECORD}") for key in keys])
        return [commit for commit in found if commit is not None]

    def is_committed(self, digest: str, ds: str, generation: int) -> bool:
        """Says if a step's output with that digest is committed on a day of a generation."""
        return any(commit.digest == digest for commit in self.commits_on(ds, generation))

    def find_commit(self, step: str, digest: str) -> Commit | None:
        """The committed output with that digest, of any day and generation."""
        return next((c for c in self.commits() if c.step == step and c.digest == digest), None)

    def commit(
        self, step: str, ds: str, folder: Path, facts: Facts, generation: int | None = None
    ) -> tuple[Commit, bool]:
        """Commits a finished folder; returns the commit that stands, and True if it is ours.

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
            # Again, as the upload may have taken long: a replay that began meanwhile holds the day now.
            self._require_current(step, ds, number)
            if self.put_if_absent(f"{key}/{RECORD}", canonical_json(record)):
                self._remove_leftovers(key, keep=mine)
                return mine, True
            standing = self.commit_at(key)
            assert standing is not None  # noqa: S101 (put_if_absent has just seen it)
            # An equal commit has the same folder, which must stay.
            if standing != mine:
                self.objects.delete(mine.key)
        return standing, False

    def _remove_leftovers(self, key: str, keep: Commit) -> None:
        """Removes files of killed runs below `key` that were not committed. The record stands: no run needs them."""
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
        """Proves the files of `commit.folder` for a step. Raises CorruptError where a file, the manifest or the commit
        record disagree, and BadInputError where the files were deleted as no longer needed."""
        files = self.manifest_of(commit)["files"]  # read again: it may have changed since the commit was found
        self.require_kept(commit)
        try:
            self.objects.proven(commit.key, files)
        except CorruptError as error:
            raise CorruptError(f"{error}; {self.remedy(commit.ds)}") from None

    def read_file(self, commit: Commit, name: str) -> bytes:
        """A small file of a commit alone: a folder would come whole from an object store. Raises CorruptError where it
        is not the committed one."""
        place = f"{commit.key}/{name}"
        data = self.read(place, self.remedy(commit.ds))
        if data is None or sha256_of(data) != commit.manifest["files"][name]["sha256"]:
            problem = "missing" if data is None else "not as it was committed"
            raise CorruptError(f"{self.url}/{place}: {problem}; {self.remedy(commit.ds)}")
        return data

    # files that are no longer needed

    def collect(self, commit: Commit, reason: str) -> None:
        """Deletes the files of a commit. Its record and manifest stay, so that other digests still have their proof."""
        files = commit.manifest["files"]
        # Before the first file goes, so that a reader that misses one finds the reason.
        self.put_if_absent(collected_key(commit.generation, commit.ds, commit.step), canonical_json({"reason": reason}))
        self.objects.delete_files(commit.key, files)

    def require_kept(self, commit: Commit) -> None:
        """Raises BadInputError where its files were deleted as no longer needed."""
        if (reason := self._collected(commit)) is not None:
            raise BadInputError(
                f"{commit.uri}: its files were deleted as no longer needed ({reason}); to have them"
                f" again, compute it again from a DAY whose day before is kept: recloop chain replay {self.options}"
                " --from DAY"
            )

    def is_collected(self, commit: Commit) -> bool:
        """Says if its files were deleted as no longer needed."""
        return self._collected(commit) is not None

    def _collected(self, commit: Commit) -> str | None:
        key = collected_key(commit.generation, commit.ds, commit.step)
        found = self.record(key, Collected, f"remove it, or {self.remedy(commit.ds)}")
        return found[0]["reason"] if found else None

    def remedy(self, ds: str) -> str:
        """Returns the remedy where an output of a day is damaged."""
        return (
            "restore the file from a backup, or compute the day again in a new generation:"
            f" recloop chain replay {self.options} --from {ds}"
        )

    # scratch, and records that no digest depends on

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """A folder to write into. Leftovers of killed runs are removed."""
        return self.objects.scratch.folder()

    def keep_rejected(self, step: str, ds: str, folder: Path) -> str:
        """Keeps a refused step's files (a validation's docs), outside the committed history; returns the place."""
        key = f"rejected/{ds}/{step}"
        self.objects.delete(key)
        self.objects.publish(folder, key, files_of(folder))
        return f"{self.url}/{key}"

    def run_record(self, commit: Commit) -> RunRecord:
        """Returns the record of the run that made a commit, see `record_key`; {} where the runner kept none."""
        key = record_key(commit.generation, commit.ds, commit.step)
        found = self.record(key, RunRecord, "remove it: it holds only times and metrics")
        return found[0] if found else {}

    def committed_at(self, commit: Commit) -> float:
        """Returns the time at which the commit record was written, in seconds since 1970; no digest depends on it."""
        return self.objects.time_of(f"{commit_key(commit.generation, commit.ds, commit.step)}/{RECORD}")
