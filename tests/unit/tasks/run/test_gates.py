"""A gate's no: raised by the step, kept or committed as the step declares, reported as an Outcome."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_jobs.errors import GateError
from feature_jobs.schema import load_scenario
from tasks.commands.day_table import verdict_of
from tasks.commands.summary import day_facts
from tasks.contract import DayConfig, Metrics
from tasks.run.launchers import Call, InProcess, Ran
from tasks.run.runner import Outcome, run_step
from tasks.steps import STEPS
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.small import days, write_small

REASON = "no: 7 is less than 9"


def _refuse(config: DayConfig, *, events: Path, yesterday: None = None) -> Metrics:
    (events / "verdict.json").write_text('{"seven": 7}')
    raise GateError(REASON, {"rows": 7})


def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_no: Any) -> tuple[Outcome, ScenarioStore]:
    """A day's first step, which reads nothing, with a function that says no."""
    scenario = load_scenario(write_small(tmp_path, num_days=1))
    monkeypatch.setitem(STEPS, "ingest", replace(STEPS["ingest"], function=_refuse, on_no=on_no, imports=()))
    store = open_store(tmp_path / "store", scenario.name)
    return run_step("ingest", scenario, days(1)[0], store, track=False), store


def test_a_no_that_stops_the_day_commits_nothing_and_keeps_the_output_aside(tmp_path, monkeypatch):
    outcome, store = _run(tmp_path, monkeypatch, "fail")
    assert (outcome.outcome, outcome.exit_code, outcome.digest) == ("gate_no", 3, None)
    assert outcome.metrics == {"rows": 7}
    assert store.find("ingest", days(1)[0]) is None
    kept = store.work / "rejected" / days(1)[0] / "ingest"
    assert (kept / "verdict.json").read_text() == '{"seven": 7}'
    assert outcome.gate == f"{REASON}\nthe output is kept in {kept}"
    journal = json.loads((store.read("journal.jsonl") or b"").splitlines()[-1])
    assert (journal["outcome"], journal["exit_code"], journal["gate"]) == ("gate_no", 3, outcome.gate)
    scenario = load_scenario(tmp_path / "shop.yaml")
    facts = day_facts(scenario, store, days(1)[0])
    assert facts["gate"] == f"no: ingest: {outcome.gate}" and verdict_of(facts) == "refused"
    monkeypatch.undo()
    run_step("ingest", scenario, days(1)[0], store, track=False)
    assert day_facts(scenario, store, days(1)[0])["gate"] is None


def test_a_no_that_only_skips_is_committed_with_its_reason(tmp_path, monkeypatch):
    outcome, store = _run(tmp_path, monkeypatch, "skip")
    assert (outcome.outcome, outcome.exit_code, outcome.gate) == ("gate_no", 3, REASON)
    commit = store.find("ingest", days(1)[0])
    assert commit is not None and commit.digest == outcome.digest
    assert commit.manifest["gate"] == REASON
    assert not (store.work / "rejected").exists()


def test_a_no_comes_through_a_container_whole(tmp_path):
    """Its answer is JSON of the launcher's result."""
    scenario = load_scenario(write_small(tmp_path, num_days=1))
    declared = replace(STEPS["ingest"], function=_refuse, imports=())
    ran = InProcess().launch(declared, Call(DayConfig(scenario, days(1)[0]), {}, tmp_path))
    assert (ran.gate, ran.metrics) == (REASON, {"rows": 7})
    assert Ran(**json.loads(json.dumps(vars(ran)))) == ran


def test_only_declared_steps_see_the_store(tmp_path):
    seen = {name: declared.store_folder for name, declared in STEPS.items() if declared.store_folder}
    assert seen == {"deploy": "champion", "tune": "tuning"}
    assert STEPS["deploy"].appends == "champion"
