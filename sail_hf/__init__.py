"""SAIL-HF: dense video captioning learned from captions alone, for Hugging Face."""

from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor, AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_sail import SailConfig, SailVisionConfig
from .modeling_sail import SailForDenseVideoCaptioning, SailModel
from .pipeline_sail import DenseVideoCaptioningPipeline
from .processing_sail import SailProcessor
from .video_limits import VideoError, VideoLimits
from .video_processing_sail import SailVideoProcessor

__version__ = "0.1.0"

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

# Loaded when first asked for: they bring in accelerate, datasets and evaluate.
_LAZY = {
    "SailTrainer": "trainer",
    "SailTrainingArguments": "trainer",
    "SailDataCollator": "data_collator",
    "DenseVideoCaptioningMetric": "metric",
}

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


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
