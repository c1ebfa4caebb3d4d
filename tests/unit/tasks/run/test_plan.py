"""The plan as text: short where much has changed, and with one remedy."""

from __future__ import annotations

from tasks.run.plan import DayPlan, StepPlan, in_words, plan_table
from tests.small import DAILY

OTHER = "made with other code than today's"


def test_a_changed_day_is_one_line_and_the_remedy_comes_once() -> None:
    changed = {name: StepPlan("done", OTHER) for name in DAILY}
    partly = changed | {DAILY[-1]: StepPlan("run")}
    text = plan_table([DayPlan("2024-03-01", 0, changed), DayPlan("2024-03-02", 0, partly)], "-s shop")
    assert text.startswith("2024-03-01  done: all steps\n2024-03-02  done: ingest to register; to run: deploy\n")
    assert f"2024-03-01 all steps: {OTHER}\n" in text
    assert f"2024-03-02 {', '.join(DAILY[:-1])}: {OTHER}\n" in text
    assert text.count("recloop chain replay") == 1
    assert "recloop chain replay -s shop --from 2024-03-01\n1 step would run" in text


def test_states_are_said_in_few_words() -> None:
    states = dict(zip(DAILY, ["done"] * 5 + ["no", "-", "-", "-"], strict=True))
    assert in_words(states) == "done: ingest to train; said no: evaluate; missing: quantize to deploy"
