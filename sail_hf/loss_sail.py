"""SAIL's losses as pure functions of tensors (paper section 3; ILCACM's diversity).

Every loss is a mean over the items of the batch: tokens, events or videos. `num_items` replaces the number in the
denominator, so that micro-batches of one optimiser step can be normalised by the whole step's count ([`count_items`]).
Each function returns `None` where the batch has no item, e.g. the similarity loss of videos with one caption.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100


def _mean(values: Tensor, num_items: Tensor | int | None) -> Tensor | None:
    if values.numel() == 0:
        return None
    return values.sum() / (values.numel() if num_items is None else num_items)


def count_items(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the losses of a batch (see the model's `forward`) average over, by the name of the count."""
    counts = {
        name: (batch[labels][:, 1:] != IGNORE_INDEX).sum()
        for name, labels in [
            ("full_tokens", "full_labels"),
            ("positive_tokens", "event_labels"),
            ("negative_tokens", "complement_labels"),
        ]
        if labels in batch
    }
    if "num_events" in batch:
        counts["events"] = batch["num_events"].sum()
        counts["multi_event_videos"] = (batch["num_events"] > 1).sum()
    return counts


def caption_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor | None:
    """Cross-entropy of the next token, mean over target tokens.

    Args:
        logits: `(rows, L, vocabulary)`, scores of the token that follows each position.
        labels: `(rows, L)`, -100 = no target. The first token of a row is context only.
    """
    targets = labels[:, 1:]
    keep = targets != IGNORE_INDEX
    return _mean(F.cross_entropy(logits[:, :-1][keep].float(), targets[keep], reduction="none"), num_items)


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Time average of masked features: `features` `(B, T, D)`, `masks` `(B, N, T)` -> `(B, N, D)`.

    The average runs over T; its scale does not matter to the cosines it is used in.
    """
    return masks.to(features.dtype) @ features / features.shape[1]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of `a` `(B, N, D)` with each row of `b` `(B, M, D)` -> `(B, N, M)`; 0 for a zero row."""
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


def similarity_loss(hinges: Tensor, event_valid: Tensor, num_items: Tensor | int | None = None) -> Tensor | None:
    """Eq. 2: mean of the hinges over a video's events, then over the videos that have more than one caption."""
    counts = event_valid.sum(1)
    return _mean((hinges.sum(1) / counts.clamp(min=1))[counts > 1], num_items)


def augmentation_loss(
    transition_masked_features: Tensor,
    transition_features: Tensor,
    event_valid: Tensor,
    num_items: Tensor | int | None = None,
) -> Tensor | None:
    """Eq. 3: one minus the cosine of inter-mask features with the synthetic captions.

    Args:
        transition_masked_features, transition_features: `(B, N-1, D)`.
        event_valid: `(B, N)` bool; gap i lies between events i and i + 1.

    Mean over a video's gaps, then over the videos that have one.
    """
    gap_valid = event_valid[:, 1:]
    similarity = F.cosine_similarity(transition_masked_features.float(), transition_features.float(), dim=-1)
    counts = gap_valid.sum(1)
    per_video = ((1 - similarity) * gap_valid).sum(1) / counts.clamp(min=1)
    return _mean(per_video[counts > 0], num_items)


def diversity_loss(
    masks: Tensor, event_valid: Tensor, threshold: float, num_items: Tensor | int | None = None
) -> Tensor | None:
    """ILCACM's diversity: relu(cos(M_i, M_j) - threshold), mean over a video's pairs of masks `(B, N, T)`, then over videos."""
    pairs = (event_valid[:, :, None] & event_valid[:, None, :]).triu(1)
    overlap = (cosines(masks, masks) - threshold).clamp(min=0) * pairs
    counts = pairs.sum((1, 2))
    return _mean((overlap.sum((1, 2)) / counts.clamp(min=1))[counts > 0], num_items)


def segment_loss(
    centers: Tensor,
    widths: Tensor,
    target_centers: Tensor,
    target_widths: Tensor,
    event_valid: Tensor,
    num_items: Tensor | int | None = None,
) -> Tensor | None:
    """L1 of centre and width plus 1 - generalised IoU of the segments (as DETR's box loss), mean over events.

    All `(B, N)`, normalised [0, 1].
    """
    l1 = (centers - target_centers).abs() + (widths - target_widths).abs()
    start, end = centers - widths / 2, centers + widths / 2
    target_start, target_end = target_centers - target_widths / 2, target_centers + target_widths / 2
    intersection = (torch.minimum(end, target_end) - torch.maximum(start, target_start)).clamp(min=0)
    hull = torch.maximum(end, target_end) - torch.minimum(start, target_start)
    union = widths + target_widths - intersection
    iou = intersection / union.clamp(min=1e-8) - (hull - union) / hull.clamp(min=1e-8)
    return _mean((l1 + 1 - iou)[event_valid], num_items)
