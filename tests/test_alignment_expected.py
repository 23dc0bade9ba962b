"""Spans of most expected hits: exact against brute force, near equal shares without evidence, near the frames with it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_hf.alignment_sail import align_expected, align_ordered


def hits(a, b):
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    tiou = shared / (a[1] - a[0] + b[1] - b[0] - shared)
    return (sum(tiou > bound for bound in (0.3, 0.5, 0.7, 0.9)) + 0.01 * tiou) / 4


def log_normal(value, mean, variance):
    return -((value - mean) ** 2) / 2 / variance - math.log(variance) / 2


def best_spans(calibrated, gap_level):
    """Of every span its expected hits, from all segmentations one by one, under normal distributions written out."""
    count, length = calibrated.shape
    spans = [(a, b) for a in range(length) for b in range(a + 1, length + 1)]
    earned = torch.zeros(count, len(spans))
    total = 0.0
    n = max(count, 2)
    for explained in (0.2, 0.4, 0.6, 0.8, 0.9):
        d = math.sqrt(explained * n**2 / (n - 1))
        for chosen in itertools.product(spans, repeat=count):
            if any(left[1] > right[0] for left, right in itertools.pairwise(chosen)):
                continue
            outside = length - sum(b - a for a, b in chosen)
            weight = outside * (d / (1 - explained) * gap_level - 64 / length)
            for i, (a, b) in enumerate(chosen):
                for t in range(length):
                    mean = d * (1 - 1 / n) if a <= t < b else -d / n
                    weight += log_normal(calibrated[i, t].item(), mean, 1 - explained)
                weight -= (math.log(count * (b - a) / length) / 1.2) ** 2 / 2
            total += math.exp(weight)
            for i, event in enumerate(chosen):
                earned[i] += math.exp(weight) * torch.tensor([hits(span, event) for span in spans])
    return spans, earned / total


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(3, 5), st.sampled_from([-0.5, 0.0, 0.5]), st.integers(0, 10**6))
def test_each_span_has_the_most_expected_hits(num_captions, num_frames, gap_level, seed):
    similarities = torch.rand(1, num_captions, num_frames, generator=torch.Generator().manual_seed(seed)).double()
    centered = similarities[0] - similarities[0].mean(1, keepdim=True)
    spans, earned = best_spans(centered / centered.square().mean().sqrt(), gap_level)
    for row, found in zip(earned, align_expected(similarities, gap_level=gap_level).segments[0].tolist(), strict=True):
        assert row[spans.index(tuple(found))] == pytest.approx(row.max().item(), abs=1e-5)


@pytest.mark.parametrize("num_captions", [2, 3])
def test_from_noise_alone_spans_stray_less_than_those_of_the_best_segmentation(num_captions):
    noise = torch.randn(60, num_captions, 32, generator=torch.Generator().manual_seed(0))
    expected, ordered = align_expected(noise), align_ordered(noise)
    centers = (torch.arange(num_captions) + 0.5) / num_captions
    torch.testing.assert_close(expected.centers.mean(0), centers, atol=0.05, rtol=0)
    assert (expected.widths.mean(0) > 0.8 / num_captions).all()
    # The best segmentation believes the noise.
    assert expected.centers.std(0).mean() < 0.85 * ordered.centers.std(0).mean()


def test_the_less_frames_say_the_nearer_spans_are_to_those_of_no_evidence():
    shown = torch.zeros(1, 2, 32)
    shown[0, 0, :6] = 1.0
    shown[0, 1, 6:] = 1.0
    noise = torch.randn(20, 2, 32, generator=torch.Generator().manual_seed(0))
    ends = [align_expected(shown + level * noise).spans[:, 0, 1].mean().item() for level in (0.0, 1.5, 4.0)]
    assert ends[0] == pytest.approx(6 / 32, abs=0.03)
    assert ends == sorted(ends) and 0.3 < ends[2] < 0.7


def test_what_frames_show_clearly_is_found_as_by_the_ordered_alignment():
    similarities = torch.zeros(1, 3, 40)
    for i, (start, end) in enumerate([(2, 10), (10, 16), (22, 38)]):
        similarities[0, i, start:end] = 1.0
    exact = align_ordered(similarities)
    assert exact.segments[0].tolist() == [[2, 10], [10, 16], [22, 38]]
    assert align_expected(similarities, gap_level=0.5).segments.tolist() == exact.segments.tolist()


def test_many_frames_are_not_taken_for_as_many_witnesses():
    coarse = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(3))
    fine = coarse.repeat_interleave(4, 2)
    torch.testing.assert_close(align_expected(fine).spans, align_expected(coarse).spans, atol=0.02, rtol=0)


def test_no_gap_is_left_where_none_is_allowed():
    similarities = torch.zeros(1, 2, 20)
    similarities[0, 0, 4:8], similarities[0, 1, 12:16] = 1.0, 1.0
    tight, whole = (align_expected(similarities, gap_level=level).widths.sum().item() for level in (1.0, -math.inf))
    assert tight < 0.7 < whole


def test_more_captions_than_coarse_steps_still_have_a_place_each():
    segments = align_expected(torch.rand(1, 50, 70, generator=torch.Generator().manual_seed(0))).segments[0]
    assert (segments[:, 1] > segments[:, 0]).all() and segments.amax() <= 70
