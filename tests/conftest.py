"""Property tests draw the same examples in every run; HYPOTHESIS_PROFILE=search draws others, to look for more."""

import os

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

settings.register_profile("same", derandomize=True)
settings.register_profile("search")
profile = os.environ.get("HYPOTHESIS_PROFILE", "same")
settings.load_profile(profile)
if profile == "same":
    # Else constants found in whichever of our modules are loaded join the examples: others in every order of files.
    none_found = providers._local_constants
    providers._get_local_constants = lambda: none_found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: a file's tests have one worker, and so do all that share the container engine."""
    for item in items:
        group = "engine" if item.get_closest_marker("container") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
