import os
from pathlib import Path

import pytest

# Before torch is imported: tiny models on two test processes gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real annotations, videos and reference numbers that lies beside the checkout, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data folder {SHARED} is not here")
    return SHARED
