"""Work that a run leaves out: the source of a day that rows were left out of, outputs that would be the same again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from feature_jobs.errors import BadInputError
from models.distributed.nodes import Nodes
from tasks.contract import DayConfig, Step
from tasks.run.inputs import flat, resolve_inputs
from tasks.store.forgotten import leaves_out
from tasks.store.keys import record_key
from tasks.store.records import Facts, Manifest
from tasks.store.scenario_store import Commit, ScenarioStore

DECISIVE = ("config", "code", "parent", "gate")
"""Facts of a manifest that decide the files, besides its inputs: where all are equal, so are the files."""


def same_as_before(declared: Step, config: DayConfig, name: str, facts: Facts, store: ScenarioStore) -> Commit | None:
    """A sound commit of an older generation that this run would repeat, where the generation only leaves rows out.

    A replay asks for new work; here most days are as they were. Steps that talk to the registry are never taken over.
    """
    if config.options:
        return None
    several = declared.shared and Nodes.from_environment().size > 1  # the other machines would wait for this one
    if declared.registry or declared.store_folder or several or not leaves_out(store, config.ds, config.generation):
        return None
    for number in reversed(range(config.generation)):
        commit = store.find(name, config.ds, number)
        if commit is None or store.is_collected(commit):
            continue
        if _decisive(declared, commit.manifest) == _decisive(declared, facts):
            store.verify(commit)
            return commit
    return None


def _decisive(declared: Step, facts: Facts | Manifest) -> list[object]:
    """The facts that decide the files. An input with a choice follows from another one, see Choice."""
    inputs = {
        name: digest
        for name, digest in facts["inputs"].items()
        if not (read := declared.reads.get(name)) or not read.choice
    }
    return [inputs, *(facts.get(fact) for fact in DECISIVE)]


def take_over(commit: Commit, output: Path, generation: int) -> None:
    """Puts the commit's files into `output`, and the record of its run beside that of the new generation."""
    for name in commit.manifest["files"]:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(commit.folder / name, output / name)  # a committed file never changes
        except OSError:  # another file system, or one without links
            shutil.copyfile(commit.folder / name, output / name)
    store = commit.store
    record = store.read(record_key(commit.generation, commit.ds, commit.step))
    if record is not None:
        store.objects.put(record_key(generation, commit.ds, commit.step), record)


def is_read_again(declared: Step, config: DayConfig, standing: Commit) -> bool:
    """Says if a step that is done reads its source once more, to compare: not where the day holds less on purpose, or
    where files are deleted that the comparison needs."""
    store = standing.store
    if not declared.source or leaves_out(store, config.ds, config.generation) or store.is_collected(standing):
        return False
    return not any(map(store.is_collected, flat(resolve_inputs(declared, config.scenario, config.ds, store).values())))


def refuse_rows_left_out(config: DayConfig) -> None:
    """Raises BadInputError where reading the day from its source would bring rows back that a person had left out."""
    store = config.store
    if store is not None and leaves_out(store, config.ds, config.generation):
        raise BadInputError(
            f"{config.ds}: generation {config.generation} leaves rows of users out of this day, and its source may"
            " still hold them; give the command again that began it, with the same ids:"
            f" recloop forget {config.scenario.option}{store.option} --users FILE --yes"
        )
