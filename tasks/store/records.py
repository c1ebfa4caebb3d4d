"""What the store's JSON holds: manifests, records of runs, generations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict


class FileFacts(TypedDict):
    """A file of an output, as the manifest names it."""

    sha256: str
    bytes: int


Digests = str | dict[str, str] | None
"""The digest of an input, the digests of several days, or nothing where there was no such input."""


class Facts(TypedDict, total=False):
    """What the runner knows of a step's run besides its files; goes into the manifest.

    `settings` are the values of the scenario that decided the output, by config path. `parent` is there where the step
    makes a link of the chain.
    """

    scenario: str
    inputs: dict[str, Digests]
    config: str
    settings: dict[str, Any]
    code: str
    gate: str | None
    parent: str | None


class Manifest(Facts, total=False):
    """manifest.json of a committed output."""

    step: str
    ds: str
    digest: str
    files: dict[str, FileFacts]


class RunRecord(TypedDict, total=False):
    """What is kept of the run that made a commit; no digest depends on it. `metrics` and `series`: see tasks.contract;
    `system`: system metrics by name, `seconds`: of `compute` and `imports`."""

    metrics: Mapping[str, Any]
    series: Any
    system: Mapping[str, list[float]]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Generation:
    """A history of the chain. `from_ds`: the first day that it replaces; the first generation has none."""

    number: int
    from_ds: str | None
    reason: str
