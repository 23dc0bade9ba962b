"""Alignment of captions to the frames of a video: which stretch of time does each sentence describe?

Given the similarity of every frame to every caption (CLIP cosines), [`align_ordered`] finds the best segmentation of
the frames into the captions, in caption order, with frames left out where none fits: exact, by dynamic programming in
O(N T), without training. It is weakly supervised alignment of video with text (Bojanowski et al., ICCV 2015, who solve a
convex relaxation) on the trellis of forced alignment in speech recognition; frames are dropped at a price as in Drop-DTW
(Dvornik et al., NeurIPS 2021). [`align_overlapping`] lets these segments grow into each other, [`align_unordered`] places
every caption by itself: 16.7 % of ActivityNet's videos have captions out of order.

[`align_expected`] gives each caption the span that is expected to overlap most with the
event: near what the frames show where they show it clearly, and near an equal share where they do not.

All four first calibrate the similarities of each video, so that nothing depends on how a CLIP scales its cosines: each
caption's mean over time is subtracted, since being closer to *every* frame says nothing about when, and the rest divided
by its deviation over the video's captions and frames, the unit of `gap_level` and `tolerance`.

The gain of a frame for a caption is its calibrated similarity minus the best one to another caption of the video (one
caption: minus the video's mean, which is 0 by now). A frame left to no caption gains `gap_level` minus its best
similarity, a penalty as far as some caption fits it better. The defaults come from simulated features, where F1 is flat
around them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .segments_sail import (
    GAP_COST,
    all_spans,
    frames_a_step,
    length_weights,
    most_hits,
    span_probabilities,
    span_sums,
)

# Weight of a caption's distance from its equal share, in units of 1 / N: repeated sentences share their stretch evenly.
_TIE_BREAK = 1e-6

# Of `align_expected`: shares of the similarities' variation that events may explain, and so many frames as tell
# something of their own.
_EXPLAINED, _INDEPENDENT_FRAMES = (0.2, 0.4, 0.6, 0.8, 0.9), 32


@dataclass
class Alignment:
    """Where the captions of each video lie. Rows past a video's captions are 0.

    Attributes:
        segments: `(B, N, 2)` frame indices, the first of a caption and the one after its last.
        gains: `(B, N)`, mean gain of the segment's frames, a difference of cosines: positive where they fit the caption
            better than any other caption of the video, relative to how the captions fit on average.
        spans: `(B, N, 2)`, start and end in [0, 1]. Frames are sampled evenly from beginning to end; each stands for half
            a step on either side, so adjacent segments meet halfway. `centers` and `widths` `(B, N)` derive from them.
    """

    segments: Tensor
    gains: Tensor
    spans: Tensor

    @property
    def centers(self) -> Tensor:
        return self.spans.mean(-1)

    @property
    def widths(self) -> Tensor:
        return self.spans[..., 1] - self.spans[..., 0]

    def seconds(self, durations: Tensor | float) -> Tensor:
        """Start and end `(B, N, 2)` in seconds. `durations`: `(B,)` or one number, seconds."""
        return self.spans * torch.as_tensor(durations, dtype=self.spans.dtype, device=self.spans.device).view(-1, 1, 1)


def align_ordered(
    similarities: Tensor,
    frame_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    gap_level: float = 0.0,
) -> Alignment:
    """The best segments in caption order: disjoint, every caption at least one frame, frames left out where none fits.

    Args:
        similarities: `(B, N, T)`, of each caption to each frame.
        frame_mask: `(B, T)`, 1 = real frame, real frames first. Defaults to all.
        caption_mask: `(B, N)`, 1 = real caption, real captions first. Defaults to all.
        gap_level: calibrated similarity (see above) that a frame has to itself; higher drops more frames,
            `-math.inf` drops none.

    Raises:
        ValueError: wrong shapes, similarities that are not finite, a video with no caption or with more captions than
            frames.
    """
    calibrated, unit, counts, lengths = _calibrate(similarities, frame_mask, caption_mask, gap_level)
    _check_room(counts, lengths)
    index, frame = torch.arange(calibrated.shape[1])[:, None], torch.arange(calibrated.shape[2])
    # In units of 1 / N: frame t lies at N (t + 0.5) / T, caption i around i + 0.5.
    distance = counts[:, None, None] * (frame + 0.5) / lengths[:, None, None] - (index + 0.5)
    gains = _gains(calibrated - _TIE_BREAK * distance**2, counts)
    # One caption has no other to be told apart from by its place.
    gains = gains.where(counts[:, None, None] > 1, calibrated)
    segments = segment_ordered(gains, gap_level - calibrated.amax(1), counts, lengths)
    return _alignment(segments, calibrated, unit, counts, lengths, similarities.device)


def align_overlapping(
    similarities: Tensor,
    frame_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    gap_level: float = 0.0,
    tolerance: float = 0.5,
) -> Alignment:
    """The segments of [`align_ordered`], each grown to either side as far as its sum of fits increases.

    They may overlap: an introduction that describes the whole video can span the events it contains.

    Args: as for [`align_ordered`], and
        tolerance: how much better another caption may fit a frame, in calibrated units. The fit of a frame is the
            smaller of its gain plus `tolerance` and its calibrated similarity minus `gap_level`.
    """
    ordered = align_ordered(similarities, frame_mask, caption_mask, gap_level)
    calibrated, unit, counts, lengths = _calibrate(similarities, frame_mask, caption_mask, gap_level)
    totals = _running_totals(calibrated, counts, lengths, gap_level, tolerance)
    start, end = ordered.segments.cpu()[..., None].unbind(2)
    frame = torch.arange(totals.shape[-1])
    # totals[b] - totals[a] is the fit of frames a..b-1: the best start is the lowest total up to the old start.
    grown_start = totals.masked_fill(frame > start, math.inf).argmin(-1)
    grown_end = totals.masked_fill(frame < end, -math.inf).argmax(-1)
    segments = torch.stack([grown_start, grown_end], -1)
    return _alignment(segments, calibrated, unit, counts, lengths, similarities.device)


def align_unordered(
    similarities: Tensor,
    frame_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    gap_level: float = 0.0,
    tolerance: float = 0.75,
) -> Alignment:
    """Each caption by itself: the run of frames with the largest sum of fits, in any order, overlapping or not.

    For captions that are known to be out of order: noise moves such segments more easily. There may be more captions than
    frames. Args: as for [`align_overlapping`].
    """
    calibrated, unit, counts, lengths = _calibrate(similarities, frame_mask, caption_mask, gap_level)
    totals = _running_totals(calibrated, counts, lengths, gap_level, tolerance)
    # Maximum subarray: for every end the lowest total before it, then the best end.
    lowest, start = totals[..., :-1].cummin(-1)
    end = (totals[..., 1:] - lowest).argmax(-1, keepdim=True)
    segments = torch.cat([start.gather(-1, end), end + 1], -1)
    return _alignment(segments, calibrated, unit, counts, lengths, similarities.device)


def align_expected(
    similarities: Tensor,
    frame_mask: Tensor | None = None,
    caption_mask: Tensor | None = None,
    gap_level: float = 0.0,
) -> Alignment:
    """The span of each caption that is expected to hit most, over all segmentations of [`align_ordered`]'s kind.

    Calibrated similarities are normal variables, higher by d while the caption's event takes place. How much of their
    variation that explains is not known: segmentations are weighed under several shares, and these by how likely they
    make the similarities. So spans follow the frames where captions fit them clearly, and lie near wide equal shares where
    they do not; see `segments_sail.py`. Times are told apart to 1/33 of a video at least.

    Args, errors: as for [`align_ordered`].
    """
    calibrated, unit, counts, lengths = _calibrate(similarities, frame_mask, caption_mask, gap_level)
    _check_room(counts, lengths)
    segments = torch.zeros(*calibrated.shape[:2], 2, dtype=torch.long)
    for b, (count, length) in enumerate(zip(counts.tolist(), lengths.tolist(), strict=True)):
        segments[b, :count] = _expected_segments(calibrated[b, :count, :length], gap_level)
    return _alignment(segments, calibrated, unit, counts, lengths, similarities.device)


ALIGNMENTS = {
    "ordered": align_ordered,
    "overlapping": align_overlapping,
    "unordered": align_unordered,
    "expected": align_expected,
}


def _expected_segments(calibrated: Tensor, gap_level: float) -> Tensor:
    """First frames and the ones after the last `(N, 2)` of [`align_expected`] for one video `(N, T)`."""
    count, length = calibrated.shape
    stride = frames_a_step(length)
    if count > length // stride:
        stride = 1
    steps = math.ceil(length / stride)
    start, end, hits = all_spans(steps, calibrated.device)
    # An event of a share 1 / n of the time, whose mean is d above the rest, explains d^2 (n - 1) / n^2 of the variation.
    n = max(count, 2)
    explained = calibrated.new_tensor(_EXPLAINED)
    d, rest = (explained * n**2 / (n - 1)).sqrt(), 1 - explained
    # Frames next to each other are not as many witnesses.
    witnesses = min(_INDEPENDENT_FRAMES / length, 1)
    sharpness = (witnesses * d / rest)[:, None, None]
    frames = span_sums(torch.ones(length, dtype=calibrated.dtype), start, end, stride)
    weights = span_sums(calibrated, start, end, stride) - frames * (d * (0.5 - 1 / n))[:, None, None]
    one, many = torch.ones(1, dtype=torch.long), torch.ones(len(d), dtype=torch.long)
    weights = sharpness * weights + length_weights(one * count, one * steps, start, end)
    gap_cost = GAP_COST / steps - sharpness[:, 0, 0] * max(gap_level, -9.0) * stride
    chances, total = span_probabilities(weights, gap_cost, many * count, many * steps, start, end, steps)
    outside = witnesses * count * length * ((1 + (d / n) ** 2) / rest + rest.log()) / 2
    likely = (total - outside).softmax(0)
    best = most_hits((likely[:, None, None] * chances).sum(0, keepdim=True), hits)[0]
    return torch.stack([start[best] * stride, (end[best] * stride).clamp(max=length)], 1)


def segment_ordered(gains: Tensor, gap_gains: Tensor, counts: Tensor, lengths: Tensor) -> Tensor:
    """The dynamic programme: the segmentation with the largest sum of gains.

    Captions 0..counts-1 take a run of frames each, in this order; other frames are gaps. Exact; of equally good
    segmentations it takes long segments.

    Args:
        gains: `(B, N, T)`, what a frame earns for a caption.
        gap_gains: `(B, T)`, what a frame earns as a gap; `-inf` forbids it.
        counts, lengths: `(B,)`, captions and frames of each video, 1 <= counts <= lengths.

    Returns:
        `(B, N, 2)`: first frame of each caption and the one after its last; 0 past `counts`.
    """
    batch, num_captions, num_frames = gains.shape
    padding = torch.arange(num_frames) >= lengths[:, None]
    gains = gains.masked_fill(padding[:, None], -math.inf)
    gap_gains = gap_gains.masked_fill(padding, 0.0)

    # Best sums over the frames so far: `inside[i]`, the last of them in caption i; `done[i]`, i captions complete.
    inside = gains.new_full((batch, num_captions), -math.inf)
    done = gains.new_full((batch, num_captions + 1), -math.inf)
    done[:, 0] = 0.0
    extends = torch.empty(num_frames, batch, num_captions, dtype=torch.bool)
    is_gap = torch.empty(num_frames, batch, num_captions, dtype=torch.bool)
    for t in range(num_frames):
        extends[t] = inside >= done[:, :-1]
        inside = gains[:, :, t] + torch.maximum(inside, done[:, :-1])
        done = done + gap_gains[:, t, None]
        is_gap[t] = done[:, 1:] > inside
        done[:, 1:] = torch.maximum(done[:, 1:], inside)

    # Back from the last frame: `current` is the latest caption not yet left behind, `open_` says whether it has begun.
    current = counts - 1
    open_ = torch.zeros(batch, dtype=torch.bool)
    rows = torch.arange(batch)
    labels = torch.full((batch, num_frames), -1)
    for t in reversed(range(num_frames)):
        caption = current.clamp(min=0)
        open_ = (current >= 0) & (open_ | ~is_gap[t, rows, caption])
        labels[:, t] = current.where(open_, labels[:, t])
        begins = open_ & ~extends[t, rows, caption]
        current, open_ = current - begins.long(), open_ & ~begins

    mine = labels[:, None] == torch.arange(num_captions)[:, None]
    start = mine.int().argmax(-1)
    return torch.stack([start, start + mine.sum(-1)], -1)


def frame_spans(segments: Tensor, lengths: Tensor) -> Tensor:
    """Start and end in [0, 1] of segments `(B, N, 2)`, the first frame of each and the one after its last, of `(B,)` frames.

    There is half a step of margin on either side; a single frame stands for the whole video.
    """
    return ((segments - 0.5) / (lengths[:, None, None] - 1).clamp(min=0.5)).clamp(0, 1)


def _calibrate(
    similarities: Tensor, frame_mask: Tensor | None, caption_mask: Tensor | None, gap_level: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The calibration of the module's description, in float64 on the CPU, where short loops are fastest: similarities
    `(B, N, T)` (-inf on padding), their unit `(B, 1, 1)`, and each video's numbers of captions and of frames `(B,)`."""
    if not gap_level < math.inf:
        raise ValueError(f"gap_level must be a number or -inf, found {gap_level}.")
    if similarities.ndim != 3:
        raise ValueError(f"similarities must have shape (batch, captions, frames), found {tuple(similarities.shape)}.")
    batch, num_captions, num_frames = similarities.shape
    counts = _lengths(caption_mask, "caption_mask", batch, num_captions)
    lengths = _lengths(frame_mask, "frame_mask", batch, num_frames)
    padding = ~_real(counts, lengths, similarities.shape)
    values = similarities.detach().cpu().double().masked_fill(padding, 0.0)
    if not values.isfinite().all():
        raise ValueError("similarities must be finite, found NaN or infinity. Look for features that are NaN.")
    size = values.abs().amax((1, 2), keepdim=True)
    values = (values - values.sum(-1, keepdim=True) / lengths[:, None, None]).masked_fill(padding, 0.0)
    unit = (values.square().sum((1, 2)) / (counts * lengths)).sqrt()[:, None, None]
    # What is constant up to rounding stays so: dividing would blow the rounding errors up.
    unit = unit.where(unit > 1e-6 * size, 1.0)
    return (values / unit).masked_fill(padding, -math.inf), unit, counts, lengths


def _check_room(counts: Tensor, lengths: Tensor) -> None:
    """A frame for every caption."""
    if (too_many := (counts > lengths).nonzero()).numel():
        b = too_many[0].item()
        raise ValueError(
            f"Every caption needs a frame of its own: video {b} of the batch has {counts[b]} captions but "
            f"{lengths[b]} frames. Sample more frames."
        )


def _real(counts: Tensor, lengths: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Which entries of `(B, N, T)` belong to a caption and a frame of the video."""
    captions = torch.arange(shape[1]) < counts[:, None]
    frames = torch.arange(shape[2]) < lengths[:, None]
    return captions[:, :, None] & frames[:, None]


def _lengths(mask: Tensor | None, name: str, batch: int, size: int) -> Tensor:
    """Number of real entries of each row."""
    if mask is None:
        mask = torch.ones(batch, size, dtype=torch.bool)
    mask = mask.detach().cpu().bool()
    if mask.shape != (batch, size):
        raise ValueError(f"{name} must have shape {(batch, size)}, as the similarities, found {tuple(mask.shape)}.")
    lengths = mask.sum(1)
    if (mask != (torch.arange(size) < lengths[:, None])).any():
        raise ValueError(f"{name} must have its real entries first, then its padding.")
    if (lengths == 0).any():
        raise ValueError(f"{name} has no real entry for video {lengths.argmin().item()} of the batch.")
    return lengths


def _gains(scores: Tensor, counts: Tensor) -> Tensor:
    """Each frame's score for a caption minus its best for another caption; minus 0, the mean, if there is but one."""
    if scores.shape[1] == 1:
        return scores
    best, second = scores.topk(2, dim=1).values[:, :, None].unbind(1)
    is_best = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.argmax(1, keepdim=True), True)
    other = torch.where(is_best, second, best)
    return scores - other.where(counts[:, None, None] > 1, 0.0)


def _running_totals(calibrated: Tensor, counts: Tensor, lengths: Tensor, gap_level: float, tolerance: float) -> Tensor:
    """Sums `(B, N, T + 1)` of the fits of the frames before each one."""
    fit = torch.minimum(_gains(calibrated, counts) + tolerance, calibrated - gap_level)
    # Padding fits nothing; a real frame that fits neither well nor badly makes no segment longer.
    fit = torch.where(_real(counts, lengths, fit.shape), fit - 1e-9, -1.0)
    return functional.pad(fit.cumsum(-1), (1, 0))


def _alignment(
    segments: Tensor, calibrated: Tensor, unit: Tensor, counts: Tensor, lengths: Tensor, device: torch.device
) -> Alignment:
    """Gains and spans of segments, all on `device`."""
    captions = (torch.arange(segments.shape[1]) < counts[:, None])[:, :, None]
    segments = segments * captions
    gains = (_gains(calibrated, counts) * unit).where(_real(counts, lengths, calibrated.shape), 0.0)
    frame = torch.arange(gains.shape[-1])
    inside = (frame >= segments[..., :1]) & (frame < segments[..., 1:])
    mean = (gains * inside).sum(-1) / inside.sum(-1).clamp(min=1)
    spans = frame_spans(segments, lengths) * captions
    return Alignment(segments.to(device), mean.float().to(device), spans.float().to(device))
