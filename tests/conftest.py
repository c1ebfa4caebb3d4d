"""Property tests: which examples they draw.

The default profile derives its examples from the test itself. Hypothesis adds constants of the modules that are loaded,
so the examples may also depend on which test files ran before in the process; each failure therefore prints a
`@reproduce_failure` line that repeats it exactly. HYPOTHESIS_PROFILE=search draws new examples in every run.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

ENGINE = "tests/containers/"

AT_ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("same", derandomize=True, **AT_ANY_SPEED)
settings.register_profile("search", **AT_ANY_SPEED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """A file's tests have one worker, and so have all that share the container engine."""

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return ENGINE if nodeid.startswith(ENGINE) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)
