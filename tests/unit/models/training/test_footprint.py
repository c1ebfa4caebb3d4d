import numpy as np
import pytest
from safetensors.numpy import load_file

from feature_jobs.errors import BadInputError
from models.sparse.id_map import Columns, IdMap, capacity_for
from models.training.day import train_day
from models.training.footprint import footprint, refuse_too_large
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, shop, write_day


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam", "sgd"])
def test_bytes_are_those_that_the_arrays_hold(tmp_path, optimizer):
    scenario = shop(tmp_path, train__embedding_optimizer=optimizer, features__user__embedding={"min_count": 2})
    (tmp_path / "checkpoint").mkdir()
    train_day(TrainJob(scenario, DAYS[0], write_day(tmp_path / "samples", DAYS[0]), None, tmp_path / "checkpoint"))
    found = footprint(scenario, tmp_path / "checkpoint")
    rows = load_file(tmp_path / "checkpoint" / "embeddings.safetensors")
    sparse = load_file(tmp_path / "checkpoint" / "optimizer.safetensors")
    for number, (name, table) in enumerate(found["tables"].items()):
        inside = rows["tables"] == number
        assert table["fate"] == "restored"
        assert table["rows"] == inside.sum(), name
        assert table["weight_bytes"] == rows["weights"][inside].nbytes
        assert table["state_bytes"] == sparse["embeddings/state"][inside].nbytes
        kept = rows["tables"][inside], sparse["embeddings/days"][inside], sparse["embeddings/counts"][inside]
        assert table["bookkeeping_bytes"] == sum(array.nbytes for array in kept)
        parts = table["weight_bytes"] + table["state_bytes"] + table["bookkeeping_bytes"]
        assert table["row_bytes"] * table["rows"] == parts
    assert found["sketch_bytes"] == sparse["embeddings/sketch"].nbytes
    assert found["id_map_bytes"] == 16 * capacity_for(len(rows["keys"]))
    dense = {name: array for name, array in sparse.items() if name.endswith("/exp_avg")}
    assert found["dense"]["parameters"] == sum(array.size for array in dense.values())


@pytest.mark.parametrize("num_keys", [0, 1, 716, 717, 100_000])
def test_entries_of_the_id_map_are_foreseen(num_keys):
    ids = IdMap()
    ids.resolve(Columns([np.random.default_rng(0).integers(-(2**63), 2**63 - 1, num_keys)], np.zeros(1, np.int32)))
    assert ids.entries.nbytes == 16 * capacity_for(num_keys)


def test_without_a_parent_it_states_what_is_known(tmp_path):
    settings = {"min_count": 3, "capacity": 1000}
    found = footprint(shop(tmp_path, features__user__embedding=settings), None)
    assert found["changes"] is None
    assert found["tables"]["user"] == {
        "fate": "new", "rows": 0, "weight_bytes": 0, "state_bytes": 0, "bookkeeping_bytes": 0,
        "row_bytes": 4 * 4 + 4 + 10, "most_bytes": 30_000, "settings": settings,
    }  # fmt: skip
    assert found["tables"]["price:bucket"]["most_bytes"] is None
    assert found["sketch_bytes"] == 2**24
    assert footprint(shop(tmp_path), None)["sketch_bytes"] == 0


def test_nothing_of_the_tables_is_read(tmp_path):
    scenario = shop(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    train_day(TrainJob(scenario, DAYS[0], write_day(tmp_path / "samples", DAYS[0]), None, tmp_path / "checkpoint"))
    before = footprint(scenario, tmp_path / "checkpoint")
    for name in ("embeddings", "optimizer"):
        (tmp_path / "checkpoint" / f"{name}.safetensors").unlink()
    assert footprint(scenario, tmp_path / "checkpoint") == before


@pytest.mark.slow
def test_a_model_larger_than_the_memory_is_refused_before_any_is_taken(tmp_path):
    scenario = shop(tmp_path, model__bottom=[16_384, 16_384])
    num_bytes = footprint(scenario, None)["dense"]["bytes"]
    assert num_bytes > 3 << 30
    refuse_too_large(scenario, memory_bytes=num_bytes)
    with pytest.raises(BadInputError, match=r"parameters take 3\.\d GiB .* lower the widths of model\.bottom"):
        refuse_too_large(scenario, memory_bytes=num_bytes - 1)
    vast = shop(tmp_path, model__bottom=[16_384] * 50, model__architecture="mmoe", model__num_experts=256)
    with pytest.raises(BadInputError):
        refuse_too_large(vast)
