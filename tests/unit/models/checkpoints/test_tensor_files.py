import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file

from models.checkpoints import tensor_files
from models.checkpoints.tensor_files import DTYPES, Rows, read_rows, read_tensors, write_tensors

TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=5,
)


@given(TENSORS)
def test_safetensors_itself_reads_what_was_written(tmp_path_factory, tensors):
    file = tmp_path_factory.mktemp("files") / "some.safetensors"
    write_tensors(file, tensors)
    read = load_file(file)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array, equal_nan=array.dtype.kind == "f")
    header = file.read_bytes()
    size = int.from_bytes(header[:8], "little")
    offsets = [tensor["data_offsets"][0] for tensor in json.loads(header[8 : 8 + size]).values()]
    aligned = zip(offsets, sorted((a.itemsize for a in tensors.values()), reverse=True), strict=True)
    assert size % 8 == 0
    assert all(offset % width == 0 for offset, width in aligned)


@pytest.mark.parametrize("num_rows", [0, 1, 4, 11])
def test_a_part_at_a_time_gives_equal_bytes(tmp_path, monkeypatch, num_rows):
    monkeypatch.setattr(tensor_files, "CHUNK_ROWS", 4)
    whole = np.random.default_rng(0).normal(size=(num_rows, 3)).astype(np.float32)
    asked = []

    def part(begin, end):
        asked.append((begin, end))
        return whole[begin:end]

    write_tensors(tmp_path / "whole", {"keys": np.arange(num_rows), "weights": whole})
    # The order of the names and strides in memory must not matter.
    parts = {"weights": Rows(whole.shape, np.float32, part), "keys": np.arange(2 * num_rows)[::2] // 2}
    write_tensors(tmp_path / "parts", parts)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert asked == [(begin, min(begin + 4, num_rows)) for begin in range(0, num_rows, 4)]
    read = list(read_rows(tmp_path / "whole", "weights"))
    assert [begin for begin, _ in read] == [begin for begin, _ in asked]
    assert np.array_equal(np.concatenate([np.empty((0, 3), np.float32), *(rows for _, rows in read)]), whole)


def test_tensors_of_torch_are_written_as_arrays_are(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    write_tensors(tmp_path / "torch", {"a": tensor})
    write_tensors(tmp_path / "numpy", {"a": tensor.detach().numpy()})
    assert (tmp_path / "torch").read_bytes() == (tmp_path / "numpy").read_bytes()
    assert torch.equal(read_tensors(tmp_path / "torch")["a"], tensor)


def test_named_tensors_are_read_and_what_is_missing_is_left_out(tmp_path):
    write_tensors(tmp_path / "some", {"a": np.arange(3), "b": np.arange(4.0)})
    assert read_tensors(tmp_path / "some").keys() == {"a", "b"}
    assert read_tensors(tmp_path / "some", ("b", "c")).keys() == {"b"}


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_unreadable_files_are_named(tmp_path, damage):
    file = tmp_path / "some.safetensors"
    write_tensors(file, {"a": np.arange(3)})
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    if damage == "missing":
        file.unlink()
    if damage != "other":
        with pytest.raises(ValueError, match=r"some\.safetensors"):
            read_tensors(file)
    with pytest.raises(ValueError, match=r"some\.safetensors"):
        list(read_rows(file, "b"))
