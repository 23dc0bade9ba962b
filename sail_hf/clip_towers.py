"""CLIP's towers and tokenizer from a configuration, which is data from a stranger.

Only the keys listed here reach open_clip, timm and transformers. None of them chooses code, options of a loader, or a file.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_sail import SailVisionConfig
from .trust import check_configuration, check_size

# open_clip builds both towers at once; a model without a text tower builds this one and drops it.
_SMALLEST_TEXT_TOWER = {"context_length": 1, "vocab_size": 2, "width": 64, "heads": 1, "layers": 1}

_TOWER_KEYS = """layers width mlp_ratio ls_init_value final_ln_after_pool pool_type act_kwargs norm_kwargs block_type qk_norm
    scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc"""
# What a configuration may hold, by the key that leads there.
_ALLOWED_KEYS = {
    "model_cfg": """embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale init_logit_bias
        nonscalar_logit_scale""",
    "vision_cfg": f"""{_TOWER_KEYS} head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries
        attn_pooler_heads no_ln_pre pos_embed_type timm_model_name timm_model_pretrained timm_pool timm_proj
        timm_proj_bias timm_drop timm_drop_path""",
    "text_cfg": f"""{_TOWER_KEYS} context_length vocab_size heads embed_cls pad_id eos_id no_causal_mask proj_bias proj_type
        hf_model_name hf_model_pretrained hf_proj_type hf_pooler_type hf_tokenizer_name tokenizer_mode tokenizer_kwargs""",
    "act_kwargs": "approximate",
    "norm_kwargs": "eps",
    "tokenizer_kwargs": "clean strip_sep_token",
}
# Names that a library looks up: of an architecture inside timm, and of a repository of the Hub, never a path.
_NAMES = {
    "timm_model_name": r"\w[\w.-]*",
    "hf_model_name": r"\w[\w.-]*(/\w[\w.-]*)?",
    "hf_tokenizer_name": r"\w[\w.-]*(/\w[\w.-]*)?",
}


def build_towers(vision_config: SailVisionConfig) -> tuple[nn.Module, nn.Module | None]:
    """The towers that a configuration describes, with random weights: (vision, text or `None`).

    Raises:
        ValueError: the configuration asks for more than towers.
    """
    import open_clip

    check_model_cfg(cfg := vision_config.model_cfg)
    text_cfg = cfg["text_cfg"] if vision_config.include_text_tower else _SMALLEST_TEXT_TOWER
    check_text_model(text_cfg)
    try:
        clip = open_clip.CustomTextCLIP(
            embed_dim=cfg["embed_dim"],
            vision_cfg={**cfg["vision_cfg"], "timm_model_pretrained": False},
            text_cfg={**text_cfg, "hf_model_pretrained": False},
            quick_gelu=cfg.get("quick_gelu", False),
        )
    except Exception as error:  # of whatever kind a size leads to that makes no sense
        raise ValueError(f"The towers of this CLIP cannot be built: {type(error).__name__}: {error}") from error
    return clip.visual, clip.text if vision_config.include_text_tower else None


def encode_with_patches(tower: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Image projections `(n, D)` of `pixel_values` `(n, 3, H, W)`, and those of their patches `(n, N, D)`, in one pass.

    A patch's is the last layer's token, normalised and projected as the tower does with what it pools. In rows from the top left.

    Raises:
        ValueError: the tower is no Vision Transformer whose tokens are projected, such as a ResNet.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    trunk = getattr(tower, "trunk", None)
    is_timm = isinstance(tower, TimmModel) and hasattr(trunk, "num_prefix_tokens")
    if not is_timm and not (isinstance(tower, VisionTransformer) and tower.attn_pool is None):
        kind = type(tower if trunk is None else trunk).__name__
        raise ValueError(
            f"Patches of frames need a CLIP whose vision tower is a Vision Transformer without attention pooling, such as "
            f"ViT-L-14; this one's is a {kind}."
        )
    found = tower.forward_intermediates(pixel_values, indices=1, normalize_intermediates=True, output_fmt="NLC")
    tokens = found["image_intermediates"][-1]
    if is_timm:
        return found["image_features"], tower.head(trunk.head(trunk.fc_norm(tokens)))
    return found["image_features"], tokens if tower.proj is None else tokens @ tower.proj


def check_towers(model_cfg: dict) -> None:
    """Raise ValueError where open_clip's `model_cfg` asks for more than towers, or for larger ones than the limits allow."""
    with torch.device("meta"):
        check_size(nn.ModuleList(build_towers(SailVisionConfig(model_cfg=model_cfg, include_text_tower=True))))


def clip_tokenizer(model_cfg: dict, folder: str | None = None):
    """The tokenizer of open_clip's `model_cfg`: texts -> token ids `(n, context)`.

    One of transformers comes from `folder`, where the CLIP was loaded from one, or else by its name from the Hub.

    Raises:
        ValueError: the configuration asks for more.
    """
    check_model_cfg(model_cfg)
    return _tokenizer(json.dumps(model_cfg["text_cfg"], sort_keys=True), folder)


@cache
def _tokenizer(text_cfg: str, folder: str | None):
    import open_clip

    cfg = json.loads(text_cfg)
    options = {"context_length": cfg.get("context_length", 77), **(cfg.get("tokenizer_kwargs") or {})}
    if name := cfg.get("hf_tokenizer_name"):
        mode = cfg.get("tokenizer_mode")
        return open_clip.tokenizer.HFTokenizer(folder or name, tokenizer_mode=mode, trust_remote_code=False, **options)
    return open_clip.SimpleTokenizer(**options)


def check_model_cfg(model_cfg: Any, key: str = "model_cfg") -> None:
    """Raise ValueError where open_clip's `model_cfg`, or a part of it, holds more than the shape of towers."""
    if not isinstance(model_cfg, dict):
        raise ValueError(f"Expected {key!r} of a CLIP to be a dictionary, found {str(model_cfg)[:80]!r}.")
    if refused := model_cfg.keys() - set(_ALLOWED_KEYS[key].split()):
        raise ValueError(f"{key!r} of a CLIP must not hold {', '.join(sorted(refused))}: only what shapes its towers.")
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - model_cfg.keys() if key == "model_cfg" else ():
        raise ValueError(f"'model_cfg' of a CLIP lacks {', '.join(sorted(missing))}.")
    for name, value in model_cfg.items():
        if name in _ALLOWED_KEYS and (value is not None or name in ("vision_cfg", "text_cfg")):
            check_model_cfg(value, name)
        elif name in _NAMES and value is not None:
            _check_name(name, value)
        elif not all(isinstance(x, (int, float, str, type(None))) for x in (value if _is_row(value) else [value])):
            raise ValueError(f"{name!r} of a CLIP must be a number or a word, found {str(value)[:80]!r}.")
    check_configuration(model_cfg)


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _check_name(key: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(_NAMES[key], value) or Path(value).exists():
        raise ValueError(f"{key!r} of a CLIP must be a name and no file or folder, found {str(value)[:80]!r}.")


def check_text_model(text_cfg: dict) -> None:
    """Raise ValueError where a text tower of transformers is none of those that open_clip knows, or brings own code."""
    if name := text_cfg.get("hf_model_name"):
        from open_clip.hf_configs import arch_dict
        from transformers import AutoConfig

        model_type = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if model_type not in arch_dict:
            raise ValueError(f"'hf_model_name' of a CLIP must be one of {', '.join(arch_dict)}, found {model_type!r}.")
