"""Property tests draw the same examples in every run; HYPOTHESIS_PROFILE=search draws others, to look for more."""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from xdist.scheduler import LoadFileScheduling

ENGINE = "tests/containers/"

AT_ANY_SPEED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **AT_ANY_SPEED)
settings.register_profile("search", **AT_ANY_SPEED)
profile = os.environ.get("HYPOTHESIS_PROFILE", "same")
settings.load_profile(profile)
if profile == "same":
    # Else constants found in whichever of our modules are loaded join the examples: others in every order of files.
    none_found = providers._local_constants
    providers._get_local_constants = lambda: none_found


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """A file's tests have one worker, and so have all that share the container engine."""

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return ENGINE if nodeid.startswith(ENGINE) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)
