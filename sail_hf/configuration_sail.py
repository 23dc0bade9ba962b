"""Configuration of SAIL: the frozen CLIP, the video encoder, the mask generator, the decoder and the loss weights."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# Loss weights and mask generator of each method: the rows of the paper's Figure 2a, Table 4 and Table 6, and `sail-align`,
# whose mask generator learns from captions aligned with frames, and looks (README, training/compare_methods.py).
METHODS = {
    "fixed": {"mask_generator": "fixed"},
    "ilcacm": {"diversity_loss_weight": 1.0},
    "sail-sim": {"similarity_loss_weight": 1.0},
    "sail-synth": {"augmentation_loss_weight": 0.25},
    "sail-synth-hn": {"similarity_loss_weight": 1.0, "transition_hard_negatives": True},
    "sail": {"similarity_loss_weight": 1.0, "augmentation_loss_weight": 0.25},
    "sail-align": {
        "mask_generator": "progress",
        "similarity_loss_weight": 1.0,
        "augmentation_loss_weight": 0.25,
        "alignment_loss_weight": 1.0,
    },
}
# What a method that does not say otherwise has.
_OF_NO_METHOD = {
    "mask_generator": "learned",
    "similarity_loss_weight": 0.0,
    "augmentation_loss_weight": 0.0,
    "diversity_loss_weight": 0.0,
    "alignment_loss_weight": 0.0,
    "transition_hard_negatives": False,
}


def method_fields(method: str) -> dict[str, Any]:
    """All fields of [`SailConfig`] that a method sets, to turn a configuration of another method into this one's."""
    return {"method": method, **_OF_NO_METHOD, **METHODS[method]}


@strict
class SailVisionConfig(PreTrainedConfig):
    r"""The CLIP whose image and text projections SAIL works on; any open_clip model. Defaults: OpenAI's ViT-L/14.

    Usually made by [`load_clip`], which reads it from the CLIP itself.

    clip (`str`, defaults to `"ViT-L-14"`):
        Name that [`load_clip`] loads the same CLIP by.
    model_cfg (`dict`):
        open_clip's own description of the towers (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`, ...).
    image_size (`int`, defaults to 224), image_mean, image_std (`list[float]`):
        Preprocessing: side of the square input in pixels, and the normalisation of values in [0, 1].
    resize_mode (`str`, defaults to `"shortest"`):
        How frames become square: `"shortest"` (resize of the short side, centre crop; OpenAI's) or `"squash"` (SigLIP's).
    interpolation (`str`, defaults to `"bicubic"`):
        Of the resize: `"bicubic"` or `"bilinear"`, antialiased.
    include_text_tower (`bool`, defaults to `False`):
        Whether the text tower is part of the model too (needed to align captions to frames without a second download).
    """

    model_type = "sail_vision"
    base_config_key = "vision_config"

    clip: str = "ViT-L-14"
    model_cfg: dict | None = None
    image_size: int = 224
    image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resize_mode: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    include_text_tower: bool = False

    def __post_init__(self, **kwargs):
        if self.model_cfg is None:
            self.model_cfg = {
                "embed_dim": 768,
                "quick_gelu": True,
                "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
            }
        super().__post_init__(**kwargs)


@strict
class SailConfig(PreTrainedConfig):
    r"""Configuration of [`SailModel`] and [`SailForDenseVideoCaptioning`]. Defaults: the paper's for ActivityNet Captions.

    text_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the caption decoder, any causal language model of transformers. Defaults to DistilGPT2's
        shape with three added tokens (`<PAD>`, `<FULL>`, `<MASK>`).
    vision_config (`SailVisionConfig` or `dict`, *optional*):
        The CLIP inside the checkpoint. `None`: the model takes `video_features` only.
    method (`str`, defaults to `"sail"`):
        Preset of the loss weights that are not given: `fixed`, `ilcacm`, `sail-sim`, `sail-synth`, `sail-synth-hn`,
        `sail` or `sail-align`.
    feature_size (`int`, defaults to 768):
        D, size of the CLIP features.
    num_frames (`int`, defaults to 32):
        T, largest number of frames (32 for ActivityNet, 100 for YouCook2).
    num_queries (`int`, defaults to 14):
        K, number of event queries, hence the largest number of events (14; 18 for YouCook2).
    encoder_layers, encoder_attention_heads, encoder_ffn_dim (`int`, default to 6, 12, 2048):
        Video encoder, whose width is the decoder's.
    mask_decoder_layers, mask_decoder_attention_heads, mask_decoder_ffn_dim (`int`, default to 1, 12, 1024):
        Mask generator, whose width is `feature_size`.
    mask_memory (`str`, defaults to `"frames"`):
        What the mask generator looks at: `"frames"` (raw features, as ILCACM) or `"encoded"` (the video encoder's
        output, through a projection).
    dropout (`float`, defaults to 0.1)
    mask_generator (`str`, *optional*):
        `"learned"`: event queries, as the paper. `"progress"`: frames that drive a video's progress from event to event
        (`SailProgressMaskGenerator`; its hidden width is `mask_decoder_ffn_dim`). `"fixed"`: equal widths, uniformly spread
        (Figure 2a). Set by `method`.
    mask_type (`str`, defaults to `"gaussian"`):
        `"gaussian"` (Eq. 1), `"cauchy"` or `"hard"` (Table 7).
    mask_temperature (`float`, defaults to 2.0):
        tau of Eq. 1.
    transition_width (`float`, defaults to 0.6):
        Width of the inter-masks in [0, 1].
    similarity_margin (`float`, defaults to 0.1), diversity_threshold (`float`, defaults to 0.8):
        Delta of Eq. 2; gamma of ILCACM's diversity loss.
    full_loss_weight, positive_loss_weight, negative_loss_weight (`float`, default to 1.0):
        Captioning losses. The first keeps the counting prompt alive in the second stage.
    similarity_loss_weight, augmentation_loss_weight, diversity_loss_weight, alignment_loss_weight (`float`, *optional*):
        Eq. 2, Eq. 3, ILCACM's diversity, and regression to segments aligned with the training captions. Set by `method`.
    transition_hard_negatives (`bool`, *optional*):
        Whether synthetic captions are hard negatives in Eq. 2 (`Synth + HN` of Table 6). Set by `method`.
    full_prompt_ids, event_prompt_ids, separator_ids (`list[int]`):
        Token ids of `<FULL>`, of `<MASK>1 events: ` and of the space between sentences; defaults are GPT-2's.
    initializer_range (`float`, defaults to 0.02)
    """

    model_type = "sail"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="gpt2", init_kwargs={"n_layer": 6, "vocab_size": 50260}),
        "vision_config": SubConfigSpec(SailVisionConfig, optional=True),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    method: Literal["fixed", "ilcacm", "sail-sim", "sail-synth", "sail-synth-hn", "sail", "sail-align"] = "sail"
    feature_size: int = 768
    num_frames: int = 32
    num_queries: int = 14
    encoder_layers: int = 6
    encoder_attention_heads: int = 12
    encoder_ffn_dim: int = 2048
    mask_decoder_layers: int = 1
    mask_decoder_attention_heads: int = 12
    mask_decoder_ffn_dim: int = 1024
    mask_memory: Literal["frames", "encoded"] = "frames"
    dropout: float | int = 0.1
    mask_generator: Literal["learned", "progress", "fixed"] | None = None
    mask_type: Literal["gaussian", "cauchy", "hard"] = "gaussian"
    mask_temperature: float | int = 2.0
    transition_width: float | int = 0.6
    similarity_margin: float | int = 0.1
    diversity_threshold: float | int = 0.8
    full_loss_weight: float | int = 1.0
    positive_loss_weight: float | int = 1.0
    negative_loss_weight: float | int = 1.0
    similarity_loss_weight: float | int | None = None
    augmentation_loss_weight: float | int | None = None
    diversity_loss_weight: float | int | None = None
    alignment_loss_weight: float | int | None = None
    transition_hard_negatives: bool | None = None
    full_prompt_ids: list[int] | tuple[int, ...] = (50258,)
    event_prompt_ids: list[int] | tuple[int, ...] = (50259, 16, 2995, 25, 220)
    separator_ids: list[int] | tuple[int, ...] = (220,)
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for field, value in method_fields(self.method).items():
            if getattr(self, field) is None:
                setattr(self, field, value)
