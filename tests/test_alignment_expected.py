"""Spans of most expected hits: exact against brute force, near equal shares without evidence, near the frames with it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_hf import alignment_sail
from sail_hf.alignment_sail import align_expected, align_ordered


def hits(a, b):
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    tiou = shared / (a[1] - a[0] + b[1] - b[0] - shared)
    return sum(tiou > bound for bound in (0.3, 0.5, 0.7, 0.9)) / 4


def best_spans(calibrated, gap_level):
    """Of every span its expected hits, from all segmentations one by one."""
    count, length = calibrated.shape
    spans = [(a, b) for a in range(length) for b in range(a + 1, length + 1)]
    earned = torch.zeros(count, len(spans))
    total = 0.0
    for chosen in itertools.product(spans, repeat=count):
        if any(left[1] > right[0] for left, right in itertools.pairwise(chosen)):
            continue
        covered = sum(b - a for a, b in chosen)
        weight = (length - covered) / length * 32 * (2 * gap_level - 1.5)
        for i, (a, b) in enumerate(chosen):
            weight += math.log(0.9 * math.exp(2 * calibrated[i, a:b].sum()) + 0.1)
            weight -= (math.log(count * (b - a) / length) / 0.8) ** 2 / 2
        total += math.exp(weight)
        for i, event in enumerate(chosen):
            earned[i] += math.exp(weight) * torch.tensor([hits(span, event) for span in spans])
    earned /= total
    return spans, earned + earned.sum(0).clamp(max=1)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(3, 5), st.sampled_from([-0.5, 0.0, 0.5]), st.integers(0, 10**6))
def test_each_span_has_the_most_expected_hits(num_captions, num_frames, gap_level, seed):
    similarities = torch.rand(1, num_captions, num_frames, generator=torch.Generator().manual_seed(seed)).double()
    centered = similarities[0] - similarities[0].mean(1, keepdim=True)
    spans, earned = best_spans(centered / centered.square().mean().sqrt(), gap_level)
    for row, found in zip(earned, align_expected(similarities, gap_level=gap_level).segments[0].tolist(), strict=True):
        assert row[spans.index(tuple(found))] == pytest.approx(row.max().item(), abs=1e-5)


@pytest.mark.parametrize("num_captions", [2, 3, 5])
def test_without_evidence_a_span_is_a_wider_share_of_its_own(num_captions):
    spans = align_expected(torch.full((1, num_captions, 32), 0.3)).spans[0]
    centers = (torch.arange(num_captions) + 0.5) / num_captions
    middle = slice(1, -1) if num_captions > 2 else slice(None)
    torch.testing.assert_close(spans.mean(1)[middle], centers[middle], atol=0.12 / num_captions, rtol=0)
    widths = (spans[:, 1] - spans[:, 0])[middle] * num_captions
    assert (widths > 0.9).all() and (widths < 2).all()


def test_the_less_frames_say_the_nearer_spans_are_to_those_of_no_evidence():
    shown = torch.zeros(1, 2, 32)
    shown[0, 0, :6] = 1.0
    shown[0, 1, 6:] = 1.0
    noise = torch.randn(20, 2, 32, generator=torch.Generator().manual_seed(0))
    ends = [align_expected(shown + level * noise).spans[:, 0, 1].mean().item() for level in (0.0, 1.5, 4.0)]
    assert ends[0] == pytest.approx(6 / 32, abs=0.03)
    assert ends == sorted(ends) and 0.3 < ends[2] < 0.65


def test_what_frames_show_clearly_is_found_as_by_the_ordered_alignment():
    similarities = torch.zeros(1, 3, 40)
    for i, (start, end) in enumerate([(2, 10), (10, 16), (22, 38)]):
        similarities[0, i, start:end] = 1.0
    exact = align_ordered(similarities)
    assert exact.segments[0].tolist() == [[2, 10], [10, 16], [22, 38]]
    found = align_expected(similarities, gap_level=0.75)
    torch.testing.assert_close(found.spans, exact.spans, atol=0.03, rtol=0)


def test_many_frames_are_not_taken_for_as_many_witnesses():
    coarse = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(3))
    fine = coarse.repeat_interleave(4, 2)
    torch.testing.assert_close(align_expected(fine).spans, align_expected(coarse).spans, atol=0.02, rtol=0)


def test_no_gap_is_left_where_none_is_allowed():
    similarities = torch.zeros(1, 2, 20)
    similarities[0, 0, 4:8], similarities[0, 1, 12:16] = 1.0, 1.0
    tight, whole = (align_expected(similarities, gap_level=level).widths.sum().item() for level in (1.0, -math.inf))
    assert tight < 0.7 < whole


def test_more_captions_than_steps_still_have_a_place_each(monkeypatch):
    monkeypatch.setattr(alignment_sail, "_STEPS", 4)
    segments = align_expected(torch.rand(1, 6, 9, generator=torch.Generator().manual_seed(0))).segments[0]
    assert (segments[:, 1] > segments[:, 0]).all() and segments.amax() <= 9
