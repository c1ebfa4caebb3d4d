"""A study whose process is killed, that several processes share, or whose journal is torn, ends as if undisturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.tasks.tuning.tiny import SCENARIO, TUNE, proposal_of, run
from tests.waiting import awaited

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.unit.tasks.tuning.test_interrupted import meet, run
meet(Path({folder!r}), {together})
run(Path({folder!r}), Path({chain!r}), worker={worker})
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
