"""Expected effects of actions on a store, from its contents: a few lines for each, without the code of tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from feature_jobs.errors import BadInputError, ParentMissingError
from tests.unit.tasks.store.checker import Found, digest
from tests.unit.tasks.store.tiny import DAYS, LINK, STEPS_OF_A_DAY, WINDOW, as_bytes, content

Action = tuple[str, ...]
"""A step and its day, or: replay DAY, rollback VERSION, resume, gc DAYS, verify."""


@dataclass(frozen=True)
class Expected:
    """`ends`: the outcome's word, or the error's class. `digest` of the commit, where it is known beforehand.

    `gains`: kind and version of the record that the champion log gets."""

    ends: str | type[Exception]
    digest: str | None = None
    gains: tuple[str, str] | None = None


def served_in_turn(champions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A rollback returns to the last time when its version served; a resumption changes nothing, and a promotion of
    the version that serves takes its place."""
    stack: list[dict[str, Any]] = []
    for entry in champions:
        if entry["kind"] == "promotion" and stack and stack[-1]["version"] == entry["version"]:
            stack.pop()
        versions = [known["version"] for known in stack]
        if entry["kind"] == "rollback" and entry["version"] in versions:
            stack = stack[: versions.index(entry["version"])]
        if entry["kind"] != "resumption":
            stack.append(entry)
    return stack


def as_of(found: Found, ds: str) -> list[str | None]:
    """Checkpoints of the champion and the former champion for a day."""
    known = [entry for entry in found.champions if entry["ds"] < ds]
    valid = [entry for entry in known if _is_as_committed(found, entry)]
    served = served_in_turn(valid or known)
    former = [entry for entry in served[-2:-1] if _has_files(found, entry)]
    return [entry["checkpoint"] if entry else None for entry in (*served[-1:], *former, None, None)][:2]


def _now(found: Found, entry: Mapping[str, Any]) -> tuple[int, str, str]:
    return found.generation_of(entry["ds"]), entry["ds"], LINK


def _is_as_committed(found: Found, entry: Mapping[str, Any]) -> bool:
    """Says if the day has the entry's checkpoint now: in its own generation, or made again by a replay."""
    return bool(found.commits.get(_now(found, entry)) == entry["checkpoint"])


def _has_files(found: Found, entry: Mapping[str, Any]) -> bool:
    """Says if one of the places of the entry's checkpoint was not deleted."""
    places = {(entry["generation"], entry["ds"], LINK)}
    if _is_as_committed(found, entry):
        places.add(_now(found, entry))
    return not places <= found.collected


def expected_of_step(found: Found, step: str, ds: str, versions: Mapping[str, str]) -> Expected:
    """`versions`: version → checkpoint, as the registry has them."""
    standing = found.commits.get((found.generation_of(ds), ds, step))
    if step == "ingest":
        read = digest_of_files(content("ingest", ds, {}))
        # A day whose files were deleted counts as done: its source is not compared any more.
        is_gone = (found.generation_of(ds), ds, step) in found.collected
        as_before = "already_done" if standing == read or is_gone else BadInputError
        return Expected("done" if standing is None else as_before, standing or read)
    if standing is not None:
        return Expected("already_done", standing)
    today = DAYS.index(ds)
    history = DAYS[max(0, today - WINDOW) : today]
    needed = {"train": [("ingest", ds)], "register": [("train", ds)], "deploy": [("register", ds), ("train", ds)]}[step]
    if step == "train":
        needed += [*(("ingest", day) for day in history), *([("train", DAYS[today - 1])] if today else [])]
    places = [(found.generation_of(day), day, name) for name, day in needed]
    if any(place not in found.commits for place in places):
        return Expected(ParentMissingError)
    if any(place in found.collected for place in places):
        return Expected(BadInputError)
    if step == "deploy":
        return _deploy(found, places[0][0], ds, versions)
    held = [found.commits[place] for place in places]
    inputs = {
        "events": held[0],
        "history": dict(zip(history, held[1:], strict=False)),
        "parent": held[-1] if today else None,
    }
    same = {place for place, read in found.inputs.items() if place[1:] == (ds, "train") and read == inputs}
    reused = Expected("reused" if same - found.collected else "done", digest_of_files(content("train", ds, inputs)))
    return reused if step == "train" else Expected("done")


def _deploy(found: Found, number: int, ds: str, versions: Mapping[str, str]) -> Expected:
    checkpoint = found.commits[number, ds, LINK]
    version = min((int(name) for name, known in versions.items() if known == checkpoint), default=None)
    wanted = found.inputs[number, ds, "register"]["champion"] == as_of(found, ds)[0] and version is not None
    current = found.champions[-1] if found.champions else None
    ours = ("promotion", str(version), ds, number)
    if ours in [(entry["kind"], entry["version"], entry["ds"], entry["generation"]) for entry in found.champions]:
        return Expected("done" if wanted else "gate_no")
    if current is not None and (current["ds"] > ds or current["kind"] == "rollback"):
        served = [(entry["version"], entry["ds"], entry["checkpoint"]) for entry in served_in_turn(found.champions)]
        return Expected("done" if wanted and (str(version), ds, checkpoint) in served else "gate_no")
    if not wanted:
        return Expected("gate_no")
    return Expected("done", gains=("promotion", str(version)))


def digest_of_files(files: Mapping[str, Any]) -> str:
    """As a manifest has it."""
    written = {name: as_bytes(value) for name, value in files.items()}
    return digest({name: {"sha256": digest(data), "bytes": len(data)} for name, data in written.items()})


def is_finished(found: Found, ds: str) -> bool:
    """Says if all steps of a day are committed."""
    return all((found.generation_of(ds), ds, step) in found.commits for step in STEPS_OF_A_DAY)


def expected_of_rollback(
    found: Found, alias: str | None, versions: Collection[str], wanted: str = "", keep: int = 1
) -> Expected:
    """`alias`: the version that the registry calls champion. `wanted`: the version to go to; default the one before."""
    if not found.champions:
        return Expected(BadInputError)
    current, served = found.champions[-1], served_in_turn(found.champions)
    lags = alias != current["version"] and current["version"] in versions
    if lags and current["kind"] == "rollback" and wanted in ("", current["version"]):
        return Expected("")  # the interrupted one is finished
    if wanted == current["version"]:
        return Expected("")
    there = [e for e in reversed(found.champions) if (e["generation"], e["ds"], LINK) not in found.collected]
    passed = [entry["version"] for entry in served]
    before = [e["version"] for e in reversed(served[:-1]) if e in there and e["version"] != passed[-1]]
    rolled_back = [entry["version"] for entry in there if entry["version"] not in passed]
    before, rolled_back = list(dict.fromkeys(before))[:keep], list(dict.fromkeys(rolled_back))[:keep]
    targets = [version for version in (*before, *rolled_back) if version in versions]
    chosen = wanted or next((version for version in targets if version in before), "")
    return Expected("", gains=("rollback", chosen)) if chosen in targets else Expected(BadInputError)


def expected_of_resume(found: Found) -> Expected:
    if not found.champions:
        return Expected(BadInputError)
    current = found.champions[-1]
    return Expected("", gains=("resumption", current["version"]) if current["kind"] == "rollback" else None)


def expected_of_replay(found: Found, ds: str) -> Expected:
    """`digest` says if it goes on with the newest generation."""
    current = {(day, step) for g, day, step in found.commits if found.generation_of(day) == g}
    today = DAYS.index(ds)
    if not found.commits:
        return Expected(BadInputError)
    learned = any(step == LINK and day >= ds for _, day, step in found.commits)
    before = {step for day, step in current if today and day == DAYS[today - 1]}
    if today and (not before or (learned and LINK not in before)):
        return Expected(ParentMissingError)
    first, last = found.generations[-1] if found.generations else ("", "")
    newest = len(found.generations)
    earlier = [(found.generation_of(day), day, step) for day in DAYS[:today][-1:] for step in ("ingest", LINK)]
    replaced = {(day, step) for g, day, step in found.commits if g < newest and first <= day <= last}
    if first == ds and not replaced <= current:
        return Expected("", "resumed")
    return Expected(BadInputError) if found.collected.intersection(earlier) else Expected("", "begun")
