"""Property tests draw the same examples in every run; HYPOTHESIS_PROFILE=search draws others, to look for more."""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
