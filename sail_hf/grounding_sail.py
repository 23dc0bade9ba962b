"""Evidence for each word: a head that looks at patches of the frames, its targets and losses, and boxes of patches.

After CVG, Comprehensive Visual Grounding (Jiang et al., AAAI 2024), for any causal language model. A box is
`[x0, y0, x1, y1]` in shares of width and height, of the picture that CLIP saw unless said otherwise; patches are in rows from
the top left.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_sail import SailConfig

# What a frame outside of an event is held back by at most, as a logarithm of its weight.
_LOWEST_LOG_WEIGHT = -4.0


@dataclass
class Regions:
    """Patches that the rows of one pass of the decoder look at.

    Args:
        keys, values: `(V, T, N, D)` of V videos, from [`SailGroundingHead.project`].
        videos: index of each row's video.
        log_weights: `(rows, T)`, what is added to the scores of a frame's patches; -inf on padding.
        log_attention: `(rows, L, T, N)`, what the pass looked at, once it is made: logarithms of shares that add up to 1.
    """

    keys: Tensor
    values: Tensor
    videos: Sequence[int]
    log_weights: Tensor
    log_attention: Tensor | None = None


class SailGroundingHead(nn.Module):
    """One head of attention from the decoder's last hidden states to patches: h + W_o sum_j alpha_j r_j.

    alpha is a softmax over all patches of all frames of q.k / sqrt(D) + max(log M(t), -4), M the event's mask. W_o starts at
    zero: a trained model goes on as it was. r are the patches' features, layer-normalised, as CLIPs differ in scale.
    """

    def __init__(self, config: SailConfig, width: int):
        super().__init__()
        size = config.feature_size
        self.norm = nn.LayerNorm(size)
        self.q_proj, self.k_proj = nn.Linear(width, size), nn.Linear(size, size)
        self.out_proj = nn.Linear(size, width, bias=False)

    def initialize(self, config: SailConfig) -> None:
        """W_o is zero, all else as transformers has it."""
        init.zeros_(self.out_proj.weight)

    def project(self, region_features: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(V, T, N, D)` of patch features `(V, T, N, D)`."""
        values = self.norm(region_features.to(self.norm.weight.dtype))
        return self.k_proj(values), values

    def forward(self, hidden_states: Tensor, regions: Regions) -> Tensor:
        """Hidden states `(rows, L, width)` with what they look at; there may be several rows for each of the regions' (beams)."""
        copies = len(hidden_states) // len(regions.videos)
        videos = torch.tensor(regions.videos).repeat_interleave(copies)
        log_weights = regions.log_weights.repeat_interleave(copies, 0)
        num_patches = regions.keys.shape[2]
        queries = self.q_proj(hidden_states) * self.q_proj.out_features**-0.5
        # Unbound, so that each video's gradient is of its own patches' size, not of all videos'.
        keys, all_values = regions.keys.flatten(1, 2).unbind(), regions.values.flatten(1, 2).unbind()
        order, found, looked = [], [], []
        for video in videos.unique().tolist():  # the patches of a video are many: no copies of them for its rows
            rows = (videos == video).nonzero().flatten().to(queries.device)
            scores = queries[rows] @ keys[video].T
            scores = scores.float() + log_weights[rows].float().repeat_interleave(num_patches, 1)[:, None]
            log_attention = scores.log_softmax(-1)
            found.append(log_attention.exp().to(all_values[video].dtype) @ all_values[video])
            looked.append(log_attention.unflatten(-1, (-1, num_patches)))
            order.append(rows)
        back = torch.cat(order).argsort()
        regions.log_attention = torch.cat(looked)[back]
        return hidden_states + self.out_proj(torch.cat(found)[back]).to(hidden_states.dtype)


def frame_log_weights(weights: Tensor, frame_mask: Tensor) -> Tensor:
    """max(log M, -4) of frames' weights M `(rows, T)` in [0, 1]; -inf on padding.

    Without gradients: when events are is learned from captions, not from boxes.
    """
    return weights.detach().float().log().clamp(min=_LOWEST_LOG_WEIGHT).masked_fill(frame_mask == 0, -torch.inf)


@contextmanager
def looking_at(decoder: PreTrainedModel, head: SailGroundingHead | None, regions: Regions | None) -> Iterator[None]:
    """Within, `head` acts on what goes into the decoder's output embeddings; without `regions` nothing does."""
    if regions is None:
        yield
        return

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (head(args[0], regions), *args[1:])

    hook = decoder.get_output_embeddings().register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


# --- Targets and losses -------------------------------------------------------------------------------------------


def grounding_loss(log_attention: Tensor, targets: Tensor, kind: str, num_items: Tensor | int | None = None) -> Tensor:
    """How far attention is from where words' targets are, mean over the positions that have one.

    Args:
        log_attention: `(rows, L, T, N)`, logarithms of shares that add up to 1.
        targets: `(rows, L, T, N)`, gamma in [0, 1]; all 0 where a position has none.
        kind: `"sum"`: -log sum gamma alpha (CVG's Eq. 5), which one best patch satisfies as well as all. `"spread"`: the
            cross-entropy with gamma / sum gamma, least where attention covers the target in proportion.
    """
    targets = targets.to(log_attention.device).flatten(2)
    row, place = (targets.amax(-1) > 0).nonzero(as_tuple=True)
    gamma, log_alpha = targets[row, place].float(), log_attention.flatten(2)[row, place].float()
    inside = gamma > 0  # padding has a logarithm of -inf, and no target
    log_alpha = log_alpha.where(inside, 0.0)
    if kind == "sum":
        losses = -(log_alpha + gamma.log()).masked_fill(~inside, -torch.inf).logsumexp(-1)
    else:
        losses = -(gamma * log_alpha).sum(-1) / gamma.sum(-1)
    return losses.sum() / (max(len(row), 1) if num_items is None else num_items)


def box_coverage(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each patch's area that lies in a box: `(..., 4)` -> `(..., N)`, patches of `grid` (rows, columns).

    CVG's Eq. 4 has 1 for a patch in the box and 0 for another one; shares say the same, and of a box smaller than a patch as well.
    """
    rows, columns = (torch.arange(number + 1, device=boxes.device) / number for number in grid)

    def overlap(edges: Tensor, low: Tensor, high: Tensor) -> Tensor:
        inner = torch.minimum(edges[1:], high[..., None]) - torch.maximum(edges[:-1], low[..., None])
        return inner.clamp(min=0) * (len(edges) - 1)

    x0, y0, x1, y1 = boxes.unbind(-1)
    return (overlap(rows, y0, y1)[..., :, None] * overlap(columns, x0, x1)[..., None, :]).flatten(-2)


def grid_of(num_patches: int) -> tuple[int, int]:
    """Rows and columns of the patches of a square picture; ValueError where they make no square."""
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"Expected the patches of a square picture, found {num_patches}, which is no square number.")
    return side, side


# --- Boxes --------------------------------------------------------------------------------------------------------


def heat_boxes(heat: Tensor) -> tuple[Tensor, Tensor]:
    """Where the heat of each frame's patches lies: `(T, N)` -> boxes `(T, 4)` and the heat inside `(T,)`.

    The box is the rectangle of patches with the greatest sum of (heat - half of the frame's peak): what is hotter than half of
    the peak, less stray patches.
    """
    rows, columns = grid_of(heat.shape[-1])
    excess = (heat - heat.amax(-1, keepdim=True) / 2).double().unflatten(-1, (rows, columns))
    sums = functional.pad(excess.cumsum(-2).cumsum(-1), (1, 0, 1, 0))
    edges = [torch.combinations(torch.arange(number + 1, device=heat.device)) for number in (rows, columns)]
    strips = sums[:, edges[0][:, 1]] - sums[:, edges[0][:, 0]]
    best = (strips[..., edges[1][:, 1]] - strips[..., edges[1][:, 0]]).flatten(1).argmax(1)
    y, x = edges[0][best // len(edges[1])] / rows, edges[1][best % len(edges[1])] / columns
    boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], -1)
    return boxes, (heat * box_coverage(boxes, (rows, columns))).sum(-1)


def seen_boxes(boxes: Tensor, bounds: Tensor) -> Tensor:
    """Boxes `(..., 4)` in shares of a frame, in shares of what CLIP saw of it, `bounds` `(4,)` of the frame."""
    corner, side = bounds[:2].repeat(2), (bounds[2:] - bounds[:2]).repeat(2)
    return (boxes - corner) / side


def frame_boxes(boxes: Tensor, bounds: Tensor) -> Tensor:
    """Boxes `(..., 4)` in shares of what CLIP saw, `bounds` `(4,)` of the frame, in shares of the frame."""
    return (bounds[:2].repeat(2) + boxes * (bounds[2:] - bounds[:2]).repeat(2)).clamp(0, 1)


# --- Words --------------------------------------------------------------------------------------------------------

# Words that are not to be seen: articles, pronouns, prepositions, conjunctions, forms of to be, have and do, modals, adverbs.
_NOT_SEEN = frozenset(
    """a an the this that these those some any each other another all both many several few more most no not
    he she it they we you i him her them us me his hers its their theirs our ours your my who which what where when while
    of in on at to from into onto for with without by up down off out over under around along across through between
    behind before after during as and or but so then if than there here again also too very just now still
    is are was were be been being am has have had having do does did done doing can could will would shall should may
    might must begin begins began start starts started continue continues continued seen shown later finally next""".split()
)

_PUNCTUATION = ".,;:!?\"'()"


def is_content_word(word: str) -> bool:
    """Whether a word may name something to be seen: it holds a letter and is in no short list of English function words.

    No part-of-speech tagger: adjectives and adverbs count as well as nouns and verbs.
    """
    letters = word.strip(_PUNCTUATION).lower()
    return any(map(str.isalpha, letters)) and letters not in _NOT_SEEN


def seen_words(
    text: str, attention: Tensor, positions: Sequence[Sequence[int]], times: Sequence[float], bounds: Sequence[float]
) -> list[dict[str, Any]]:
    """Where a sentence's content words ([`is_content_word`]) are seen.

    Args:
        attention: `(L, T, N)`, shares for each position of the sentence's labels; positions: those of each word of `text.split()`.
        times: seconds of the T frames; bounds: what CLIP saw of them, `(x0, y0, x1, y1)` in shares of the frame.

    Returns:
        For each word `{"text", "start", "end", "score", "boxes": [{"time", "box", "score"}], "heat": {"time", "box", "values"}}`:
        its frames are those around the one with most of its attention that have at least half as much. A box is `[x0, y0, x1,
        y1]` in shares of the frame, its score the share of the word's attention that lies in it, the word's that of all of them:
        how sharply the word points, no probability that it is right. `heat` is that of the best frame: rows of patches relative
        to the greatest, over the part of the frame in its `box`.
    """
    found, bounds = [], torch.tensor(bounds)
    for word, places in zip(text.split(), positions, strict=True):
        if not is_content_word(word) or not places:
            continue
        heat = attention[places].mean(0).cpu()
        mass = heat.sum(1)
        best = first = last = int(mass.argmax())
        while first > 0 and mass[first - 1] >= mass[best] / 2:
            first -= 1
        while last + 1 < len(mass) and mass[last + 1] >= mass[best] / 2:
            last += 1
        boxes, scores = heat_boxes(heat[first : last + 1])
        in_frame = frame_boxes(boxes, bounds).tolist()
        seen = zip(times[first : last + 1], in_frame, scores.tolist(), strict=True)
        relative = (heat[best] / heat[best].max()).unflatten(0, grid_of(heat.shape[1]))
        found.append(
            {
                "text": word.strip(_PUNCTUATION),
                "start": (times[max(first - 1, 0)] + times[first]) / 2,
                "end": (times[last] + times[min(last + 1, len(times) - 1)]) / 2,
                "score": scores.sum().item(),
                "boxes": [{"time": time, "box": box, "score": score} for time, box, score in seen],
                "heat": {
                    "time": times[best],
                    "box": bounds.tolist(),
                    "values": relative.mul(1000).round().div(1000).tolist(),
                },
            }
        )
    return found
