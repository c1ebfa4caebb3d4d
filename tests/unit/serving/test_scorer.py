import datetime
import json
import shutil
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError, CorruptError
from models.runtime.onnx_model import sha256_of
from models.training.day import score
from serving.scorer import Scorer
from tests.paths import ROOT
from tests.unit.models.days import DAYS, day_table
from tests.unit.models.export.test_export import shop_export  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def folder(shop_export):  # noqa: F811
    return shop_export[2]


@pytest.fixture(scope="module")
def scorer(folder):
    return Scorer.load(folder)


def test_reproduces_the_stored_scores(scorer, folder):
    reference = pq.read_table(folder / "reference.parquet")
    for rows in (reference, reference.to_pandas(), reference.to_pandas(integer_object_nulls=True)):
        scores = scorer.score(rows)
        for task in ("click", "buy"):
            assert scores[task].dtype == np.float32
            assert np.abs(scores[task] - reference[f"int8.{task}"].to_numpy()).max() <= 1e-6


def test_scores_rows_as_training_does(scorer, shop_export):  # noqa: F811
    table = day_table(DAYS[2], 700)  # more than one batch, users and items never seen
    wanted, found = score(shop_export[0], table), scorer.score(table)
    for task in ("click", "buy"):
        assert found[task] == pytest.approx(wanted[task], abs=0.04)
        assert np.corrcoef(found[task], wanted[task])[0, 1] > 0.995


def test_order_and_extra_columns_do_not_matter(scorer):
    frame = day_table(DAYS[2], 20).to_pandas()
    shuffled = frame[sorted(frame.columns, reverse=True)].assign(extra=[object()] * 20)
    assert scorer.score(shuffled)["buy"].tolist() == scorer.score(frame)["buy"].tolist()


def test_rows_of_plain_python(scorer):
    row = {
        "user": 3, "item": 5, "city": "Rome", "user_city": f"3{chr(31)}Rome", "tags": ["tag1"], "price": 3.5,
        "seen": 4, "click_rate": None, "last_seen": None, "clicked": [],
    }  # fmt: skip
    of_frame = scorer.score(pd.DataFrame([row]))["click"]
    assert of_frame == pytest.approx(scorer.score(pa.Table.from_pylist([row]))["click"])
    assert 0 < of_frame[0] < 1
    assert len(scorer.score(day_table(DAYS[2], 5).slice(0, 0))["click"]) == 0


def test_wrong_columns_are_named(scorer):
    frame = day_table(DAYS[2], 5).to_pandas()
    with pytest.raises(BadInputError, match="'price' is missing"):
        scorer.score(frame.drop(columns="price"))
    with pytest.raises(BadInputError, match=r"'user', row 0: 0.5 .*is not an id"):
        scorer.score(frame.assign(user=0.5))
    with pytest.raises(BadInputError, match="'city', row 1: mixes types"):
        scorer.score(frame.assign(city=["Rome", 3, b"x", None, 1.5]))
    with pytest.raises(BadInputError, match="differ in length"):
        scorer.score({**frame, "user": [1]})


@pytest.fixture(scope="module")
def batch():
    """600 rows, which is more than one batch. The user of the last is null."""
    table = day_table(DAYS[2], 600)
    users = [*table["user"].to_pylist()[:-1], None]
    return table.set_column(table.column_names.index("user"), "user", pa.array(users, pa.int64()))


def as_objects(ids):
    return pd.Series(ids, dtype=object)


@pytest.mark.parametrize(
    "form",
    [
        list, as_objects, pa.array, lambda ids: pd.array(ids, "Int64"),
        lambda ids: pa.chunked_array([ids[:9], ids[9:]]),
        lambda ids: pd.Series(ids, dtype=pd.ArrowDtype(pa.int64())), lambda ids: pa.array(ids).dictionary_encode(),
        lambda ids: np.array([np.nan if i is None else i for i in ids]),
        lambda ids: [None if i is None else str(i) for i in ids],
    ],
    ids=["list", "objects", "arrow", "nullable", "chunked", "arrow in pandas", "dictionary", "floats", "text"],
)  # fmt: skip
def test_ids_score_the_same_in_every_form(scorer, batch, form):
    columns = {name: batch[name] for name in scorer.columns}
    wanted = scorer.score(batch)["click"]
    found = scorer.score({**columns, "user": form(batch["user"].to_pylist())})["click"]
    assert found.tolist() == wanted.tolist()
    assert len(set(wanted[:-1].tolist())) > 100


def test_ids_beyond_floats_stay_apart(scorer, batch, monkeypatch):
    ids = [2**53, 2**53 + 1, None, 2**62 + 1, -(2**63)]
    lists = [[i, None] if i is not None else None for i in ids]
    keys = []
    monkeypatch.setattr(scorer.model, "run", lambda encoded: keys.append(encoded) or np.zeros((5, 2), np.float32))
    rows = {name: batch[name].slice(0, 5) for name in scorer.columns}
    frame = pd.DataFrame({name: values.to_pandas() for name, values in rows.items()})
    for user in (ids, as_objects(ids), pa.array(ids), pd.array(ids, "Int64")):
        scorer.score({**rows, "user": user, "clicked": lists})
        scorer.score(frame.assign(user=as_objects(ids), clicked=lists))
    assert len({tuple(encoded.slots[0].tolist()) for encoded in keys}) == 1
    assert len(set(keys[0].slots[0].tolist())) == 5
    assert len(set(keys[0].bags["clicked"][0].tolist())) == 4


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", ["1", "x7"], r"'user', row 1: 'x7' \(string\) is not an id; give whole numbers"),
        ("user", [1.0, 2.0**60], r"'user', row 1: 1.15\d*e\+18 .*give integers"),
        ("user", [1, 2**64], f"'user', row 1: {2**64} is beyond 64 bits; give ids from"),
        (
            "user",
            np.array([1, 2**63], np.uint64),
            rf"row 1: {2**63} \(uint64\) is not an id; .* to 2\*\*63 - 1",
        ),
        ("user", ["7", "0x10"], "'user', row 1: '0x10' .*give whole numbers"),
        ("user", [None, datetime.datetime(2025, 1, 1)], r"'user', row 1: datetime.*\(timestamp.*give whole numbers"),
        ("user", [datetime.time(1), None], r"'user', row 0: .*\(time64\[us\]\) is not an id"),
        ("user", [datetime.timedelta(1)] * 2, r"'user', row 0: .*\(duration\[us\]\) is not an id"),
        ("user", pa.array([0, 1], pa.date64()), r"'user', row 0: .*\(date64\[ms\]\) is not an id"),
        ("user", [b"1", b"2"], r"'user', row 0: b'1' \(binary\) is not an id"),
        ("user", pa.array([b"1", b"2"], pa.binary_view()), r"'user', row 0: b'1' \(binary_view\) is not an id"),
        ("city", [b"Rome", b"Oslo"], "'city', row 0: b'Rome' .*trained with text; give text"),
        ("clicked", [[datetime.datetime(2025, 1, 1)], []], r"'clicked', row 0: .*is not an id"),
        ("clicked", [[1], [2**64]], f"'clicked', row 1: {2**64} is beyond 64 bits"),
        ("user", 7, "'user' is 7, one value; give a list"),
        ("city", "Rome", "'city' is 'Rome', one value; give a list"),
        ("price", ["1.5", "inf"], "'price', row 1: 'inf' is not finite"),
        ("price", ["1.5", "1e999"], "'price', row 1: '1e999' is not finite"),
        ("price", [b"1.5", b"2"], "'price': binary values are not numbers"),
        ("price", [1, 10**400], "'price', row 1: int too large"),
        ("city", [None, 7], "'city', row 1: 7 .*trained with text; give text"),
        ("clicked", [[1], [2, 3.5]], "'clicked', row 1: 3.5 .*is not an id"),
        ("clicked", [["5"], ["b"]], "'clicked', row 1: 'b'"),
        ("clicked", [1, 2], "'clicked': int64 values are not lists"),
        ("tags", [["a"], 3], "'tags', row 1: mixes types"),
        ("price", ["1", "b"], "'price', row 1: 'b' does not state a number; give a number, or null"),
        ("user", [None, True], r"'user', row 1: True \(bool\) is not an id; give whole numbers"),
        ("clicked", [[], [False]], r"'clicked', row 1: False \(bool\) is not an id"),
        ("user", [7, True], "'user', row 1: mixes types"),
        (
            "price",
            [None, float("inf")],
            "'price', row 1: inf is not finite; give a finite number, or null",
        ),
        ("seen", np.array([-np.inf, 1], np.float32), "'seen', row 0: -inf "),
    ],
)
def test_values_that_would_be_unknown_silently_are_refused(scorer, batch, column, values, message):
    rows = {name: batch[name].slice(0, 2) for name in scorer.columns}
    with pytest.raises(BadInputError, match=message):
        scorer.score({**rows, column: values})


def test_true_and_false_are_ids_where_the_model_has_seen_no_others(scorer, folder, batch):
    reference = pq.read_table(folder / "reference.parquet")
    flags = pa.array([i % 2 for i in range(len(reference))], pa.int64())
    place = reference.column_names.index("user")
    of_flags = Scorer(scorer.model, scorer.facts, reference.set_column(place, "user", flags))
    rows = {name: batch[name].slice(0, 2) for name in scorer.columns}
    wanted = scorer.score({**rows, "user": [1, 0]})["click"]
    assert of_flags.score({**rows, "user": [True, False]})["click"].tolist() == wanted.tolist()


def test_a_column_that_comes_twice_is_refused(scorer, batch):
    frame = batch.slice(0, 2).to_pandas()
    twice = pd.concat([frame, frame[["user"]]], axis=1)
    for rows in (twice, batch.slice(0, 2).append_column("user", batch["user"].slice(0, 2))):
        with pytest.raises(BadInputError, match="'user' comes 2 times; keep one"):
            scorer.score(rows)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("user", pc.run_end_encode),
        ("user", lambda ids: pa.array(map(Decimal, ids.to_pylist()), pa.decimal32(9, 0))),
        ("user", lambda ids: pa.array(map(Decimal, ids.to_pylist()), pa.decimal256(40, 2))),
        ("city", pc.run_end_encode),
        ("city", lambda texts: texts.cast(pa.string_view())),
        ("clicked", lambda lists: pa.array(lists.to_pylist(), pa.list_view(pa.int64()))),
        ("clicked", lambda lists: pa.array(lists.to_pylist(), pa.large_list_view(pa.int64()))),
        ("clicked", lambda lists: pa.array([(v or [0])[:1] for v in lists.to_pylist()], pa.list_(pa.int64(), 1))),
        ("tags", lambda lists: pa.array(lists.to_pylist(), pa.list_(pa.dictionary(pa.int32(), pa.string())))),
    ],
)
def test_every_encoding_of_arrow_scores_as_the_plain_column(scorer, batch, name, encoded):
    rows = {column: batch[column].slice(0, 9).combine_chunks() for column in scorer.columns}
    values = encoded(rows[name])
    plain = pa.array(values.to_pylist() if name != "user" else rows[name].to_pylist())
    assert scorer.score({**rows, name: values})["buy"].tolist() == scorer.score({**rows, name: plain})["buy"].tolist()


def test_features_without_a_column_are_null_where_that_is_wanted(scorer, batch):
    rows = {name: batch[name].slice(0, 3) for name in scorer.columns}
    nulls = {name: [None] * 3 for name in ("user", "tags", "price")}
    wanted = scorer.score({**rows, **nulls})["click"].tolist()
    for name in nulls:
        del rows[name]
    assert scorer.score(rows, fill_missing=True)["click"].tolist() == wanted
    assert scorer.score(pa.table(rows), fill_missing=True)["click"].tolist() == wanted


def test_any_integer_is_a_number(scorer, batch):
    rows = {name: batch[name].slice(0, 2) for name in scorer.columns}
    for values in ([2, 0], [True, False], np.array([2, 2**63], np.uint64), [2**62 + 1, None], [2**64, None]):
        floats = [None if v is None else float(v) for v in values]
        assert (
            scorer.score({**rows, "seen": values})["buy"].tolist()
            == scorer.score({**rows, "seen": floats})["buy"].tolist()
        )


@pytest.mark.parametrize("name", ["model.onnx", "embeddings.safetensors", "serving.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_damage_is_refused(folder, tmp_path, name, damage):
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    digest = sha256_of(copy / "serving.json")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).unlink()
    if damage == "flipped":
        (copy / name).write_bytes(data)
    with pytest.raises(CorruptError, match="export"):
        Scorer.load(copy, digest)


def test_the_expected_digest(folder):
    assert Scorer.load(folder, sha256_of(folder / "serving.json")).tasks == ("click", "buy")
    with pytest.raises(CorruptError, match="is not the expected 000"):
        Scorer.load(folder, "0" * 64)


def test_an_export_of_another_format_is_refused(folder, tmp_path):
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    facts = json.loads((copy / "serving.json").read_text())
    (copy / "serving.json").write_text(json.dumps({**facts, "format": 1}))
    with pytest.raises(CorruptError, match="format 1; this code reads 2"):
        Scorer.load(copy)


def test_facts_lead_back_to_the_checkpoint(scorer, folder):
    assert scorer.facts["checkpoint"] == json.loads((folder / "serving.json").read_text())["checkpoint"]
    assert "price" in scorer.columns


def test_imports_nothing_heavy():
    heavy = ("torch", "mlflow", "duckdb", "matplotlib", "pandas", "pydantic", "onnx", "airflow")
    code = f"import sys, serving.scorer; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@given(st.sets(st.sampled_from([c for c in day_table(DAYS[2], 1).column_names if "." not in c])), st.integers(0, 700))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_items_with_common_features_have_the_scores_of_their_rows(scorer, common, num_items):
    """Bit for bit: whichever features have one value for all items of a request."""
    table = day_table(DAYS[2], 701).select(scorer.columns).slice(0, num_items).combine_chunks()
    one = day_table(DAYS[2], 703).select(scorer.columns).slice(702).combine_chunks()
    columns = {name: (one if name in common else table).column(name).combine_chunks() for name in scorer.columns}
    rows = pa.table(
        {
            name: pa.repeat(c[0], num_items) if name in common and num_items else c[:num_items]
            for name, c in columns.items()
        }
    )
    found, wanted = scorer.score_request(columns, num_items), scorer.score(rows)
    for task in ("click", "buy"):
        assert found[task].tobytes() == wanted[task].tobytes()
