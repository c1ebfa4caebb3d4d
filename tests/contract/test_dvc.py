"""dvc.yaml agrees with the declarations of the steps, and DVC itself accepts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_jobs.schema import load_scenario
from tasks.commands.days import scenario_days
from tasks.run.dvc import render
from tasks.steps import daily_steps, upstream
from tests.paths import ROOT, SCENARIOS
from tests.small import SCENARIO

MOVIELENS = SCENARIOS / "movielens.yaml"


def _rendered() -> str:
    scenario = load_scenario(MOVIELENS)
    return render(scenario, Path("scenarios/movielens.yaml"), scenario_days(scenario, None, None, None))


def test_committed_file_is_the_rendered_one() -> None:
    rendered = _rendered()
    assert (ROOT / "dvc.yaml").read_text() == rendered, "run: recloop dvc-render --scenario movielens"


def test_the_file_is_a_template_of_a_day() -> None:
    assert len(_rendered().splitlines()) <= 250


def test_stages_depend_on_what_their_steps_read() -> None:
    from ruamel.yaml import YAML

    document = YAML(typ="safe").load(_rendered())
    stages, days = document["stages"], document["vars"][0]["days"]
    for name in daily_steps(load_scenario(MOVIELENS)):
        deps = stages[name]["do"]["deps"]
        for writer in upstream(name):
            assert f".recloop/dvc/movielens/g0000/${{key}}/{writer}" in deps
    assert "${item.before}/train" in stages["train"]["do"]["deps"]
    assert days["1997-11-12"]["before"] == ".recloop/genesis"
    assert days["1997-11-13"]["before"] == ".recloop/dvc/movielens/g0000/1997-11-12"
    assert "models/training" in stages["train"]["do"]["deps"]
    assert "models/training" not in stages["join"]["do"]["deps"]
    params = stages["train"]["do"]["params"]
    assert params == [{"scenarios/movielens.yaml": ["features", "labels", "model", "train"]}]


def test_dvc_reads_the_file() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deploy@1997-11-21" in done.stdout


@pytest.mark.parametrize("name", ["a;touch X;.yaml", "a $(touch X) '${HOME}' \"b\".yaml"])
def test_names_of_files_are_words_and_not_commands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # paths of scenarios are relative to it
    for folder in ("scenarios", "bin", "feature_jobs/datasets"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "feature_jobs" / "datasets" / "fetch.py").write_text("")
    asked = tmp_path / "bin" / "recloop"
    asked.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > asked\nmkdir -p "scenarios/da ta"\ntouch "scenarios/da ta/x"\n')
    asked.chmod(0o755)
    file = tmp_path / "scenarios" / name
    file.write_text(SCENARIO.format(last="2024-03-02").replace("path: data\n", "path: da ta\n  fetch: synthetic\n", 1))
    text = render(load_scenario(file), Path("scenarios") / name, ["2024-03-01", "2024-03-02"])
    (tmp_path / "dvc.yaml").write_text(text)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for words in (["init", "--no-scm"], ["repro", "fetch"]):
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "asked").read_text() == f"fetch\n--scenario\nscenarios/{name}\n"
    assert not (tmp_path / "X").exists()
