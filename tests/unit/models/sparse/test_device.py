import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.sparse.cached import CachedRows
from models.sparse.device import DeviceRows, has_triton
from models.sparse.device_lookup import DeviceLookup
from models.sparse.lookup import Ids
from models.sparse.optimizers import Optimizer
from models.sparse.records import MemoryRecords
from models.sparse.rows import HostRows, Step
from models.sparse.tables import DynamicTables
from tests.paths import ROOT

NUM_ROWS, NUM_SAMPLES, DTYPES = 2048, 24, {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPTIMIZERS = ["rowwise_adagrad", "adagrad", "sgd", "adam"]
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batch(rng, dim, bags=True):
    """Two slots and two bags, of which the second is long for some samples and has shares now and then; some ids come
    often."""

    def keys(n):
        return (np.minimum(rng.zipf(1.3, n), 400) * 0x9E3779B97F4A7C1).astype(np.int64)

    lists = []
    for longest in (3, 40) if bags else ():
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, longest, NUM_SAMPLES))])
        lists.append((keys(offsets[-1]), offsets))
    shares = {1: rng.normal(size=len(lists[1][0])).astype(np.float32)} if bags and rng.random() < 0.5 else {}
    return Ids([keys(NUM_SAMPLES), keys(NUM_SAMPLES)], lists, shares)


def tables(dim, optimizer, rows, bags=True):
    return DynamicTables(dim, ["a", "b"], [0, 1, 1, 0] if bags else [0, 1], optimizer=optimizer, storage=rows)


def compare(device, name, dim, dtype, *, fused, cached=False, bags=True, steps=5):
    """Some steps of DeviceRows beside HostRows: inputs, weights and states."""
    rng, optimizer = np.random.default_rng(dim), Optimizer(name, 1e-6)
    rows = on_device = DeviceRows(dim, optimizer, 700 if cached else NUM_ROWS, device, fused=fused)
    if cached:
        rows = CachedRows(on_device, 700, MemoryRecords(NUM_ROWS, dim + optimizer.state_width(dim)))
    ours, host = tables(dim, optimizer, rows, bags), tables(dim, optimizer, HostRows(dim, optimizer, NUM_ROWS), bags)
    num_features = len(ours.table_F)
    width = num_features * dim + 3  # numbers follow the embeddings
    for number in range(1, steps + 1):
        ids = batch(rng, dim, bags)
        step = Step(number, 0.1, unscale=0.5, clip_norm=0.0 if number % 2 else 2.0)
        mine, theirs = DeviceLookup.of(ours.lookup(ids, 1), device), host.lookup(ids, 1)
        input_BI = torch.zeros(NUM_SAMPLES, width, dtype=DTYPES[dtype], device=device)
        wanted_BI = np.zeros((NUM_SAMPLES, width), np.float32)
        ours.forward(mine, 0, NUM_SAMPLES, input_BI)
        host.forward(theirs, 0, NUM_SAMPLES, wanted_BI)
        half = 2e-3 if dtype == "bfloat16" else 0  # rounding of the input
        np.testing.assert_allclose(input_BI.float().cpu().numpy(), wanted_BI, rtol=4 * half, atol=2e-6 + half)
        gradient_BI = torch.from_numpy(rng.normal(size=input_BI.shape)).to(DTYPES[dtype])
        ours.update(mine, gradient_BI.to(device), step)
        host.update(theirs, gradient_BI.float().numpy(), step)
    rows_R = np.arange(len(ours.ids) + 2, dtype=np.int32)
    for mine, theirs in zip(ours.storage.read(rows_R), host.storage.read(rows_R), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)
    scored = batch(rng, dim, bags)
    input_BI, wanted_BI = torch.zeros(NUM_SAMPLES, width, device=device), np.zeros((NUM_SAMPLES, width), np.float32)
    ours.forward(DeviceLookup.of(ours.find(scored), device), 0, NUM_SAMPLES, input_BI)
    host.forward(host.find(scored), 0, NUM_SAMPLES, wanted_BI)
    np.testing.assert_allclose(input_BI.cpu().numpy(), wanted_BI, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_torch_does_what_the_host_does(name, dtype):
    compare(CPU, name, 16, dtype, fused=False)


def test_tables_without_bags():
    compare(CPU, "rowwise_adagrad", 5, "float32", fused=False, bags=False)


@pytest.mark.parametrize("name", ["rowwise_adagrad", "adam"])
def test_a_cache_on_the_device_before_rows_in_host_memory(name):
    compare(CPU, name, 8, "float32", fused=False, cached=True)


def test_other_rows_stay():
    rng, optimizer = np.random.default_rng(0), Optimizer("adam")
    rows = DeviceRows(4, optimizer, NUM_ROWS, CPU)
    dynamic = tables(4, optimizer, rows)
    dynamic.lookup(batch(rng, 4), 1)
    lookup = dynamic.lookup(batch(rng, 4), 1)
    before, others = rows.weight_RD.clone(), np.setdiff1d(np.arange(NUM_ROWS), lookup.rows_U)
    gradient_BI = torch.ones(NUM_SAMPLES, 16)
    dynamic.update(DeviceLookup.of(lookup, CPU), gradient_BI, Step(1, 0.1))
    assert torch.equal(rows.weight_RD[others], before[others])
    assert (rows.weight_RD[lookup.rows_U] != before[lookup.rows_U]).all()


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="triton is not installed (extra cuda)")
def test_fused_kernels_do_what_the_host_does():
    """Under Triton's interpreter, which must be chosen before triton is imported."""
    code = (
        "from tests.unit.models.sparse.test_device import *\n"
        "for name in OPTIMIZERS: compare(CPU, name, 8, 'float32', fused=True, steps=2)\n"
        "compare(CPU, 'rowwise_adagrad', 5, 'bfloat16', fused=True, steps=2)\n"
        "compare(CPU, 'adagrad', 4, 'float32', fused=True, bags=False, steps=1)\n"
        "compare(CPU, 'adam', 8, 'float32', fused=True, cached=True, steps=2)\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=170)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_does_what_the_host_does(name, dtype, fused):
    compare(torch.device("cuda"), name, 16, dtype, fused=fused)
    compare(torch.device("cuda"), name, 12, dtype, fused=fused, cached=True)
