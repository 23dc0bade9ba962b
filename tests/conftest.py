import importlib.util
import logging
import os
import sys
from pathlib import Path

import pytest

# Before torch is imported: tiny models on two test processes gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from tiny import make_clip, make_model, make_processor, make_rows, make_tokenizer  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from sail_hf import SailDataCollator  # noqa: E402

# No test depends on how busy the machine is.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def loudness():
    """What a test says quietly (`sail --quiet` is for the whole process), the next one says aloud again."""
    ours, theirs = logging.getLogger("sail_hf").level, transformers_logging.get_verbosity()
    yield
    logging.getLogger("sail_hf").setLevel(ours)
    transformers_logging.set_verbosity(theirs)


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


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP."""
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def batch(processor):
    """Three videos with 3, 2 and 1 captions and 8, 5 and 6 frames."""
    return SailDataCollator(processor)(make_rows(num_frames=(8, 5, 6)))


@pytest.fixture(scope="module")
def model(processor):
    """A tiny random model without CLIP."""
    return make_model(processor)


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny CLIP, and of a tiny decoder without dropout and its tokenizer."""
    folder = tmp_path_factory.mktemp("parts")
    make_clip(folder / "clip")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "decoder")
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    no_dropout = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    # Without the tokens that SAIL adds.
    config = GPT2Config(vocab_size=len(tokenizer) - 3, **size, **ids, **no_dropout)
    GPT2LMHeadModel(config).save_pretrained(folder / "decoder")
    return {"clip": str(folder / "clip"), "decoder": str(folder / "decoder")}


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


@pytest.fixture
def compute(tmp_path):
    """The metric's scores of predictions and references."""
    from sail_hf import DenseVideoCaptioningMetric

    def compute(predictions, references, metrics=("localization",), **options):
        metric = DenseVideoCaptioningMetric(cache_dir=str(tmp_path))
        return metric.compute(predictions=predictions, references=references, metrics=list(metrics), **options)

    return compute


@pytest.fixture(scope="session")
def java_tools():
    from sail_hf.metric_captions import find_java_tools

    try:
        return find_java_tools()
    except ImportError as error:
        pytest.skip(str(error))
