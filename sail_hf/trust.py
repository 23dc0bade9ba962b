"""What the files of a model may ask for: they come from strangers, and are looked at before anything is built from them."""

import json
import os
import re
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

# For files that nobody vouches for; an environment variable, SAIL_MAX_ and the name in capitals, sets another.
LIMITS = {
    "parameters": 10_000_000_000,  # of a model, with the buffers that are computed
    "layers": 1000,  # or experts, of one part of a model
    "new_tokens": 1024,  # of one caption
    "beams": 64,
    "chunks": 100_000,  # of one video
}
# Each would choose code, options of a loader, or a file.
_REFUSED = {"transformers_weights", "fusion_config", "kernel_config", "use_kernels", "gguf_file", "trust_remote_code"}
# Quantisation by other libraries builds classes of the file's choice.
_QUANTIZED_BY = "bitsandbytes"


def check_limit(limit: str, found: float, what: str) -> None:
    """Raise ValueError if `found` is more than a limit (`LIMITS`) allows; `what` begins the sentence."""
    variable = f"SAIL_MAX_{limit.upper()}"
    most = os.environ.get(variable) or LIMITS[limit]
    try:
        most = int(most)
    except ValueError:
        raise ValueError(f"Expected a number in the environment variable {variable}, found {most!r}.") from None
    if not found <= most:
        raise ValueError(
            f"{what} {found:,.0f} {limit.replace('_', ' ')}, above the limit of {most:,}. Where that is to be trusted, set "
            f"{variable} in the environment."
        )


def check_configuration(content: dict[str, Any], path: str = "") -> None:
    """Raise ValueError where a configuration read from a file asks for more than the shape of a model.

    Entries that name the folder's own code (`auto_map`, `custom_pipelines`) are not refused: nothing follows them unless
    `trust_remote_code` is given.
    """
    for name, value in content.items():
        where = f"{path}{name}"
        if value is not None and (name in _REFUSED or (name.endswith("implementation") and "/" in str(value))):
            raise ValueError(
                f"The configuration's {where!r} is {str(value)[:80]!r}, which no file may choose: give it to "
                "`from_pretrained` where it is wanted."
            )
        if name == "quantization_config" and value is not None:
            method = value.get("quant_method") if isinstance(value, dict) else value
            if method != _QUANTIZED_BY:
                raise ValueError(f"{where!r} must be of {_QUANTIZED_BY}, found {str(method)[:80]!r}.")
        if name == "text_config" and isinstance(value, dict):
            _check_decoder(value.get("model_type"), where)
        if name in ("dtype", "torch_dtype") and isinstance(value, str):
            if not isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype):
                raise ValueError(f"{where!r} must name a dtype of torch, found {value[:80]!r}.")
        if re.search("layer|expert|depth|block|stage", name) and not re.search("size|dim|width", name):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int):
                    check_limit("layers", number, f"The configuration's {where!r} asks for")
        if isinstance(value, dict):
            check_configuration(value, f"{where}.")


def _check_decoder(model_type: Any, where: str) -> None:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    known = model_type is None or (isinstance(model_type, str) and model_type in CONFIG_MAPPING)
    if not known or (model_type and CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING):
        raise ValueError(f"{where!r} must be of a causal language model of transformers, found {model_type!r:.80}.")


def check_size(model: nn.Module) -> None:
    """Raise ValueError for a model that is too large; built on the meta device, it holds no memory yet."""
    count = sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))
    check_limit("parameters", count, "The model that this configuration describes has")


def check_weight_files(folder: str | os.PathLike) -> None:
    """Raise ValueError where a folder's index of weights leads to files outside of it."""
    for path in Path(folder).glob("*.index.json"):
        try:
            files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            outside = [file for file in files if Path(file).name != file]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no index of weights: {error}") from error
        if outside:
            raise ValueError(f"{path} names weights outside of its folder: {outside[0]!r}.")
