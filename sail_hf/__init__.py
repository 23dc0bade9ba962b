"""SAIL-HF: dense video captioning learned from captions alone, for Hugging Face.

Importing this imports neither torch nor transformers: names are loaded when first asked for, and the Auto classes and
the pipeline task know SAIL as soon as transformers has loaded its own.
"""

import sys
from functools import partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_sail import SailConfig, SailVisionConfig
    from .data_collator import SailDataCollator
    from .metric import DenseVideoCaptioningMetric
    from .modeling_sail import SailForDenseVideoCaptioning, SailModel
    from .pipeline_sail import DenseVideoCaptioningPipeline
    from .processing_sail import SailProcessor
    from .trainer import SailTrainer, SailTrainingArguments
    from .video_limits import VideoError, VideoLimits
    from .video_processing_sail import SailVideoProcessor

__version__ = "0.1.0"

__all__ = [
    "DenseVideoCaptioningMetric",
    "DenseVideoCaptioningPipeline",
    "SailConfig",
    "SailDataCollator",
    "SailForDenseVideoCaptioning",
    "SailModel",
    "SailProcessor",
    "SailTrainer",
    "SailTrainingArguments",
    "SailVideoProcessor",
    "SailVisionConfig",
    "VideoError",
    "VideoLimits",
]

_MODULES = {
    "DenseVideoCaptioningMetric": "metric",
    "DenseVideoCaptioningPipeline": "pipeline_sail",
    "SailConfig": "configuration_sail",
    "SailDataCollator": "data_collator",
    "SailForDenseVideoCaptioning": "modeling_sail",
    "SailModel": "modeling_sail",
    "SailProcessor": "processing_sail",
    "SailTrainer": "trainer",
    "SailTrainingArguments": "trainer",
    "SailVideoProcessor": "video_processing_sail",
    "SailVisionConfig": "configuration_sail",
    "VideoError": "video_limits",
    "VideoLimits": "video_limits",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Make the Auto classes and `pipeline` of transformers know SAIL."""
    from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor, AutoVideoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_sail import SailConfig, SailVisionConfig
    from .modeling_sail import SailForDenseVideoCaptioning, SailModel
    from .pipeline_sail import DenseVideoCaptioningPipeline
    from .processing_sail import SailProcessor
    from .video_processing_sail import SailVideoProcessor

    AutoConfig.register("sail", SailConfig, exist_ok=True)
    AutoConfig.register("sail_vision", SailVisionConfig, exist_ok=True)
    AutoModel.register(SailConfig, SailModel, exist_ok=True)
    AutoModelForMultimodalLM.register(SailConfig, SailForDenseVideoCaptioning, exist_ok=True)
    AutoProcessor.register(SailConfig, SailProcessor, exist_ok=True)
    AutoVideoProcessor.register(SailConfig, SailVideoProcessor, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        "dense-video-captioning",
        pipeline_class=DenseVideoCaptioningPipeline,
        pt_model=AutoModelForMultimodalLM,
        type="multimodal",
    )


# All Auto classes and the pipelines import this module of transformers; `import transformers` alone does not.
_AUTO = "transformers.models.auto.configuration_auto"


class _RegisterWithAutoClasses(MetaPathFinder):
    """Registers SAIL once transformers has loaded its Auto classes, which takes seconds and so is not done before.

    It waits for the end of the outermost import of transformers or of this package: in the midst of one, modules that
    registering needs are half-loaded. Then it takes itself out.
    """

    def __init__(self) -> None:
        self.under_way = 0

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("transformers", __name__):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self.load, spec.loader.exec_module)
        return spec

    def load(self, exec_module, module) -> None:
        self.under_way += 1
        try:
            exec_module(module)
        finally:
            self.under_way -= 1
        if not self.under_way and _AUTO in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            _register()


if _AUTO in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterWithAutoClasses())
