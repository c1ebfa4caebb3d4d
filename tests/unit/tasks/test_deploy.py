"""Deploy for real: gates that say yes, no or unknown with their numbers, and rollbacks that hold promotions."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from tasks import tracking
from tasks.run.rollback import resume_promotions, rollback
from tasks.store.champion_log import ChampionLog, Entry
from tests.unit.tasks.daily_loop import Loop, edited, gate
from tests.unit.tasks.little import DAYS, little_scenario


def test_a_good_day_is_promoted_with_all_its_numbers(loop, load_once):
    loop.register(1)
    metrics, verdict = loop.deploy(1)
    assert verdict["promoted"], [g["reason"] for g in verdict["gates"] if g["answer"] != "yes"]
    assert metrics["promoted"] is True
    assert "gate" not in metrics
    names = [g["name"] for g in verdict["gates"]]
    assert names == ["reproduces", "int8", "not_worse", "calibration", "validation", "next_day", "order"]
    assert gate(verdict, "reproduces")["numbers"]["max_difference"]["like"] <= 1e-4
    assert verdict["words"] == "promoted"
    assert set(gate(verdict, "not_worse")["numbers"]["overall"]["like"]) == {"auc", "low", "high", "judgement"}
    assert tracking.aliases("little") == {"champion": "2"}
    assert tracking.versions("little")[0]["verdict"] == "promoted"
    current = ChampionLog(loop.store).current()
    assert (current.version, current.ds, current.checkpoint) == ("2", DAYS[1], verdict["checkpoint"])
    assert verdict["champion"]["sequence"] == 2


def test_deploying_again_after_a_kill_changes_nothing(loop, load_once):
    loop.register(1)
    _, verdict = loop.deploy(1)
    tracking.set_alias("little", "champion", "1")  # as if it was killed between the log and the alias
    _, again = loop.deploy(1)
    assert again == verdict
    assert len(ChampionLog(loop.store).history()) == 2
    assert tracking.aliases("little")["champion"] == "2"


@pytest.mark.slow
def test_a_rollback_is_not_undone_by_the_same_days_deploy(loop, load_once):
    loop.register(1)
    loop.deploy(1)
    rollback(loop.scenario, loop.store)
    assert tracking.aliases("little")["champion"] == "1"
    loop.deploy(1)
    assert tracking.aliases("little")["champion"] == "1"
    assert ChampionLog(loop.store).current().version == "1"


THIN = {"verdict": "unknown", "reason": "14 rows where 200 are needed"}


def thin_evaluation(loop: Loop, tmp_path: Path) -> Path:
    """The second day's evaluation as of 14 rows of the holdout, of which 5 are positive."""
    return edited(
        loop.folders(1, "evaluation")["evaluation"],
        tmp_path,
        "evaluation.json",
        comparison={"verdict": "unknown", "reasons": [], "unknown": [f"like: {THIN['reason']}"]},
        overall__like__judgement=THIN,
        overall__like__rows=14,
        overall__like__positives=5,
        overall__like__challenger__calibration=1.68,
        overall__like__challenger__calibration_interval=[0.9, None],
        warnings=["like is rare: …"],
    )


def test_too_few_rows_are_promoted_with_that_word_or_held_as_the_scenario_says(loop, load_once, tmp_path, capsys):
    loop.register(1)
    evaluation = thin_evaluation(loop, tmp_path)
    loop.scenario = little_scenario(tmp_path / "held", deploy={"max_calibration_error": 3, "when_unsure": "hold"})
    metrics, verdict = loop.deploy(1, evaluation=evaluation)
    assert metrics["promoted"] is False
    assert metrics["gate"].startswith(
        "no: held, because deploy.when_unsure is hold and this is unjudged: like: 14 rows"
    )
    assert ChampionLog(loop.store).current().version == "1"
    loop.scenario = little_scenario(tmp_path / "promoted", deploy={"max_calibration_error": 3})
    metrics, verdict = loop.deploy(1, evaluation=evaluation)
    assert ChampionLog(loop.store).current().version == "2"
    assert (metrics["promoted"], metrics["unjudged"]) == (True, 2)
    unjudged = [g["name"] for g in verdict["gates"] if g["answer"] == "unknown"]
    assert unjudged == ["not_worse", "calibration"]
    assert gate(verdict, "calibration")["reason"] == (
        "like: calibration 1.68 [0.90, ∞] not judged: 14 rows where 200 are needed"
    )
    assert verdict["words"].startswith("promoted, unjudged: like: 14 rows where 200 are needed; like: calibration 1.68")
    assert tracking.versions("little")[0]["verdict"] == verdict["words"]
    assert metrics["verdict"].startswith("promoted version 2, unjudged: ")
    printed = capsys.readouterr().err
    assert "warning: like is rare" in printed and "promoted" not in printed  # the command says it


def test_a_version_whose_few_positives_show_scores_far_too_high_is_refused(loop, load_once, tmp_path):
    loop.register(1)
    evaluation = edited(
        thin_evaluation(loop, tmp_path),
        tmp_path / "far",
        "evaluation.json",
        overall__like__challenger__calibration=97.61,
        overall__like__challenger__calibration_interval=[40.69, None],
    )
    metrics, verdict = loop.deploy(1, evaluation=evaluation)
    assert metrics["promoted"] is False
    assert gate(verdict, "calibration")["answer"] == "no"
    assert verdict["words"] == (
        "no: like: calibration 97.61 [40.69, ∞] where 1 ± 3 is allowed: scores are at least 40.7 times too high"
    )
    assert ChampionLog(loop.store).current().version == "1"


def test_a_day_with_one_class_is_unknown_and_not_equal(loop, load_once, tmp_path):
    loop.register(1)
    nothing = dict.fromkeys(("auc", "calibration"))
    evaluation = edited(
        loop.folders(1, "evaluation")["evaluation"],
        tmp_path,
        "evaluation.json",
        comparison={"verdict": "unknown", "reasons": [], "unknown": ["love: 0 positives where 30 are needed"]},
        overall__love__positives=0,
        overall__love__challenger__calibration=None,
        overall__love__challenger__calibration_interval=[None, None],
    )
    export = edited(
        loop.folders(1, "export")["export"],
        tmp_path,
        "quantization.json",
        **{f"{form}__{metric}__love": None for form in ("fp32", "int8") for metric in nothing},
    )
    _, verdict = loop.deploy(1, evaluation=evaluation, export=export)
    unknown = [g["name"] for g in verdict["gates"] if g["answer"] == "unknown"]
    assert unknown == ["int8", "not_worse", "calibration"]
    assert "one class only" in verdict["words"]
    assert "0 positives where 30 are needed" in verdict["words"]


def test_what_int8_costs_on_too_few_rows_is_unknown_however_much_it_is(loop, tmp_path):
    loop.register(1)
    export = edited(
        loop.folders(1, "export")["export"],
        tmp_path,
        "quantization.json",
        unjudged={"like": "34 rows where 200 are needed"},
        int8__auc__like=0.1,
        int8__calibration__like=30.0,
    )
    _, verdict = loop.deploy(1, export=export)
    (int8,) = [gate for gate in verdict["gates"] if gate["name"] == "int8"]
    assert int8["answer"] == "unknown" and "like: the loss by int8 is not judged: 34 rows" in int8["reason"]


def test_an_evaluation_of_an_older_release_is_refused_with_the_remedy(loop, tmp_path):
    loop.register(1)
    folder = edited(loop.folders(1, "evaluation")["evaluation"], tmp_path, "evaluation.json")
    old = json.loads((folder / "evaluation.json").read_text())
    del old["warnings"]
    (folder / "evaluation.json").write_text(json.dumps(old))
    with pytest.raises(BadInputError, match="an older release wrote it"):
        loop.deploy(1, evaluation=folder)


@pytest.mark.slow
def test_a_rollback_holds_the_next_two_days_until_a_person_lifts_it(loop, load_once, capsys):
    loop.register(1)
    loop.deploy(1)
    rollback(loop.scenario, loop.store)
    for number in (2, 3):
        loop.make(number)
        loop.register(number)
        metrics, verdict = loop.deploy(number)
        assert metrics["promoted"] is False
        assert "held since the rollback to version 1" in metrics["gate"]
        assert "recloop" not in metrics["gate"] and "--store" not in json.dumps(verdict)
        assert f"to allow promotions again: recloop resume-promotions {loop.store.options}\n" in capsys.readouterr().err
        assert gate(verdict, "order")["answer"] == "no"
        assert ChampionLog(loop.store).current().version == "1"
        assert tracking.aliases("little")["champion"] == "1"
    assert resume_promotions(loop.scenario, loop.store).changed
    assert tracking.aliases("little")["champion"] == "1"  # until a later day is promoted
    _, verdict = loop.deploy(3)
    assert verdict["promoted"], verdict["words"]
    assert tracking.aliases("little")["champion"] == "4"


@pytest.mark.slow
def test_a_scenario_may_let_the_next_day_promote_after_a_rollback(loop, load_once, tmp_path):
    loop.register(1)
    loop.deploy(1)
    rollback(loop.scenario, loop.store)
    rules = {"max_calibration_error": 3, "after_rollback": "promote"}
    loop.scenario = little_scenario(tmp_path / "open", deploy=rules)
    loop.make(2)
    loop.register(2)
    _, verdict = loop.deploy(2)
    assert verdict["promoted"], verdict["words"]
    assert ChampionLog(loop.store).current().version == "3"


@pytest.mark.slow
def test_each_gate_says_no_with_a_reason(loop, tmp_path):
    loop.register(1)
    reads = loop.folders(1, "evaluation", "validation", "export")
    reason = "like: AUC -0.2000 [-0.3000, -0.1000] where at most -0.0100 is allowed"
    worse = {"verdict": "worse", "reasons": [reason], "unknown": []}
    evaluation = edited(
        reads["evaluation"],
        tmp_path,
        "evaluation.json",
        comparison=worse,
        next_day__verdict="hold",
        next_day__reasons=["love: …"],
        overall__like__challenger__calibration=9.0,
        overall__like__challenger__calibration_interval=[5.0, 11.0],
    )
    validation = edited(reads["validation"], tmp_path, "verdict.json", ok=False)
    export = edited(reads["export"], tmp_path, "quantization.json", int8__auc__like=0.1, int8__calibration__love=30.0)
    scores = pq.read_table(export / "reference.parquet").to_pandas()
    table = pq.read_table(export / "reference.parquet")
    position = table.column_names.index("int8.like")
    pq.write_table(
        table.set_column(position, "int8.like", [(scores["int8.like"] + 0.01).to_numpy()]), export / "reference.parquet"
    )
    metrics, verdict = loop.deploy(1, evaluation=evaluation, validation=validation, export=export)
    assert [g["name"] for g in verdict["gates"] if g["answer"] == "yes"] == ["order"]
    assert metrics["promoted"] is False
    assert metrics["gate"].startswith("no: its scores differ by 0.01")
    for part in ("int8 loses", "int8 shifts calibration", "AUC -0.2000", "calibration 9.00", "blocking", "fell behind"):
        assert part in metrics["gate"], part
    assert ChampionLog(loop.store).current().version == "1"
    assert tracking.aliases("little") == {"champion": "1", "challenger": "2"}
    assert tracking.versions("little")[0]["verdict"].startswith("no: ")


def test_a_later_days_champion_is_never_replaced(loop, load_once):
    loop.register(1)
    later = loop.store.find("train", DAYS[1])
    ChampionLog(loop.store).promote(1, Entry("promotion", "little", "2", DAYS[1], 0, later.digest))
    _, verdict = loop.deploy(0, evaluation=loop.store.find("evaluate", DAYS[0]).folder)
    # the first day was promoted before and stays so; a version of it that was not is held
    assert verdict["promoted"]
    held = Entry("promotion", "little", "9", DAYS[0], 0, "other")
    from tasks.deploy import _swap

    answer, standing = _swap(loop.scenario, ChampionLog(loop.store), held, wanted=True)
    assert answer.answer == "no"
    assert answer.reason.startswith("held: the champion is of a later day")
    assert standing.version == "2"


def test_versions_that_serve_or_served_are_not_refused_when_their_days_are_replayed(loop, load_once, tmp_path):
    loop.register(1)
    loop.deploy(1)
    loop.store.new_generation(DAYS[0], "nothing changed")
    for number in (0, 1):
        for name in ("validation", "checkpoint", "export", "evaluation"):
            loop.commit(number, name)
        loop.register(number)
        metrics, verdict = loop.deploy(number)
        assert verdict["words"] == "promoted", metrics
    log = ChampionLog(loop.store)
    assert [(e.version, e.ds, e.generation) for e in log.history()] == [
        ("1", DAYS[0], 0), ("2", DAYS[1], 0), ("2", DAYS[1], 1),
    ]  # fmt: skip
    assert [version["verdict"] for version in tracking.versions("little")] == ["promoted", "promoted"]
    # A hold is for other versions, and stricter gates of today don't end what serves.
    rollback(loop.scenario, loop.store, "1")
    assert loop.deploy(0)[1]["words"] == "promoted"
    assert loop.deploy(1)[1]["words"] == "promoted"  # a repeated run ends as the first did
    loop.scenario = little_scenario(tmp_path / "strict", deploy={"max_calibration_error": 1e-6})
    assert "is allowed" in loop.deploy(0)[0]["gate"]
    assert tracking.versions("little")[1]["verdict"].startswith("promoted before, judged again: no: ")


def test_a_comparison_with_another_champion_does_not_count(loop, load_once):
    loop.register(1)
    other = Entry("promotion", "little", "1", DAYS[0], 0, loop.store.find("train", DAYS[0]).digest)
    shutil.rmtree(loop.store.work / "champion")
    metrics, _ = loop.deploy(1)
    assert "the champion changed since the comparison" in metrics["gate"]
    assert ChampionLog(loop.store).history() == []
    assert other.sequence == 0
