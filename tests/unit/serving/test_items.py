"""Features of items that a server keeps: the scores are those of a server that keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.online.materialize import load
from feature_jobs.online.opening import OnlineFeatures, store_of
from feature_jobs.online.request import Request
from feature_jobs.schema import load_scenario
from serving.items import ItemRows, features_of_item
from serving.protocol import Asked
from serving.release import ITEMS, USER, Loaded
from serving.scorer import Scorer
from tests.unit.serving.shop import BIG, Shop

HOUR = 3_600_000_000
ITEM_IDS = st.one_of(st.integers(0, 60), st.sampled_from([BIG, -1, 2**62]))


@pytest.fixture(scope="module")
def loaded(shop: Shop) -> Iterator[Loaded]:
    with closing(Loaded(shop.releases.newest())) as found:
        yield found


def test_what_depends_on_the_item_alone_is_kept(loaded: Loaded) -> None:
    kept = features_of_item(loaded.scenario, loaded._features.path)
    assert kept == {"product", "price", "colours", "seen", "buy_rate"}
    assert loaded._items is not None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 47),
            st.one_of(st.none(), st.sampled_from(["s1", "s7", "nobody"])),
            st.lists(ITEM_IDS, max_size=40),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kept_items_have_the_scores_of_others(
    loaded: Loaded, requests: list[tuple[int, str | None, list[int]]]
) -> None:
    """Whatever was asked for before, at earlier and at later times."""
    begin = round(loaded.begin.timestamp() * 1e6)
    for hour, user, items in requests:
        inputs = {USER: pa.array([user], pa.string()), ITEMS: pa.array(items, pa.int64())}
        found = loaded.answer(Asked(inputs, {}), begin + hour * HOUR)
        # With an explanation all features are computed for this request.
        wanted = loaded.answer(Asked(inputs, {}, parameters={"explain": True}), begin + hour * HOUR)
        for task in loaded.tasks:
            assert np.asarray(found.outputs[task]).tobytes() == np.asarray(wanted.outputs[task]).tobytes()


def test_a_row_of_today_counts_at_once(shop: Shop, tmp_path: Path) -> None:
    changed = shop.copy(tmp_path / "changed")
    changed.file.write_text(changed.file.read_text().replace("online: {}", f"online: {{store: {tmp_path / 'online'}}}"))
    release, scenario = shop.releases.newest(), load_scenario(changed.file)
    scorer = Scorer.load(release.export, release.digest)
    with closing(store_of(scenario)) as store:
        load(Path(release.online), store)
    with closing(OnlineFeatures(scenario, Path(release.online), names=scorer.columns, writable=True)) as features:
        kept = ItemRows(features, scorer.model, features_of_item(scenario, features.path))
        at, items = features.path.facts.begin + HOUR, pa.array([3, 4])

        def numbers(time: int) -> list[list[float]]:
            shape = 2, len(scorer.model.layout.feature_tables), scorer.model.table.dim
            emb_BFD, numbers_BL = (
                np.zeros(shape, np.float32),
                np.zeros((2, len(scorer.model.layout.numbers)), np.float32),
            )
            kept.fill(items, time, emb_BFD, numbers_BL)
            return numbers_BL.tolist()

        before = numbers(at)
        assert numbers(at) == before
        features.add(
            {"shopper": pa.array(["s1"]), "product": pa.array([3]), "bought": pa.array([1]), "rated": pa.array([5.0]),
             "at": pa.array(["2024-03-03T00:30:00"])},
            times=np.array([at - HOUR // 2]), rows=np.array([1]),
        )  # fmt: skip
        after = numbers(at + 1)
        assert after[0] != before[0]
        assert after[1] == before[1]
        wanted = features.of(Request(at + 1, None, items))
        assert wanted["seen"].to_pylist()[0] == features.of(Request(at - HOUR // 2, None, items))["seen"][0].as_py() + 1
