"""The records of a scenario: small JSON by key, the generations of its history, and the journal of its runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from feature_jobs.control_records import RESTORE, read_record
from feature_jobs.errors import CorruptError, RetryLaterError
from tasks.store.digests import canonical_json, finite, sha256_of
from tasks.store.keys import JOURNAL, RECORD, generation_key, generation_of_folder, log_key
from tasks.store.objects import LocalObjects, Objects
from tasks.store.records import Generation, GenerationRecord, Source, holder_of

DEFAULT_STORE = ".recloop/store"
T = TypeVar("T")


class RecordStore:
    """The records below the folder `place`, or in the given Objects."""

    def __init__(self, place: Path | Objects, scenario_option: str | None = None) -> None:
        self.objects: Objects = LocalObjects(place) if isinstance(place, Path) else place
        self._scenario_option = scenario_option or f"-s {self.url.rpartition('/')[2]}"

    @property
    def url(self) -> str:
        """Path or URL of the scenario's part, for messages."""
        return self.objects.url

    @property
    def work(self) -> Path:
        """A folder on this machine for locks and for unfinished work. Where the store is local, it is the store's."""
        return self.objects.scratch.work

    @functools.cached_property
    def option(self) -> str:
        """` --store PATH`, empty for the default: a printed command needs it to run when it is copied."""
        store = self.url.rpartition("/")[0]
        return "" if store == str(Path(DEFAULT_STORE).resolve()) else f" --store {shlex.quote(store)}"

    @property
    def options(self) -> str:
        """Options that a printed command needs to mean this scenario in this store."""
        return self._scenario_option + self.option

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
        """Returns a log's newest record (a log is a folder of numbered records), as a manifest names it, or None."""
        there = set(self.keys(f"{log}/*.json"))
        keys = list(itertools.takewhile(there.__contains__, (log_key(log, number) for number in itertools.count(1))))
        return {"record": keys[-1], "manifest": sha256_of(self.read(keys[-1]) or b"")} if keys else None

    def write_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Writes or replaces a record that no digest depends on; a number that is not finite becomes null."""
        self.objects.put(key, canonical_json(finite(dict(record))))

    def note(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the journal of runs."""
        self.objects.append(JOURNAL, (json.dumps(entry, sort_keys=True) + "\n").encode())

    def journal(self) -> Iterator[Mapping[str, Any]]:
        """The lines of the journal that can be read, oldest first."""
        for line in self.objects.lines(JOURNAL):
            with contextlib.suppress(ValueError, RecursionError):  # a line that a crash of the machine cut short
                if isinstance(entry := json.loads(line), dict):
                    yield entry

    # generations

    def generations(self) -> list[Generation]:
        """All generations, oldest first. Raises CorruptError where a record does not follow the one before."""
        found = [Generation(0, None, None, "first", None)]
        numbers = [number for number in map(generation_of_folder, self.objects.tops()) if number]
        for number in range(1, max(numbers, default=0) + 1):
            key = generation_key(number)
            remedy = (
                f"restore it from a backup, or move g{number:04} and all later generations out of the store and start"
                f" again: recloop chain replay {self.options} --from DAY, the first day of g{number:04}"
            )
            if (read := self._generation_record(number, remedy)) is None:
                return found  # another process is about to start it
            record, digest = read
            if record["generation"] != number or not follows(record.get("previous"), found[-1].digest):
                raise CorruptError(f"{self.url}/{key}: does not follow the generation before; {remedy}")
            found.append(
                Generation(
                    number,
                    record["from"],
                    record.get("to"),
                    record["reason"],
                    digest,
                    record.get("forgets", False),
                    record.get("computes_all", False),
                )
            )
        return found

    def _generation_record(self, number: int, remedy: str) -> tuple[GenerationRecord, str] | None:
        """The record with its digest, or None where nothing needs it. Raises CorruptError where it was lost: without it
        the days of its generation, and of all later ones, would silently be the older ones again."""
        key = generation_key(number)
        if (found := self.record(key, GenerationRecord, remedy)) is None and (later := self._needs(number)):
            found = self.record(key, GenerationRecord, remedy)  # another process has just written it, and commits
            if found is None:
                raise CorruptError(f"{self.url}/{key}: missing, although {later} is there; {remedy}")
        return found

    def _needs(self, number: int) -> str | None:
        """An output of this generation, or the record or an output of a later one; None where there is none."""
        for top in self.objects.tops():
            other = generation_of_folder(top) or 0
            records = self.keys(generation_key(other)) if other > number else []
            if other >= number and (found := [*records, *self.keys(f"{top}/*/*/{RECORD}")]):
                return found[0]
        return None

    @property
    def generation(self) -> int:
        """The newest generation; the only one that is written to."""
        return len(self.generations()) - 1

    def new_generation(
        self,
        from_ds: str,
        reason: str,
        to_ds: str | None = None,
        *,
        forgets: bool = False,
        computes_all: bool = False,
        after: int | None = None,
    ) -> int:
        """Starts a generation whose days from `from_ds` on replace the older ones; those stay readable. Raises
        RetryLaterError where there is a newer one than `after`, from which it was prepared."""
        newest = self.generations()[-1 if after is None else after]
        record: GenerationRecord = {
            "generation": newest.number + 1,
            "from": from_ds,
            "to": to_ds,
            "reason": reason,
            "previous": newest.digest,
            "forgets": forgets,
            "computes_all": computes_all,
        }
        if not self.put_if_absent(generation_key(newest.number + 1), canonical_json(record)):
            raise RetryLaterError(
                f"generation {newest.number + 1} was started by another run just now; see"
                f" recloop chain log {self.options} and run this again"
            )
        return newest.number + 1

    def holder(self, ds: str, seen_from: int | None = None) -> Generation:
        """The generation that holds day `ds` as seen from another one (default: the newest)."""
        generations = self.generations()  # read once: another process may start one at any moment
        return generations[holder_of(ds, generations, seen_from)]

    def generation_of(self, ds: str, generation: int | None = None) -> int:
        """The number of the generation that holds day `ds` as seen from `generation` (default: the newest)."""
        return self.holder(ds, generation).number


def follows(named: str | None, before: str | None) -> bool:
    """Says if a record of a log names the record before it, or none, as in earlier releases."""
    return named is None or named == before
