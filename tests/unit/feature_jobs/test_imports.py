import gc
import subprocess
import sys
from pathlib import Path

import pytest

from feature_jobs.imports import quick_imports


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that holds objects and was not imported yet."""
    (tmp_path / "new_module.py").write_text(
        "import gc\nwas_enabled = gc.isenabled()\nobjects = [[] for _ in range(100)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "new_module"
    del sys.modules["new_module"]


def test_the_collector_is_paused_and_leaves_the_modules_objects_alone(module: str) -> None:
    before = gc.get_freeze_count()
    with quick_imports():
        imported = __import__(module)
    assert not imported.was_enabled
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(imported.objects)


def test_a_block_that_imports_nothing_new_freezes_nothing() -> None:
    before, alive = gc.get_freeze_count(), [[] for _ in range(100)]
    with quick_imports():
        import pytest  # noqa: F401
    assert gc.get_freeze_count() <= before
    assert len(alive) == 100


def test_a_collector_that_was_off_stays_off_and_a_failed_import_turns_it_on_again() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()


def test_a_process_that_used_duckdb_ends_without_a_word() -> None:
    code = "from feature_jobs.imports import quick_imports\nwith quick_imports():\n    import duckdb\nduckdb.connect()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


def test_spark_is_not_found_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pyspark" in sys.modules:
        monkeypatch.delitem(sys.modules, "pyspark")
    (tmp_path / "pyspark.py").write_text("here = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with quick_imports():
        with quick_imports():
            pass
        with pytest.raises(ModuleNotFoundError):
            import pyspark
    import pyspark

    assert pyspark.here
    with quick_imports(), pytest.raises(ModuleNotFoundError):
        import pyspark.sql.connect
    del sys.modules["pyspark"]
