"""Configuration of SAIL: the frozen CLIP, the video encoder, the mask generator, the decoder and the loss weights."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .sharing import LoadedByPackage, SavedWithCode

# What each method sets: the rows of the paper's Figure 2a, Table 4 and Table 6, and `sail-align`, whose mask generator
# learns from captions aligned with frames, and looks; `sbs` is the next step of SAIL's authors (arXiv 2609.04183); `cohesion`
# has masks that look and learn nothing.
METHODS = {
    "fixed": {"mask_generator": "fixed"},
    "ilcacm": {"diversity_loss_weight": 1.0},
    "sail-sim": {"similarity_loss_weight": 1.0},
    "sail-synth": {"augmentation_loss_weight": 0.25},
    "sail-synth-hn": {"similarity_loss_weight": 1.0, "transition_hard_negatives": True},
    "sail": {"similarity_loss_weight": 1.0, "augmentation_loss_weight": 0.25},
    "sbs": {"similarity_loss_weight": 1.0, "attraction_loss_weight": 0.4},
    "sail-align": {
        "mask_generator": "progress",
        "similarity_loss_weight": 1.0,
        "augmentation_loss_weight": 0.25,
        "alignment_loss_weight": 1.0,
    },
    "cohesion": {"mask_generator": "cohesion"},
}
# What a method that does not say otherwise has.
_OF_NO_METHOD = {
    "mask_generator": "queries",
    "similarity_loss_weight": 0.0,
    "augmentation_loss_weight": 0.0,
    "attraction_loss_weight": 0.0,
    "diversity_loss_weight": 0.0,
    "alignment_loss_weight": 0.0,
    "transition_hard_negatives": False,
}


def method_fields(method: str) -> dict[str, Any]:
    """The fields of [`SailConfig`] that a method stands for.

    Raises:
        ValueError: no method of that name.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, found {method!r}.")
    return {**_OF_NO_METHOD, **METHODS[method]}


@strict
class SailVisionConfig(PreTrainedConfig):
    r"""The CLIP whose image and text projections SAIL works on; any open_clip model. Defaults: OpenAI's ViT-L/14.

    Usually made by [`load_clip`], which reads it from the CLIP itself.

    clip (`str`, defaults to `"ViT-L-14"`):
        Name that [`load_clip`] loads the same CLIP by.
    pretrained (`str`, defaults to `"openai"`):
        open_clip's tag of its weights, where `clip` is a plain name of open_clip.
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
    pretrained: str = "openai"
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
class SailConfig(LoadedByPackage, SavedWithCode, PreTrainedConfig):
    r"""Configuration of [`SailModel`] and [`SailForDenseVideoCaptioning`]. Defaults: the paper's for ActivityNet Captions.

    [`SailConfig.for_method`] makes the configuration of another method.

    text_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the caption decoder, any causal language model of transformers. Defaults to DistilGPT2's
        shape with three added tokens (`<PAD>`, `<FULL>`, `<MASK>`).
    vision_config (`SailVisionConfig` or `dict`, *optional*):
        The CLIP inside the checkpoint. `None`: the model takes `video_features` only.
    feature_size (`int`, defaults to 768):
        D, size of the CLIP features.
    num_frames (`int`, defaults to 32):
        T, largest number of frames (32 for ActivityNet, 100 for YouCook2).
    num_queries (`int`, defaults to 14):
        K, number of event queries, hence the largest number of events (14; 18 for YouCook2).
    encoder_layers, encoder_ffn_dim (`int`, default to 6, 2048):
        Video encoder, whose width is the decoder's.
    mask_decoder_layers, mask_decoder_ffn_dim (`int`, default to 1, 1024):
        Mask generator, whose width is `feature_size`.
    attention_head_dim (`int`, defaults to 64):
        Smallest size of an attention head in both: a layer has as many heads as its width has room for, or the next
        smaller number that divides the width (768: 12 heads, 512: 8, 500: 5).
    dropout (`float`, defaults to 0.1)
    mask_input_dropout (`float`, defaults to 0.0):
        Dropout of the event queries and of the frames that the mask generator looks at (ILCACM's code: 0.1).
    mask_generator (`str`, defaults to `"queries"`):
        `"queries"`: event queries, as the paper. `"progress"`: frames that drive a video's progress from event to event
        (`SailProgressMaskGenerator`; its hidden width is `mask_decoder_ffn_dim`). `"fixed"`: equal widths, uniformly spread
        (Figure 2a). `"cohesion"`: stretches whose frames are alike, without anything learned (`segments_sail.py`).
    event_counter (`bool`, defaults to `False`):
        Whether the model can tell the number of events from the frames (`SailEventCounter`), for `counting="frames"` of
        `generate`. `training/fit_event_counter.py` sets it.
    cohesion_weight (`float`, defaults to 16.0), cohesion_gap_cost (`float`, defaults to 64.0):
        Of the frames' cohesion: its weight beside the lengths of events, and what a whole video outside all events costs.
    caption_memory (`int`, defaults to 0), caption_memory_sharpness (`float`, defaults to 1.8):
        Number of captions by which frames are replaced before their cohesion is looked at (`SailCaptionMemory`; 0: raw
        frames), and how much the nearest count. `training/fit_event_counter.py --caption_memory true` sets them.
    mask_type (`str`, defaults to `"gaussian"`):
        `"gaussian"` (Eq. 1), `"cauchy"` or `"hard"` (Table 7).
    mask_temperature (`float`, defaults to 2.0):
        tau of Eq. 1.
    transition_width (`float`, defaults to 0.6):
        Width of the inter-masks in [0, 1].
    similarity_margin (`float`, defaults to 0.1), diversity_threshold (`float`, defaults to 0.8):
        Delta of Eq. 2; gamma of ILCACM's diversity loss.
    full_loss_weight, positive_loss_weight, negative_loss_weight (`float`, default to 1.0):
        Captioning losses: of the whole video where it is the only one, as in the first stage; of events; of complements.
    joint_full_loss_weight (`float`, defaults to 1.0):
        Of the whole video beside the others, as in the second stage. It keeps the counting prompt alive; 0 is Eq. 4 as published.
    similarity_loss_weight, augmentation_loss_weight, diversity_loss_weight, alignment_loss_weight (`float`, default to 1.0,
        0.25, 0.0, 0.0): Eq. 2, Eq. 3, ILCACM's diversity, and regression to segments aligned with the training captions.
    attraction_loss_weight (`float`, defaults to 0.0; 0.4 in `sbs`):
        Of SBS's loss: a mask between adjacent events is drawn to the caption of a frame, where what frames show changes.
        SBS also has 22 queries on ActivityNet, 4 + 25 epochs on YouCook2, and label smoothing of a size that its paper does
        not give: there is none here.
    attraction_beta, attraction_alpha, attraction_theta (`float`, default to 2.0, 0.5, 0.2):
        SBS's beta: standard deviations that the greatest change must exceed the mean by; alpha: 0 puts the mask midway
        between the two centres, 1 at the change; theta: smallest cosine of the mask's frames with that caption.
    attraction_widths (`list[float]`, defaults to `[0.2, 0.4, 0.6]`):
        Widths in [0, 1] that such a mask may have; the one that fits the caption best is taken.
    transition_hard_negatives (`bool`, defaults to `False`):
        Whether synthetic captions are hard negatives in Eq. 2 (`Synth + HN` of Table 6).
    grounding (`bool`, defaults to `False`):
        Whether the decoder has a head that looks at patches of the frames for each word (`grounding_sail.py`), given
        `region_features`. A model that was trained without goes on unchanged: the head's last layer starts at zero.
    grounding_loss_weight (`float`, defaults to 0.1):
        Of the loss that draws the head's attention to where words' boxes are (CVG, Eq. 9); 0 without `grounding`.
    grounding_target (`str`, defaults to `"spread"`):
        What attention is drawn to: `"sum"`, any of it in the box (CVG, Eq. 5), or `"spread"`, all over the box.
    context_size (`int`, defaults to 0):
        Clusters of adjacent frames for which a bank of captions is asked (CACMI's c; `context_sail.py`). 0: no context.
    context_k (`int`, defaults to 40):
        Sentences that a cluster recalls.
    context_sentences (`int`, defaults to 0):
        Sentences in the bank; what fills it sets this.
    full_prompt_ids, event_prompt_ids, separator_ids (`list[int]`):
        Token ids of `<FULL>`, of `<MASK>1 events: ` and of the space between sentences; defaults are GPT-2's.
    chunk_length_s (`float`, *optional*):
        Seconds of video that are captioned at once; the pipeline captions longer videos chunk by chunk. `train.py` sets the
        length that 999 of 1,000 of its videos stay within: outliers do not count. `None`: 7.5 for each of the frames
        (`SECONDS_A_FRAME`).
    knows_only (`str`, *optional*):
        Where that is little, what the model knows, such as "the rendered world of the playground": said on its card, and by
        a warning once it generates captions.
    initializer_range, position_initializer_range, mask_position_initializer_range (`float`, default to 0.02, 0.02, 1.0):
        Standard deviations of initial weights, and of the initial positions of the frames that the video encoder and the event
        queries see (ILCACM's code: 1.0 for both; with 0.02 event queries hardly learn to look, see `docs/results.md`).
    """

    model_type = "sail"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="gpt2", init_kwargs={"n_layer": 6, "vocab_size": 50260}),
        "vision_config": SubConfigSpec(SailVisionConfig, optional=True),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    feature_size: int = 768
    num_frames: int = 32
    num_queries: int = 14
    encoder_layers: int = 6
    encoder_ffn_dim: int = 2048
    mask_decoder_layers: int = 1
    mask_decoder_ffn_dim: int = 1024
    attention_head_dim: int = 64
    dropout: float | int = 0.1
    mask_input_dropout: float | int = 0.0
    mask_generator: Literal["queries", "progress", "fixed", "cohesion"] = "queries"
    event_counter: bool = False
    cohesion_weight: float | int = 16.0
    cohesion_gap_cost: float | int = 64.0
    caption_memory: int = 0
    caption_memory_sharpness: float | int = 1.8
    mask_type: Literal["gaussian", "cauchy", "hard"] = "gaussian"
    mask_temperature: float | int = 2.0
    transition_width: float | int = 0.6
    similarity_margin: float | int = 0.1
    diversity_threshold: float | int = 0.8
    full_loss_weight: float | int = 1.0
    positive_loss_weight: float | int = 1.0
    negative_loss_weight: float | int = 1.0
    joint_full_loss_weight: float | int = 1.0
    similarity_loss_weight: float | int = 1.0
    augmentation_loss_weight: float | int = 0.25
    attraction_loss_weight: float | int = 0.0
    attraction_beta: float | int = 2.0
    attraction_alpha: float | int = 0.5
    attraction_theta: float | int = 0.2
    attraction_widths: list[float] | tuple[float, ...] = (0.2, 0.4, 0.6)
    diversity_loss_weight: float | int = 0.0
    alignment_loss_weight: float | int = 0.0
    transition_hard_negatives: bool = False
    grounding: bool = False
    grounding_loss_weight: float | int = 0.1
    grounding_target: Literal["spread", "sum"] = "spread"
    context_size: int = 0
    context_k: int = 40
    context_sentences: int = 0
    full_prompt_ids: list[int] | tuple[int, ...] = (50258,)
    event_prompt_ids: list[int] | tuple[int, ...] = (50259, 16, 2995, 25, 220)
    separator_ids: list[int] | tuple[int, ...] = (220,)
    chunk_length_s: float | int | None = None
    knows_only: str | None = None
    initializer_range: float | int = 0.02
    position_initializer_range: float | int = 0.02
    mask_position_initializer_range: float | int = 1.0

    @classmethod
    def for_method(cls, method: str, **fields) -> "SailConfig":
        """The configuration of a method (`METHODS`): `fixed`, `ilcacm`, `sail-sim`, `sail-synth`, `sail-synth-hn`, `sail`,
        `sbs` or `sail-align`. `fields` that are given win over the method's.

        Raises:
            ValueError: no method of that name.
        """
        return cls(**{**method_fields(method), **fields})

    @property
    def method(self) -> str:
        """Name of the method whose fields this configuration has, or `"custom"`."""
        mine = {field: getattr(self, field) for field in _OF_NO_METHOD}
        return next((method for method in METHODS if method_fields(method) == mine), "custom")

    @method.setter
    def method(self, method: str) -> None:
        raise ValueError(
            f"A method is expanded once, into the fields that it stands for: SailConfig.for_method({method!r}, ...) makes a "
            f"configuration, and from_pretrained(name, **method_fields({method!r})) gives a model another method."
        )
