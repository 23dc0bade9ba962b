"""Which of a video's events stay once they are localised, and where one may be missing: no repeats, no gaps.

A small decoder that writes all of a video's events at once tells one twice and leaves another out. Both show once the
sentences are aligned with the frames: two of one time and one meaning are one event, a sentence that no frames fit is none,
and a stretch without a sentence may hold one. What counts as one meaning, and as fitting, are cosines of CLIP, which the
captions of training videos give without any time stamps (`training/choose_levels.py`).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig

from .alignment_sail import ALIGNMENTS
from .loss_sail import cosines


def settled(captions: Tensor, frames: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Which of a video's N sentences stay, bool `(N,)`, and the frames of those that do, `segments` of [`Alignment`].

    Args:
        captions, frames: `(N, D)`, `(T, D)`, their CLIP features.
        config: of whose fields `alignment`, `gap_level`, `repeat_level` and `support_level` are read.
    """
    similarities = cosines(captions[None], frames[None])
    found = ALIGNMENTS[config.alignment](similarities, gap_level=config.gap_level)
    alike, support = cosines(captions[None], captions[None])[0].clamp(max=1), supports(similarities, found.segments)[0]
    kept = kept_events(found.spans[0], alike, support, config.repeat_level, config.support_level)
    return kept, found.segments[0, kept]


def supports(similarities: Tensor, segments: Tensor) -> Tensor:
    """Mean similarity `(..., N)` of sentences to the frames of their segments `(..., N, 2)`; `similarities`: `(..., N, T)`."""
    frame = torch.arange(similarities.shape[-1], device=similarities.device)
    inside = (frame >= segments[..., :1]) & (frame < segments[..., 1:])
    return (similarities * inside).sum(-1) / inside.sum(-1).clamp(min=1)


def touching(spans: Tensor) -> Tensor:
    """Which of the events `(N, 2)` overlap or touch, each with itself as well, bool `(N, N)`."""
    return torch.minimum(spans[:, None, 1], spans[:, 1]) >= torch.maximum(spans[:, None, 0], spans[:, 0])


def kept_events(spans: Tensor, alike: Tensor, support: Tensor, repeat_level: float, support_level: float) -> Tensor:
    """Which of a video's N events stay, bool `(N,)`: at least one.

    Args:
        spans: `(N, 2)`, start and end, in any unit.
        alike: `(N, N)`, cosines of the sentences.
        support: `(N,)`, how well each sentence fits its span ([`supports`]).
        repeat_level: of events that overlap or touch and whose sentences are more alike than this, the one with most
            support stays.
        support_level: an event with less support goes.
    """
    same = touching(spans) & (alike > repeat_level)
    kept = torch.zeros(len(spans), dtype=torch.bool, device=spans.device)
    for i in support.argsort(descending=True, stable=True).tolist():
        kept[i] = not kept.any() or (support[i] >= support_level and not (same[i] & kept).any())
    return kept


def uncovered(segments: Tensor, num_frames: int) -> Tensor:
    """Stretches `(G, 2)` of frames in none of the segments `(N, 2)`, both given by their first frame and the one after the last."""
    frame = torch.arange(num_frames, device=segments.device)
    free = ~((frame >= segments[:, :1]) & (frame < segments[:, 1:])).any(0)
    return pad(free.int(), (1, 1)).diff().nonzero().view(-1, 2)
