"""All steps, in the order of the day, and the edges between them."""

from __future__ import annotations

from feature_jobs.schema import Scenario
from tasks.contract import Step
from tasks.deploy import deploy
from tasks.evaluate import evaluate
from tasks.ingest import ingest
from tasks.join import join
from tasks.materialize import materialize
from tasks.quantize import quantize
from tasks.register import register
from tasks.summarize import summarize
from tasks.train import train
from tasks.tune import tune
from tasks.validate import validate

STEPS: dict[str, Step] = {
    function.__name__: function.step  # type: ignore[attr-defined]
    for function in (ingest, summarize, join, materialize, validate, train, evaluate, tune, quantize, register, deploy)
}
DAILY: tuple[str, ...] = tuple(name for name, declared in STEPS.items() if declared.daily)
"""All daily steps; a scenario has those of `daily_steps`."""
WRITERS: dict[str, str] = {declared.writes: name for name, declared in STEPS.items()}


def daily_steps(scenario: Scenario) -> tuple[str, ...]:
    """The steps of each day of a scenario."""
    return tuple(name for name in DAILY if STEPS[name].has_work(scenario))


def writer_of(declared: Step, argument: str) -> str:
    """Name of the step that writes the input `argument` of `declared`."""
    return WRITERS[declared.reads[argument].of or argument]


def upstream(name: str) -> list[str]:
    """Steps of the same day that must be done before `name`, from the declarations alone."""
    declared = STEPS[name]
    return [
        writer_of(declared, argument)
        for argument, source in declared.reads.items()
        # An optional input makes no edge: where its step has not run, nothing waits for it.
        if source.days == "same" and not source.optional
    ]
