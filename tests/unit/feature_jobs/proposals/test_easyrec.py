"""Configs of EasyRec and TorchEasyRec as scenarios: each loads, its features are right, and nothing is lost unseen."""

from __future__ import annotations

import ast
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_jobs.checks.check import check, check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.proposals.easyrec import Port, write_port
from feature_jobs.proposals.easyrec_expressions import python_choice
from feature_jobs.schema import Scenario, load_scenario
from tasks.commands.cli import main
from tests.small import write_csv
from tests.unit.feature_jobs.proposals import easyrec_configs as configs

MARCH_1_2024_S = 1_709_251_200


def ported(text: str, folder: Path, data: Path | None = None) -> tuple[Scenario, str]:
    """The scenario of a config, and the lines that are printed."""
    file = folder / "a.config"
    file.write_text(text, encoding="utf-8")
    for old in folder.glob("ported.*"):
        old.unlink()
    lines = write_port(file, folder, "ported", data, {})
    return load_scenario(folder / "ported.yaml"), "\n".join(lines)


def features(scenario: Scenario) -> dict[str, dict[str, Any]]:
    return {name: feature.model_dump(exclude_defaults=True) for name, feature in scenario.features.items()}


def columns(scenario: Scenario) -> dict[str, str]:
    return {name: column.type for name, column in scenario.data.events.columns.items()}


def given_values(section: Any) -> dict[str, Any]:
    return dict(section.model_dump(exclude_unset=True))


def test_easyrec_with_one_message_of_features(tmp_path: Path) -> None:
    scenario, said = ported(configs.OLD_DEEPFM, tmp_path)
    assert features(scenario) == {
        "uid": {"kind": "id"},
        "item_id": {"kind": "id", "embedding": {"min_count": 3, "capacity": 20_000}},
        "age": {"kind": "id", "of": "bucketize(age, [18, 25, 35.5])"},
        "price": {"kind": "number", "of": "(price - 0) / (250 - 0)", "scale": "none"},
        "price_log": {"kind": "number", "of": "log1p(price)", "scale": "none", "enabled": False},
        "tags": {"kind": "ids"},
        "class_": {"kind": "id"},
        "age_class": {"kind": "cross", "of": ("age", "class_")},
        "adult": {"kind": "number", "of": "age >= 18 and age < 99", "scale": "none"},
    }
    assert columns(scenario) == {
        "click": "int",
        "uid": "string",
        "item_id": "int",
        "age": "int",
        "price": "float",
        "tags": "list[string]",
        "class_": "string",
        "ts": "int",
    }
    data = scenario.data
    assert (data.user, data.item, data.events.time.column) == ("uid", "item_id", "ts")
    assert (data.events.format, data.events.delimiter) == ("csv", ";")
    assert data.events.columns["tags"].separator == ","
    assert data.events.columns["class_"].source == "class"
    assert scenario.labels == {"click": "click == 1"}
    model = {"architecture": "deepfm", "bottom": (96, 48), "tower": (24,), "embedding_dim": 8}
    assert given_values(scenario.model) == model
    assert given_values(scenario.train) == {"batch_size": 1024, "learning_rate": 0.0005}
    assert 'tag_kv" (' in said
    assert "its ids have weights" in said
    text = (tmp_path / "ported.yaml").read_text()
    assert "has no header" not in said
    assert "Write it: click, ts, uid, item_id, age, price" in text
    assert "carried over: 9 of 10 features" in said


def test_easyrec_with_tasks_and_shared_tables(tmp_path: Path) -> None:
    scenario, said = ported(configs.OLD_DBMTL, tmp_path)
    assert features(scenario) == {
        "user_id": {"kind": "id"},
        "brand": {"kind": "id"},
        "cate": {"kind": "id"},
        "second_cate": {"kind": "id", "table": "cate"},
        "brand_list": {"kind": "ids", "table": "brand"},
    }
    assert scenario.labels == {"ctr": "clk == 1", "cvr": "buy == '1'"}
    assert scenario.outcomes == ("stay",)
    assert given_values(scenario.model)["bottom"] == (256, 128)
    assert given_values(scenario.train)["task_weights"] == {"cvr": 2.5}
    assert "max_seq_len 50 (line 24)" in said
    assert "relation_tower_names" in said
    assert "LookupFeature" in said
    assert "CHOOSE: no column has such a name" in (tmp_path / "ported.yaml").read_text()  # of the item


def test_torcheasyrec_with_normalizers(tmp_path: Path) -> None:
    scenario, said = ported(configs.TORCH_DLRM, tmp_path)
    assert features(scenario) == {
        "int_0": {"kind": "number", "of": "log1p(int_0 + 3 - 1)", "scale": "none"},
        "int_1": {
            "kind": "number",
            "of": "coalesce(log1p(int_1 - 1) / 2.302585092994046, -10.0)",
            "scale": "none",
        },
        "int_2": {"kind": "number", "of": "(int_2 - -1.5) / 10.0", "scale": "none"},
        "int_3": {"kind": "number", "of": "2 / (1 + exp(-2 * int_3)) - 1", "scale": "none"},
        "int_5": {"kind": "number", "enabled": False},
        "int_4": {"kind": "id", "of": "bucketize(int_4, [0.5])"},
        "vector": {"kind": "vector", "width": 64, "enabled": False},
        "cat_0": {"kind": "id"},
        "cat_1": {"kind": "ids"},
    }
    assert scenario.data.events.columns["cat_1"].separator == "\x1d"
    model = {"architecture": "dlrm", "bottom": (64, 16), "tower": (64, 32), "embedding_dim": 16}
    assert given_values(scenario.model) == model
    assert given_values(scenario.train) == {
        "batch_size": 8192,
        "learning_rate": 0.001,
        "weight_decay": 0.01,
        "clip_norm": 5.0,
        "embedding_optimizer": "rowwise_adagrad",
        "embedding_learning_rate": 0.02,
        "precision": "bfloat16",
    }
    assert "method=log10,threshold=1,default=0" in said


def test_torcheasyrec_with_grouped_sequences(tmp_path: Path) -> None:
    scenario, said = ported(configs.TORCH_MMOE, tmp_path)
    assert features(scenario) == {
        "user_id": {"kind": "id", "embedding": {"min_count": 2, "capacity": 1_000_000}},
        "ad_id": {"kind": "id"},
        "cats": {"kind": "ids", "pooling": "sum"},
        "os_cat": {"kind": "cross", "of": ("os", "cat")},
        "same_age": {"kind": "number", "of": "u_age == i_age", "scale": "none"},
        "ctr": {"kind": "number", "of": "click / (1 + log1p(pv - 1))", "scale": "none"},
        "weights": {"kind": "ids", "of": "w", "weighted": True, "pooling": "sum", "enabled": False},
        "kv": {"kind": "number", "of": "lookup(kv, cat)", "scale": "none"},
        "title": {"kind": "number", "of": "overlap(q, t, 'is_contain')", "scale": "none", "enabled": False},
        "click_50_seq__ad_id": {"kind": "ids", "table": "ad_id"},
    }
    assert columns(scenario)["click_50_seq__ad_id"] == "list[int]"
    assert scenario.data.events.columns["click_50_seq__ad_id"].separator == "|"
    assert (scenario.data.item, scenario.data.events.time.unit) == ("ad_id", "iso")
    assert given_values(scenario.model) == {
        "architecture": "mmoe",
        "bottom": (128, 64),
        "tower": (32,),
        "num_experts": 6,
        "dropout": 0.1,
        "embedding_dim": 16,
    }
    for name in ("vectors", "far", "new", "of_feature", "click_50_seq__price"):
        assert re.search(rf'{name}" \(.*\): left out: \S', said), name
    assert "hologram_feature is not a setting that Recloop knows" in said


def test_torcheasyrec_with_crosses(tmp_path: Path) -> None:
    scenario, said = ported(configs.TORCH_DCN, tmp_path)
    assert features(scenario) == {
        "user_id": {"kind": "id", "embedding": {"capacity": 4096}},
        "video_id": {"kind": "id"},
        "seen": {"kind": "ids"},
        "unused": {"kind": "id", "enabled": False},
        "hidden": {"kind": "id", "enabled": False},
    }
    assert columns(scenario)["user_id"] == "int"
    assert scenario.data.events.time.column == "request_time"
    assert given_values(scenario.model) == {
        "architecture": "dcnv2",
        "bottom": (64, 64),
        "tower": (32,),
        "embedding_dim": 12,
        "cross_layers": 4,
        "cross_rank": 32,
    }
    # The rate of another optimizer means nothing to AdamW.
    assert given_values(scenario.train) == {"embedding_optimizer": "adagrad", "embedding_learning_rate": 0.001}
    assert "lr 0.01" in said


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("a > 1 ? a : b", "((a) if (a > 1) else (b))"),
        ("max(a ? 1 : 2, (b ? c : d))", "max((( 1 ) if (a) else ( 2)),(((c) if (b) else ( d))))"),
        ("a ? b ? 1 : 2 : c ? 3 : 4", None),
        ("a + b", "a + b"),
    ],
)
def test_choices_of_c(theirs: str, ours: str | None) -> None:
    found = python_choice(theirs)
    if ours is not None:
        assert ast.dump(ast.parse(found.strip(), mode="eval")) == ast.dump(ast.parse(ours, mode="eval"))
    else:
        bits = (0, 1)
        expected = {(a, b, c): (1 if b else 2) if a else 3 if c else 4 for a in bits for b in bits for c in bits}
        columns = {name: pa.array(values) for name, values in zip("abc", zip(*expected, strict=True), strict=True)}
        assert evaluate(found.strip(), columns).to_pylist() == list(expected.values())
    for wrong in ("a ? b", "(a", "a ? (b : c"):
        with pytest.raises(SyntaxError):
            python_choice(wrong)


def of_expression(expression: str, folder: Path) -> tuple[str | None, str]:
    """Our expression for one of TorchEasyRec, and what was printed."""
    one = f'feature_configs {{{{ expr_feature {{{{ feature_name: "x" expression: "{expression}" {{}} }}}} }}}}'
    text = one.format(" ".join(f'variables: "user:{name}"' for name in "ab"))
    scenario, said = ported(text + ' feature_configs { id_feature { feature_name: "u" } }', folder)
    return features(scenario).get("x", {}).get("of"), said


@pytest.mark.parametrize(
    ("theirs", "in_c"),
    [
        ("!a == b", lambda a, b: (not a) == b),
        ("!(a == b) && b > 0", lambda a, b: a != b and b > 0),
        ("a % 3", lambda a, b: math.fmod(a, 3)),
        ("-a % 3 + 1", lambda a, b: math.fmod(-a, 3) + 1),
        ("(a > 0 ? a : b) % -4", lambda a, b: math.fmod(a if a > 0 else b, -4)),
        ("a > 0 & b < 1", lambda a, b: a > 0 and b < 1),
    ],
)
def test_an_operator_means_what_it_means_in_c(
    tmp_path: Path, theirs: str, in_c: Callable[[float, float], float]
) -> None:
    of = of_expression(theirs, tmp_path)[0]
    pairs = [(float(a), float(b)) for a in (-7, -1, 0, 1, 5) for b in (-2, 0, 1)]
    given_columns = {name: pa.array(values) for name, values in zip("ab", zip(*pairs, strict=True), strict=True)}
    assert of and evaluate(of, given_columns).to_pylist() == [in_c(*pair) for pair in pairs]


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        ("a < b < 3", "its expression compares a < b < 3, of which C compares the first result with the rest"),
        ("a & 1", "its expression computes with the bits of a and 1"),
        ("a > 0 | b", "its expression computes with the bits of a > 0 or b"),
        ("~a", "computes with bits"),
        ("user.a + b", "its expression reads user.a, which is not a variable"),
    ],
)
def test_an_operator_that_means_something_else_is_left_out(tmp_path: Path, theirs: str, why: str) -> None:
    of, said = of_expression(theirs, tmp_path)
    assert of is None and why in said


@pytest.mark.parametrize("setting", ["min_val: 0.0 max_val: 0.0", 'normalizer: "method=zscore,standard_deviation=0"'])
def test_a_number_is_not_divided_by_zero(tmp_path: Path, setting: str) -> None:
    feature = f'feature_configs {{ raw_feature {{ feature_name: "price" {setting} }} }}'
    scenario, said = ported(feature, tmp_path)
    assert features(scenario)["price"] == {"kind": "number"}
    assert "not one that expressions can write" in said


_LOOKUP = 'feature_configs {{ lookup_feature {{ feature_name: "x" map: "user:kv" key: "item:tag" {} }} }}'
_OF_FG = (
    '{{"features": [{{"feature_type": "lookup_feature", "feature_name": "x", "map": "user:kv", "key": "item:t" {}}}]}}'
)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (_LOOKUP.format(""), {"kind": "number", "of": "lookup(kv, tag)", "scale": "none"}),
        (_LOOKUP.format("boundaries: [1, 2]"), {"kind": "id", "of": "bucketize(lookup(kv, tag), [1, 2])"}),
        *(
            (_LOOKUP.format(ids), {"kind": "id", "of": "lookup_text(kv, tag)"})
            for ids in (
                "num_buckets: 10 value_type: 'int'",
                "hash_bucket_size: 9",
                "zch { zch_size: 9 }",
                "vocab_list: 'a'",
            )
        ),
        (_OF_FG.format(""), {"kind": "id", "of": "lookup_text(kv, t)"}),
        (_OF_FG.format(', "needDiscrete": false'), {"kind": "number", "of": "lookup(kv, t)", "scale": "none"}),
    ],
)
def test_what_is_looked_up_is_an_id_where_theirs_is_one(tmp_path: Path, theirs: str, ours: dict[str, Any]) -> None:
    found = features(ported(theirs, tmp_path)[0])["x"]
    assert {name: value for name, value in found.items() if name != "embedding"} == ours


def test_a_sum_in_buckets_is_an_id(tmp_path: Path) -> None:
    values = 'value_map: [{ key: "a" value: 1.5 }, { key: "b" value: 2 }] num_buckets: 9'
    config = f'feature_configs {{ combine_feature {{ feature_name: "x" expression: "user:tag" {values} }} }}'
    assert features(ported(config, tmp_path)[0])["x"] == {"kind": "id", "of": "floor(lookup(['a:1.5', 'b:2'], tag))"}


def test_fg_json(tmp_path: Path) -> None:
    scenario, said = ported(configs.FG_JSON, tmp_path)
    assert features(scenario) == {
        "user_id": {"kind": "id"},
        "article_id": {"kind": "id"},
        "topics": {"kind": "ids"},
        "words": {"kind": "number", "of": "coalesce(log1p(words - 1) / 2.302585092994046, -10.0)", "scale": "none"},
        "city_topic": {"kind": "cross", "of": ("city", "topic")},
        "m": {"kind": "number", "of": "nested_lookup(m, 'ALL', brand)", "scale": "none"},
        "read_50__article_id": {"kind": "ids"},
    }
    assert (scenario.data.user, scenario.data.item) == ("user_id", "article_id")
    assert scenario.data.events.time.column == "log_time"
    assert scenario.labels == {"clk": "clk == 1"}
    assert "attribute_delim" in said


def test_torcheasyrec_with_texts_maps_and_vectors(tmp_path: Path) -> None:
    scenario, said = ported(configs.TORCH_TRANSFORMS, tmp_path)
    number = {"kind": "number", "scale": "none"}
    assert features(scenario) == {
        "user_id": {"kind": "id"},
        "item_id": {"kind": "id"},
        "cate_cnt": {"kind": "id", "of": "bucketize(coalesce(lookup(kv_cate, cate, 'mean'), 0.0), [0, 1, 2.5])"},
        "cate_group": {"kind": "id", "of": "lookup_text(kv_cate, cate)"},
        "brand_cnt": number | {"of": "nested_lookup(kkv, 'ALL', brand)"},
        "tag_sum": number | {"of": "lookup(['a:1.5', 'b:2.0'], tag, 'max')"},
        "common": number | {"of": "overlap(query, title, 'title_common_ratio')"},
        "sim": number | {"of": "coalesce(kv_dot_product(kv_cate, kv), 0.1)"},
        "valid": {"kind": "ids", "of": "bool_mask(clicks, is_valid)"},
        "words": {"kind": "ids", "of": "tokenize(lower(name))"},
        "clean": {"kind": "id", "of": r"regex_replace(regex_replace(name, '(?i)\\|', ' '), '(?i)#', ' ')"},
        "pic": {"kind": "vector", "width": 4},
        "pic_sim": number | {"of": "dot(u_pic, pic)"},
    }
    assert columns(scenario)["kkv"] == "list[string]" and scenario.data.events.columns["kkv"].separator == "|"
    assert columns(scenario)["pic"] == "list[float]" and scenario.data.events.columns["title"].separator == " "
    assert check_scenario(scenario) == []
    for name in ("odd", "keyed", "distance"):
        assert re.search(rf'{name}" \(.*\): left out: \S', said), name
    assert 'norm_options "TEXT_CHT2CHS"' in said and 'tokenizer_type "bpe"' in said


def exposures(folder: Path) -> Path:
    """Three days of a log and its users, as OLD_DEEPFM reads them."""
    draw = random.Random(3)
    rows = []
    for number in range(1500):
        item = draw.randrange(50)
        tags = "|".join(draw.sample(["red", "blue", "old"], 2))
        clicked = int(draw.random() < 0.15 + 0.3 * (item % 3 == 0))
        at = MARCH_1_2024_S + number * 172
        rows.append([clicked, at, f"u{draw.randrange(60)}", item, 5 + item, tags, draw.choice("ab")])
    write_csv(folder / "exposures.csv", ["click", "ts", "uid", "item_id", "price", "tags", "class"], rows)
    write_csv(folder / "users.csv", ["uid", "age"], [[f"u{number}", 18 + number % 40] for number in range(60)])
    return folder


def test_with_files_the_columns_and_days_are_theirs(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_text(configs.OLD_DEEPFM.replace('"class"', '"genre"'))
    data, words = exposures(tmp_path / "data"), ["--out", str(tmp_path / "out"), "--name", "shop"]
    result = CliRunner().invoke(
        main, ["init", "--from-easyrec", str(tmp_path / "a.config"), "--data", str(data), *words]
    )
    assert result.exit_code == 0, result.output
    scenario = load_scenario(tmp_path / "out" / "shop.yaml")
    assert features(scenario)["age"] == {"kind": "id", "of": "bucketize(user.age, [18, 25, 35.5])"}
    assert features(scenario)["tags"] == {"kind": "ids"}
    assert str(scenario.data.days.first) == "2024-03-01"
    assert (scenario.data.user, scenario.data.item, scenario.data.events.time.column) == ("uid", "item_id", "ts")
    assert scenario.join.label_delay_s > 0
    # The log has its own delimiter and lacks a column.
    assert re.search(r'separator ";" \(line 18\).*: the files say it', result.output)
    assert "no file has a column genre" in result.output
    assert not {"class_", "age_class", "genre"} & features(scenario).keys()


def test_without_files_only_what_the_user_knows_is_left(tmp_path: Path) -> None:
    ported(configs.OLD_DEEPFM, tmp_path)
    data = exposures(tmp_path / "data")
    (data / "exposures.csv").write_text((data / "exposures.csv").read_text().replace(",", ";").replace("|", ","))
    log = (data / "exposures.csv").read_text().splitlines()
    joined = [f"{log[0]};age", *(f"{line};{20 + number % 30}" for number, line in enumerate(log[1:]))]
    (data / "exposures.csv").write_text("\n".join(joined) + "\n")
    (data / "users.csv").unlink()
    known = {"data.days": {"first": "2024-03-01", "last": "2024-03-03"}}
    assert check(load_scenario(tmp_path / "ported.yaml", data=data, overrides=known))["warnings"] == []


_PLACES = [
    (name, found.end()) for name, text in configs.ALL.items() for found in re.finditer(r"\{(?![^\n]*\}\s*\")", text)
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(_PLACES), st.sampled_from(["77001", '"what"', "{ deep: 77001 }"]))
def test_a_setting_that_is_not_known_is_always_listed(tmp_path: Path, place: tuple[str, int], value: str) -> None:
    name, position = place
    text = configs.ALL[name]
    new = f' "no_such_setting": {value}, ' if name == "fg_json" else f" no_such_setting: {value} "
    (tmp_path / "a.config").write_text(text[:position] + new + text[position:])
    lost: dict[str, list[str]] = Port(tmp_path / "a.config", {}).choices(None, [], None)["lost"]
    assert any("no_such_setting" in line or "deep 77001" in line for lines in lost.values() for line in lines)


_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[\w.+-]+|[^\w\s]')
_NEW = [
    "",
    "0",
    "-1",
    "1e400",
    "9" * 30,
    '""',
    '"é 中"',
    '"user:"',
    '"x y"',
    "{ }",
    "true",
    "id_feature",
    '"a:b:c"',
    "expression",
]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_changed_config_is_ported_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Never a traceback, and never a scenario that fails its own check."""
    text = configs.ALL[data.draw(st.sampled_from(sorted(configs.ALL)))]
    tokens = list(_TOKEN.finditer(text))
    for _ in range(data.draw(st.integers(1, 3))):
        token = data.draw(st.sampled_from(tokens))
        other = data.draw(st.sampled_from(_NEW) | st.sampled_from(tokens).map(lambda found: found.group()))
        text = text[: token.start()] + other + text[token.end() :]
        tokens = list(_TOKEN.finditer(text))
    try:
        ported(text, tmp_path)
    except BadInputError as error:
        assert "fails its own check" not in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train_config {\n  lr: \n}", ":3: '}' after 'lr'; write NAME: VALUE"),
        ("model_config { }", "declares no features; name a pipeline config"),
        ('fg_json_path: "fg.json"', 'declares no features; they are in "fg.json"'),
        ('feature_configs { raw_feature { feature_name: "v" value_dim: 80000 } }', "no feature can be carried over"),
    ],
)
def test_bad_configs_are_bad_input(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.config").write_text(text)
    result = CliRunner().invoke(main, ["init", "--from-easyrec", str(tmp_path / "a.config"), "--out", str(tmp_path)])
    assert result.exit_code == 4
    assert said in result.output
    assert not (tmp_path / "a.yaml").exists()


def test_a_config_of_too_long_a_scenario_is_refused(tmp_path: Path) -> None:
    one = 'feature_configs {{ id_feature {{ expression: "user:{}_{}" }} }}\n'
    (tmp_path / "a.config").write_text("".join(one.format("f" * 1_500, number) for number in range(150)))
    with pytest.raises(BadInputError, match=r"at most 300,000 bytes, and this one would have .*; leave features out"):
        write_port(tmp_path / "a.config", tmp_path, "ported", None, {})


def test_init_needs_files_or_a_config(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["init"]).exit_code == 2
    assert CliRunner().invoke(main, ["init", str(tmp_path), "--data", str(tmp_path)]).exit_code == 2
