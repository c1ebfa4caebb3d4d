"""Features that are declared together equal those that are declared one by one."""

from pathlib import Path
from typing import Any

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from tests.paths import SCENARIOS
from tests.unit.feature_jobs.small_source import scenario_in

WHERE = {"good": "rating > 3", "bad": "rating < 2"}


def features_of(tmp_path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """Features of a scenario, in their order, with what differs from a default."""
    found = scenario_in(tmp_path, {"features": entries}).features
    return {name: feature.model_dump(exclude_defaults=True) for name, feature in found.items()}


def test_each_combination_is_a_feature_in_the_order_of_the_file(tmp_path: Path) -> None:
    together = features_of(
        tmp_path / "together",
        {
            "first": {"kind": "id", "of": "item"},
            "rate": {
                "kind": "rate",
                "name": "{by}_{of}_{windows}",
                "of": {"good": {"of": "rating >= 4", "prior": 0.3}, "best": "rating == 5"},
                "by": {"u": ["user"], "ui": {"by": ["user", "item"], "prior_weight": 3}},
                "windows": ["12h", "7d"],
                "prior_weight": 20,
            },
            "user": {"kind": "id"},
        },
    )
    apart: dict[str, Any] = {"first": {"kind": "id", "of": "item"}}
    for of, settings in (("good", {"of": "rating >= 4", "prior": 0.3}), ("best", {"of": "rating == 5"})):
        for by, key in (
            ("u", {"by": ["user"], "prior_weight": 20}),
            ("ui", {"by": ["user", "item"], "prior_weight": 3}),
        ):
            for name, window in (("12h", {"window_hours": 12}), ("7d", {"window_days": 7})):
                apart[f"{by}_{of}_{name}"] = {"kind": "rate", "prior_weight": 20, **settings, **key, **window}
    apart["user"] = {"kind": "id"}
    assert list(together) == list(apart)
    assert together == features_of(tmp_path / "apart", apart)


def test_lists_of_keys_and_names_without_a_pattern(tmp_path: Path) -> None:
    found = features_of(
        tmp_path,
        {
            "seen": {"kind": "count", "by": [["user"], ["user", "item"]], "windows": ["1d"]},
            "id": {"kind": "id", "of": {"user": "user", "half": "item // 2"}},
            "last": {
                "kind": "sequence",
                "of": "item",
                "by": "user",
                "where": {"good": "rating > 3", "bad": "rating < 2"},
            },
        },
    )
    assert list(found) == ["user_seen_1d", "user_item_seen_1d", "user_id", "half_id", "good_last", "bad_last"]
    assert found["good_last"]["where"] == "rating > 3" and found["half_id"]["of"] == "item // 2"


def test_a_generated_feature_can_be_set_and_is_named_with_the_line_of_its_entry(tmp_path: Path) -> None:
    file = scenario_in(tmp_path, {"features": {"seen": {"kind": "count", "by": [["user"], ["item"]]}}}).file
    changed = load_scenario(file, overrides={"features.item_seen.window_days": 3}).features
    assert (changed["item_seen"].window_s, changed["user_seen"].window_s) == (3 * 86_400, None)
    text = file.read_text()
    file.write_text(text.replace("kind: count", "kind: count\n    bukets: 3"))
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "seen:" in line)
    with pytest.raises(
        BadInputError, match=rf"small.yaml:{line}: features.user_seen.bukets: unknown key; did you mean"
    ):
        load_scenario(file)


def test_counts_of_values_and_sides_of_a_sequence(tmp_path: Path) -> None:
    last = {"kind": "sequence", "of": "item", "by": "user", "where": "t > 0", "table": "item"}
    found = features_of(
        tmp_path,
        {
            "item": {"kind": "id"},
            "of_item": {"kind": "count", "by": ["user"], "of": "item % 3", "values": [0, "a-b"], "where": "rating > 3"},
            "last": {**last, "sides": {"ago": "seconds_ago", "half": {"of": "item // 2", "table": "half"}}},
            "half": {"kind": "id", "of": "item // 2"},
        },
    )
    count = {"kind": "count", "by": ("user",)}
    side = {"kind": "sequence", "by": "user", "where": "t > 0", "known": "item"}
    assert found == {
        "item": {"kind": "id"},
        "of_item_0": {**count, "where": "(rating > 3) and (item % 3) == 0"},
        "of_item_a_b": {**count, "where": "(rating > 3) and (item % 3) == 'a-b'"},
        "last": last,
        "last_ago": {**side, "of": "seconds_ago"},
        "last_half": {**side, "of": "item // 2", "table": "half"},
        "half": {"kind": "id", "of": "item // 2"},
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "count", "by": ["user"], "windows": ["7 days"]}, "windows: '7 days': must be hours or days, such as"),
        (
            {"kind": "count", "by": ["user"], "of": "item", "values": [0.5]},
            "values: '0.5': must be whole numbers or texts",
        ),
        ({"kind": "rate", "by": ["user"], "of": "item", "values": [1]}, "features.many.values: unknown key"),
        (
            {"kind": "sequence", "by": "user", "of": "item", "sides": ["t"]},
            "sides: \"['t']\": must be names with an exp",
        ),
        (
            {"kind": "count", "by": ["user"], "sides": {"t": "t"}},
            "must be names with an expression each, of a sequence",
        ),
        ({"kind": "count", "by": ["user"], "windows": [7]}, "windows: '7': must be hours or days"),
        ({"kind": "count", "by": {}}, "by: empty; name an alternative"),
        (
            {"kind": "count", "by": {"a": ["user"], "b": ["item"]}, "name": "n"},
            "two of its features are named n; use all",
        ),
        ({"kind": "count", "by": {"a": ["user"]}, "name": "{key}"}, "must be a text with {by}; correct it"),
        ({"kind": "count", "by": {"a": ["user"]}, "name": "{by.x}"}, "must be a text with {by}; correct it"),
        ({"kind": "count", "by": {"a": ["user"]}, "name": "user"}, "a feature user exists already"),
        ({"kind": "count", "by": {"1 a": ["user"]}}, "features.1 a_many"),
        ({"kind": "count", "by": [["who.user"], ["who_user"]]}, "by: two alternatives are named who_user; write"),
        ({"kind": "count", "by": ["user"], "windows": ["1d", "1d"]}, "windows: two alternatives are named 1d"),
        (
            {"kind": "rate", "by": {f"b{i}": ["user"] for i in range(200)}, "of": {f"o{i}": "item" for i in range(99)}},
            "stands for more than 10,000 features",
        ),
    ],
)
def test_mistakes_name_the_entry_and_the_remedy(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=r"small.yaml:\d+: features.*") as caught:
        scenario_in(tmp_path, {"features": {"user": {"kind": "id"}, "many": entry}})
    assert message in str(caught.value)


def test_the_rates_of_kuairand_take_few_lines() -> None:
    file = SCENARIOS / "kuairand.yaml"
    lines = [
        line for line in file.read_text().splitlines() if "rate" in line or (line.startswith("    ") and "by" in line)
    ]
    assert sum(name.endswith("_rate") for name in load_scenario(file).features) == 29
    assert len(lines) < 15
