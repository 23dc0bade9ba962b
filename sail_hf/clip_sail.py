"""The frozen CLIP: loading any open_clip model, and rebuilding its towers from a checkpoint's configuration."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import nn

from .configuration_sail import SailVisionConfig

# open_clip builds both towers at once; a model without a text tower builds this one and drops it.
_SMALLEST_TEXT_TOWER = {"context_length": 1, "vocab_size": 2, "width": 64, "heads": 1, "layers": 1}


class SailClip:
    """A frozen CLIP with its preprocessing and its tokenizer. Made by [`load_clip`].

    Attributes:
        vision_config (`SailVisionConfig`): what rebuilds the towers inside a SAIL checkpoint.
        model (`open_clip.CustomTextCLIP`): in evaluation mode, without gradients; towers `.visual` and `.text`.
    """

    def __init__(self, model: nn.Module, vision_config: SailVisionConfig, tokenizer):
        self.model = model.eval().requires_grad_(False)
        self.vision_config = vision_config
        self.tokenizer = tokenizer

    def to(self, device: str | torch.device) -> "SailClip":
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image projections `(n, D)` of `pixel_values` `(n, 3, H, W)`; float32 on the CPU, not L2-normalised."""
        parameter = next(self.model.visual.parameters())
        return self.model.visual(pixel_values.to(parameter.device, parameter.dtype)).float().cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Text projections `(n, D)` of texts, cut to the context (77 tokens); float32 on the CPU, not L2-normalised."""
        return encode_texts(self.model.text, self.tokenizer, texts).cpu()


def encode_texts(text_tower: nn.Module, tokenizer, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """Text projections `(n, D)` by a text tower, `batch_size` texts at a time; float32 on the tower's device."""
    device = next(text_tower.parameters()).device
    texts = list(texts)
    parts = [
        text_tower(tokenizer(texts[i : i + batch_size]).to(device)).float() for i in range(0, len(texts), batch_size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, text_tower.output_dim, device=device)


def load_clip(name: str, pretrained: str = "openai") -> SailClip:
    """Load a CLIP through open_clip.

    Args:
        name: an open_clip model name (`"ViT-L-14"`), `"hf-hub:org/repo"`, `"local-dir:folder"`, or a folder that holds
            `open_clip_config.json` and the weights.
        pretrained: open_clip's tag of the weights, for a plain model name only. Defaults to OpenAI's.

    Raises:
        ValueError: no such model, tag or folder; or a CLIP whose frames are padded to a square.
        OSError: the weights could not be downloaded.
    """
    import open_clip

    source = f"local-dir:{name}" if Path(name).is_dir() else name
    has_schema = source.startswith(("local-dir:", "hf-hub:"))
    options = {}
    if not has_schema:
        tag = open_clip.get_pretrained_cfg(source, pretrained)
        if not tag:
            tags = open_clip.list_pretrained_tags_by_model(source)
            found = f"the weights of {name!r} are: {', '.join(tags)}" if tags else f"{name!r} is no open_clip model"
            raise ValueError(
                f"Expected a folder with open_clip_config.json, 'hf-hub:org/repo', or an open_clip model with weights "
                f"{pretrained!r}; {found}. `open_clip.list_pretrained()` lists all."
            )
        # OpenAI's weights were trained with QuickGELU, which open_clip's plain model names leave off.
        options = {"pretrained": pretrained, "force_quick_gelu": bool(tag.get("quick_gelu"))}
    try:
        model = open_clip.create_model(source, force_custom_text=True, weights_only=True, **options)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        kind = OSError if "ownload" in str(error) else ValueError
        raise kind(f"The CLIP {name!r} could not be loaded: {error}") from error
    model_cfg = _model_cfg(source)
    if options.get("force_quick_gelu"):
        model_cfg["quick_gelu"] = True
    preprocess = model.visual.preprocess_cfg
    size, resize_mode = preprocess["size"], preprocess.get("resize_mode") or "shortest"
    if resize_mode not in ("shortest", "squash"):
        raise ValueError(f"The CLIP {name!r} resizes frames by {resize_mode!r}; expected 'shortest' or 'squash'.")
    vision_config = SailVisionConfig(
        clip=name,
        model_cfg=model_cfg,
        image_size=size if isinstance(size, int) else size[0],
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
        resize_mode=resize_mode,
        interpolation=preprocess.get("interpolation") or "bicubic",
    )
    return SailClip(model, vision_config, open_clip.get_tokenizer(source))


def build_towers(vision_config: SailVisionConfig) -> tuple[nn.Module, nn.Module | None]:
    """The towers that a configuration describes, with random weights: (vision, text or `None`)."""
    import open_clip

    cfg = vision_config.model_cfg
    vision_cfg = {**cfg["vision_cfg"]}
    if "timm_model_name" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False
    text_cfg = cfg["text_cfg"] if vision_config.include_text_tower else _SMALLEST_TEXT_TOWER
    if "hf_model_name" in text_cfg:
        text_cfg = {**text_cfg, "hf_model_pretrained": False}
    clip = open_clip.CustomTextCLIP(
        embed_dim=cfg["embed_dim"],
        vision_cfg=vision_cfg,
        text_cfg=text_cfg,
        quick_gelu=cfg.get("quick_gelu", False),
    )
    return clip.visual, clip.text if vision_config.include_text_tower else None


def text_tokenizer(vision_config: SailVisionConfig):
    """The tokenizer of the configuration's text tower: texts -> token ids `(n, context)`."""
    return _text_tokenizer(json.dumps(vision_config.model_cfg["text_cfg"], sort_keys=True))


@cache
def _text_tokenizer(text_cfg: str):
    import open_clip

    text_cfg = json.loads(text_cfg)
    context = text_cfg.get("context_length", 77)
    if name := text_cfg.get("hf_tokenizer_name"):
        return open_clip.tokenizer.HFTokenizer(name, context_length=context, **text_cfg.get("tokenizer_kwargs", {}))
    return open_clip.SimpleTokenizer(context_length=context, **text_cfg.get("tokenizer_kwargs", {}))


def _model_cfg(source: str) -> dict:
    """open_clip's `model_cfg` of a loaded source."""
    import open_clip

    if source.startswith("local-dir:"):
        path = Path(source.removeprefix("local-dir:")) / "open_clip_config.json"
        return json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    return open_clip.get_model_config(source)
