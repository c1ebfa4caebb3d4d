"""Files that others wrote, wrong in every way: each command ends with exit 4, the place and a remedy, and soon."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tasks import tracking
from tasks.commands.cli import main
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import open_store
from tests.unit import hostile
from tests.unit.models.runtime.test_delta import contents, write_export
from tests.unit.tasks.little import DAYS, commit, little_scenario

MOST_S, MOST_BYTES = 10, 1 << 30
Cases = Iterable[tuple[str, hostile.Change]]


def recloop(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def ends_with_4(done: Result, case: str, place: str) -> None:
    assert done.exception is None or isinstance(done.exception, SystemExit), f"{case}: {done.exception!r}"
    assert done.exit_code == 4, f"{case}: exit {done.exit_code}: {done.output}"
    assert place in done.output, f"{case}: {done.output}"
    assert "; " in done.output, f"{case} names no remedy: {done.output}"
    assert len(done.output) < 2000, case
    done.output.encode()


def tried(cases: Cases, file: Path, call: Callable[[], Result], place: str) -> int:
    """Calls with each wrong content of the file; returns their number."""
    kept, number = file.read_bytes(), 0
    for name, change in cases:
        number += 1
        change(file)
        with hostile.peak_of() as used:
            ends_with_4(call(), f"{file.name}: {name}", place)
        assert used.seconds < MOST_S, name
        assert used.bytes < MOST_BYTES, name
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        file.unlink(missing_ok=True)
        (file.parent.parent / hostile.ELSEWHERE).unlink(missing_ok=True)
        file.write_bytes(kept)
    return number


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A folder with two exports, the delta between them, and nothing else."""
    little_scenario(tmp_path / "scenario")
    store = open_store(tmp_path / "store", "little")
    for ds, rows in zip(DAYS, [{1: 1, 2: 2, 3: 3}, {1: 1, 2: 5, 4: 4}], strict=False):
        commit(store, "quantize", ds, write_export(tmp_path / ds, rows), gate=None)
    common = ("-s", tmp_path / "scenario" / "little.yaml", "--store", tmp_path / "store")
    done = recloop("delta", *common, "--from", DAYS[0], "--to", DAYS[1], "--out", tmp_path / "delta")
    assert done.exit_code == 0, done.output
    return tmp_path


def with_files(whole: bytes, change: Callable[[dict[str, str]], dict[str, object]]) -> hostile.Change:
    document = json.loads(whole)
    return hostile.write(json.dumps({**document, "files": change(document["files"])}).encode())


def test_apply_delta(delta):
    before = sorted(path for path in delta.rglob("*"))

    def apply() -> Result:
        done = recloop("apply-delta", delta / DAYS[0], delta / "delta", delta / "served")
        assert not (delta / "served").exists()
        return done

    record = delta / "delta" / "delta.json"
    whole = record.read_bytes()
    digest = json.loads(whole)["files"]["model.onnx"]
    names = [
        (f"name {name!r}", with_files(whole, lambda files, n=name: {**files, n: digest})) for name in hostile.NAMES
    ]
    names += [("no rows", with_files(whole, lambda files: {n: d for n, d in files.items() if n != "rows.safetensors"}))]
    names += [(f"digest {value!r}", with_files(whole, lambda files, v=value: {**files, "model.onnx": v})) for value in (
        "", "0" * 64, None, 5, ["x"])]  # fmt: skip
    cases = [hostile.texts(), hostile.torn(whole), hostile.mistyped(whole), hostile.special(), names]
    count = tried(itertools.chain(*cases), record, apply, str(delta / "delta"))
    for name in ("model.onnx", "serving.json", "rows.safetensors", "reference.parquet"):
        file = delta / "delta" / name
        cases = [hostile.texts(), hostile.torn(file.read_bytes()), hostile.special()]
        count += tried(itertools.chain(*cases), file, apply, name)
    base = delta / DAYS[0] / "serving.json"
    cases = [hostile.texts(), hostile.torn(base.read_bytes()), hostile.mistyped(base.read_bytes()), hostile.special()]
    count += tried(itertools.chain(*cases), base, apply, str(delta / DAYS[0]))
    assert count > 300
    assert sorted(path for path in delta.rglob("*")) == before
    assert recloop("apply-delta", delta / DAYS[0], delta / "delta", delta / "served").exit_code == 0


def test_rows_of_a_delta_whose_digests_are_right(delta):
    """A process that can write a delta can also write its digests."""
    from models.runtime.onnx_model import sha256_of

    record, rows = delta / "delta" / "delta.json", delta / "delta" / "rows.safetensors"
    document = json.loads(record.read_bytes())

    def apply() -> Result:
        files = {**document["files"], rows.name: sha256_of(rows)}
        record.write_text(json.dumps({**document, "files": files}))
        return recloop("apply-delta", delta / DAYS[0], delta / "delta", delta / "served")

    assert tried(hostile.headers(rows.read_bytes()), rows, apply, "rows.safetensors") > 80
    assert not (delta / "served").exists()


def test_a_table_of_an_export_whose_digests_are_right(delta):
    from models.runtime.onnx_model import sha256_of

    export = delta / DAYS[0]
    record, table = export / "serving.json", export / "embeddings.safetensors"
    document, delta_record = json.loads(record.read_bytes()), delta / "delta" / "delta.json"
    made = json.loads(delta_record.read_bytes())

    def apply() -> Result:
        files = {**document["files"], table.name: sha256_of(table)}
        record.write_text(json.dumps({**document, "files": files}))
        delta_record.write_text(json.dumps({**made, "base": sha256_of(record)}))
        return recloop("apply-delta", export, delta / "delta", delta / "served")

    assert tried(hostile.headers(table.read_bytes()), table, apply, "embeddings.safetensors") > 80
    whole = bytearray(table.read_bytes())
    begin = 8 + int.from_bytes(whole[:8], "little")
    middle = begin + json.loads(whole[8:begin])["starts"]["data_offsets"][0] + 4
    whole[middle : middle + 4] = (2**31).to_bytes(4, "little")
    table.write_bytes(whole)
    ends_with_4(apply(), "starts beyond the rows", "embeddings.safetensors")


def test_symlinks_and_used_places_as_output(delta):
    outside = delta / "outside"
    outside.mkdir()
    (delta / "link").symlink_to(outside)
    (delta / "dangling").symlink_to(delta / "nowhere")
    (delta / "file").write_text("mine")
    for name in ("link", "dangling", "file"):
        ends_with_4(recloop("apply-delta", delta / DAYS[0], delta / "delta", delta / name), name, name)
    assert list(outside.iterdir()) == [] and (delta / "file").read_text() == "mine"
    assert not (delta / "nowhere").exists()
    (delta / "served").mkdir()  # an empty folder may be given
    assert recloop("apply-delta", delta / DAYS[0], delta / "delta", delta / "served").exit_code == 0
    made = contents(delta / "served")
    assert made.pop("manifest.json")
    assert made == contents(delta / DAYS[1])


def test_what_was_changed_after_its_commit_goes_into_no_delta_and_no_scenario(delta):
    scenario, store = delta / "scenario" / "little.yaml", open_store(delta / "store", "little")
    for name in ("serving.json", "model.onnx", "manifest.json"):
        file = store.find("quantize", DAYS[1]).folder / name
        file.chmod(0o644)
        whole = file.read_bytes()
        file.write_bytes(whole + b" ")
        done = recloop(
            *("delta", "-s", scenario, "--store", delta / "store", "--from", DAYS[0], "--to", DAYS[1]),
            *("--out", delta / "again"),
        )
        ends_with_4(done, name, name)
        assert not (delta / "again").exists()
        file.write_bytes(whole)


PROPOSAL = {
    "study": "s", "scenario": "little", "ds": DAYS[0], "from_checkpoint": DAYS[0], "replayed": [DAYS[0]],
    "objective": "auc", "trials": [], "best": {"train.learning_rate": 0.5}, "best_trial": 1, "value": 0.7,
    "champion_value": 0.6, "better": True, "certain": True,
    "evidence": {"like": {"difference": 0.1, "low": 0.1, "high": 0.2, "verdict": "better", "reason": ""}},
    "changes": {"train.learning_rate": {"old": 0.005, "new": 0.5}},
}  # fmt: skip


@pytest.mark.slow
def test_accept(tmp_path):
    from feature_jobs.schema import load_scenario
    from tasks.run.runner import output_name_of
    from tasks.steps import STEPS

    scenario = little_scenario(tmp_path)
    file = scenario.file
    file.write_text(file.read_text() + "tune: {space: {train.learning_rate: {low: 0.001, high: 0.9}}}\n")
    written, name = file.read_text(), output_name_of(STEPS["tune"], load_scenario(file))
    document = {**PROPOSAL, "changes": {"train.learning_rate": {"old": scenario.train.learning_rate, "new": 0.5}}}
    proposal = tmp_path / "proposal" / "proposal.json"
    proposal.parent.mkdir()
    proposal.write_text(json.dumps(document))
    numbers = itertools.count()

    def accept(place: Path) -> Result:
        return recloop("accept", "-s", file, "--store", place, "--ds", DAYS[0])

    def commit_and_accept() -> Result:
        """Also a step may have been tricked: its output is committed as it is."""
        place = tmp_path / f"store-{next(numbers)}"
        commit(open_store(place, "little"), name, DAYS[0], proposal.parent)
        done = accept(place)
        assert file.read_text() == written
        shutil.rmtree(place)
        return done

    others = {"data.path": "/etc", "deploy.tolerance": 1e9, "features.zip.kind": "number", "x": 1, "": 1, "a.b.c": {}}
    documents = {path: {**document, "changes": {path: {"old": None, "new": new}}} for path, new in others.items()}
    changed = [(f"changes {path}", hostile.write(json.dumps(d).encode())) for path, d in documents.items()]
    whole = proposal.read_bytes()
    cases = [hostile.texts(), hostile.torn(whole), _not_understood(hostile.mistyped(whole)), changed]
    assert tried(itertools.chain(*cases), proposal, commit_and_accept, "") > 100

    store = open_store(tmp_path / "store", "little")
    commit(store, name, DAYS[0], proposal.parent)
    committed = store.find(name, DAYS[0]).folder / "proposal.json"
    committed.chmod(0o644)
    changed = [("another value", hostile.write(json.dumps({**document, "ds": "x"}).encode()))]
    cases = [changed, hostile.texts(), hostile.special()]
    assert tried(itertools.chain(*cases), committed, lambda: accept(tmp_path / "store"), "proposal.json") > 25
    assert file.read_text() == written
    assert accept(tmp_path / "store").exit_code == 0
    assert "learning_rate: 0.5" in file.read_text()


def _not_understood(cases: Cases) -> Cases:
    """Without those that are right: any number is a number."""
    right = ("best is object", "-1", "large", "value is float", "value is true")
    return ((name, change) for name, change in cases if not name.endswith(right))


@pytest.mark.slow
def test_rollback(tmp_path, mlflow_uri):
    scenario = little_scenario(tmp_path)
    store = open_store(tmp_path / "store", "little")
    client = tracking.connection.client()
    client.create_registered_model("little")
    for number in (0, 1):
        client.create_model_version("little", source="file:///nowhere")
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "weights").write_text(str(number))
        made = commit(store, "train", DAYS[number], folder, parent=None)
        commit(store, "quantize", DAYS[number], folder)
        ChampionLog(store).promote(number, Entry("promotion", "little", str(number + 1), DAYS[number], 0, made.digest))
    version = tmp_path / "registration" / "version.json"
    version.parent.mkdir()
    document = {
        "name": "little", "version": "1", "model_uri": "models:/little/1", "checkpoint": "c", "export": "e",
        "files": {"MLmodel": {"sha256": "0" * 64, "bytes": 1}},
    }  # fmt: skip
    version.write_text(json.dumps(document))

    def commit_and_go_back() -> Result:
        kept = shutil.copytree(tmp_path / "store", tmp_path / "kept")
        commit(store, "register", DAYS[0], version.parent)
        done = recloop("rollback", "-s", scenario.file, "--store", tmp_path / "store")
        assert ChampionLog(store).current().version == "2"
        shutil.rmtree(tmp_path / "store")
        shutil.move(kept, tmp_path / "store")
        return done

    whole = version.read_bytes()
    names = [("another version", hostile.write(json.dumps({**document, "version": "2"}).encode()))]
    mistyped = (
        case for case in hostile.mistyped(whole) if not case[0].endswith(("_uri is text", "checkpoint is text"))
    )
    cases = [hostile.texts(), hostile.torn(whole), mistyped, names]
    assert tried(itertools.chain(*cases), version, commit_and_go_back, "") > 70


def test_report(tmp_path):
    """It reads the outputs of days, also those of another release or of a step with a bug."""
    scenario = little_scenario(tmp_path)
    metrics = tmp_path / "checkpoint" / "metrics.json"
    metrics.parent.mkdir()
    metrics.write_text(json.dumps({"progressive": {"like": {"auc": 0.7}}, "num_rows": 5}))
    ends = []

    def commit_and_report() -> Result:
        commit(open_store(tmp_path / "store", "little"), "train", DAYS[0], metrics.parent, parent=None)
        common = ("-s", scenario.file, "--store", tmp_path / "store", "--ds", DAYS[0])
        done = recloop("report", *common, "--out", tmp_path / "out")
        shutil.rmtree(tmp_path / "store")
        return done

    cases = [hostile.texts(), hostile.torn(metrics.read_bytes()), hostile.mistyped(metrics.read_bytes())]
    for name, change in itertools.chain(*cases):
        change(metrics)
        done = commit_and_report()
        assert done.exception is None or isinstance(done.exception, SystemExit), f"{name}: {done.exception!r}"
        assert done.exit_code in (0, 4), f"{name}: {done.output}"
        assert done.exit_code == 0 or ("metrics.json" in done.output and "; " in done.output), name
        ends.append(done.exit_code)
    assert ends.count(4) >= 20


def test_lines_of_the_journal(tmp_path):
    from tasks.commands.summary import step_seconds

    store = open_store(tmp_path, "little")
    good = {"ds": DAYS[0], "step": "train", "outcome": "done", "seconds": {"total": 2.5}}
    store.note(good)
    lines = [b"", b"{", b"5", b"[]", b"null", b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"ds": NaN}']
    lines += [json.dumps({**good, key: value}).encode() for key in good for value in hostile.VALUES.values()]
    with (store.work / "journal.jsonl").open("ab") as stream:
        stream.writelines(line + b"\n" for line in lines)
    assert set(step_seconds(store, DAYS[0])) == {"train"}
    store.note(good)
    assert step_seconds(store, DAYS[0]) == {"train": 2.5}
