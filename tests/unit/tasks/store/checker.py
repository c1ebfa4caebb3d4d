"""A second proof of a store, from its bytes alone. It shares no code with tasks.store, so that the two can disagree."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.unit.tasks.store.tiny import DAYS, LINK, WINDOW

Place = tuple[int, str, str]
"""Generation, day, step."""

WRITTEN_BY = {
    "events": "ingest", "history": "ingest", "parent": "train", "checkpoint": "train", "export": "train",
    "validation": "train", "registration": "register", "evaluation": "register",
}  # fmt: skip
"""Input → the step that writes it; the champions are left out, they come from any generation."""


@dataclass
class Found:
    """Contents of a store: generations as (first day, last day), the digest of each commit, the champion log's
    records, commits whose files were deleted, folders without a commit."""

    generations: list[tuple[str, str]] = field(default_factory=list)
    commits: dict[Place, str] = field(default_factory=dict)
    inputs: dict[Place, dict[str, Any]] = field(default_factory=dict)
    champions: list[dict[str, Any]] = field(default_factory=list)
    collected: set[Place] = field(default_factory=set)
    leftovers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def generation_of(self, ds: str, seen_from: int | None = None) -> int:
        number = len(self.generations) if seen_from is None else seen_from
        while number and ds < self.generations[number - 1][0]:
            number -= 1
        return number


def digest(value: Any) -> str:
    """SHA-256 of bytes, or of the JSON that the store writes for a value."""
    return _sha256(value if isinstance(value, bytes) else (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


@functools.lru_cache(maxsize=10_000)
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=10_000)
def _parsed(data: bytes) -> Any:
    return json.loads(data)


def check(objects: Mapping[str, bytes]) -> Found:
    """Reads the records and files of a scenario's part of a store, by key."""
    checker = _Checker(objects)
    for part in (checker.generations, checker.champions, checker.commits, checker.graph):
        try:
            for problem in part():
                checker.found.problems.append(problem)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            checker.found.problems.append(f"{part.__name__}: {error!r}")
    return checker.found


class _Checker:
    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = objects
        self.found = Found()
        self.manifests: dict[Place, dict[str, Any]] = {}
        self.named: dict[str, str] = {}  # key of a record → the digest by which others name it

    def _numbered(self, key: Callable[[int], str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The records of a log, each of which names the one before."""
        number, before = 1, None
        while (data := self.objects.get(key(number))) is not None:
            record = _parsed(data)
            if record["previous"] != before:
                raise ValueError(f"{key(number)}: names {record['previous']} before it, not {before}")
            yield number, record
            number, before = number + 1, digest(data)
            self.named[key(number - 1)] = before

    def generations(self) -> Iterator[str]:
        for number, record in self._numbered(lambda n: f"g{n:04}/generation.json"):
            if record["generation"] != number:
                yield f"generation {number} says {record['generation']}"
            self.found.generations.append((record["from"], record["to"]))

    def champions(self) -> Iterator[str]:
        for number, record in self._numbered(lambda n: f"champion/{n:06}.json"):
            if record["sequence"] != number or record["replaces"] != (number - 1 or None):
                yield f"champion {number}: a fork"
            self.found.champions.append(record)
        if len([key for key in self.objects if key.startswith("champion/")]) != len(self.found.champions):
            yield "champion/: records out of turn"

    def commits(self) -> Iterator[str]:
        for key in sorted(self.objects):
            if not key.endswith("/commit.json"):
                continue
            top, ds, step, _ = key.split("/")
            place, record = (int(top[1:]), ds, step), _parsed(self.objects[key])
            folder = f"{top}/{ds}/{step}/{record['folder']}"
            manifest = _parsed(self.objects[f"{folder}/manifest.json"])
            proof = digest(self.objects[f"{folder}/manifest.json"])
            if (proof, proof[:16]) != (record["manifest"], record["folder"]):
                yield f"{key}: names another manifest"
            if any((d["step"], d["ds"]) != (step, ds) for d in (record, manifest)) or top != f"g{place[0]:04}":
                yield f"{key}: of another place"
            if not record["digest"] == manifest["digest"] == digest(manifest["files"]):
                yield f"{key}: digest"
            if place[0] > len(self.found.generations):
                yield f"{key}: a generation that was not started"
            here = {name.removeprefix(f"{folder}/"): data for name, data in self.objects.items()
                    if name.startswith(f"{folder}/") and not name.endswith("manifest.json")}  # fmt: skip
            if f"{top}/{ds}/{step}/collected.json" in self.objects:
                _parsed(self.objects[f"{top}/{ds}/{step}/collected.json"])
                self.found.collected.add(place)
                self.found.leftovers += [f"{folder}/{name}" for name in here]
            elif {name: {"sha256": digest(data), "bytes": len(data)} for name, data in here.items()} != manifest[
                "files"
            ]:
                yield f"{folder}: other files"
            self.manifests[place] = manifest
            self.found.commits[place] = record["digest"]
            self.found.inputs[place] = manifest["inputs"]
            self.named[key] = record["manifest"]
        folders = {key.rsplit("/", 1)[0] for key in self.objects if key[0] == "g" and key.count("/") > 3}
        self.found.leftovers += sorted(folders - self._committed_folders())

    def _committed_folders(self) -> set[str]:
        folders: set[str] = set()
        for g, ds, step in self.found.commits:
            key = f"g{g:04}/{ds}/{step}"
            top = f"{key}/{_parsed(self.objects[f'{key}/commit.json'])['folder']}"
            folders |= {top, *(f"{top}/{name.rsplit('/', 1)[0]}" for name in self.manifests[g, ds, step]["files"])}
        return folders

    def graph(self) -> Iterator[str]:
        for place, manifest in self.manifests.items():
            number, ds, step = place
            own, above = manifest["generation"], f"g{number:04}/generation.json"
            if own != ({"record": above, "manifest": self.named[above]} if number else None):
                yield f"{place}: of another generation"
            for source in [*manifest["sources"], *([manifest["appended"]] if "appended" in manifest else [])]:
                if self.named.get(source["record"]) != source["manifest"]:
                    yield f"{place}: source {source['record']} has changed"
            yield from self._inputs(place, manifest["inputs"])
            before = DAYS[DAYS.index(ds) - 1] if ds != DAYS[0] else None
            if step == LINK and manifest["parent"] != (self._held(number, LINK, before) if before else None):
                yield f"{place}: parent"
        for entry in self.found.champions:
            if self.found.commits.get((entry["generation"], entry["ds"], LINK)) != entry["checkpoint"]:
                yield f"champion {entry['sequence']}: its checkpoint is not committed"

    def _inputs(self, place: Place, inputs: dict[str, Any]) -> Iterator[str]:
        """Checks that each input equals the output at its place, as seen from the commit's own generation."""
        number, ds, _ = place
        today = DAYS.index(ds)
        for name, value in inputs.items():
            if name not in WRITTEN_BY:
                continue
            step = WRITTEN_BY[name]
            expected: Any = self._held(number, step, ds)
            if name == "history":
                expected = {day: self._held(number, step, day) for day in DAYS[max(0, today - WINDOW) : today]}
            elif name == "parent":
                expected = self._held(number, step, DAYS[today - 1]) if today else None
            if value != expected or (expected is None and name != "parent"):
                yield f"{place}: {name} differs from the output at its place"

    def _held(self, number: int, step: str, ds: str) -> str | None:
        return self.found.commits.get((self.found.generation_of(ds, number), ds, step))
