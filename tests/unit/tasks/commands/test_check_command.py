"""recloop check: problems end it, warnings do not, and --json carries them."""

import json
from pathlib import Path

from click.testing import CliRunner

from tasks.commands.cli import main

SCENARIO = """
name: shop
data:
  path: .
  events:
    path: log.csv
    format: csv
    time: {column: at, unit: s}
    columns:
      at: {type: int}
      user: {type: int}
      item: {type: int}
      bought: {type: bool, required: true}
      scroll: {type: float}
  user: user
  item: item
  days: {first: 1970-01-01, last: 1970-01-01}
labels: {buy: bought}
features:
  item: {kind: id}
  scroll: {kind: number}
"""


def scenario(folder: Path, kept: int) -> str:
    """A log in which `scroll` is there on `kept` of ten bought rows, and on no other."""
    rows = [
        f"{i},{i % 9},{i % 7},{i % 3 == 0},{i % 5 if i % 3 == 0 and i // 3 % 10 < kept else ''}" for i in range(900)
    ]
    (folder / "log.csv").write_text("\n".join(["at,user,item,bought,scroll", *rows]) + "\n")
    (folder / "shop.yaml").write_text(SCENARIO)
    return str(folder / "shop.yaml")


def test_a_warning_is_shown_and_in_the_json(tmp_path: Path) -> None:
    asked = ["check", "-s", scenario(tmp_path, 9), "--store", str(tmp_path / "store")]
    shown = CliRunner().invoke(main, asked, color=True)
    assert shown.exit_code == 0, shown.output
    assert "\x1b[33mwarning: " in shown.output
    assert "features.scroll: alone predicts label buy with AUC 0.95, by where it is null" in shown.output
    assert "shop.yaml: no problems found" in shown.output
    assert "labels in the sample of 1970-01-01: buy 33.3 %" in shown.output and "{" not in shown.output
    facts = json.loads(CliRunner().invoke(main, [*asked, "--json"]).output)
    assert facts["ok"] is True
    assert len(facts["warnings"]) == 1


def test_a_leak_ends_it(tmp_path: Path) -> None:
    asked = ["check", "-s", scenario(tmp_path, 10), "--store", str(tmp_path / "store")]
    shown = CliRunner().invoke(main, asked)
    assert shown.exit_code == 4
    assert "features.scroll: alone predicts label buy with AUC 1.0" in shown.stderr


def test_a_name_that_another_file_has_is_refused(tmp_path: Path) -> None:
    file = Path(scenario(tmp_path, 1))
    file.with_name("broken.yaml").write_text("# a copy\nname: 'shop'  # not renamed yet\nlables: [")
    file.with_name("other.yaml").write_text(SCENARIO.replace("name: shop", "name: shop_b"))
    shown = CliRunner().invoke(main, ["check", "-s", str(file), "--no-data"])
    assert shown.exit_code == 4
    assert (
        f"{file} and {file.with_name('broken.yaml')}: name: 'shop' is the name of each of these files" in shown.output
    )
    assert "other.yaml" not in shown.output
