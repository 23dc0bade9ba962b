"""SAIL's losses (paper section 3; ILCACM's diversity; SBS's attraction): pure functions of tensors, and the table of them.

Every loss is a mean over the items of the batch: tokens, events or videos. `num_items` replaces the number in the
denominator, so that micro-batches of one optimiser step can be normalised by the whole step's count ([`count_items`]).

A new loss is a function here with its row of [`LOSSES`], its field of [`SailOutput`], and its weight in [`SailConfig`].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .alignment_sail import align_ordered
from .configuration_sail import SailConfig
from .grounding_sail import Regions, frame_log_weights, grounding_loss

IGNORE_INDEX = -100
# What one more pass through the decoder costs, whatever its rows, in positions of a row: weights are read and their gradients
# added once more.
POSITIONS_A_PASS = 128


def _mean(per_item: Tensor, counted: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Mean of the counted items, or their sum over `num_items`; 0 where nothing is counted."""
    return (per_item * counted).sum() / (counted.sum().clamp(min=1) if num_items is None else num_items)


def caption_loss(logits: Tensor, targets: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of target tokens, their mean: `logits` `(targets, vocabulary)`, `targets` `(targets,)` token ids."""
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total / (max(len(targets), 1) if num_items is None else num_items)


def length_groups(lengths: Tensor) -> list[Tensor]:
    """Rows in groups of like length, shortest first: each is padded to its longest, so that together they cost the least.

    `lengths`: `(rows,)` on the host. A group costs its padded positions and [`POSITIONS_A_PASS`]; found by dynamic programming
    over the distinct lengths.
    """
    distinct, counts = lengths.unique(return_counts=True)
    longest, ends = distinct.tolist(), [0, *counts.cumsum(0).tolist()]
    # Of the rows up to each distinct length: least cost, and where its last group begins.
    best, begins = [0], [0]
    for last, length in enumerate(longest):
        costs = [best[first] + (ends[last + 1] - ends[first]) * length for first in range(last + 1)]
        begins.append(costs.index(min(costs)))
        best.append(min(costs) + POSITIONS_A_PASS)
    sizes, end = [], len(longest)
    while end:
        sizes.append(ends[end] - ends[begins[end]])
        end = begins[end]
    return list(lengths.argsort(stable=True).split(sizes[::-1]))


def one_group(lengths: Tensor) -> list[Tensor]:
    """As [`length_groups`], in one: where processes hold shares of the weights, all must make as many passes."""
    return [lengths.argsort(stable=True)]


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Time average of masked features: `features` `(B, T, D)`, `masks` `(B, N, T)` -> `(B, N, D)`.

    The average runs over T; its scale does not matter to the cosines it is used in.
    """
    with torch.autocast(features.device.type, enabled=False):  # as `cosines`
        return masks.to(features.dtype) @ features / features.shape[1]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of `a` `(B, N, D)` with each row of `b` `(B, M, D)` -> `(B, N, M)`; 0 for a zero row.

    In float32 whatever the inputs, under autocast too: bfloat16's steps are a large part of Eq. 2's margin.
    """
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).transpose(1, 2)


def similarity_hinges(
    masked_features: Tensor,
    caption_features: Tensor,
    event_valid: Tensor,
    margin: float,
    transition_masked_features: Tensor | None = None,
    transition_features: Tensor | None = None,
) -> Tensor:
    """The hinge of every event in Eq. 2: max(0, margin - s+ + s-), s- the hardest negative of the same video.

    Args:
        masked_features: `(B, N, D)` time-averaged features under each event's mask.
        caption_features: `(B, N, D)` text features of the sentences, in the order of the masks.
        event_valid: `(B, N)` bool.
        margin: Delta of Eq. 2.
        transition_masked_features, transition_features: `(B, N-1, D)`; where given, synthetic captions (with this event's
            features) and inter-mask features (with this event's caption) are negatives too (`Synth + HN`, Table 6).

    Returns:
        `(B, N)`; 0 for padding and for videos with one caption, which have no negative.
    """
    similarity = cosines(masked_features, caption_features)
    diagonal = torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    negatives = similarity.masked_fill(diagonal | ~event_valid[:, None, :], -torch.inf)
    if transition_features is not None and transition_features.shape[1] > 0:
        gap_valid = event_valid[:, None, 1:]
        others = [
            cosines(masked_features, transition_features),
            cosines(caption_features, transition_masked_features),
        ]
        negatives = torch.cat([negatives, *(s.masked_fill(~gap_valid, -torch.inf) for s in others)], dim=-1)
    hinges = (margin - similarity.diagonal(dim1=1, dim2=2) + negatives.amax(-1)).clamp(min=0)
    return hinges.masked_fill(~(event_valid & (event_valid.sum(1, keepdim=True) > 1)), 0.0)


def similarity_loss(hinges: Tensor, event_valid: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Eq. 2: mean of the hinges over a video's events, then over the videos that have more than one caption."""
    counts = event_valid.sum(1)
    return _mean(hinges.sum(1) / counts.clamp(min=1), counts > 1, num_items)


def augmentation_loss(
    transition_masked_features: Tensor,
    transition_features: Tensor,
    event_valid: Tensor,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Eq. 3: one minus the cosine of inter-mask features with the synthetic captions.

    Args:
        transition_masked_features, transition_features: `(B, N-1, D)`.
        event_valid: `(B, N)` bool; gap i lies between events i and i + 1.

    Mean over a video's gaps, then over the videos that have one.
    """
    gap_valid = event_valid[:, 1:]
    similarity = F.cosine_similarity(transition_masked_features.float(), transition_features.float(), dim=-1)
    counts = gap_valid.sum(1)
    return _mean(((1 - similarity) * gap_valid).sum(1) / counts.clamp(min=1), counts > 0, num_items)


def frame_changes(features: Tensor) -> Tensor:
    """1 - cosine of each frame's features with the next one's: `(B, T, D)` -> `(B, T-1)`; exactly 0 where they are equal."""
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.float(), dim=-1)
        return (unit[:, 1:] - unit[:, :-1]).square().sum(-1) / 2


def frames_at(times: Tensor, frame_mask: Tensor) -> Tensor:
    """Index of the frame at, or last before, each of `times` `(B, N)`, normalised: SBS's kappa, counted from 0."""
    last = frame_mask.sum(1, keepdim=True) - 1
    return (times.float() * last).long().clamp(min=0).minimum(last)


def change_gates(
    changes: Tensor, centers: Tensor, event_valid: Tensor, frame_mask: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Whether one change stands out between each two adjacent events, and where (SBS, arXiv 2609.04183).

    Of the changes d from the frame of one centre to that of the next: gate = sigmoid(max d - mean d - beta sd d). The paper
    leaves open which standard deviation that is; here the population's, by which (max - mean) / sd of n changes is at most
    sqrt(n - 1): with beta 2, gaps of fewer than 6 frames never open.

    Args:
        changes: `(B, T-1)`, [`frame_changes`] of the features of the frames' captions.
        centers: `(B, N)` in [0, 1], ascending.
        event_valid: `(B, N)` bool; `frame_mask`: `(B, T)`.

    Returns:
        Gates `(B, N-1)`, 0 where they are closed: below 0.5, fewer than 4 frames, changes that are all equal, padding; and
        the places `(B, N-1)` in [0, 1] of the greatest changes, midway between their two frames.
    """
    frames = frames_at(centers, frame_mask)
    index = torch.arange(changes.shape[1], device=changes.device)
    inside = (index >= frames[:, :-1, None]) & (index < frames[:, 1:, None])
    count = inside.sum(-1)
    changes = changes[:, None].expand_as(inside)
    mean = (changes * inside).sum(-1) / count.clamp(min=1)
    deviation = ((changes - mean[:, :, None]).square() * inside).sum(-1).div(count.clamp(min=1)).sqrt()
    greatest, place = changes.masked_fill(~inside, 0.0).max(-1)
    excess = greatest - mean - beta * deviation
    # Less than this is rounding: at the very limit (one change in 6 frames), and where all changes are equal.
    rounding = 1e-6 * greatest
    is_open = event_valid[:, 1:] & (count >= 3) & (greatest - mean > rounding) & (excess > -rounding)
    last = (frame_mask.sum(1, keepdim=True) - 1).clamp(min=1)
    return excess.sigmoid() * is_open, (place + 0.5) / last


def attraction_loss(
    similarities: Tensor, gates: Tensor, threshold: float, event_valid: Tensor, num_items: Tensor | int | None = None
) -> Tensor:
    """SBS: gate (1 - s), mean over a video's open gaps with s >= threshold, then over the videos that have a gap.

    Args:
        similarities: `(B, N-1)`, s: cosine of the features under a gap's mask with the caption of its frame.
        gates: `(B, N-1)`, [`change_gates`].
        event_valid: `(B, N)` bool. A video none of whose gaps takes part counts as 0: how many do is not known beforehand.
    """
    used = (gates > 0) & (similarities >= threshold)
    of_video = (gates * (1 - similarities) * used).sum(1) / used.sum(1).clamp(min=1)
    return _mean(of_video, event_valid.sum(1) > 1, num_items)


def diversity_loss(
    masks: Tensor, event_valid: Tensor, threshold: float, num_items: Tensor | int | None = None
) -> Tensor:
    """ILCACM's diversity: relu(cos(M_i, M_j) - threshold), mean over a video's pairs of masks `(B, N, T)`, then over videos."""
    pairs = (event_valid[:, :, None] & event_valid[:, None, :]).triu(1)
    overlap = (cosines(masks, masks) - threshold).clamp(min=0) * pairs
    counts = pairs.sum((1, 2))
    return _mean(overlap.sum((1, 2)) / counts.clamp(min=1), counts > 0, num_items)


def segment_loss(
    centers: Tensor,
    widths: Tensor,
    target_centers: Tensor,
    target_widths: Tensor,
    event_valid: Tensor,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """L1 of centre and width plus 1 - generalised IoU of the segments (as DETR's box loss), mean over events.

    All `(B, N)`, normalised [0, 1].
    """
    from torchvision.ops import generalized_box_iou_loss  # slow to import

    def boxes(c: Tensor, w: Tensor) -> Tensor:
        """Segments as boxes of height 1."""
        return torch.stack([c - w / 2, torch.zeros_like(c), c + w / 2, torch.ones_like(c)], -1).float()

    l1 = (centers - target_centers).abs() + (widths - target_widths).abs()
    giou = generalized_box_iou_loss(boxes(centers, widths), boxes(target_centers, target_widths))
    return _mean(l1 + giou, event_valid, num_items)


@dataclass
class LossInputs:
    """What losses are computed from; `None` where the batch does not have it.

    Args:
        config ([`SailConfig`])
        features: `(B, T, D)` raw frame features, 0 on padding; `frame_mask`: `(B, T)`.
        encoded: `(B, T, hidden_size)`, the video encoder's output for `features`.
        encode: the video encoder, `(features, frame_mask) -> encoded`.
        caption_logits: `(encoded, frame_mask, ids, keep, regions) -> logits`, see [`SailForDenseVideoCaptioning.caption_logits`].
        counts: number of events of each video, on the host, so that nothing waits for the device.
        centers, widths: `(B, N)`; `masks`: `(B, N, T)`.
        make_masks: `(centers, widths, frame_mask) -> masks`.
        add_context: `(frames, weights, video) -> frames`, what captions add to frames that are weighted, of videos by index.
        full_labels: `(B, L)`; `event_labels`, `complement_labels`: `(B, N, L)`; on the host, where rows are sorted by length.
        caption_features: `(B, N, D)`; `transition_features`: `(B, N-1, D)`; `frame_caption_features`: `(B, T, D)`.
        group_rows: [`length_groups`] or [`one_group`].
        regions: keys and values `(B, T, N, D)` of the frames' patches; `grounding_targets`: `(sum N_s, L, T, N)`.
        positive_regions: what the positive pass looked at, once it is made.
    """

    config: SailConfig
    features: Tensor
    frame_mask: Tensor
    encoded: Tensor
    encode: Callable[[Tensor, Tensor], Tensor]
    caption_logits: Callable[[Tensor, Tensor, Tensor, Tensor, Regions | None], Tensor]
    make_masks: Callable[[Tensor, Tensor, Tensor], Tensor]
    counts: list[int] | None = None
    centers: Tensor | None = None
    widths: Tensor | None = None
    masks: Tensor | None = None
    full_labels: Tensor | None = None
    event_labels: Tensor | None = None
    complement_labels: Tensor | None = None
    caption_features: Tensor | None = None
    transition_features: Tensor | None = None
    frame_caption_features: Tensor | None = None
    regions: tuple[Tensor, Tensor] | None = None
    group_rows: Callable[[Tensor], list[Tensor]] = length_groups
    add_context: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda frames, weights, video: frames
    grounding_targets: Tensor | None = None
    positive_regions: Regions | None = None

    @cached_property
    def valid(self) -> Tensor:
        """`(B, N)` bool, which rows are events."""
        counts = torch.tensor(self.counts, device=self.features.device)
        return torch.arange(self.masks.shape[1], device=counts.device) < counts[:, None]

    @cached_property
    def several(self) -> bool:
        """Whether any video has more than one event, hence negatives, pairs and gaps."""
        return self.counts is not None and max(self.counts) > 1

    @cached_property
    def middles(self) -> Tensor:
        """`(B, N-1)`, midway between adjacent centres."""
        return (self.centers[:, :-1] + self.centers[:, 1:]) / 2

    def in_gaps(self, centers: Tensor, width: float) -> Tensor:
        """`(B, N-1, D)`, time-averaged features under a mask for each gap, of `centers` `(B, N-1)` and one width."""
        widths = torch.full_like(centers, width) * self.valid[:, 1:]
        return masked_mean(self.features, self.make_masks(centers, widths, self.frame_mask))

    @cached_property
    def between(self) -> Tensor | None:
        """`(B, N-1, D)`, [`in_gaps`] of the inter-masks, midway between adjacent centres."""
        if self.transition_features is None or not self.several:
            return None
        return self.in_gaps(self.middles, self.config.transition_width)

    @cached_property
    def changes(self) -> Tensor:
        """`(B, T-1)`, what opens the gates."""
        return frame_changes(self.frame_caption_features)

    @cached_property
    def attraction(self) -> tuple[Tensor, Tensor] | None:
        """Gates and cosines `(B, N-1)` of [`attraction_loss`], each cosine that of the width that fits best."""
        if self.frame_caption_features is None or not self.several or not self.changes.shape[1]:
            return None
        config = self.config
        gates, places = change_gates(
            self.changes, self.centers.detach(), self.valid, self.frame_mask, config.attraction_beta
        )
        centers = self.middles + config.attraction_alpha * (places - self.middles)
        videos = torch.arange(len(centers), device=centers.device)[:, None]
        captions = self.frame_caption_features[videos, frames_at(centers.detach(), self.frame_mask)].float()
        similarities = [
            F.cosine_similarity(self.in_gaps(centers, width).float(), captions, dim=-1)
            for width in config.attraction_widths
        ]
        return gates, torch.stack(similarities).amax(0)

    @cached_property
    def hinges(self) -> Tensor | None:
        """`(B, N)`, [`similarity_hinges`] of the configuration."""
        if self.caption_features is None or not self.several:
            return None
        hard = (self.between, self.transition_features) if self.config.transition_hard_negatives else (None, None)
        masked = masked_mean(self.features, self.masks)
        return similarity_hinges(masked, self.caption_features, self.valid, self.config.similarity_margin, *hard)

    def shares(self) -> dict[str, Tensor]:
        """Those of [`SHARES`] whose loss is computed."""
        found = {}
        if self.hinges is not None and self.config.similarity_loss_weight:
            counted = self.valid & (self.valid.sum(1, keepdim=True) > 1)
            found["active_hinges"] = (self.hinges > 0).float().sum() / counted.sum()
        if self.config.attraction_loss_weight and self.attraction is not None:
            gates, similarities = self.attraction
            num_gaps, is_open = self.valid[:, 1:].sum(), gates > 0
            found["open_gates"] = is_open.sum() / num_gaps
            found["attracted_gaps"] = (is_open & (similarities >= self.config.attraction_theta)).sum() / num_gaps
        return found

    def rows_looking_at(self, videos: list[int], weights: Tensor) -> Regions | None:
        """The patches of `videos`, one for each row of the pass, whose frames weigh `weights` `(rows, T)`."""
        if self.regions is None:
            return None
        return Regions(*self.regions, videos, frame_log_weights(weights, self.frame_mask[videos]))

    def caption_pass(
        self,
        encoded: Tensor,
        frame_mask: Tensor,
        labels: Tensor,
        num_items: Tensor | int | None,
        regions: Regions | None,
    ) -> Tensor:
        """[`caption_loss`] of the tokens that follow each other in `labels` `(rows, L)` after encoded frames `(rows, T, hidden_size)`.

        -100 = no target. The first token of a row is context only. Rows of like length go together through the decoder, and
        nothing but targets is scored. `regions`: patches that the rows look at; what they looked at is then in its `looked`.
        """
        has_id = labels != IGNORE_INDEX
        items = max(int(has_id[:, 1:].sum()), 1) if num_items is None else num_items
        lengths = (has_id * torch.arange(1, labels.shape[1] + 1)).amax(1).clamp(min=1)
        parts = []
        for rows in self.group_rows(lengths):
            ids = labels[rows, : int(lengths[rows[-1]])]
            is_target = ids[:, 1:] != IGNORE_INDEX
            targets = ids[:, 1:][is_target].to(encoded.device)
            kept, place = is_target.nonzero(as_tuple=True)
            kept = rows[kept]
            places = regions and regions.of(kept)
            ids, rows = ids[:, :-1].to(encoded.device), rows.to(encoded.device)
            logits = self.caption_logits(encoded[rows], frame_mask[rows], ids, is_target, places)
            parts.append(caption_loss(logits, targets, items))
            if places:
                regions.looked.append((kept, place, places.log_attention[:, 0]))
        return torch.stack(parts).sum()

    def event_pass(
        self, labels: Tensor, weights: Tensor, num_items: Tensor | None, at_least: int
    ) -> tuple[Tensor | None, Regions | None]:
        """[`LossInputs.caption_pass`] of the events' labels after frames weighted by `weights` `(B, N, T)`, a row an event, and the
        patches that they looked at.

        Events of videos with fewer than `at_least` events have no row.
        """
        pairs = [(b, n) for b, count in enumerate(self.counts) if count >= at_least for n in range(count)]
        if not pairs:
            return None, None
        pairs = torch.tensor(pairs)
        labels = labels[pairs[:, 0], pairs[:, 1]]
        video, event = pairs.to(self.features.device).unbind(1)
        frame_mask = self.frame_mask[video]
        frames = self.features[video] * weights[video, event][:, :, None].to(self.features.dtype)
        frames = self.add_context(frames, weights[video, event], video)
        regions = self.rows_looking_at(pairs[:, 0].tolist(), weights[video, event])
        return self.caption_pass(self.encode(frames, frame_mask), frame_mask, labels, num_items, regions), regions


def _full(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    if inputs.full_labels is None:
        return None
    regions = inputs.rows_looking_at(list(range(len(inputs.features))), inputs.frame_mask)
    return inputs.caption_pass(inputs.encoded, inputs.frame_mask, inputs.full_labels, num_items, regions)


def _positive(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    if inputs.event_labels is None:
        return None
    loss, inputs.positive_regions = inputs.event_pass(inputs.event_labels, inputs.masks, num_items, at_least=1)
    return loss


def _negative(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    labels = inputs.complement_labels
    return None if labels is None else inputs.event_pass(labels, 1 - inputs.masks, num_items, at_least=2)[0]


def _grounding(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    if inputs.grounding_targets is None:
        return None
    if inputs.positive_regions is None:  # the positive pass has no weight of its own
        _positive(inputs, None)
    rows, places, log_attention = map(torch.cat, zip(*inputs.positive_regions.looked, strict=True))
    targets = inputs.grounding_targets[rows, places]
    return grounding_loss(log_attention, targets, inputs.config.grounding_target, num_items)


def _similarity(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    return None if inputs.hinges is None else similarity_loss(inputs.hinges, inputs.valid, num_items)


def _augmentation(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    if inputs.between is None:
        return None
    return augmentation_loss(inputs.between, inputs.transition_features, inputs.valid, num_items)


def _attraction(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    if inputs.attraction is None:
        return None
    gates, similarities = inputs.attraction
    return attraction_loss(similarities, gates, inputs.config.attraction_theta, inputs.valid, num_items)


def _diversity(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    if not inputs.several:
        return None
    return diversity_loss(inputs.masks, inputs.valid, inputs.config.diversity_threshold, num_items)


def _alignment(inputs: LossInputs, num_items: Tensor | None) -> Tensor | None:
    if inputs.caption_features is None:
        return None
    with torch.no_grad():
        target = align_ordered(cosines(inputs.caption_features, inputs.features), inputs.frame_mask, inputs.valid)
    return segment_loss(inputs.centers, inputs.widths, target.centers, target.widths, inputs.valid, num_items)


class Loss(NamedTuple):
    """A row of [`LOSSES`].

    Attributes:
        name: `loss_<name>` in the output and in logs.
        weight: field of [`SailConfig`]; a loss of weight 0 is not computed.
        average: what it is a mean over, a name of [`count_items`].
        columns: columns of a data set that it needs, besides captions and features of the video.
        compute: `(inputs, num_items) -> loss`, `None` where the batch has nothing for it.
        part: field of [`SailConfig`] without which there is no such loss, whatever its weight.
    """

    name: str
    weight: str
    average: str
    columns: tuple[str, ...]
    compute: Callable[[LossInputs, Tensor | None], Tensor | None]
    part: str | None = None

    def weight_in(self, config: SailConfig) -> float:
        """Its weight in a configuration."""
        return getattr(config, self.weight) if self.part is None or getattr(config, self.part) else 0.0


_GROUNDING_COLUMNS = ("region_features", "groundings")
LOSSES = (
    Loss("full", "full_loss_weight", "full_tokens", (), _full),
    Loss("positive", "positive_loss_weight", "positive_tokens", (), _positive),
    Loss("negative", "negative_loss_weight", "negative_tokens", (), _negative),
    Loss("grounding", "grounding_loss_weight", "grounded_tokens", _GROUNDING_COLUMNS, _grounding, "grounding"),
    Loss("similarity", "similarity_loss_weight", "multi_event_videos", ("caption_features",), _similarity),
    Loss("augmentation", "augmentation_loss_weight", "multi_event_videos", ("transition_features",), _augmentation),
    Loss("attraction", "attraction_loss_weight", "multi_event_videos", ("frame_caption_features",), _attraction),
    Loss("diversity", "diversity_loss_weight", "multi_event_videos", (), _diversity),
    Loss("alignment", "alignment_loss_weight", "events", ("caption_features",), _alignment),
)
# What describes the losses of the masks in [`SailOutput`] and in logs, in [0, 1].
SHARES = ("active_hinges", "open_gates", "attracted_gaps")


@dataclass
class SailOutput(ModelOutput):
    """Output of [`SailForDenseVideoCaptioning`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): weighted sum of the parts that the batch allows (Eq. 4).
        loss_full, loss_positive, loss_negative, loss_grounding, loss_similarity, loss_augmentation, loss_attraction, loss_diversity,
            loss_alignment (`torch.FloatTensor` of shape `()`, *optional*): the parts, unweighted; `None` where the batch has no item.
        active_hinges (`torch.FloatTensor` of shape `()`, *optional*):
            Share of Eq. 2's hinges above 0. Near 1 all along, the margin is out of reach and masks tend to collapse.
        open_gates, attracted_gaps (`torch.FloatTensor` of shape `()`, *optional*):
            Share of the gaps between adjacent events whose gate opens ([`change_gates`]), and that also reach theta, so
            that [`attraction_loss`] has them.
        event_centers, event_widths, event_masks, hidden_states, attentions, mask_attentions: as in [`SailModelOutput`].
    """

    loss: Tensor | None = None
    loss_full: Tensor | None = None
    loss_positive: Tensor | None = None
    loss_negative: Tensor | None = None
    loss_grounding: Tensor | None = None
    loss_similarity: Tensor | None = None
    loss_augmentation: Tensor | None = None
    loss_attraction: Tensor | None = None
    loss_diversity: Tensor | None = None
    loss_alignment: Tensor | None = None
    active_hinges: Tensor | None = None
    open_gates: Tensor | None = None
    attracted_gaps: Tensor | None = None
    event_centers: Tensor | None = None
    event_widths: Tensor | None = None
    event_masks: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    mask_attentions: tuple[Tensor, ...] | None = None


def sail_losses(inputs: LossInputs, num_items: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Every loss of [`LOSSES`] that has a weight and that the batch allows, unweighted, by name; and their sum, `"total"`."""
    parts, terms = {}, []
    for loss in LOSSES:
        weight = loss.weight_in(inputs.config)
        if loss.name == "full" and inputs.masks is not None:  # not alone, as in the first stage
            weight = inputs.config.joint_full_loss_weight
        value = loss.compute(inputs, (num_items or {}).get(loss.average)) if weight else None
        if value is not None:
            parts[loss.name] = value
            terms.append(weight * value)
    if terms:
        parts["total"] = torch.stack(terms).sum()
    return parts


def required_columns(config: SailConfig) -> dict[str, str]:
    """Columns of a data set that the losses of a configuration need, each with the field of the configuration that says so."""
    needed = {column: loss.weight for loss in LOSSES if loss.weight_in(config) for column in loss.columns}
    if config.transition_hard_negatives and config.similarity_loss_weight:
        needed.setdefault("transition_features", "transition_hard_negatives")
    return needed


def count_items(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the losses of a batch (see the model's `forward`) average over, by the name of the count."""
    labels = {"full_tokens": "full_labels", "positive_tokens": "event_labels", "negative_tokens": "complement_labels"}
    counts = {
        name: (batch[labels][..., 1:] != IGNORE_INDEX).sum() for name, labels in labels.items() if labels in batch
    }
    if "num_events" in batch:
        counts["events"] = batch["num_events"].sum()
        counts["multi_event_videos"] = (batch["num_events"] > 1).sum()
    if "grounding_targets" in batch:
        counts["grounded_tokens"] = (batch["grounding_targets"].flatten(2).amax(-1) > 0).sum()
    return counts
