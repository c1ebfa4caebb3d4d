"""Property tests: the choice of their examples.

The default profile derives its examples from the test itself. Hypothesis adds constants of the modules that are loaded,
so the examples may also depend on which test files ran before in the process (not in `tests.own_process`); each failure
therefore prints a `@reproduce_failure` line that repeats it exactly. HYPOTHESIS_PROFILE=search draws new examples in
every run.
"""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests import object_store
from tests.object_store import ObjectServer
from tests.plain_days import Digests, plain_digests

ENGINE = "tests/containers/"

AT_ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("same", derandomize=True, **AT_ANY_SPEED)
settings.register_profile("search", **AT_ANY_SPEED)


def load_profile() -> None:
    """Chooses the profile, for this process."""
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


load_profile()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker begins with one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith(ENGINE), item.path not in slow))


def pytest_collection_finish() -> None:
    """The modules of all tests are imported: the garbage collector need not look at their objects any more."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # also with -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """A file's tests have one worker, and so have all that share the container engine."""

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return ENGINE if nodeid.startswith(ENGINE) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A real S3-compatible server, started once for the tests of a process that use it."""
    with object_store.object_server(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture(scope="session")
def plain_days(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    """See tests.plain_days; computed once for all workers of a session."""
    top = tmp_path_factory.getbasetemp()
    return plain_digests((top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "plain-days")
