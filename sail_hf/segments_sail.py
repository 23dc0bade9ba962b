"""Which span is expected to hit an event, over all ways to cut a video into events in order?

A segmentation of a video of S steps into N events in order, with gaps, has a log weight: the sum of its events' weights
and of its gaps'. The forward-backward algorithm of a semi-Markov chain (Sarawagi and Cohen, NeurIPS 2004) gives each
event's distribution over all spans, exactly, and an event gets the span that is expected to hit most: minimum Bayes risk
(Kumar and Byrne, NAACL 2004) with the field's own measure, tIoU above .3, .5, .7 and .9. Where the weights are sure, that
is the best segmentation; where they are not, it is what spans usually are.

[`cohesive_spans`] weighs spans by how much alike their frames are, [`align_expected`] by captions.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

TIOUS = (0.3, 0.5, 0.7, 0.9)
# Steps of time that are told apart: all spans of 64 steps are 2,080.
MOST_STEPS = 64
# Logarithmic deviation of events' lengths from 1 / N, and what a whole video of gaps costs.
LENGTH_DEVIATION = 1.2
GAP_COST = 64.0
# Weight of a video's cohesion, and the number of frames whose mean is half trusted.
COHESION_WEIGHT, COHESION_FRAMES = 16.0, 1.0


def all_spans(steps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """First steps and the ones after the last of all spans `(C,)`, and at which share of TIOUS each hits each `(C, C)`;
    of equals the one with the higher tIoU counts more."""
    start, end = torch.triu_indices(steps + 1, steps + 1, 1, device=device)
    shared = (torch.minimum(end[:, None], end) - torch.maximum(start[:, None], start)).clamp(min=0)
    tiou = shared / ((end - start)[:, None] + (end - start) - shared)
    return start, end, (sum((tiou > bound).float() for bound in TIOUS) + 0.01 * tiou) / len(TIOUS)


def frames_a_step(num_frames: int) -> int:
    """So many frames are one step that there are at most MOST_STEPS."""
    return math.ceil(num_frames / MOST_STEPS)


def span_sums(values: Tensor, start: Tensor, end: Tensor, stride: int) -> Tensor:
    """Sums `(..., C)` of `values` `(..., T)` over the frames of spans of steps of `stride` frames."""
    edges = torch.arange(math.ceil(values.shape[-1] / stride) + 1, device=values.device) * stride
    totals = functional.pad(values.cumsum(-1), (1, 0))[..., edges.clamp(max=values.shape[-1])]
    return totals[..., end] - totals[..., start]


def with_one_more(before: Tensor, table: Tensor, gaps: Tensor) -> Tensor:
    """Log weights `(..., S + 1)` of what lies before each step with one more event done: an event `table` `(..., S + 1, S + 1)`
    from step to step, and gaps, which weigh `gaps` `(..., S + 1)` from the start on."""
    ended = (before[..., None] + table).logsumexp(-2)
    return (ended - gaps).logcumsumexp(-1) + gaps


def span_probabilities(
    weights: Tensor, gap_cost: Tensor, counts: Tensor, lengths: Tensor, start: Tensor, end: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Distribution of each event over all spans, and the log weight of all segmentations.

    Args:
        weights: `(B, N, C)`, log weight of each span for each event.
        gap_cost: `(B,)`, subtracted for each step outside all events.
        counts, lengths: `(B,)`, events and steps of each video; 1 <= counts <= lengths.
        start, end: `(C,)`, as of [`all_spans`] for `num_steps`.

    Returns:
        `(B, N, C)`, 0 past `counts`; and `(B,)`.
    """
    batch, count, _ = weights.shape
    steps = torch.arange(num_steps + 1, device=weights.device)
    weights = weights.masked_fill(end > lengths[:, None, None], -math.inf)
    table = weights.new_full((batch, count, len(steps), len(steps)), -math.inf)
    table[:, :, start, end] = weights
    gaps = -gap_cost[:, None] * steps
    # Log weights of what lies before a step with i events done, and of what follows it.
    before = [gaps]
    for i in range(count):
        before.append(with_one_more(before[i], table[:, i], gaps))
    rest = -gap_cost[:, None] * (lengths[:, None] - steps)
    rest = rest.masked_fill(steps > lengths[:, None], -math.inf)
    after = [rest.where(counts[:, None] == count, -math.inf)]
    for i in reversed(range(count)):
        begun = (table[:, i] + after[0][:, None, :]).logsumexp(2)
        passed = (begun + gaps).flip(1).logcumsumexp(1).flip(1) - gaps
        after.insert(0, rest.where(counts[:, None] == i, passed))
    before, after = torch.stack(before, 1), torch.stack(after, 1)
    total = after[:, 0, 0]
    found = before[:, :-1][:, :, start] + weights + after[:, 1:][:, :, end] - total[:, None, None]
    past = torch.arange(count, device=weights.device)[:, None] >= counts[:, None, None]
    return found.masked_fill(past, -math.inf).exp(), total


def most_hits(probabilities: Tensor, hits: Tensor) -> Tensor:
    """For each event `(B, N)` the span that is expected to hit it most. `probabilities`: `(B, N, C)`; `hits`: `(C, C)`.

    What it may hit of the video's other events does not count, though the field's precision counts it: an event of whose
    place little is known would repeat the span of one that is clear.
    """
    with torch.autocast(hits.device.type, enabled=False):
        return (probabilities.to(hits.dtype) @ hits).argmax(-1)


def length_weights(counts: Tensor, lengths: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Log weight `(B, C)` of the lengths of spans, log-normal around 1 / N. `counts`, `lengths`: `(B,)`, in steps."""
    shares = counts[:, None] * (end - start) / lengths[:, None]
    return -((shares.log() / LENGTH_DEVIATION) ** 2) / 2


def cohesion(features: Tensor, frame_mask: Tensor, start: Tensor, end: Tensor, stride: int) -> Tensor:
    """How much of a video's variation over time the mean of a span explains, `(B, C)`, 1 = of one frame's size; in float32.

    |sum of a span's frames, less the video's mean|^2 / (frames + 1), over the mean square of such a frame.
    `features`: `(B, T, D)`; `frame_mask`: `(B, T)`.
    """
    real = frame_mask[:, :, None].to(torch.float32)
    features = features.float() * real
    count = real.sum(1, keepdim=True).clamp(min=1)
    centered = (features - features.sum(1, keepdim=True) / count) * real
    with torch.autocast(features.device.type, enabled=False):  # sums of differences, which bfloat16 does not hold
        gram = centered @ centered.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) / count[:, 0]
    edges = (torch.arange(math.ceil(features.shape[1] / stride) + 1, device=gram.device) * stride).clamp(
        max=features.shape[1]
    )
    sums = functional.pad(gram.cumsum(1).cumsum(2), (1, 0, 1, 0))[:, edges][:, :, edges]
    square = sums[:, end, end] - sums[:, start, end] - sums[:, end, start] + sums[:, start, start]
    return square / ((edges[end] - edges[start]) + COHESION_FRAMES) / size.clamp(min=1e-12)


@torch.no_grad()
def count_evidence(
    features: Tensor,
    frame_mask: Tensor,
    most: int,
    cohesion_weight: float = COHESION_WEIGHT,
    gap_cost: float = GAP_COST,
) -> Tensor:
    """Log weights `(B, most)` of all segmentations of a video into 1, 2, ..., `most` events by the frames' cohesion.

    `features`: `(B, T, D)`; `frame_mask`: `(B, T)`. -inf for more events than steps of time. As [`cohesive_spans`] weighs spans;
    how many events these weights speak for is learned ([`SailEventCounter`]).
    """
    stride = frames_a_step(features.shape[1])
    num_steps = math.ceil(features.shape[1] / stride)
    start, end, _ = all_spans(num_steps, features.device)
    lengths = (frame_mask.sum(1).long() + stride - 1) // stride
    counts = torch.arange(1, most + 1, device=features.device)
    weights = cohesion_weight * cohesion(features, frame_mask, start, end, stride)
    weights = weights.masked_fill(end > lengths[:, None], -math.inf)
    by_count = length_weights(counts.repeat(len(lengths)), lengths.repeat_interleave(most), start, end)
    steps = torch.arange(num_steps + 1, device=features.device)
    table = weights.new_full((len(lengths), most, len(steps), len(steps)), -math.inf)
    table[:, :, start, end] = weights[:, None] + by_count.unflatten(0, (-1, most))
    gaps = (-gap_cost / lengths[:, None] * steps)[:, None]
    before, found = gaps.expand(-1, most, -1), []
    for i in range(most):
        before = with_one_more(before, table, gaps)
        found.append(before[:, i].gather(1, lengths[:, None])[:, 0])
    return torch.stack(found, 1)


@torch.no_grad()
def cohesive_spans(
    features: Tensor,
    frame_mask: Tensor,
    valid: Tensor,
    cohesion_weight: float = COHESION_WEIGHT,
    gap_cost: float = GAP_COST,
) -> Tensor:
    """Spans `(B, N, 2)` in [0, 1] of events whose frames are alike, from the frames alone; 0 past a video's events.

    Args:
        features: `(B, T, D)`; frame_mask: `(B, T)`, real frames first.
        valid: `(B, N)` bool, a video's events first, at least one.
        cohesion_weight: of the frames' cohesion beside the lengths of events.
        gap_cost: what a whole video outside all events costs.

    A video with more events than steps of time has equal spans instead. In a batch padded beyond 64 frames, short videos
    have the coarse steps of the longest.
    """
    stride = frames_a_step(features.shape[1])
    num_steps = math.ceil(features.shape[1] / stride)
    start, end, hits = all_spans(num_steps, features.device)
    counts = valid.sum(1)
    lengths = (frame_mask.sum(1) + stride - 1) // stride
    room = counts <= lengths
    fitting = counts.where(room, 1)
    weights = cohesion_weight * cohesion(features, frame_mask, start, end, stride)
    weights = weights + length_weights(fitting, lengths, start, end)
    weights = weights[:, None].expand(-1, valid.shape[1], -1)
    chances, _ = span_probabilities(weights, gap_cost / lengths, fitting, lengths, start, end, num_steps)
    found = most_hits(chances, hits)
    spans = torch.stack([start[found], end[found]], -1) / lengths[:, None, None]
    index = torch.arange(valid.shape[1], device=features.device)[:, None]
    equal = (index + torch.arange(2, device=features.device)) / counts[:, None, None]
    spans = spans.where(room[:, None, None], equal).clamp(max=1)
    order = spans.mean(-1).masked_fill(~valid, math.inf).argsort(stable=True, dim=1)
    return spans.gather(1, order[:, :, None].expand(-1, -1, 2)) * valid[:, :, None]
