"""tune with the real Optuna and the real training, on days of a few hundred rows."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from models.training.day import train_day
from models.training.job import TrainJob
from tasks.contract import DayConfig
from tasks.tune import tune
from tasks.tuning.proposal import apply, apply_certain, doubt, proposal_table
from tasks.tuning.space import joins_again, read_space, with_values
from tests.waiting import awaited

DAYS = ["2022-04-01", "2022-04-02", "2022-04-03"]
SCENARIO = """\
# What this is for.
name: tiny
data:
  path: .
  events:
    path: events.csv
    format: csv
    time: {column: t}
    columns: {t: {type: int}, user: {type: int}, item: {type: int}, age: {type: int}, liked: {type: int}}
  user: user
  item: item
  days: {first: 2022-04-01}
labels: {like: liked == 1}
features:
  item: {kind: id}               # predicts a little
  age: {kind: number}
  recent: {kind: count, by: [user], window_days: 7}
model:
  embedding_dim: 4
  bottom: [8]
  tower: [4]
train: {batch_size: 64, threads: 1, learning_rate: 0.00001}  # far too slow
"""
TUNE = """
tune:
  trials: 5
  replay_days: 2
  space:
    train.learning_rate: {low: 0.0001, high: 0.1, log: true}
    model.bottom: {choices: [[8], [16, 8]]}
    "features.*.enabled": {choices: [true, false]}
"""

MANIFEST = {"step": "train", "ds": "2024-01-01", "digest": "d", "files": {}, "inputs": {}}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """Three days of samples, and the checkpoint of the first."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "tiny.yaml").write_text(SCENARIO)
    scenario = load_scenario(folder / "tiny.yaml")
    for number, ds in enumerate(DAYS):
        rng = np.random.default_rng(number)
        num_rows = 1000
        item, age = rng.integers(0, 20, num_rows), rng.normal(40, 10, num_rows)
        likes = 0.5 + np.where(item % 2, 0.15, -0.15) + np.where(age > 40, 0.3, -0.3)
        table = {
            "key.event_time": np.arange(num_rows, dtype=np.int64),
            "key.event_row": np.arange(num_rows, dtype=np.int64),
            "key.user": rng.integers(0, 30, num_rows),
            "key.item": item,
            "item": item,
            "age": age,
            "recent": rng.integers(0, 9, num_rows).astype(float),
            "label.like": (rng.random(num_rows) < likes).astype(np.int8),
        }
        (folder / "samples" / ds).mkdir(parents=True)
        pq.write_table(pa.table(table), folder / "samples" / ds / "samples.parquet")
    (folder / "checkpoint").mkdir()
    train_day(TrainJob(scenario, DAYS[0], folder / "samples" / DAYS[0], None, folder / "checkpoint"))
    return folder


def run(folder: Path, chain: Path, section: str = TUNE, champion: Path | None = None, **options) -> tuple[dict, Path]:
    """Runs the step in `folder`; returns its metrics and its output folder."""
    folder.mkdir(exist_ok=True)
    if not (folder / "tiny.yaml").exists():
        (folder / "tiny.yaml").write_text(SCENARIO + section)
    output = folder / "proposal"
    output.mkdir(exist_ok=True)
    samples = {ds: chain / "samples" / ds for ds in DAYS}
    config = DayConfig(load_scenario(folder / "tiny.yaml"), DAYS[2], options=options)
    metrics = tune(
        config,
        samples=samples.pop(DAYS[2]),
        history=samples,
        checkpoints={DAYS[0]: chain / "checkpoint"},
        champion=champion,
        events=None,
        past_events={},
        proposal=output,
    )
    return metrics, output


def proposal_of(output: Path) -> dict:
    return json.loads((output / "proposal.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(chain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, chain)
    return folder


def test_trial_zero_has_the_scenarios_values_and_the_best_is_proposed(undisturbed):
    proposal = proposal_of(undisturbed / "proposal")
    trials = proposal["trials"]
    assert [t["number"] for t in trials] == list(range(5))
    assert trials[0]["state"] == "complete" and trials[0]["params"] == {
        "train.learning_rate": 0.00001,
        "model.bottom": [8],
        "features.item.enabled": True,
        "features.age.enabled": True,
        "features.recent.enabled": True,
    }
    assert proposal["champion_value"] == trials[0]["value"]
    assert proposal["better"] and proposal["value"] > proposal["champion_value"]
    assert proposal["replayed"] == DAYS[1:] and proposal["from_checkpoint"] == DAYS[0]
    assert proposal["changes"]["train.learning_rate"]["old"] == 0.00001
    evidence = proposal["evidence"]["like"]
    assert evidence["difference"] > 0 and evidence["low"] < evidence["difference"] < evidence["high"]
    assert proposal["certain"] and evidence["low"] > 0 and evidence["verdict"] == "better"
    assert all(set(t["intermediate"]) <= {"1", "2"} for t in trials)
    assert not (undisturbed / "tuning" / DAYS[2] / proposal["study"] / "trial-0").exists()


def test_a_trial_is_judged_on_rows_it_has_not_learned(chain, undisturbed, tmp_path):
    """Trial 0 again by hand: the first day's holdout, then the whole second day scored by the first day's model."""
    trial = proposal_of(undisturbed / "proposal")["trials"][0]
    scenario, parent = load_scenario(undisturbed / "tiny.yaml"), chain / "checkpoint"
    values = []
    for ds, rows in ((DAYS[1], "holdout"), (DAYS[2], "progressive")):
        (tmp_path / ds).mkdir()
        judged = train_day(TrainJob(scenario, ds, chain / "samples" / ds, parent, tmp_path / ds))
        values.append(judged[rows]["like"]["auc"])
        parent = tmp_path / ds
    assert trial["days"] == {ds: {"like": value} for ds, value in zip(DAYS[1:], values, strict=True)}
    assert trial["value"] == pytest.approx(sum(values) / 2, abs=1e-6)
    assert trial["intermediate"]["1"] == pytest.approx(values[0], abs=1e-6)


def test_running_it_again_changes_nothing_and_a_fresh_study_gives_the_same_bytes(chain, undisturbed, tmp_path):
    before = (undisturbed / "proposal/proposal.json").read_bytes()
    run(undisturbed, chain)
    assert (undisturbed / "proposal/proposal.json").read_bytes() == before
    run(tmp_path, chain)
    assert (tmp_path / "proposal/proposal.json").read_bytes() == before


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.unit.tasks.tuning.test_tune import meet, run
meet(Path({folder!r}), {together})
run(Path({folder!r}), Path({chain!r}), worker={worker}, workers=2)
"""


def meet(folder: Path, together: int) -> None:
    """Returns when as many processes are here."""
    (folder / f"here-{os.getpid()}").touch()
    awaited(lambda: len(list(folder.glob("here-*"))) >= together, within_s=60)


def start_worker(folder: Path, chain: Path, worker: int, together: int = 1) -> subprocess.Popen:
    root = str(Path(__file__).parents[4])
    code = WORKER.format(root=root, folder=str(folder), chain=str(chain), worker=worker, together=together)
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)


def running_scratch(folder: Path) -> list[Path]:
    return [p for p in folder.glob("tuning/*/*/trial-*") if p.is_dir() and any(p.iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [1, 3])
def test_a_killed_study_resumes_and_ends_as_if_undisturbed(chain, undisturbed, tmp_path, num_kills):
    (tmp_path / "tiny.yaml").write_text(SCENARIO + TUNE)
    for _ in range(num_kills):
        before = running_scratch(tmp_path)
        worker = start_worker(tmp_path, chain, 0)
        while worker.poll() is None and running_scratch(tmp_path) in ([], before):
            time.sleep(0.005)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    assert running_scratch(tmp_path), "nothing was killed in the middle of a trial"
    metrics, output = run(tmp_path, chain)
    assert sum(metrics["trials"].values()) == 5
    assert (output / "proposal.json").read_bytes() == (undisturbed / "proposal/proposal.json").read_bytes()
    assert not running_scratch(tmp_path)


def created_trials(folder: Path) -> list[dict]:
    (journal,) = folder.glob("tuning/*/*/study.journal")
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    return [entry for entry in entries if entry["op_code"] == 4]  # Optuna's "create trial"


@pytest.mark.slow
def test_two_workers_share_one_study_and_the_plain_run_only_writes_the_proposal(chain, tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO + TUNE.replace("trials: 5", "trials: 8"))
    workers = [start_worker(tmp_path, chain, number, together=2) for number in (0, 1)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert not list((tmp_path / "proposal").iterdir())
    created = created_trials(tmp_path)
    assert len({entry["worker_id"] for entry in created}) >= 2, "one worker did it all"
    metrics, output = run(tmp_path, chain)
    assert sum(metrics["trials"].values()) == 8 and created_trials(tmp_path) == created
    trials = proposal_of(output)["trials"]
    assert len({json.dumps(t["params"], sort_keys=True) for t in trials}) > 4
    assert trials[0]["params"]["train.learning_rate"] == 0.00001


def test_a_journal_with_a_torn_last_line_is_read(chain, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "torn")
    (journal,) = (tmp_path / "torn").glob("tuning/*/*/study.journal")
    with journal.open("ab") as stream:
        stream.write(b'{"op_code":8,"worker')
    run(tmp_path / "torn", chain)
    assert (tmp_path / "torn/proposal/proposal.json").read_bytes() == (
        undisturbed / "proposal/proposal.json"
    ).read_bytes()


def test_no_values_are_tried_twice_and_a_small_space_ends_the_study(chain, tmp_path):
    """Three values, one of them the scenario's own, where five trials are allowed."""
    space = "tune: {trials: 5, replay_days: 1, space: {train.batch_size: {choices: [32, 128]}}}"
    _, output = run(tmp_path, chain, space)
    tried = [trial["params"]["train.batch_size"] for trial in proposal_of(output)["trials"]]
    assert tried[0] == 64 and sorted(tried) == [32, 64, 128]


def test_a_small_space_is_tried_whole(chain, tmp_path, capsys):
    """Six pairs. Optuna's own sampler draws the best known pair again and again after its first three trials."""
    space = "train.batch_size: {choices: [32, 64]}, model.embedding_dim: {choices: [2, 4, 8]}"
    _, output = run(tmp_path, chain, f"tune: {{trials: 7, replay_days: 1, space: {{{space}}}}}")
    tried = {tuple(trial["params"].values()) for trial in proposal_of(output)["trials"]}
    assert len(tried) == 6
    assert "6 of 7 trials" in capsys.readouterr().err


def test_hopeless_trials_are_pruned_after_their_first_day(chain, tmp_path):
    section = """
tune: {trials: 12, space: {features.item.enabled: {choices: [true, false]}, train.seed: {low: 1, high: 99}}}
"""
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("0.00001", "0.03") + section)
    _, output = run(tmp_path, chain)
    trials = proposal_of(output)["trials"]
    pruned = [t for t in trials if t["state"] == "pruned"]
    assert pruned and all(list(t["intermediate"]) == ["1"] and t["value"] is None for t in pruned)
    assert any(not t["params"]["features.item.enabled"] for t in pruned)
    assert proposal_of(output)["best"]["features.item.enabled"]
    assert isinstance(trials[1]["params"]["train.seed"], int)


def test_any_config_path_can_be_searched(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO)
    scenario = load_scenario(tmp_path / "tiny.yaml")
    changed = with_values(
        scenario,
        {
            "train.learning_rate": 0.5,
            "model.bottom": [3, 2],
            "model.architecture": "mmoe",
            "features.age.enabled": False,
            "features.age.buckets": 7,
            "train.task_weights": {"like": 2.0},
        },
    )
    assert (
        changed.train.learning_rate == 0.5 and changed.model.bottom == (3, 2) and changed.model.architecture == "mmoe"
    )
    assert not changed.features["age"].enabled and changed.features["age"].buckets == 7
    assert changed.train.task_weights == {"like": 2.0} and changed.file == scenario.file
    assert scenario.train.learning_rate == 0.00001


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("features.recent.window_days: {low: 1, high: 9}", "needs the events of 2022-04-02, which are not committed"),
        ("features.*.kind: {choices: [id]}", "tune.space: features.age.kind = 'id'"),
        ("quantize.embedding_bits: {choices: [4]}", "has no part in training"),
        ("evaluate.bootstrap: {low: 1, high: 9}", "selects the rows that judge a trial"),
        ("train.holdout_share: {low: 0.1, high: 0.3}", "selects the rows that judge a trial"),
        ("train.learning_rat: {low: 0.1, high: 0.3}", "did you mean train.learning_rate?"),
        ("features.aeg.enabled: {choices: [true]}", "no such config path"),
        ("train.batch_size: {low: -5, high: 8}", "tune.space: train.batch_size = -5"),
        ("train.dropout: {low: 0, high: 1}", "no such config path"),
        ("model.bottom: {low: 1, high: 2}", "give choices instead"),
        ("train.learning_rate: {low: 0, high: 1, log: true}", "has no logarithm"),
        ("model.embedding_dim: {low: 3, high: 9, step: 2}", "is not low + n·step"),
        ("train.learning_rate: {}", "has no range"),
    ],
)
def test_a_space_that_no_trial_can_try_is_refused(chain, tmp_path, space, message):
    with pytest.raises(BadInputError) as caught:
        run(tmp_path, chain, f'\ntune: {{space: {{"{space.split(": ")[0]}": {space.split(": ", 1)[1]}}}}}\n')
    assert message in str(caught.value) and "tiny.yaml" in str(caught.value)


def test_an_end_of_a_range_is_refused_in_the_words_of_the_scenarios_own_errors(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO + "\ntune: {space: {model.dropout: {low: 0.0, high: 1.0}}}\n")
    with pytest.raises(BadInputError, match=r"dropout = 1\.0: .*must be a number .*below 1; change the range"):
        read_space(load_scenario(tmp_path / "tiny.yaml"))
    with pytest.raises(BadInputError, match=r"keys of tune.space hold dots themselves; write tune.space="):
        load_scenario(tmp_path / "tiny.yaml", overrides={"tune.space.model.dropout.low": 0.1})


def test_the_scenarios_own_values_are_always_in_the_space(tmp_path):
    section = (
        "\ntune: {space: {model.embedding_dim: {choices: [8, 16]}, train.learning_rate: {low: 0.01, high: 0.1}}}\n"
    )
    (tmp_path / "tiny.yaml").write_text(SCENARIO + section)
    dim, rate = read_space(load_scenario(tmp_path / "tiny.yaml"))
    assert dim.choices == ("4", "8", "16") and (rate.low, rate.high) == (0.00001, 0.1)
    assert rate.decode(0.0123456) == 0.01235 and rate.decode(rate.encode(rate.champion)) == 0.00001


def test_the_first_day_has_nothing_to_replay(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO + TUNE)
    config = DayConfig(load_scenario(tmp_path / "tiny.yaml"), DAYS[0])
    with pytest.raises(BadInputError, match="no checkpoint of an earlier day"):
        tune(
            config,
            samples=tmp_path,
            history={},
            checkpoints={},
            champion=None,
            events=None,
            past_events={},
            proposal=tmp_path,
        )


def test_applying_a_proposal_keeps_comments_and_touches_nothing_else(tmp_path):
    file = tmp_path / "tiny.yaml"
    space = TUNE + "    model.dropout: {choices: [0.1]}\n    quantize.max_auc_loss: {low: 0.001, high: 0.01}\n"
    file.write_text(SCENARIO + space)
    changes = {
        "train.learning_rate": {"old": 0.00001, "new": 0.0123},
        "features.age.enabled": {"old": True, "new": False},
        "model.dropout": {"old": 0.0, "new": 0.1},
        "quantize.max_auc_loss": {"old": 0.002, "new": 0.003},
    }
    apply(load_scenario(file), changes, DAYS[2])
    expected = (SCENARIO + space).replace("learning_rate: 0.00001}", "learning_rate: 0.0123}")
    expected = expected.replace("age: {kind: number}", "age: {kind: number, enabled: false}")
    expected = expected.replace("  tower: [4]\n", "  tower: [4]\n  dropout: 0.1\n")
    edited = file.read_text().replace("}   # far", "}  # far")  # a comment keeps its column
    assert edited == expected + "quantize:\n  max_auc_loss: 0.003\n"
    scenario = load_scenario(file)
    assert scenario.train.learning_rate == 0.0123 and not scenario.features["age"].enabled
    with pytest.raises(BadInputError, match=r"tiny.yaml:\d+: .*the proposal started from"):
        apply(load_scenario(file), changes, DAYS[2])


@pytest.mark.parametrize(
    ("path", "new", "reason"),
    [
        ("data.path", "/etc", "tune.space does not name data.path"),
        ("deploy.max_calibration_error", 1e9, "tune.space does not name deploy.max_calibration_error"),
        ("features.age.kind", "id", "tune.space does not name features.age.kind"),
        ("features.x.y.z", 1, "tune.space does not name features.x.y.z"),
        ("train.learning_rate", "fast", "train.learning_rate = 'fast'"),
        ("train.learning_rate", {"a": []}, "train.learning_rate = {'a': \\[\\]}"),
    ],
)
def test_a_proposal_changes_only_what_the_space_names_to_what_the_scenario_allows(tmp_path, path, new, reason):
    file = tmp_path / "tiny.yaml"
    file.write_text(SCENARIO + TUNE)
    with pytest.raises(BadInputError, match=reason):
        apply(load_scenario(file), {path: {"old": 0.00001, "new": new}}, DAYS[2])
    assert file.read_text() == SCENARIO + TUNE


def test_the_shipped_scenarios_survive_a_round_trip_and_have_a_space(tmp_path):
    from tests.paths import SCENARIOS

    for name in ("movielens", "kuairand"):
        shutil.copy(SCENARIOS / f"{name}.yaml", tmp_path)
        file = tmp_path / f"{name}.yaml"
        before = file.read_text()
        old = load_scenario(file).train.learning_rate
        apply(load_scenario(file), {"train.learning_rate": {"old": old, "new": 0.5}}, DAYS[2])
        changed = [line for line in file.read_text().splitlines() if line not in before.splitlines()]
        assert len(changed) <= 2 and any("learning_rate: 0.5" in line for line in changed)
        assert len(read_space(load_scenario(SCENARIOS / f"{name}.yaml"))) >= 4


def test_a_difference_within_chance_is_not_certain_and_not_applied_by_itself(chain, tmp_path):
    section = "\ntune: {trials: 3, apply: auto, space: {train.seed: {low: 1, high: 99}}}\n"
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("0.00001", "0.03") + section)
    _, output = run(tmp_path, chain)
    proposal = proposal_of(output)
    assert not proposal["certain"] and proposal["evidence"].get("like", {"low": -1})["low"] < 0
    apply_certain(load_scenario(tmp_path / "tiny.yaml"), output)
    assert load_scenario(tmp_path / "tiny.yaml").train.seed == 7
    assert sorted(p.name for p in output.iterdir()) == ["proposal.json"]


def test_a_gain_on_too_few_rows_is_unknown_and_not_applied_by_itself(chain, tmp_path):
    section = TUNE.replace("trials: 5", "trials: 3\n  apply: auto") + "\ndeploy: {min_rows: 50000}\n"
    _, output = run(tmp_path, chain, section)
    proposal = proposal_of(output)
    facts = proposal["evidence"]["like"]
    assert proposal["better"] and facts["low"] > 0  # the interval alone would call it better
    assert facts["verdict"] == "unknown" and not proposal["certain"]
    assert "rows where 50000 are needed" in facts["reason"]
    assert "like: AUC" in proposal_table(output, "-s tiny") and ": unknown against trial 0" in proposal_table(
        output, "-s tiny"
    )
    assert doubt(proposal) == f"the gain is unknown: like: {facts['reason']}"
    apply_certain(load_scenario(tmp_path / "tiny.yaml"), output)
    assert load_scenario(tmp_path / "tiny.yaml").train.learning_rate == 0.00001


def test_auto_applies_the_winner_by_itself_when_the_proposal_is_committed(chain, tmp_path):
    section = TUNE.replace("trials: 5", "trials: 3\n  apply: auto")
    _, output = run(tmp_path, chain, section)
    file = tmp_path / "tiny.yaml"
    assert load_scenario(file).train.learning_rate == 0.00001  # the step itself writes its output alone
    apply_certain(load_scenario(file), output)
    proposal = proposal_of(output)
    assert proposal["better"]
    assert load_scenario(file).train.learning_rate == proposal["best"]["train.learning_rate"] != 0.00001
    written = file.read_text()
    apply_certain(load_scenario(file), output)  # the step is run again
    assert file.read_text() == written


def test_trial_zero_has_the_values_that_serve_and_trial_one_the_scenarios_own(chain, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    settings = {"train": {"learning_rate": 0.03}, "model": {"bottom": [8]}, "features": {}}
    (served / "manifest.json").write_text(json.dumps({**MANIFEST, "settings": settings}))
    section = "\ntune: {trials: 3, space: {train.learning_rate: {low: 0.0001, high: 0.1, log: true}}}\n"
    _, output = run(tmp_path, chain, section, champion=served)
    proposal = proposal_of(output)
    assert [t["params"]["train.learning_rate"] for t in proposal["trials"][:2]] == [0.03, 0.00001]
    assert proposal["champion_value"] == proposal["trials"][0]["value"] > proposal["trials"][1]["value"]
    if not proposal["better"]:
        assert proposal["changes"] == {}  # the scenario differs from the serving one, but nothing better was found
    else:
        assert proposal["changes"]["train.learning_rate"]["old"] == 0.00001


def test_settings_that_are_not_searched_are_the_champions_in_trial_zero_too(chain, undisturbed, tmp_path):
    """The scenario was edited after the champion was trained: trial 0 is judged with the champion's settings."""
    served = tmp_path / "served"
    served.mkdir()
    scenario = load_scenario(undisturbed / "tiny.yaml").model_dump(mode="json", by_alias=True)
    settings = {key: scenario[key] for key in ("model", "train", "features")}
    (served / "manifest.json").write_text(json.dumps({**MANIFEST, "settings": settings}))
    section = "\ntune: {trials: 2, space: {model.embedding_dim: {choices: [4]}}}\n"
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("0.00001", "0.03") + section)
    _, output = run(tmp_path, chain, champion=served)
    trials = proposal_of(output)["trials"]
    expected = proposal_of(undisturbed / "proposal")["trials"][0]["value"]  # all settings equal to the champion's
    assert trials[0]["value"] == expected and trials[1]["value"] > expected
    assert trials[0]["params"] == trials[1]["params"] == {"model.embedding_dim": 4}


def test_a_trial_that_raises_counts_as_failed_and_the_study_goes_on(chain, tmp_path, monkeypatch):
    from models.training import day as training

    plain, section = training.train_day, "\ntune: {trials: 4, space: {model.bottom: {choices: [[8], [9], [10]]}}}\n"

    def breaks_on_nine(job):
        if job.scenario.model.bottom == (9,):
            raise RuntimeError("nine units are too many\nfor a test")
        return plain(job)

    monkeypatch.setattr(training, "train_day", breaks_on_nine)
    metrics, output = run(tmp_path, chain, section)
    proposal = proposal_of(output)
    failed = [t for t in proposal["trials"] if t["state"] == "failed"]
    assert len(proposal["trials"]) == 3 and len(failed) == metrics["trials"]["failed"] == 1
    assert {t["error"] for t in failed} == {"RuntimeError: nine units are too many"}
    assert proposal["best"] in ({"model.bottom": [8]}, {"model.bottom": [10]})
    assert "failed: RuntimeError: nine units are too many" in proposal_table(output, "-s tiny")
    before = (output / "proposal.json").read_bytes()
    run(tmp_path, chain, section)  # done: a failed trial is not tried again
    assert (output / "proposal.json").read_bytes() == before


def test_values_that_need_too_much_memory_fail_their_trial_alone(chain, tmp_path):
    wide = [16_384] * 50
    run(tmp_path, chain, f"\ntune: {{trials: 2, space: {{model.bottom: {{choices: [[8], {wide}]}}}}}}\n")
    trials = proposal_of(tmp_path / "proposal")["trials"]
    assert sorted(trial["state"] for trial in trials) == ["complete", "failed"]
    [failed] = [trial for trial in trials if trial["state"] == "failed"]
    assert failed["params"]["model.bottom"] == wide and "GiB with their moments" in failed["error"]


@pytest.mark.parametrize(("number", "stops"), [(errno.ENOMEM, False), (errno.ENOSPC, True)])
def test_a_full_disk_stops_the_study_and_missing_memory_does_not(chain, tmp_path, monkeypatch, number, stops):
    from models.training import day as training

    plain, section = training.train_day, "\ntune: {trials: 3, space: {model.bottom: {choices: [[8], [9]]}}}\n"

    def breaks_on_nine(job):
        if job.scenario.model.bottom == (9,):
            raise OSError(number, os.strerror(number))
        return plain(job)

    monkeypatch.setattr(training, "train_day", breaks_on_nine)
    with pytest.raises(OSError, match="No space left") if stops else contextlib.nullcontext():
        run(tmp_path, chain, section)


def test_the_table_shows_the_best_trial_first_and_the_command_that_takes_it_over(undisturbed):
    proposal, lines = (
        proposal_of(undisturbed / "proposal"),
        proposal_table(undisturbed / "proposal", "-s tiny").splitlines(),
    )
    assert lines[0].split()[:3] == ["trial", "auc", "state"]
    assert lines[1].startswith(str(proposal["best_trial"])) and f"{proposal['value']:.4f}" in lines[1]
    assert sum("(serves)" in line for line in lines) == 1
    assert lines[-1] == f"to take it over: recloop accept -s tiny --ds {DAYS[2]}"


@pytest.mark.parametrize(
    ("path", "joins"),
    [
        ("train.learning_rate", False),
        ("features.item.enabled", False),
        ("features.item.embedding.min_count", False),
        ("features.item.embedding.capacity", False),
        ("features.recent.window_days", True),
        ("features.recent.by", True),
        ("join.lookback_days", True),
    ],
)
def test_only_what_is_in_the_samples_joins_again(path, joins):
    assert joins_again(path) == joins
