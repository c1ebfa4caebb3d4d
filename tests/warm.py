"""`recloop` in processes that have the modules of all steps already: each is a fork of one that imported them.

Imports are most of the time of a small day. Such a process has memory, files and an end of its own, so it can be killed
and can race with others. A day in fresh interpreters is the subject of the tests of dvc, Airflow and the images.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tasks.steps import STEPS

_FORKS = multiprocessing.get_context("forkserver")
_MODULES = {module for step in STEPS.values() for module in step.imports}
_FORKS.set_forkserver_preload(["tasks.commands.cli", "tests.warm_modules", "mlflow", *sorted(_MODULES)])


@dataclass(frozen=True)
class Warm:
    """A command that was started."""

    words: tuple[str, ...]
    process: BaseProcess
    output: Path

    def ended(self, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        """Waits for its end."""
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"{self.words} runs after {timeout_s} s"
        printed = [file.read_text() if file.exists() else "" for file in _files(self.output)]
        shutil.rmtree(self.output)
        return subprocess.CompletedProcess(self.words, self.process.exitcode, *printed)


def start(words: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> Warm:
    """Starts `recloop WORDS` in a folder, with this environment alone."""
    output = Path(tempfile.mkdtemp(prefix="recloop-warm-"))
    process = _FORKS.Process(target=_command, args=(words, folder, dict(environment), output))
    process.start()
    return Warm(words, process, output)


def _files(output: Path) -> tuple[Path, Path]:
    return output / "stdout", output / "stderr"


def _command(words: tuple[str, ...], folder: Path, environment: dict[str, str], output: Path) -> None:
    from tasks.commands.cli import main

    gc.freeze()  # else the collector looks at the objects of all modules, and so copies their memory
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # an import may have asked for it
    for number, file in enumerate(_files(output), 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    main(list(words), prog_name="recloop")
