"""Exports that a full disk or an attacker wrote are refused with the place and a remedy, before a kernel reads them."""

import itertools
import json
import shutil

import numpy as np
import pytest

from models.runtime.onnx_model import sha256_of
from serving.scorer import Scorer
from tests.unit import hostile
from tests.unit.models.export.test_export import shop_export  # noqa: F401 (a fixture)


@pytest.fixture
def folder(shop_export, tmp_path):  # noqa: F811
    return shutil.copytree(shop_export[2], tmp_path / "export")


def sign(folder):
    """A process that changes a file can also change the digests beside it."""
    document = json.loads((folder / "serving.json").read_bytes())
    files = {name: sha256_of(folder / name) for name in document["files"]}
    (folder / "serving.json").write_text(json.dumps({**document, "files": files}))


def refused(folder, file, cases, *, signed):
    """Counts the changes that were refused; the others changed nothing that the scorer reads."""
    count, kept = 0, {name: (folder / name).read_bytes() for name in ("serving.json", file.name)}

    def load():
        if signed:
            sign(folder)
        Scorer.load(folder)

    for name, change in cases:
        change(file)
        count += hostile.is_refused(load, name, str(folder), "; ")
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        file.unlink(missing_ok=True)
        for written, data in kept.items():
            (folder / written).write_bytes(data)
    return count


def in_layout(whole):
    document = json.loads(whole)
    parts = {"slots": document["layout"]["slots"][0], "numbers": document["layout"]["numbers"][0]}
    for section, part in parts.items():
        for key in part:
            for name, value in hostile.VALUES.items():
                layout = {**document["layout"], section: [{**part, key: value}] * 2}
                yield f"{section}.{key} is {name}", hostile.write(json.dumps({**document, "layout": layout}).encode())
    many = [{**parts["slots"], "name": str(n), "namespace": str(n)} for n in range(1000)]
    layout = {**document["layout"], "slots": many}
    yield "more tables than embeddings", hostile.write(json.dumps({**document, "layout": layout}).encode())


def test_serving_json(folder):
    file = folder / "serving.json"
    whole = file.read_bytes()
    cases = [hostile.texts(), hostile.torn(whole), hostile.mistyped(whole), in_layout(whole), hostile.special()]
    assert refused(folder, file, itertools.chain(*cases), signed=False) > 110


def test_embeddings(folder):
    file = folder / "embeddings.safetensors"
    assert refused(folder, file, hostile.headers(file.read_bytes()), signed=True) > 80
    assert refused(folder, file, hostile.special(), signed=False) > 5


def test_a_graph_that_is_not_one(folder):
    file = folder / "model.onnx"
    whole, noise = file.read_bytes(), np.random.default_rng(0)

    def flipped():
        for number in range(20):
            data = bytearray(whole)
            for place in noise.integers(0, len(data), 40):
                data[place] ^= int(noise.integers(1, 256))
            yield f"noise {number}", hostile.write(bytes(data))

    garbage = [(f"garbage {n}", hostile.write(noise.bytes(n))) for n in (1, 100, 10_000, 1_000_000)]
    cases = [hostile.texts(), hostile.torn(whole), garbage]
    assert refused(folder, file, itertools.chain(*cases), signed=True) > 25
    refused(folder, file, flipped(), signed=True)  # some still are a graph: no other error, in little memory
    assert refused(folder, file, hostile.special(), signed=False) > 5


def test_a_reference_that_is_not_one(folder):
    file = folder / "reference.parquet"
    whole = file.read_bytes()
    cases = itertools.chain(hostile.texts(), hostile.torn(whole), hostile.special())
    assert refused(folder, file, cases, signed=False) > 20
