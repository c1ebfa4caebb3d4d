"""Types of the store's JSON: commit records, manifests, generations, records of runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import (
    Any,
    NotRequired,  # pydantic needs these in Python 3.11
)

from typing_extensions import TypedDict

from feature_jobs.errors import CorruptError
from tasks.store.digests import MANIFEST, sha256_of
from tasks.store.keys import generation_key


class FileFacts(TypedDict):
    """A file of an output, as the manifest names it."""

    sha256: str
    bytes: int


Digests = str | dict[str, str] | None
"""The digest of an input, the digests of several days, or nothing where there was no such input."""


class Source(TypedDict):
    """An input's commit: the key of its record, and the digest of the manifest that the record names."""

    record: str
    manifest: str


class Facts(TypedDict, total=False):
    """Facts about a step's run that go into the manifest, beside those about its files.

    `settings` are the values of the scenario that decided the output, by config path. `parent` is there where the step
    makes a link of the chain. `sources` prove the inputs, and `appended` the newest record of the log that the step
    appends to, as it was when the step ended: both make one graph of all that the store holds. `reused_from` is the
    older generation from which the files were taken over, because the step would have written them again; nothing is
    proven by it, so that the older commit may be damaged or deleted since.
    """

    scenario: str
    inputs: dict[str, Digests]
    sources: list[Source]
    appended: Source
    config: str
    settings: dict[str, Any]
    code: str
    gate: str | None
    parent: str | None
    reused_from: int


class Manifest(Facts):
    """manifest.json of a committed output. `generation` names the record of its generation, and so proves it."""

    step: str
    ds: str
    digest: str
    files: dict[str, FileFacts]
    generation: NotRequired[Source | None]


class CommitRecord(TypedDict):
    """commit.json. `digest` of the files' names and content, `manifest` of the manifest; `folder` holds both."""

    step: str
    ds: str
    digest: str
    manifest: str
    folder: NotRequired[str]


class Collected(TypedDict):
    """collected.json: the files of a commit were deleted as no longer needed, its record and manifest stay."""

    reason: str


class RunRecord(TypedDict, total=False):
    """Record of the run that made a commit; no digest depends on it. `metrics` and `series`: see tasks.contract;
    `system`: system metrics by name, `seconds`: of `compute` and `imports`."""

    metrics: dict[str, Any]
    series: Any
    system: dict[str, list[float]]
    seconds: dict[str, float]


# Not a class, because a keyword of Python such as `from` can't be the name of a field.
GenerationRecord = TypedDict(
    "GenerationRecord",
    {
        "generation": int,
        "from": str,
        "to": NotRequired[str | None],
        "reason": str,
        "forgets": NotRequired[bool],
        "computes_all": NotRequired[bool],
        "previous": NotRequired[str | None],
    },
)
"""generation.json. `to`: the last day that the generation before had; `previous`: digest of the record before.
`forgets`: rows of users were left out; the users' ids are not kept anywhere. `computes_all`: see Generation."""


def with_manifest(files: Mapping[str, FileFacts], manifest: bytes | None) -> dict[str, FileFacts]:
    """The files below a key with the manifest as one of them, where there is one."""
    # A manifest can't list itself: its own digest would be a part of what is digested.
    if manifest is None:
        return dict(files)
    return {**files, MANIFEST: {"sha256": sha256_of(manifest), "bytes": len(manifest)}}


@dataclass(frozen=True)
class Generation:
    """A history of the chain. `from_ds`: the first day that it replaces, `to_ds`: the last one that was there to be
    replaced; the first generation has neither. `digest` of its record. `forgets`: it leaves rows of users out.
    `computes_all`: it takes no output over from older generations."""

    number: int
    from_ds: str | None
    to_ds: str | None
    reason: str
    digest: str | None
    forgets: bool = False
    computes_all: bool = False

    @property
    def source(self) -> Source | None:
        """Its record, as a manifest names it; None for the first generation, which has no record."""
        return None if self.digest is None else {"record": generation_key(self.number), "manifest": self.digest}


def holder_of(ds: str, generations: list[Generation], seen_from: int | None = None) -> int:
    """The generation that holds a day, as seen from a generation (default: the newest). Raises CorruptError where that
    one does not exist: a record names it whose own generation was lost."""
    number = len(generations) - 1 if seen_from is None else seen_from
    if not 0 <= number < len(generations):
        raise CorruptError(
            f"generation {number} is named by a record, but the newest is {len(generations) - 1}; restore"
            f" {generation_key(number)} of the store from a backup"
        )
    # A generation replaces its first day and all later ones; days before that are still an older one's.
    while number > 0 and ds < (generations[number].from_ds or ""):
        number -= 1
    return number
