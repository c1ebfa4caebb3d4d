"""Checkpoints that a full disk or an attacker wrote: CorruptError with place and remedy, soon, in little memory."""

import itertools
import json
import shutil

import pytest

from models.checkpoints import checkpoint as checkpoints
from tests.unit import hostile
from tests.unit.models.checkpoints.test_checkpoint import make_ranker, written


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    written(make_ranker(folder), folder / "checkpoint")
    return folder / "checkpoint"


def nested(whole: bytes):
    """Each value one level down is of another type once."""
    document = json.loads(whole)
    for section in ("architecture", "layout", "loss_scaler", "table_rows"):
        for name, change in hostile.mistyped(json.dumps(document[section]).encode()):
            yield f"{section}: {name}", _inside(document, section, change)


def _inside(document, section, change):
    def write(file):
        change(file)
        file.write_text(json.dumps({**document, section: json.loads(file.read_bytes())}))

    return write


def refused(folder, cases):
    """Counts the changes that were refused; the others changed nothing that a load reads."""
    count = 0
    for name, change, file in cases:
        kept = file.read_bytes()
        change(file)
        count += hostile.is_refused(lambda: checkpoints.load(folder), name, str(folder), "; restore it")
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        file.unlink(missing_ok=True)
        file.write_bytes(kept)
    return count


def test_a_wrong_checkpoint_json(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoint")
    file = folder / "checkpoint.json"
    whole = file.read_bytes()
    cases = [hostile.texts(), hostile.torn(whole), hostile.mistyped(whole), nested(whole), hostile.special()]
    assert refused(folder, [(name, change, file) for name, change in itertools.chain(*cases)]) > 150


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense.safetensors", "embeddings.safetensors", "optimizer.safetensors"])
def test_wrong_tensors(saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "checkpoint")
    file = folder / name
    whole = file.read_bytes()
    cases = itertools.chain(hostile.headers(whole), hostile.torn(whole), hostile.special())
    assert refused(folder, [(case, change, file) for case, change in cases]) > 60
