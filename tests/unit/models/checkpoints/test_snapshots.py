import os
import random
import shutil
import signal
import time
from types import SimpleNamespace

import pytest

from feature_jobs.errors import RetryLaterError
from models.checkpoints.snapshots import Snapshots
from models.distributed.process_group import Group
from models.training.day import train_day
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, shop, write_day
from tests.unit.models.training.test_day import digests

ADMISSION = {"min_count": 2, "capacity": 40, "ttl_days": 1}


def every_state(folder, precision):
    """A scenario in which every kind of state matters to the later batches."""
    return shop(
        folder,
        features__user__embedding=ADMISSION,
        features__item__embedding={"min_count": 2},
        model__dropout=0.2,
        train__precision=precision,
        train__embedding_optimizer="adam",
        train__warmup_steps=40,
        train__clip_norm=1.0,
        train__batch_size=50,
        train__shuffle_rows=100,
        train__snapshot_rows=200,
        train__threads=1,
    )


def in_a_child(work):
    """Runs `work` in a forked process; returns its id."""
    if pid := os.fork():
        return pid
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_killed_at_random_moments_the_bytes_are_the_same(tmp_path, precision):
    scenario = every_state(tmp_path, precision)
    parent = tmp_path / "parent"
    parent.mkdir()
    train_day(TrainJob(scenario, DAYS[0], write_day(tmp_path / "first", DAYS[0], 1000), None, parent))
    samples = write_day(tmp_path / "second", DAYS[1], 3000)
    resume, output = tmp_path / "resume", tmp_path / "output"

    def train():
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        train_day(TrainJob(scenario, DAYS[1], samples, parent, output, resume=resume))

    begun = time.monotonic()
    os.waitpid(in_a_child(train), 0)
    whole_s = time.monotonic() - begun
    wanted = digests(output)
    shutil.rmtree(resume)
    rng, killed, went_on = random.Random(50), 0, 0
    while killed < 25:
        pid = in_a_child(train)
        time.sleep(rng.uniform(0.2, 0.9) * whole_s)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            went_on += resume.exists() and any(path.name.isdigit() for path in resume.iterdir())
        else:
            assert os.waitstatus_to_exitcode(status) == 0
            assert digests(output) == wanted
            shutil.rmtree(resume)
    assert went_on > 12
    os.waitpid(in_a_child(train), 0)
    assert digests(output) == wanted


def test_a_node_that_does_not_see_the_snapshot_yet_starts_again_later(tmp_path):
    class OtherNode(Group):
        def broadcast_number(self, number):
            return 7  # the newest snapshot that node 0 sees

    with pytest.raises(RetryLaterError, match=r"7: node 0 has this snapshot"):
        Snapshots(tmp_path).load(SimpleNamespace(group=OtherNode(1, 2)))
