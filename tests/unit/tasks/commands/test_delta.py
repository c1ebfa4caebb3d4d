import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tasks.commands.cli import main
from tasks.store.scenario_store import open_store
from tests.unit.models.runtime.test_delta import contents, write_export
from tests.unit.tasks.little import DAYS, commit, little_scenario


@pytest.fixture
def root(tmp_path):
    """A store with the exports of two days, and of a third that a gate refused."""
    little_scenario(tmp_path)
    store = open_store(tmp_path / "store", "little")
    for ds, rows in zip(DAYS, [{1: 1, 2: 2, 3: 3}, {1: 1, 2: 5, 4: 4}, {}], strict=False):
        gate = None if rows else "love: int8 loses 0.2 AUC"
        commit(store, "quantize", ds, write_export(tmp_path / ds, rows), gate=gate)
    return tmp_path


def recloop(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def delta(root: Path, first: str, last: str, *more: str) -> Result:
    common = ("-s", root / "little.yaml", "--store", root / "store")
    return recloop("delta", *common, "--from", first, "--to", last, "--out", root / "delta", *more)


def test_a_delta_is_described_and_applied(root):
    done = delta(root, DAYS[0], DAYS[1])
    assert done.exit_code == 0, done.output
    assert "3 rows, 1 of them changed, 1 new; 1 removed" in done.output
    assert "of the whole export's" in done.output
    served = recloop("apply-delta", root / DAYS[0], root / "delta", root / "served")
    assert served.exit_code == 0, served.output
    made = contents(root / "served")
    made.pop("manifest.json")  # of the store's commit, which travels with it
    assert made == contents(root / DAYS[1])


def test_numbers_for_programs(root):
    facts = json.loads(delta(root, DAYS[0], DAYS[1], "--json").output)
    assert {name: facts[name] for name in ("rows", "changed", "new", "gone")} == {
        "rows": 3, "changed": 1, "new": 1, "gone": 1,
    }  # fmt: skip


def test_days_without_an_export_that_may_serve(root):
    missing = delta(root, DAYS[0], DAYS[5])
    assert missing.exit_code == 4
    assert f"no export of {DAYS[5]}" in missing.output
    refused = delta(root, DAYS[0], DAYS[2])
    assert refused.exit_code == 3
    assert "is not to serve: love: int8 loses 0.2 AUC" in refused.output


def test_outputs_of_any_name_are_made_or_refused(root):
    delta(root, DAYS[0], DAYS[1])
    for name in ("n" * 255, "é" * 127):
        made = recloop("apply-delta", root / DAYS[0], root / "delta", root / name)
        assert (made.exit_code, (root / name).is_dir()) == (0, True), made.output
    common = ("-s", root / "little.yaml", "--store", root / "store", "--from", DAYS[0], "--to", DAYS[1])
    for refused in (
        recloop("apply-delta", root / DAYS[0], root / "delta", "/proc/x"),
        recloop("delta", *common, "--out", "/proc/x"),
    ):
        assert refused.exit_code == 4, refused.exception
        assert "/proc/x: No such file or directory; choose another path" in refused.output
