"""A Spark session on the scenario's master, for the time of one join or of one read of a Hive table.

PySpark and Java are found when they are needed: nothing else of Recloop imports either.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import feature_jobs
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MASTER = "RECLOOP_SPARK_MASTER"
"""The environment variable with the master of scenarios that name none."""
DEFAULT_MASTER = "local[2]"
JAVA = 17
_DEFAULTS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.driver.maxResultSize": "0",  # the answers of a day may be larger than the usual 1 GiB
    "spark.rpc.message.maxSize": "2047",  # MiB; a part travels in its task
}
_QUICK_START = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_OF_ONE_MACHINE = {
    # Its own name may be one that nobody knows.
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    # Java only passes bytes on: to compile it well takes longer than it ever runs.
    "spark.driver.extraJavaOptions": _QUICK_START,
    "spark.executor.extraJavaOptions": _QUICK_START,
    "spark.driver.memory": "2g",
}


@contextlib.contextmanager
def spark_session(
    scenario: Scenario, place: str | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[SparkSession]:
    """Opens a session with this project's code on all executors, and stops it at the end.

    `place` names in messages what needs Spark; without it that is the scenario's `engine: spark`. A session that this
    process has open already, as in a notebook, is used and left open, unless `settings` are given, which it may not
    have.
    Raises BadInputError where PySpark or Java is missing, or where such a session is in the way; RetryLaterError where
    the master does not answer.
    """
    place = place or f"{scenario.place_of('engine')}: engine: spark"
    _require_java(place)
    spark = _imported(place)
    if (session := spark.getActiveSession()) is not None:
        if settings:
            raise BadInputError(f"{place}: needs a Spark session of its own; stop the one that is open (spark.stop())")
        _send_code(session)
        yield session
        return
    session = _open(scenario, place, settings or {})
    try:
        _send_code(session)
        yield session
    finally:
        session.stop()


@contextlib.contextmanager
def without_pandas_warning() -> Iterator[None]:
    """Leaves out PySpark's warning of pandas 3: nothing here makes a frame of pandas."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def master_of(scenario: Scenario) -> str | None:
    """The master of the scenario, of the environment, or this machine; None where spark-submit has chosen it."""
    if scenario.spark.master:
        return scenario.spark.master
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return None
    return os.environ.get(MASTER) or DEFAULT_MASTER


def _open(scenario: Scenario, place: str, needed: Mapping[str, str]) -> SparkSession:
    builder = _imported(place).builder.appName(f"recloop {scenario.name}")
    master = master_of(scenario)
    settings = {**_DEFAULTS, **scenario.spark.settings, **needed}
    if master:
        builder = builder.master(master)
    if (master or "").startswith("local"):
        settings = {**_OF_ONE_MACHINE, **settings}
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        with without_pandas_warning():
            return builder.getOrCreate()
    except Exception as error:
        if type(error).__name__ == "PySparkRuntimeError":  # the Java process ended at once; it has said why
            raise BadInputError(f"{place}: Java could not start Spark; {_JAVA_REMEDY}") from None
        # Not the error's own text: a setting's value may be in it.
        raise RetryLaterError(
            f"{place}: {master or 'spark-submit'}: no session could be opened ({type(error).__name__}); see"
            f" that the master runs, and that this machine and the executors reach each other (docs/spark.md)"
        ) from None


def _imported(place: str) -> type[SparkSession]:
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise BadInputError(
            f"{place}: {error.name or 'pyspark'} is not installed; install Recloop's extra `spark`: pip install"
            f" 'recloop[spark]'"
        ) from None
    found: type[SparkSession] = SparkSession
    return found


_JAVA_REMEDY = (
    f"install Java {JAVA} or later (Debian 12, as root: infra/engine.sh install), or name its folder in JAVA_HOME"
)


def _require_java(place: str) -> None:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin") if home else None)
    if java is None:
        raise BadInputError(f"{place}: Spark needs Java, and there is none; {_JAVA_REMEDY}")
    # For example: openjdk version "17.0.15" 2025-04-15
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = said.partition('"')[2].partition(".")[0].partition('"')[0]
    if version.isdecimal() and int(version) < JAVA:
        raise BadInputError(f"{place}: {java} is Java {version}; {_JAVA_REMEDY}")


def _send_code(session: SparkSession) -> None:
    """Sends the package to all executors, so that the kernel there is the one here."""
    session.sparkContext.addPyFile(str(Path(_code().name) / "recloop-kernel.zip"))


@functools.cache
def _code() -> tempfile.TemporaryDirectory[str]:
    """The package in a file that stays until this process ends: executors may start at any time."""
    folder, root = tempfile.TemporaryDirectory(prefix="recloop-spark-"), Path(feature_jobs.__file__).parent
    with zipfile.ZipFile(Path(folder.name) / "recloop-kernel.zip", "w") as archive:
        for source in sorted(root.rglob("*.py")):
            archive.write(source, source.relative_to(root.parent))
    return folder
