"""Spans of most expected hits: the distribution against brute force, and spans from the frames alone."""

import itertools
import math

import pytest
import torch

from sail_hf.segments_sail import all_spans, cohesion, cohesive_spans, most_hits, span_probabilities


@pytest.mark.parametrize(("num_events", "num_steps"), [(1, 4), (2, 5), (3, 5)])
def test_probabilities_are_those_of_all_segmentations_one_by_one(num_events, num_steps):
    start, end, _ = all_spans(num_steps + 1, torch.device("cpu"))  # one step is padding
    weights = torch.randn(1, num_events + 1, len(start), generator=torch.Generator().manual_seed(0)).double()
    expected, total = torch.zeros(num_events, len(start)).double(), 0.0
    inside = [c for c in range(len(start)) if end[c] <= num_steps]
    for chosen in itertools.product(inside, repeat=num_events):
        if any(end[left] > start[right] for left, right in itertools.pairwise(chosen)):
            continue
        gaps = num_steps - sum(int(end[c] - start[c]) for c in chosen)
        weight = math.exp(sum(weights[0, i, c].item() for i, c in enumerate(chosen)) - 0.7 * gaps)
        total += weight
        for i, c in enumerate(chosen):
            expected[i, c] += weight
    counts, lengths = torch.tensor([num_events]), torch.tensor([num_steps])
    found, log_total = span_probabilities(
        weights, torch.tensor([0.7]).double(), counts, lengths, start, end, num_steps + 1
    )
    torch.testing.assert_close(found[0, :num_events], expected / total)
    assert (found[0, num_events] == 0).all()
    assert log_total.item() == pytest.approx(math.log(total))


def test_between_equally_likely_spans_one_that_hits_several_is_chosen():
    start, end, hits = all_spans(10, torch.device("cpu"))
    spans = list(zip(start.tolist(), end.tolist(), strict=True))
    chances = torch.zeros(1, 1, len(spans))
    for span in [(0, 6), (2, 8), (4, 10)]:
        chances[0, 0, spans.index(span)] = 1 / 3
    # (2, 8) hits itself at 4 thresholds and the others, tIoU 1/2, at 1. (1, 7) hits two, tIoU 5/7, at 3, the last, 1/3, at 1.
    assert spans[most_hits(chances, hits)[0, 0]] not in [(0, 6), (2, 8), (4, 10)]


def blocks(*lengths, size=64, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    contents = torch.randn(len(lengths), size, generator=generator)
    frames = torch.cat([content.expand(n, -1) for content, n in zip(contents, lengths, strict=True)])
    return (frames + noise * torch.randn(frames.shape, generator=generator))[None]


def spans_of(features, *counts):
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return cohesive_spans(features, torch.ones(features.shape[:2]), valid)


def test_cohesion_by_hand():
    # Less their mean the frames are +-1: two alike explain 4 / 3, two unlike nothing, one 1 / 2.
    features = torch.tensor([[[3.0], [3.0], [1.0], [1.0]]])
    start, end, _ = all_spans(4, torch.device("cpu"))
    found = dict(
        zip(
            zip(start.tolist(), end.tolist(), strict=True),
            cohesion(features, torch.ones(1, 4), start, end, 1)[0].tolist(),
            strict=True,
        )
    )
    assert (
        found[0, 2] == pytest.approx(4 / 3) and found[1, 3] == pytest.approx(0) and found[0, 1] == pytest.approx(1 / 2)
    )
    assert found[0, 3] == pytest.approx(1 / 4) and found[0, 4] == pytest.approx(0)


def test_stretches_that_look_alike_are_the_events():
    spans = spans_of(blocks(6, 16, 10, noise=0.3), 3)[0]
    torch.testing.assert_close(spans * 32, torch.tensor([[0.0, 6], [6, 22], [22, 32]]), atol=1, rtol=0)


def test_frames_that_all_look_alike_give_near_equal_shares():
    spans = spans_of(torch.ones(1, 32, 8), 4)[0]
    torch.testing.assert_close(spans.mean(1)[1:-1], torch.tensor([0.375, 0.625]), atol=0.05, rtol=0)
    assert (spans[:, 1] - spans[:, 0] > 0.2).all()


def test_padding_and_the_other_videos_change_nothing():
    long, short = blocks(6, 16, 10), blocks(5, 7, seed=1)
    both = torch.full((2, 32, 64), 9.0)
    both[0], both[1, :12] = long, short
    mask = torch.arange(32) < torch.tensor([[32], [12]])
    found = cohesive_spans(both, mask.long(), torch.tensor([[True, True, True], [True, True, False]]))
    torch.testing.assert_close(found[0], spans_of(long, 3)[0])
    torch.testing.assert_close(found[1, :2], spans_of(short, 2)[0])
    assert (found[1, 2] == 0).all()


def test_many_frames_are_looked_at_in_fewer_steps():
    features = blocks(60, 100, 40)
    torch.testing.assert_close(
        spans_of(features, 3)[0] * 200, torch.tensor([[0.0, 60], [60, 160], [160, 200]]), atol=4, rtol=0
    )


def test_more_events_than_frames_are_equal_shares():
    torch.testing.assert_close(spans_of(torch.randn(1, 2, 4), 4)[0, :, 0], torch.tensor([0.0, 0.25, 0.5, 0.75]))


def test_autocast_changes_nothing():
    features, valid = blocks(6, 16, 10, noise=0.3), torch.ones(1, 3, dtype=torch.bool)
    expected = cohesive_spans(features, torch.ones(1, 32), valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = cohesion(features, torch.ones(1, 32), *all_spans(32, torch.device("cpu"))[:2], 1)
        assert torch.equal(cohesive_spans(features, torch.ones(1, 32), valid), expected)
    torch.testing.assert_close(
        values, cohesion(features, torch.ones(1, 32), *all_spans(32, torch.device("cpu"))[:2], 1)
    )
