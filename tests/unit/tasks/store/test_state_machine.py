"""Hypothesis drives the whole store: steps, replays, rollbacks, gc; two at once, killed, corrupted. After each action a
second proof of the bytes (`checker`) and a simple model (`model`) say what must be there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from feature_jobs.errors import BadInputError, ParentMissingError, RecloopError
from tasks.run.collect import collect, garbage, leftovers
from tasks.run.replay import begin_replay
from tasks.run.rollback import resume_promotions, rollback, status_facts
from tasks.run.runner import run_step
from tasks.store.champion_log import CHAMPION
from tasks.store.verify import verify
from tests.own_process import in_own_process
from tests.unit.tasks.store import schedules
from tests.unit.tasks.store.backends import BACKENDS, Backend, LocalBackend
from tests.unit.tasks.store.checker import Found, check
from tests.unit.tasks.store.model import (
    Action,
    Expected,
    as_of,
    expected_of_replay,
    expected_of_resume,
    expected_of_rollback,
    expected_of_step,
)
from tests.unit.tasks.store.schedules import Actor, alone, together
from tests.unit.tasks.store.tiny import (
    DAYS,
    LINK,
    SOURCE,
    STEPS_OF_A_DAY,
    Direct,
    Registry,
    tiny_scenario,
    use_tiny_steps,
)

STEPS = st.tuples(st.sampled_from(STEPS_OF_A_DAY), st.sampled_from(DAYS))
OTHERS = st.one_of(
    st.tuples(st.just("replay"), st.sampled_from(DAYS)),
    st.sampled_from([("rollback", ""), ("rollback", "1"), ("rollback", "2"), ("resume",), ("verify",)]),
    st.tuples(st.just("gc"), st.sampled_from(["1", "2"])),
)
ACTIONS = st.one_of(STEPS, STEPS, OTHERS)
TURNS = st.lists(st.integers(1, 40), max_size=6)
POINTS = st.integers(1, 90)


TODO = [(step, ds) for ds in DAYS for step in STEPS_OF_A_DAY]


@dataclass(frozen=True)
class Prefix:
    """A store and a registry after some steps."""

    objects: dict[str, bytes]
    registry: str


PREFIXES: dict[int, Prefix] = {}
SCENARIOS: dict[str, Any] = {}


class StoreMachine(RuleBasedStateMachine):
    """One store of four days, from empty on."""

    backend_type: type[Backend] = LocalBackend

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.registry = Registry()
        self.registry.before = lambda _: schedules.reach()
        use_tiny_steps(self.patch, self.registry)
        self.backend = self.backend_type()
        self.scenario = SCENARIOS["tiny"]
        SOURCE.editions.clear()
        self.found = Found()
        self.lacked = False  # files were deleted that an older day, or a replay that began later, needs

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.backend.close()
            self.patch.undo()

    # actions

    def call_of(self, action: Action) -> Callable[[], Any]:
        """The action as another process would do it: with a store of its own."""
        store, (name, *arguments) = self.backend.open(), action

        def call() -> Any:
            if name in STEPS_OF_A_DAY:
                outcome = run_step(name, self.scenario, arguments[0], store, track=False, launcher=Direct())
                return outcome.outcome
            if name == "replay":
                return begin_replay(self.scenario, store, arguments[0], None, "corrected")
            if name == "rollback":
                return rollback(self.scenario, store, arguments[0] or None)
            if name == "verify":
                return verify(self.scenario, store).problems
            if name == "resume":
                return resume_promotions(self.scenario, store)
            return collect(store, garbage(self.scenario, store, int(arguments[0])), leftovers(store), "test")

        return call

    def expected(self, action: Action) -> Expected:
        versions = {number: tags["recloop.checkpoint"] for number, tags in self.registry.state["tags"].items()}
        name, *arguments = action
        if name in STEPS_OF_A_DAY:
            return expected_of_step(self.found, name, arguments[0], versions)
        if name == "rollback":
            return expected_of_rollback(
                self.found, self.registry.state["aliases"].get(CHAMPION), versions.keys(), arguments[0]
            )
        if name == "resume":
            return expected_of_resume(self.found)
        return expected_of_replay(self.found, arguments[0]) if name == "replay" else Expected("")

    # rules

    @initialize(num_steps=st.integers(0, len(TODO)))
    def some_days(self, num_steps: int) -> None:
        """Most sequences begin with days that went well; they are made once and copied."""
        if num_steps not in PREFIXES:
            for action in TODO[:num_steps]:
                assert self.call_of(action)() == "done"
            PREFIXES[num_steps] = Prefix(self.backend.objects(), json.dumps(self.registry.state))
        else:
            self.backend.write(PREFIXES[num_steps].objects)
            self.registry.state = json.loads(PREFIXES[num_steps].registry)
        self.look()

    @rule(action=ACTIONS)
    def alone(self, action: Action) -> None:
        """One action, nothing else: the model knows its end."""
        before, expected = self.found, self.expected(action)
        actor = alone(self.call_of(action))
        self.look()
        if isinstance(expected.ends, type):
            assert isinstance(actor.error, expected.ends), (action, expected, actor)
        elif action[0] in STEPS_OF_A_DAY:
            assert actor.error is None and actor.result == expected.ends, (action, expected, actor)
            place = (before.generation_of(action[1]), *reversed(action))
            assert expected.digest in (None, self.found.commits[place])
            assert set(self.found.commits) - set(before.commits) <= {place}
        else:
            assert actor.error is None, (action, expected, actor)
            assert self.found.commits == before.commits
        gained = [(entry["kind"], entry["version"]) for entry in self.found.champions[len(before.champions) :]]
        assert gained == ([expected.gains] if expected.gains else []), (action, expected, gained)
        if action[0] == "replay" and actor.error is None:
            assert actor.result.resumed == (expected.digest == "resumed"), (action, expected, actor)
        if action[0] == "register" and actor.result == "done":
            inputs = self.found.inputs[(before.generation_of(action[1]), action[1], "register")]
            assert [inputs["champion"], inputs["former_champion"]] == as_of(before, action[1])

    @rule(ds=st.sampled_from(DAYS))
    def whole_day(self, ds: str) -> None:
        for step in STEPS_OF_A_DAY:
            self.alone((step, ds))

    @rule(first=ACTIONS, second=ACTIONS, turns=TURNS, kill=st.none() | st.tuples(st.integers(0, 1), POINTS))
    def at_once(self, first: Action, second: Action, turns: list[int], kill: tuple[int, int] | None) -> None:
        """Two processes, which take turns at system calls; one of them may be killed."""
        actors = [Actor(self.call_of(first)), Actor(self.call_of(second))]
        if kill is not None:
            actors[kill[0]].kill_at = kill[1]
        together(actors, turns)
        self.ended_well(actors)

    @rule(step=STEPS, other=OTHERS, turns=TURNS)
    def in_flight(self, step: Action, other: Action, turns: list[int]) -> None:
        """A step has read its inputs; before it writes, something else happens."""
        self.at_once(step, other, turns, None)

    @rule(step=STEPS, turns=TURNS)
    def twice(self, step: Action, turns: list[int]) -> None:
        self.at_once(step, step, turns, None)

    @rule(action=ACTIONS, point=POINTS)
    def killed(self, action: Action, point: int) -> None:
        self.ended_well([alone(self.call_of(action), point)])

    def ended_well(self, actors: list[Actor]) -> None:
        for actor in actors:
            if actor.error is not None and not isinstance(actor.error, RecloopError):
                raise actor.error
            assert not isinstance(actor.result, list) or actor.result == []
        self.look()
        proof = verify(self.scenario, self.backend.open())
        assert proof.problems == proof.replaced == []

    @rule(ds=st.sampled_from(DAYS))
    def correct(self, ds: str) -> None:
        """The source delivers a day again, with other events."""
        SOURCE.editions[ds] = SOURCE.editions.get(ds, 1) + 1

    @precondition(lambda self: self.registry.state["tags"])
    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        """As a person does it in MLflow's pages."""
        self.registry.delete_version(data.draw(st.sampled_from(sorted(self.registry.state["tags"]))))

    @precondition(lambda self: self.found.commits)
    @rule(data=st.data())
    def corrupt(self, data: st.DataObject) -> None:
        """Flips one bit of one byte that has a proof."""
        objects = self.backend.objects()
        proven = sorted(key for key in objects if key.startswith(("g", "champion")) and self.is_proven(key))
        key = data.draw(st.sampled_from(proven))
        place = data.draw(st.integers(0, len(objects[key]) - 1))
        changed = bytearray(objects[key])
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        head = verify(self.scenario, self.backend.open()).head
        self.backend.write({key: bytes(changed)})
        proof = verify(self.scenario, self.backend.open())
        assert proof.problems or proof.replaced or proof.head != head, key
        assert not check(self.backend.objects()).problems or proof.problems or proof.replaced, key
        self.backend.write({key: objects[key]})
        assert verify(self.scenario, self.backend.open()).head == head

    def is_proven(self, key: str) -> bool:
        """Files that no commit names are not proven: leftovers of killed runs, and the files of collected outputs."""
        if key.startswith("champion") or key.endswith("generation.json"):
            return True
        top, ds, step, *names = key.split("/")
        place = (int(top[1:]), ds, step)
        is_left = any(key.startswith(f"{folder}/") for folder in self.found.leftovers)
        return (
            place in self.found.commits
            and not is_left
            and names[-1] != "collected.json"
            and (place not in self.found.collected or names[-1] in ("commit.json", "manifest.json"))
        )

    # invariants

    def look(self) -> None:
        """Reads the store; its earlier contents are there still."""
        self.backend.end_processes()
        before, self.found = self.found, check(self.backend.objects())
        self.lacked |= bool(self.found.collected) and len(self.found.generations) > len(before.generations)
        assert self.found.problems == []
        assert self.found.generations[: len(before.generations)] == before.generations
        assert self.found.champions[: len(before.champions)] == before.champions
        assert before.commits.items() <= self.found.commits.items()
        assert before.collected <= self.found.collected
        if not self.lacked and self.found.collected != before.collected:
            self.look_for_lacking()

    def look_for_lacking(self) -> None:
        """Checks that no deleted output is needed from the day of the newest checkpoint on."""
        lacking = [todo for todo in TODO if todo[0] != "ingest" and self.expected(todo).ends is BadInputError]
        current = [ds for g, ds, step in self.found.commits if step == LINK and self.found.generation_of(ds) == g]
        assert all(ds < max(current) for _, ds in lacking), lacking
        self.lacked = bool(lacking)

    def finish(self) -> None:
        """Checks that after any history the same commands end well, and nothing is left over."""
        begun = [key.split("/")[1] for key in self.found.leftovers]  # by a killed run that was the first of its day
        last = max([*(ds for _, ds, _ in self.found.commits), *begun], default="")
        for step, ds in TODO:
            if ds <= last and (self.found.generation_of(ds), ds, step) not in self.found.commits:
                self.end_step(step, ds)
        store = self.backend.open()
        collect(store, garbage(self.scenario, store, None), leftovers(store, idle_s=0), "test")
        self.look()
        proof = verify(self.scenario, store)
        assert proof.problems == proof.replaced == []
        status_facts(self.scenario, store)  # a person looks at these; it moves an alias that lags
        assert self.found.leftovers == []
        assert self.backend.unfinished() == []
        if self.found.champions and self.found.champions[-1]["version"] in self.registry.state["tags"]:
            assert self.registry.state["aliases"][CHAMPION] == self.found.champions[-1]["version"]

    def end_step(self, step: str, ds: str) -> None:
        actor = alone(self.call_of((step, ds)))
        if isinstance(actor.error, BadInputError | ParentMissingError):
            assert SOURCE.editions or self.lacked, actor.error
        else:
            assert actor.error is None, actor.error


FAILED = {
    "gc where a replay has just begun": "day1 replay1 gc1",
    "gc while a day waits for its deploy": "day1 ingest2 train2 register2 ingest3 gc1 deploy2",
    "an equal checkpoint of an older generation was deleted": (
        "day1 day2 ingest3 train3 replay2 day2 rollback0 ingest3 train3 gc1 rollback2 register3"
    ),
    "a former champion was deleted": "day1 day2 day3 ingest4 train4 gc1 rollback0 register4",
    "a rollback to a deleted version": "day1 day2 day3 ingest4 train4 gc1 rollback0 rollback0 register4",
    "a replay begins where files were deleted": "day1 day2 day3 gc1 replay2 replay1 day1",
    "a replay goes on after one that did nothing": "day1 day2 day3 replay2 replay1 day1 replay1",
}


@pytest.fixture(autouse=True)
def _scenario(tmp_path: Path) -> None:
    SCENARIOS["tiny"] = tiny_scenario(tmp_path)


def _machine_on(backend: str) -> type[StoreMachine]:
    PREFIXES.clear()
    return type("StoreMachine", (StoreMachine,), {"backend_type": BACKENDS[backend]})


def run(backend: str, sequences: int, folder: Path) -> None:
    """Drives that many sequences on stores of a backend."""
    SCENARIOS["tiny"] = tiny_scenario(folder)
    bounds = settings(max_examples=sequences, stateful_step_count=5, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(_machine_on(backend), settings=bounds)


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_sequences(backend: str, tmp_path: Path) -> None:
    run(backend, 25, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_sequences(backend: str, tmp_path: Path) -> None:
    in_own_process(run, backend, 475, tmp_path)


@pytest.mark.parametrize("words", FAILED.values(), ids=FAILED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_failed(words: str, backend: str) -> None:
    """Sequences that failed when they were found. A word is an action with the number of its day, of gc's days, or of
    the version to go back to."""
    machine = _machine_on(backend)()
    try:
        for word in words.split():
            name, number = word[:-1], int(word[-1])
            if name == "day":
                machine.whole_day(DAYS[number - 1])
            elif name == "rollback":
                machine.alone((name, str(number or "")))
            else:
                machine.alone((name, str(number) if name == "gc" else DAYS[number - 1]))
    finally:
        machine.teardown()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("turn", range(1, 41))
def test_two_replays_at_once(backend: str, turn: int) -> None:
    """Found at turn 13: the second one read the list of generations, which had become longer, twice."""
    machine = _machine_on(backend)()
    try:
        machine.some_days(8)
        machine.at_once(("replay", DAYS[0]), ("replay", DAYS[0]), [turn], None)
    finally:
        machine.teardown()


def test_a_deleted_day_whose_source_changed_counts_as_done() -> None:
    machine = _machine_on("local")()
    try:
        machine.some_days(10)
        machine.at_once(("replay", DAYS[1]), ("gc", "1"), [1], None)
        machine.correct(DAYS[0])
        machine.alone(("ingest", DAYS[0]))
    finally:
        machine.teardown()


def test_a_step_whose_input_is_deleted_while_it_runs_says_so() -> None:
    machine = _machine_on("local")()
    try:
        for ds in DAYS[:3]:
            for step in ("ingest", "train"):
                machine.alone((step, ds))
        gc = Direct(machine.call_of(("gc", "1")))
        with pytest.raises(BadInputError, match="deleted as no longer needed"):
            run_step("register", machine.scenario, DAYS[0], machine.backend.open(), track=False, launcher=gc)
        machine.look()
    finally:
        machine.teardown()
