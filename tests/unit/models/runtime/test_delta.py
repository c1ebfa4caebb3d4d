import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError, CorruptError
from models.runtime import delta
from models.runtime.delta import apply_delta, write_delta
from models.runtime.frozen_tables import FrozenTable, quantize_rows
from models.runtime.onnx_model import FORMAT, sha256_of
from models.runtime.output_folder import written_whole
from tests.paths import ROOT

KEYS = [-(2**63), -(2**62), -5, -1, 0, 1, 2, 7, 2**40, 2**62, 2**63 - 1]
WEIGHTS = st.integers(-3, 3)
DAY = st.dictionaries(st.sampled_from(KEYS), WEIGHTS)


def write_export(folder: Path, rows: dict[int, int], *, dim: int = 3, default: float = 0.5, bits: int = 8) -> Path:
    """An export whose row of a key is (w, w + 1, ...); its dense part is bytes, which a delta never looks into."""
    folder.mkdir(parents=True)
    keys = np.array(sorted(rows), np.int64)
    weights = np.array([[rows[key] + d for d in range(dim)] for key in keys.tolist()], np.float32).reshape(-1, dim)
    defaults = np.full((2, dim), default, np.float32)
    table = FrozenTable.from_sorted([(keys, quantize_rows(weights, bits))], len(keys), defaults, bits)
    table.save(folder / "embeddings.safetensors")
    (folder / "model.onnx").write_bytes(b"dense %d" % len(rows))
    (folder / "reference.parquet").write_bytes(str(rows).encode())
    files = {name: sha256_of(folder / name) for name in ("model.onnx", "embeddings.safetensors")}
    facts = {"format": FORMAT, "scenario": "x", "ds": "x", "checkpoint": "x", "tasks": [], "layout": {}, "files": files}
    (folder / "serving.json").write_text(json.dumps(facts))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read(folder: Path, key: int) -> np.ndarray:
    return FrozenTable.load(folder / "embeddings.safetensors").embed([np.array([key])], [], [1], 1)[0, 0]


@settings(max_examples=40)
@given(st.lists(DAY, min_size=2, max_size=4), st.integers(1, 20), st.sampled_from([4, 8]))
def test_an_export_and_the_deltas_after_it_are_the_last_export(tmp_path_factory, days, chunk_rows, bits):
    root = tmp_path_factory.mktemp("days")
    exports = [write_export(root / f"export-{n}", day, default=float(n), bits=bits) for n, day in enumerate(days)]
    served = exports[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "CHUNK_ROWS", chunk_rows)
        for n in range(1, len(days)):
            facts = write_delta(exports[n - 1], exports[n], root / f"delta-{n}")
            before, after = days[n - 1], days[n]
            assert facts["new"] == len(after.keys() - before.keys())
            assert facts["gone"] == len(before.keys() - after.keys())
            assert facts["changed"] == sum(before[key] != after[key] for key in before.keys() & after.keys())
            apply_delta(served, root / f"delta-{n}", root / f"served-{n}")
            served = root / f"served-{n}"
            assert contents(served) == contents(exports[n])
    for key in KEYS:
        wanted = [days[-1][key] + d for d in range(3)] if key in days[-1] else [len(days) - 1] * 3
        assert read(served, key) == pytest.approx(wanted, abs=0.03 if bits == 8 else 0.4)


@pytest.fixture
def chain(tmp_path):
    """Three exports and the deltas between them."""
    days = [{1: 1, 2: 2, 3: 3}, {1: 1, 2: 5, 4: 4}, {1: 1, 4: 4}]
    exports = [write_export(tmp_path / f"export-{n}", day) for n, day in enumerate(days)]
    for n in (1, 2):
        write_delta(exports[n - 1], exports[n], tmp_path / f"delta-{n}")
    return tmp_path


def test_only_what_changed_is_in_the_delta(chain):
    facts = json.loads((chain / "delta-1" / "delta.json").read_text())
    assert {name: facts[name] for name in ("rows", "changed", "new", "gone")} == {
        "rows": 3, "changed": 1, "new": 1, "gone": 1,
    }  # fmt: skip
    assert facts["base"] == sha256_of(chain / "export-0" / "serving.json")
    assert not (chain / "delta-1" / "embeddings.safetensors").exists()


def test_an_id_that_is_gone_reads_the_default_row(chain):
    apply_delta(chain / "export-0", chain / "delta-1", chain / "served")
    assert read(chain / "export-0", 3) == pytest.approx([3, 4, 5], abs=0.03)
    assert read(chain / "served", 3).tolist() == [0.5, 0.5, 0.5]


def test_another_base_is_refused(chain):
    with pytest.raises(BadInputError, match="apply deltas in order"):
        apply_delta(chain / "export-0", chain / "delta-2", chain / "served")
    assert not (chain / "served").exists()


def test_a_used_folder_is_refused(chain):
    with pytest.raises(BadInputError, match="is not empty"):
        write_delta(chain / "export-0", chain / "export-1", chain / "delta-1")
    with pytest.raises(BadInputError, match="is not empty"):
        apply_delta(chain / "export-0", chain / "delta-1", chain / "export-2")


@pytest.mark.parametrize("name", ["delta.json", "rows.safetensors", "model.onnx", "serving.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_delta_is_refused(chain, name, damage):
    file = chain / "delta-1" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    if damage == "flipped":
        file.write_bytes(data)
    with pytest.raises(BadInputError):
        apply_delta(chain / "export-0", chain / "delta-1", chain / "served")


def test_a_damaged_base_is_refused(chain):
    damaged = chain / "damaged"
    shutil.copytree(chain / "export-0", damaged)
    data = bytearray((damaged / "embeddings.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "embeddings.safetensors").write_bytes(data)
    with pytest.raises(CorruptError, match="fetch the export again"):
        apply_delta(damaged, chain / "delta-1", chain / "served")
    with pytest.raises(CorruptError, match="fetch the export again"):
        write_delta(damaged, chain / "export-1", chain / "another")


def test_a_table_of_another_dimension_travels_whole(tmp_path):
    first = write_export(tmp_path / "first", {1: 1, 2: 2}, dim=3)
    second = write_export(tmp_path / "second", {2: 2, 3: 3}, dim=8)
    facts = write_delta(first, second, tmp_path / "delta")
    assert (facts["new"], facts["changed"], facts["gone"]) == (2, 0, 0)
    apply_delta(first, tmp_path / "delta", tmp_path / "served")
    assert contents(tmp_path / "served") == contents(second)


def test_rows_of_other_bits_are_refused(chain):
    """Dimension 1 has rows as wide at 4 bits as at 8."""
    exports = {bits: write_export(chain / f"bits-{bits}", {1: 1, 2: 2}, dim=1, bits=bits) for bits in (4, 8)}
    with pytest.raises(
        BadInputError, match=r"embeddings have 8 bits and those of .*bits-4 4, so .* send the whole export"
    ):
        write_delta(exports[8], exports[4], chain / "delta")
    assert not (chain / "delta").exists()
    later = write_export(chain / "later", {1: 1, 2: 3}, dim=1, bits=4)
    write_delta(exports[4], later, chain / "delta")
    with pytest.raises(BadInputError, match="or fetch the whole export"):
        apply_delta(exports[8], chain / "delta", chain / "served")


KILLED = """
import os, sys
from pathlib import Path
from models.runtime import delta
real, calls = delta._copy, []
def copy(*arguments):
    calls.append(arguments)
    if len(calls) == {after}:
        os.kill(os.getpid(), 9)
    real(*arguments)
delta._copy = copy
base, other, output = map(Path, sys.argv[2:])
getattr(delta, sys.argv[1])(base, other, output)
"""


@pytest.mark.parametrize("function", ["write_delta", "apply_delta"])
def test_what_a_killed_run_left_is_removed_by_the_next(chain, function):
    second = {"write_delta": chain / "export-1", "apply_delta": chain / "delta-1"}[function]
    output, before = chain / "output", set(chain.iterdir())
    for after in (1, 2, 3):
        command = [sys.executable, "-c", KILLED.format(after=after), function, chain / "export-0", second, output]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        assert not output.exists()
        left = set(chain.iterdir()) - before
        assert len(left) == 1  # the newest; that of the run before was removed
    getattr(delta, function)(chain / "export-0", second, output)
    assert set(chain.iterdir()) - before == {output}


def test_what_another_run_writes_at_the_moment_is_left_alone(chain):
    with written_whole(chain / "output") as first:
        (first / "file").write_text("first")
        apply_delta(chain / "export-0", chain / "delta-1", chain / "output")
        assert (first / "file").read_text() == "first"
        with pytest.raises(BadInputError, match="is not empty"), written_whole(chain / "output"):
            pass
        shutil.rmtree(chain / "output")
    assert contents(chain / "output") == {"file": b"first"}
    assert not list(chain.glob(".*"))
