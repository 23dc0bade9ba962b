"""Where events lie: temporal masks (Eq. 1 and Table 7) and the generators of their centres and widths.

A new mask generator is a class here with its row of [`MASK_GENERATORS`], and its name in [`SailConfig`].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask

from .configuration_sail import SailConfig
from .layers_sail import SailMaskDecoderLayer
from .segments_sail import cohesive_spans


def event_masks(centers: Tensor, widths: Tensor, frame_mask: Tensor, mask_type: str, temperature: float) -> Tensor:
    """Temporal masks from centres and widths (Eq. 1 for `"gaussian"`; Table 7 for the others).

    Args:
        centers, widths: `(B, N)` in [0, 1].
        frame_mask: `(B, T)`, 1 = real frame; real frames come first and span t in [0, 1].
        mask_type: `"gaussian"`, `"cauchy"` (peak 1) or `"hard"` (1 inside centre +- width / 2).
        temperature: tau.

    Returns:
        `(B, N, T)` in [0, 1], 0 on padding.
    """
    last = (frame_mask.sum(1, keepdim=True) - 1).clamp(min=1)
    time = torch.arange(frame_mask.shape[1], device=centers.device) / last
    offset = time[:, None, :] - centers[:, :, None]
    # A width of 0 is a spike on its own frame, not a division by zero.
    scale = (widths[:, :, None] / temperature).clamp(min=1e-6)
    if mask_type == "gaussian":
        masks = torch.exp(-((offset / scale) ** 2) / 2)
    elif mask_type == "cauchy":
        masks = 1 / (1 + (offset / scale) ** 2)
    else:
        masks = (offset.abs() <= widths[:, :, None] / 2).to(centers.dtype)
    return masks * frame_mask[:, None, :]


class SailFixedMaskGenerator(nn.Module):
    """Centres (i + 0.5) / N and widths 1 / N, whatever the video (the fixed masks of Figure 2a); no parameters."""

    def __init__(self, config: SailConfig):
        super().__init__()

    def forward(self, memory: Tensor, frame_mask: Tensor, valid: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """As `SailMaskGenerator`."""
        counts = valid.sum(1, keepdim=True)
        index = torch.arange(valid.shape[1], device=valid.device)
        return (index + 0.5) / counts * valid, valid / counts

    def initialize(self, config: SailConfig) -> None:
        """There is nothing to initialise."""


class SailMaskGenerator(nn.Module):
    """Event queries that look at the frames and give each event a centre and a width."""

    def __init__(self, config: SailConfig):
        super().__init__()
        self.config = config
        width = config.feature_size
        self.queries = nn.Parameter(torch.zeros(config.num_queries, width))
        self.position_embeddings = nn.Parameter(torch.zeros(config.num_frames, width))
        self.dropout = nn.Dropout(config.mask_input_dropout)
        self.layers = nn.ModuleList([SailMaskDecoderLayer(config, width) for _ in range(config.mask_decoder_layers)])
        self.norm = nn.LayerNorm(width)
        self.center_head = nn.Linear(width, 1, bias=False)
        self.width_head = nn.Linear(width, 1, bias=False)

    def forward(self, memory: Tensor, frame_mask: Tensor, valid: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """Centres and widths `(B, N)` in [0, 1], sorted by centre, 0 past a video's events.

        `memory`: `(B, T, D)`; `frame_mask`: `(B, T)`; `valid`: `(B, N)` bool, a video's events first.
        """
        hidden = self.dropout(self.queries[: valid.shape[1]].expand(memory.shape[0], -1, -1))
        frames = self.dropout(memory + self.position_embeddings[: memory.shape[1]])
        query_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=valid.to(frame_mask.dtype)
        )
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=frame_mask, encoder_hidden_states=frames
        )
        for layer in self.layers:
            hidden = layer(hidden, frames, query_mask, mask, **kwargs)
        hidden = self.norm(hidden)
        # Under autocast too, in the weights' own type: bfloat16 has steps of 1/256 of a video.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.center_head.weight.dtype)
            centers = self.center_head(hidden).squeeze(-1).sigmoid()
            widths = self.width_head(hidden).squeeze(-1).sigmoid()
        order = centers.masked_fill(~valid, torch.inf).argsort(1)
        return centers.gather(1, order) * valid, widths.gather(1, order) * valid

    def initialize(self, config: SailConfig) -> None:
        """Initial values of what no layer of torch holds."""
        init.normal_(self.queries, std=1.0)
        init.normal_(self.position_embeddings, std=config.mask_position_initializer_range)


class SailProgressMaskGenerator(nn.Module):
    """Frames that drive a video's progress from 0 to N; event i lies where it goes from i to i + 1.

    Convolutions over time give each frame its share of the progress, so what is seen decides where events begin and
    end, and they come in order: continuous integrate-and-fire (Dong and Xu, ICASSP 2020), made for speech. Beyond the
    paper, whose generator are the event queries of `SailMaskGenerator`.
    """

    def __init__(self, config: SailConfig):
        super().__init__()
        width, hidden = config.feature_size, config.mask_decoder_ffn_dim
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([nn.Conv1d(size, hidden, 5, padding=2) for size in (width, hidden)])
        self.head = nn.Conv1d(hidden, 1, 1)

    def initialize(self, config: SailConfig) -> None:
        """torch's own, which the size of the layer decides: frames must not start saturated."""
        for convolution in (*self.layers, self.head):
            init.kaiming_uniform_(convolution.weight, a=5**0.5)

    def forward(self, memory: Tensor, frame_mask: Tensor, valid: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """As `SailMaskGenerator`."""
        real = frame_mask[:, None].to(memory.dtype)
        hidden = self.norm(memory).transpose(1, 2)
        for layer in self.layers:
            hidden = functional.gelu(layer(hidden * real))
        # No frame stands quite still, so that every event has a place.
        rates = ((self.head(hidden).sigmoid() + 0.02) * real)[:, 0].float()
        progress = functional.pad(rates.cumsum(1), (1, 0))
        progress = progress / progress[:, -1:] * valid.sum(1, keepdim=True)
        # A frame stands for half a step on either side of its time; step t ends where frame t + 1 begins.
        step, length = torch.arange(progress.shape[1], device=memory.device), frame_mask.sum(1, keepdim=True)
        times = ((step - 0.5) / (length - 1).clamp(min=1)).clamp(0, 1).where(step < length, 1.0)
        event = torch.arange(valid.shape[1], device=memory.device)
        # The first and last tenth of an event are where it is least certain: they are left to what lies between.
        wanted = torch.cat([event + 0.1, event + 0.9]).where(torch.cat([valid, valid], 1), 0.5)
        after = torch.searchsorted(progress.detach(), wanted, right=True)
        low, high = progress.gather(1, after - 1), progress.gather(1, after)
        begin, end = times.gather(1, after - 1), times.gather(1, after)
        start, stop = (begin + (wanted - low) / (high - low) * (end - begin)).chunk(2, dim=1)
        return (start + stop) / 2 * valid, ((stop - start) / 0.8).clamp(max=1) * valid


class SailCohesionMaskGenerator(SailFixedMaskGenerator):
    """Spans whose frames are alike, as far as the frames say so ([`cohesive_spans`]); no parameters. Beyond the paper."""

    def __init__(self, config: SailConfig):
        super().__init__(config)
        self.config = config

    def forward(self, memory: Tensor, frame_mask: Tensor, valid: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """As `SailMaskGenerator`."""
        costs = self.config.cohesion_weight, self.config.cohesion_gap_cost
        spans = cohesive_spans(memory, frame_mask, valid, *costs)
        start, end = spans.to(memory.dtype).unbind(-1)
        return (start + end) / 2, end - start


MASK_GENERATORS = {
    "queries": SailMaskGenerator,
    "progress": SailProgressMaskGenerator,
    "fixed": SailFixedMaskGenerator,
    "cohesion": SailCohesionMaskGenerator,
}
