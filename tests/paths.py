"""Places that tests need."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = ROOT / "scenarios"
SHARED = ROOT.parent / "shared"
KUAIRAND = SHARED / "data" / "kuairand_pure_14d"

needs_kuairand = pytest.mark.skipif(not KUAIRAND.is_dir(), reason=f"no KuaiRand slice at {KUAIRAND}")
