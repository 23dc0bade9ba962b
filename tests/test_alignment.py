"""Alignment of captions to frames: exactness against brute force, the properties it promises, and its edges."""

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sail_hf.alignment_sail import (
    ALIGNMENTS,
    align_expected,
    align_ordered,
    align_overlapping,
    align_unordered,
    segment_ordered,
)

METHODS = list(ALIGNMENTS.values())


def videos(min_captions=1, max_captions=4, max_frames=9):
    """One video's similarities `(1, N, T)`, N <= T, far enough apart that rounding decides nothing."""
    return (
        st.integers(min_captions, max_captions)
        .flatmap(lambda n: st.tuples(st.just(1), st.just(n), st.integers(n, max_frames)))
        .flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=st.integers(-1000, 1000)))
        .map(lambda array: torch.from_numpy(array) / 1000)
    )


def segmentations(num_captions, num_frames):
    """Every way to place non-empty, disjoint runs of frames in order."""
    for cuts in itertools.product(range(num_frames + 1), repeat=2 * num_captions):
        pairs = list(zip(cuts[::2], cuts[1::2], strict=True))
        if all(a < b for a, b in pairs) and all(x[1] <= y[0] for x, y in itertools.pairwise(pairs)):
            yield pairs


def total_gain(segments, gains, gap_gains):
    inside = sum(gains[i, a:b].sum() for i, (a, b) in enumerate(segments))
    covered = sum(gap_gains[a:b].sum() for a, b in segments)
    return (inside + gap_gains.sum() - covered).item()


@given(st.data())
def test_segmentation_is_as_good_as_the_best_of_all(data):
    num_captions = data.draw(st.integers(1, 3))
    num_frames = data.draw(st.integers(num_captions, 5 if num_captions == 3 else 7))
    numbers = st.integers(-5, 5)
    gains = torch.from_numpy(data.draw(hnp.arrays(np.float64, (num_captions, num_frames), elements=numbers)))
    gap_gains = torch.from_numpy(data.draw(hnp.arrays(np.float64, (num_frames,), elements=numbers)))
    found = segment_ordered(gains[None], gap_gains[None], torch.tensor([num_captions]), torch.tensor([num_frames]))
    best = max(total_gain(s, gains, gap_gains) for s in segmentations(num_captions, num_frames))
    assert total_gain(found[0].tolist(), gains, gap_gains) == best


def expected_gains(similarities):
    """The formula of the module's description, written for one video `(N, T)`."""
    centered = similarities - similarities.mean(1, keepdim=True)
    # Constant similarities have no scale: test_without_evidence_captions_share_the_video has them.
    assume(centered.abs().max() > 1e-6)
    calibrated = centered / centered.square().mean().sqrt()
    gains = calibrated.clone()
    for i in range(len(gains) if len(gains) > 1 else 0):
        gains[i] -= torch.cat([calibrated[:i], calibrated[i + 1 :]]).amax(0)
    return calibrated, gains


@given(videos(max_captions=3, max_frames=5), st.sampled_from([-math.inf, -0.5, 0.0, 0.5]))
def test_ordered_alignment_maximises_gain_with_gaps_at_the_level(similarities, gap_level):
    calibrated, gains = expected_gains(similarities[0])
    gap_gains = gap_level - calibrated.amax(0)
    candidates = segmentations(*gains.shape)
    if gap_level == -math.inf:
        gap_gains = torch.zeros(len(gap_gains)).double()
        candidates = (s for s in candidates if sum(b - a for a, b in s) == gains.shape[1])
    found = align_ordered(similarities, gap_level=gap_level)
    best = max(total_gain(s, gains, gap_gains) for s in candidates)
    assert total_gain(found.segments[0].tolist(), gains, gap_gains) == pytest.approx(
        best, abs=1e-4
    )  # but for the tie-break


@given(videos(max_captions=3, max_frames=6), st.sampled_from([0.0, 0.5]))
def test_unordered_alignment_takes_each_captions_best_interval(similarities, tolerance):
    calibrated, gains = expected_gains(similarities[0])
    fit = torch.minimum(gains + tolerance, calibrated)
    found = align_unordered(similarities, tolerance=tolerance).segments[0]
    for row, (start, end) in zip(fit, found.tolist(), strict=True):
        best = max(row[a:b].sum().item() for a, b in itertools.combinations(range(len(row) + 1), 2))
        assert row[start:end].sum().item() == pytest.approx(best, abs=1e-6)


@given(videos(max_captions=3, max_frames=6))
def test_overlapping_segments_are_the_best_that_contain_the_ordered_ones(similarities):
    calibrated, gains = expected_gains(similarities[0])
    fit = torch.minimum(gains + 0.5, calibrated)
    ordered = align_ordered(similarities).segments[0].tolist()
    grown = align_overlapping(similarities).segments[0].tolist()
    for row, (a, b), (start, end) in zip(fit, ordered, grown, strict=True):
        assert start <= a < b <= end
        best = max(row[s:e].sum().item() for s in range(a + 1) for e in range(b, len(row) + 1))
        assert row[start:end].sum().item() == pytest.approx(best, abs=1e-6)


@given(videos(), st.sampled_from([-math.inf, -1.0, 0.0, 1.0]))
def test_ordered_segments_are_disjoint_in_order_and_inside_the_video(similarities, gap_level):
    alignment = align_ordered(similarities, gap_level=gap_level)
    bounds = alignment.segments[0].flatten().tolist()
    assert 0 <= bounds[0] and bounds[-1] <= similarities.shape[2]
    assert all(start < end for start, end in alignment.segments[0].tolist())
    assert bounds == sorted(bounds)
    assert (alignment.spans >= 0).all() and (alignment.spans <= 1).all()


@pytest.mark.parametrize("align", METHODS)
@given(videos(), st.sampled_from([0.01, 0.25, 8.0]), st.sampled_from([-2.0, 0.0, 3.0]), st.data())
def test_scale_and_shift_of_similarities_change_only_the_gains_scale(align, similarities, scale, shift, data):
    captions = data.draw(hnp.arrays(np.float64, (1, similarities.shape[1], 1), elements=st.integers(-2, 2)))
    # An irrational slope keeps ties, which rounding may settle either way, out of the comparison.
    slope = torch.linspace(0, 1, similarities.shape[2]).double() ** math.pi / 100
    similarities = similarities + slope * torch.tensor([[1.0, -0.3, 0.7, 2.1]]).T[: similarities.shape[1]]
    plain = align(similarities)
    moved = align(similarities * scale + shift + torch.from_numpy(captions))
    assert torch.equal(plain.segments, moved.segments)
    torch.testing.assert_close(plain.gains * scale, moved.gains, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("align", METHODS)
def test_a_padded_batch_gives_what_each_video_gives_alone(align):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1), (1, 7), (3, 3), (2, 12), (5, 9)]
    padded = torch.full((len(shapes), 6, 13), 7.0)  # padding holds values that would win if they were looked at
    frame_mask, caption_mask = torch.zeros(len(shapes), 13), torch.zeros(len(shapes), 6)
    alone = []
    for b, (n, t) in enumerate(shapes):
        padded[b, :n, :t] = torch.rand(n, t, generator=generator)
        frame_mask[b, :t], caption_mask[b, :n] = 1, 1
        alone.append(align(padded[b : b + 1, :n, :t]))
    together = align(padded, frame_mask, caption_mask)
    for b, (n, _) in enumerate(shapes):
        for name in ("segments", "gains", "spans"):
            torch.testing.assert_close(getattr(together, name)[b, :n], getattr(alone[b], name)[0])
            assert (getattr(together, name)[b, n:] == 0).all()


def test_hand_computed_segments_spans_scores_and_seconds():
    # Frames 0-1 show the first caption, 2 nothing, 3-4 the second.
    similarities = torch.tensor([[[0.2, 0.2, -0.2, -0.2, -0.2], [-0.2, -0.2, -0.2, 0.2, 0.2]]])
    similarities += torch.tensor([[[0.5], [0.9]]])
    alignment = align_ordered(similarities)
    assert alignment.segments.tolist() == [[[0, 2], [3, 5]]]
    # Minus the rows' means +-0.04 the first caption's frames hold 0.24 against -0.16.
    torch.testing.assert_close(alignment.gains, torch.tensor([[0.4, 0.4]]))
    # Five frames at 0, 0.25, ... 1: frame 1 ends at 0.375, frame 3 begins at 0.625.
    torch.testing.assert_close(alignment.spans, torch.tensor([[[0.0, 0.375], [0.625, 1.0]]]))
    torch.testing.assert_close(alignment.centers, torch.tensor([[0.1875, 0.8125]]))
    torch.testing.assert_close(alignment.widths, torch.tensor([[0.375, 0.375]]))
    torch.testing.assert_close(alignment.seconds(40.0), torch.tensor([[[0.0, 15.0], [25.0, 40.0]]]))
    torch.testing.assert_close(alignment.seconds(torch.tensor([40.0])), alignment.seconds(40.0))


def test_a_higher_gap_level_leaves_out_more_frames():
    similarities = torch.rand(20, 3, 30, generator=torch.Generator().manual_seed(0))
    covered = [align_ordered(similarities, gap_level=g).widths.sum().item() for g in (-math.inf, 0.0, 1.0, 2.0)]
    assert covered == sorted(covered, reverse=True) and covered[0] == pytest.approx(20) and covered[-1] < 10


def test_one_caption_takes_the_frames_above_the_videos_mean():
    alignment = align_ordered(torch.tensor([[[0.1, 0.1, 0.3, 0.35, 0.3, 0.1]]]))
    assert alignment.segments.tolist() == [[[2, 5]]]
    assert alignment.gains.item() == pytest.approx(0.95 / 3 - 1.25 / 6)


@pytest.mark.parametrize("num_captions", [1, 2, 3, 4])
def test_without_evidence_captions_share_the_video(num_captions):
    shares = align_ordered(torch.full((1, num_captions, 12), 0.3))
    width = 12 // num_captions
    assert shares.segments[0].tolist() == [[i * width, (i + 1) * width] for i in range(num_captions)]
    assert (shares.gains == 0).all()


def test_a_repeated_caption_shares_its_stretch():
    similarities = torch.zeros(1, 3, 12)
    similarities[0, :2, :8] = 1
    similarities[0, 2, 8:] = 1
    (a, b), (c, d), last = align_ordered(similarities).segments[0].tolist()
    assert (a, d, last) == (0, 8, [8, 12]) and b == c and 3 <= b <= 5


def test_an_introduction_may_overlap_what_it_introduces():
    # The first caption fits every frame of the first half, in which the second event takes place.
    similarities = torch.zeros(1, 3, 12)
    similarities[0, 0, :8] = 1.0
    similarities[0, 1, 4:8] = 1.1
    similarities[0, 2, 8:] = 1.0
    assert align_ordered(similarities).segments[0].tolist() == [[0, 4], [4, 8], [8, 12]]
    grown = align_overlapping(similarities, tolerance=1.0)
    assert grown.segments[0].tolist() == [[0, 8], [4, 8], [8, 12]]


def test_captions_out_of_order_are_found_by_the_unordered_variant():
    similarities = torch.zeros(1, 2, 10)
    similarities[0, 0, 6:] = 1
    similarities[0, 1, :6] = 1
    assert align_unordered(similarities).segments[0].tolist() == [[6, 10], [0, 6]]
    (_, end), (start, _) = align_ordered(similarities).segments[0].tolist()
    assert end <= start


@given(st.integers(1, 8))
def test_as_many_captions_as_frames_gives_each_its_frame(num_captions):
    similarities = torch.rand(1, num_captions, num_captions, generator=torch.Generator().manual_seed(num_captions))
    segments = align_ordered(similarities, gap_level=3.0).segments
    assert segments[0].tolist() == [[i, i + 1] for i in range(num_captions)]
    if num_captions == 1:
        assert align_ordered(similarities).spans.tolist() == [[[0.0, 1.0]]]


def test_more_captions_than_frames_is_refused_by_the_ordered_variants():
    similarities = torch.rand(2, 3, 5)
    frame_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    for align in (align_ordered, align_overlapping, align_expected):
        with pytest.raises(ValueError, match="video 1 of the batch has 3 captions but 2 frames. Sample more frames"):
            align(similarities, frame_mask)
    assert align_unordered(similarities, frame_mask).segments[1].amax() <= 2


@pytest.mark.parametrize("align", METHODS)
def test_wrong_input_is_explained(align):
    good = torch.rand(2, 3, 5)
    with pytest.raises(ValueError, match=r"\(batch, captions, frames\), found \(3, 5\)"):
        align(good[0])
    with pytest.raises(ValueError, match="NaN"):
        align(good / torch.tensor([1.0, 0.0, 1.0])[:, None])
    with pytest.raises(ValueError, match=r"frame_mask must have shape \(2, 5\).*found \(2, 3\)"):
        align(good, frame_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="caption_mask has no real entry for video 1"):
        align(good, caption_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="real entries first"):
        align(good, frame_mask=torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]))


def test_a_gap_level_that_no_sum_can_hold_is_refused():
    with pytest.raises(ValueError, match="gap_level must be a number or -inf, found nan"):
        align_ordered(torch.rand(1, 2, 3), gap_level=math.nan)


def test_half_precision_and_gradients_are_left_outside():
    similarities = torch.rand(1, 2, 6).half().requires_grad_()
    alignment = align_ordered(similarities)
    assert alignment.spans.dtype == torch.float32 and not alignment.gains.requires_grad
