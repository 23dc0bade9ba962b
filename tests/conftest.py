import importlib.util
import os
import sys
from pathlib import Path

import pytest

# Before torch is imported: tiny models on two test processes gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tiny import make_processor  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real annotations, videos and reference numbers that lies beside the checkout, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data folder {SHARED} is not here")
    return SHARED


@pytest.fixture(scope="session")
def processor():
    """A processor of 8 frames with the tiny tokenizer; nothing may change it."""
    return make_processor()


@pytest.fixture(scope="session")
def evaluate_py():
    """training/evaluate.py as a module of another name: `evaluate` is the library."""
    path = Path(__file__).parents[1] / "training" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("training_evaluate", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
