"""Frames as captions would say them: each is replaced by a mean of a memory's captions, weighted by likeness.

The projection of DeCap (Li et al., ICLR 2023), there of an image for a decoder that knows texts alone; here it takes out of
frames what no caption speaks of, before the frames' cohesion is looked at. No time stamps, and nothing learned.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from .configuration_sail import SailConfig


class SailCaptionMemory(nn.Module):
    """Buffer `features` `(M, D)` float16, unit length, of M = `config.caption_memory` captions in CLIP space."""

    def __init__(self, config: SailConfig):
        super().__init__()
        self.sharpness = config.caption_memory_sharpness
        shape = (config.caption_memory, config.feature_size)
        self.register_buffer("features", torch.zeros(shape, dtype=torch.float16))

    def initialize(self, config: SailConfig) -> None:
        """Nothing is remembered at first."""
        init.zeros_(self.features)

    def fill(self, features: Tensor) -> None:
        """Put in the features `(M, D)` of other captions, of CLIP's text tower.

        Raises:
            ValueError: not as many as the configuration says, or of another size.
        """
        if features.shape != self.features.shape:
            raise ValueError(
                f"A memory of captions needs features of shape {tuple(self.features.shape)} (caption_memory, feature_size), "
                f"found {tuple(features.shape)}."
            )
        self.features.copy_(functional.normalize(features.float(), dim=-1))

    @torch.no_grad()
    def forward(self, frames: Tensor, exclude: Tensor | None = None) -> Tensor:
        """`frames` `(B, T, D)` -> `(B, T, D)`, unit length, in float32.

        Weights of the captions: softmax of `config.caption_memory_sharpness` times their cosines with the frame, standardised
        over the memory, so that no CLIP's scale and no gap between its images and texts matters. `exclude`: `(B, M)` bool, captions
        that a video may not use, such as its own.
        """
        with torch.autocast(frames.device.type, enabled=False):
            memory = self.features.float()
            cosines = functional.normalize(frames.float(), dim=-1) @ memory.T
            deviation, mean = torch.std_mean(cosines, dim=-1, keepdim=True)
            weights = self.sharpness * (cosines - mean) / deviation.clamp(min=1e-6)
            if exclude is not None:
                weights = weights.masked_fill(exclude[:, None], -torch.inf)
            return functional.normalize(weights.softmax(-1) @ memory, dim=-1)
