"""Work that a run leaves out: the source of a day that rows were left out of, outputs that would be the same again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from feature_jobs.errors import BadInputError, CorruptError
from models.distributed.nodes import Nodes
from tasks.contract import DayConfig, Step
from tasks.run.inputs import flat, resolve_inputs
from tasks.store.forgotten import leaves_out
from tasks.store.keys import commit_key, record_key
from tasks.store.records import Facts, Manifest, holder_of
from tasks.store.scenario_store import Commit, ScenarioStore

DECISIVE = ("config", "code", "parent", "gate")
"""Facts of a manifest that decide the files, besides its inputs: where all are equal, so are the files."""


def take_over_same(declared: Step, config: DayConfig, name: str, facts: Facts) -> Commit | None:
    """Commits the files that this run would write again, from a sound commit of an older generation. Returns the
    commit, or None where none is such.

    Only where the inputs decide the files: a source, the registry and a folder of the store may have changed.
    """
    store = config.store
    if store is None or config.options or declared.source or declared.registry or declared.store_folder:
        return None
    if declared.shared and Nodes.from_environment().size > 1:  # the other machines would wait for this one
        return None
    for number in _older_holders(config, store) if config.generation else ():
        with store.scratch() as scratch:
            output = scratch / declared.writes
            output.mkdir()
            try:
                older = store.commit_at(commit_key(number, config.ds, name))
                if older is None or _decisive(declared, older.manifest) != _decisive(declared, facts):
                    continue
                store.verify(older)
                take_over(older, output, config.generation)
            # Damaged, or deleted just now: the step is computed. A replay is the remedy for such a commit.
            except (CorruptError, BadInputError, FileNotFoundError):
                continue
            commit, _ = store.commit(name, config.ds, output, {**facts, "reused_from": number}, config.generation)
            return commit
    return None


def _older_holders(config: DayConfig, store: ScenarioStore) -> list[int]:
    """The generations that held the day before this one, newest first; none where this one computes all.

    None either that is older than one that left rows out of the day: only that one itself looks there, for the outputs
    that never held them.
    """
    generations, ds = store.generations(), config.ds
    if generations[config.generation].computes_all:
        return []
    older = generations[: config.generation]
    begin = max((g.number for g in older if g.forgets and ds >= (g.from_ds or "")), default=0)
    return sorted({holder_of(ds, older, number) for number in range(begin, len(older))}, reverse=True)


def _decisive(declared: Step, facts: Facts | Manifest) -> list[object]:
    """The facts that decide the files: without the inputs that another one names by digest."""
    inputs = {
        name: digest
        for name, digest in facts["inputs"].items()
        if not (read := declared.reads.get(name)) or not read.is_named
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
