"""The files that count as the code of a step: the modules that it imports, and the data files beside them."""

import ast
from pathlib import Path

from tasks.store import source_digest


def test_imports_are_those_that_python_parses():
    for room in source_digest.ROOMS:
        for file in (source_digest.ROOT / room).rglob("*.py"):
            modules: set[str] = set()
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            expected = {path for module in modules for path in source_digest._files(module)}
            assert set(source_digest._imports(file)) == expected, file


def test_templates_count_as_code_of_the_steps_that_import_their_package():
    page = "tasks/evaluation/templates/report.html.j2"
    assert page in source_digest.step_files("evaluate")
    assert page not in source_digest.step_files("train")


def test_another_template_is_another_code_digest(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(source_digest, "ROOT", tmp_path)
    templates = tmp_path / "tasks" / "pages" / "templates"
    for folder in (templates, tmp_path / "tasks" / "pages" / "other", tmp_path / "tasks" / "pages" / "__pycache__"):
        folder.mkdir(parents=True)
    (tmp_path / "tasks" / "show.py").write_text("from tasks.pages.page import write\n")
    for name in ("__init__.py", "page.py", "other/__init__.py", "__pycache__/page.cpython-311.pyc", ".hidden"):
        (tmp_path / "tasks" / "pages" / name).write_text("")
    (tmp_path / "tasks" / "__init__.py").write_text("")
    (tmp_path / "tasks" / "pages" / "other" / "unused.txt").write_text("")
    (templates / "page.j2").write_text("one")
    names = ["tasks/__init__.py", "tasks/pages/__init__.py", "tasks/pages/page.py", "tasks/pages/templates/page.j2"]
    assert source_digest.step_files("show") == [*names, "tasks/show.py"]
    source_digest.code_digest.cache_clear()
    before = source_digest.code_digest("show")
    (templates / "page.j2").write_text("two")
    source_digest.code_digest.cache_clear()
    assert source_digest.code_digest("show") != before
