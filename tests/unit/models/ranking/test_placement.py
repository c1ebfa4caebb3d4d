import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from models.training.day import train_day
from models.training.job import TrainJob
from tests.unit.models.days import DAYS, day_table, shop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two days of samples with some 1500 users, few of whom come often."""
    folder = tmp_path_factory.mktemp("days")
    for ds in DAYS[:2]:
        table, rng = day_table(ds, 800), np.random.default_rng(int(ds[-1]))
        users = pa.array(np.minimum(rng.zipf(1.2, 800), 10**6 + rng.integers(0, 2000, 800)))
        cross = pa.array([f"{user}{chr(31)}a" for user in users.to_pylist()])
        for name, values in (("user", users), ("user_city", cross)):
            table = table.set_column(table.column_names.index(name), name, values)
        (folder / f"samples-{ds}").mkdir()
        pq.write_table(table, folder / f"samples-{ds}" / "samples.parquet")
    return folder


def two_days(folder, name, **overrides):
    """Trains both; returns digests of all files, and the second day's metrics."""
    scenario, parent, digests = shop(folder, train__batch_size=8, **overrides), None, []
    for ds in DAYS[:2]:
        output = folder / f"{name}-{ds}"
        output.mkdir()
        metrics = train_day(TrainJob(scenario, ds, folder / f"samples-{ds}", parent, output))
        digests += [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(output.iterdir())]
        parent = output
    return digests, metrics


@pytest.mark.parametrize(("threads", "optimizer"), [(1, "rowwise_adagrad"), (2, "adam")])
def test_tables_many_times_the_cache_give_an_equal_checkpoint(folder, tmp_path, threads, optimizer):
    common = {"train__embedding_optimizer": optimizer, "train__threads": threads}
    whole, _ = two_days(folder, f"whole-{optimizer}", **common)
    away = tmp_path / "rows"
    cached, metrics = two_days(
        folder, f"cached-{optimizer}", **common, train__cache_rows=150, train__rows_folder=str(away)
    )
    assert cached == whole
    assert metrics["embedding_rows"] > 8 * 150
    assert 0 < metrics["tables"]["user"]["cache_hit_rate"] < 1
    assert list(away.iterdir()) == []


def test_a_cache_too_small_is_refused_and_leaves_no_file(folder):
    with pytest.raises(BadInputError, match=r"train\.cache_rows is 40"):
        two_days(folder, "small", train__cache_rows=40)
    assert list((folder / f"small-{DAYS[0]}").iterdir()) == []
