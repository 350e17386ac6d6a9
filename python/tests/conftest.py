import os
import secrets
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

SEED = int(os.environ.get("PIE_ROPE_SEED", secrets.randbits(32)))


def pytest_report_header():
    return f"PIE_ROPE_SEED={SEED}"


@pytest.fixture
def random():
    """Fresh random numbers; the header of the report has the seed."""
    return pytest.importorskip("numpy", reason="numpy is not installed").random.default_rng(SEED)
