"""Rules for imports between folders, and modules that must stay light."""

import json
import subprocess
import sys

from tests.paths import ROOT

HEAVY = {"torch", "pandas", "mlflow", "duckdb", "numpy", "pyarrow", "great_expectations", "optuna", "airflow", "onnx"}


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_layer_contracts_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as l; l()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_declarations_and_scenarios_load_nothing_heavy() -> None:
    loaded = _modules_after(
        "from tasks.steps import STEPS; from feature_jobs.schema import load_scenario as load\n"
        "load('scenarios/movielens.yaml')"
    )
    assert not loaded & HEAVY


def test_command_line_loads_nothing_heavy() -> None:
    assert not _modules_after("import tasks.commands.cli") & HEAVY


def test_serving_loads_neither_torch_nor_mlflow() -> None:
    assert not _modules_after("import serving.scorer") & {"torch", "mlflow", "duckdb", "matplotlib", "airflow"}
