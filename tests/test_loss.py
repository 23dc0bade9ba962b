"""Every loss on numbers worked out by hand, which stand in the comments."""

import math

import pytest
import torch
from torch import tensor

from sail_hf import loss_sail
from sail_hf.loss_sail import (
    augmentation_loss,
    caption_loss,
    cosines,
    count_items,
    diversity_loss,
    length_groups,
    masked_mean,
    segment_loss,
    similarity_hinges,
    similarity_loss,
)

LN2 = math.log(2)
# Directions in the plane: cos(X, P) = 0.6, cos(Y, P) = 0.8, and so on.
X, Y, P, Q = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]
ZERO = [0.0, 0.0]


def close(found, expected):
    torch.testing.assert_close(found, tensor(expected), rtol=1e-5, atol=1e-6)


# --- captioning ---------------------------------------------------------------------------------------------------


def logits_of(probabilities):
    return tensor(probabilities).log()


# What follows each of 3 places, as probabilities over 3 tokens.
LOGITS = logits_of([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25], [0.125, 0.375, 0.5]])
TARGETS = tensor([2, 1, 0])


def test_caption_loss_is_the_mean_over_target_tokens():
    # Token 2 with probability 1/2, token 1 with 1/4, token 0 with 1/8: (ln 2 + 2 ln 2 + 3 ln 2) / 3 = 2 ln 2.
    close(caption_loss(LOGITS, TARGETS), 2 * LN2)


def test_caption_loss_over_the_items_of_a_whole_step():
    close(caption_loss(LOGITS, TARGETS, num_items=12), LN2 / 2)


def test_caption_loss_is_zero_without_targets():
    close(caption_loss(LOGITS[:0], TARGETS[:0]), 0.0)


def test_caption_loss_of_half_precision_logits_is_a_full_precision_mean():
    loss = caption_loss(LOGITS.bfloat16(), TARGETS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * LN2, rel=1e-2)


def test_rows_of_like_length_go_together(monkeypatch):
    """Lengths 3, 3, 4 and 10, 12: two groups pad 1 + 1 + 2 = 4 positions, where one would pad 9 + 9 + 8 + 2 = 28."""
    lengths = tensor([10, 3, 4, 12, 3])

    def groups(cost):
        monkeypatch.setattr(loss_sail, "POSITIONS_A_PASS", cost)
        return [rows.tolist() for rows in length_groups(lengths)]

    # A third group would save 2, and the second saves 24: it pays up to there.
    assert groups(3) == groups(23) == [[1, 4, 2], [0, 3]]
    assert groups(25) == [[1, 4, 2, 0, 3]]
    # Every distinct length by itself where passes cost nothing; the same row twice is the same length.
    assert groups(0) == [[1, 4], [2], [0], [3]]
    assert [rows.tolist() for rows in length_groups(tensor([7]))] == [[0]]


# --- pooling ------------------------------------------------------------------------------------------------------


def test_masked_mean_is_over_time():
    features = tensor([[[1.0, 2.0], [3.0, 4.0]]])
    # Row 1: the first frame alone, over 2 frames. Row 2: half of each: (0.5 + 1.5) / 2, (1 + 2) / 2.
    close(masked_mean(features, tensor([[[1.0, 0.0], [0.5, 0.5]]])), [[[0.5, 1.0], [1.0, 1.5]]])


def test_cosines_ignore_length_and_are_zero_for_a_zero_row():
    close(cosines(tensor([[X, [0.0, 7.0], ZERO]]), tensor([[P, [3.0, 0.0]]])), [[[0.6, 1.0], [0.8, 0.0], [0.0, 0.0]]])


def test_cosines_are_float32_under_autocast():
    """bfloat16 has steps of 0.004 below 1: a large part of Eq. 2's margin of 0.1."""
    a, b = torch.randn(2, 1, 5, 24, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = cosines(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cosines(a, b))


# --- similarity, Eq. 2 --------------------------------------------------------------------------------------------


def test_similarity_loss_of_one_video():
    # Masked features X, Y, captions X, Q. Event 1: s+ = 1, s- = cos(X, Q) = 0.8; 0.5 - 1 + 0.8 = 0.3.
    # Event 2: s+ = cos(Y, Q) = 0.6, s- = cos(Y, X) = 0; 0.5 - 0.6 + 0 < 0.
    valid = tensor([[True, True]])
    hinges = similarity_hinges(tensor([[X, Y]]), tensor([[X, Q]]), valid, margin=0.5)
    close(hinges, [[0.3, 0.0]])
    close(similarity_loss(hinges, valid), 0.15)


def test_the_negative_is_the_hardest_other_caption_of_the_video():
    # Event 1 against captions Y (cosine 0) and P (0.6): s- = 0.6, not the mean 0.3. 0.5 - 1 + 0.6 = 0.1.
    hinges = similarity_hinges(tensor([[X, Y, Y]]), tensor([[X, Y, P]]), torch.ones(1, 3, dtype=torch.bool), 0.5)
    # Events 2 and 3, both Y: event 2 has s+ = 1, s- = 0.8 -> 0.3; event 3 has s+ = 0.8, s- = 1 -> 0.7.
    close(hinges, [[0.1, 0.3, 0.7]])


def test_similarity_loss_is_a_mean_over_events_then_over_videos():
    # Video 1 has 3 events with hinges 0.1, 0.3, 0.7 (above): 1.1 / 3. Video 2 has 2: (0.3 + 0) / 2 = 0.15.
    # A mean over all five events would be 0.28 instead.
    valid = tensor([[True, True, True], [True, True, False]])
    features, captions = tensor([[X, Y, Y], [X, Y, ZERO]]), tensor([[X, Y, P], [X, Q, ZERO]])
    hinges = similarity_hinges(features, captions, valid, 0.5)
    close(similarity_loss(hinges, valid), (1.1 / 3 + 0.15) / 2)
    close(similarity_loss(hinges, valid, num_items=8), (1.1 / 3 + 0.15) / 8)


def test_padding_is_no_negative():
    # Where padding holds the very feature of event 1's caption, nothing changes.
    valid = tensor([[True, True, False]])
    hinges = similarity_hinges(tensor([[X, Y, X]]), tensor([[X, Q, X]]), valid, 0.5)
    close(hinges, [[0.3, 0.0, 0.0]])
    close(similarity_loss(hinges, valid), 0.15)


def test_videos_with_one_caption_have_no_negative_and_do_not_count():
    valid = tensor([[True, False], [True, True]])
    hinges = similarity_hinges(tensor([[X, ZERO], [X, Y]]), tensor([[Y, ZERO], [X, Q]]), valid, 0.5)
    close(hinges, [[0.0, 0.0], [0.3, 0.0]])
    close(similarity_loss(hinges, valid), 0.15)


def test_synthetic_captions_as_hard_negatives():
    valid = tensor([[True, True]])
    features, captions = tensor([[X, Y]]), tensor([[X, Y]])
    # Without them both hinges are 0.5 - 1 + 0 < 0. The synthetic caption P: cos(X, P) = 0.6, cos(Y, P) = 0.8, so
    # 0.5 - 1 + 0.6 = 0.1 and 0.5 - 1 + 0.8 = 0.3 (the inter-mask's feature, -X, is no harder).
    close(similarity_hinges(features, captions, valid, 0.5), [[0.0, 0.0]])
    close(similarity_hinges(features, captions, valid, 0.5, tensor([[[-1.0, 0.0]]]), tensor([[P]])), [[0.1, 0.3]])
    # The inter-mask's feature Q is negative for the captions: cos(X, Q) = 0.8, cos(Y, Q) = 0.6.
    close(similarity_hinges(features, captions, valid, 0.5, tensor([[Q]]), tensor([[[-1.0, 0.0]]])), [[0.3, 0.1]])


def test_padded_synthetic_captions_are_no_negatives():
    # Gap 1 is easy: its caption and feature -X have cosines -1 and 0 with the events. Gap 2, past the video's two
    # events, has a caption and a feature as hard as can be.
    valid = tensor([[True, True, False]])
    minus_x = [-1.0, 0.0]
    gaps = tensor([[minus_x, X]]), tensor([[minus_x, Y]])
    close(similarity_hinges(tensor([[X, Y, X]]), tensor([[X, Y, X]]), valid, 0.5, *gaps), [[0.0, 0.0, 0.0]])


def test_mask_losses_are_zero_where_videos_have_one_caption():
    valid = tensor([[True], [True]])
    features = tensor([[X], [Y]])
    nothing = torch.zeros(2, 0, 2)
    hinges = similarity_hinges(features, features, valid, 0.1, nothing, nothing)
    close(hinges, [[0.0], [0.0]])
    close(similarity_loss(hinges, valid), 0.0)
    close(augmentation_loss(nothing, nothing, valid), 0.0)
    close(diversity_loss(torch.ones(2, 1, 4), valid, 0.8), 0.0)


# --- augmentation, Eq. 3 ------------------------------------------------------------------------------------------


def test_augmentation_loss_is_a_mean_over_gaps_then_over_videos():
    valid = tensor([[True, True, True], [True, True, False], [True, False, False]])
    masked = tensor([[X, Y], [X, X], [X, X]])
    synthetic = tensor([[X, P], [Y, Y], [Y, Y]])
    # Video 1: 1 - 1 = 0 and 1 - 0.8 = 0.2: mean 0.1. Video 2: its one gap, 1 - 0 = 1 (so would be the padded one).
    # Video 3 has no gap. Mean over two videos: 0.55.
    close(augmentation_loss(masked, synthetic, valid), 0.55)
    close(augmentation_loss(masked, synthetic, valid, num_items=10), 0.11)


# --- diversity, ILCACM --------------------------------------------------------------------------------------------


def test_diversity_loss_is_the_mean_excess_over_pairs():
    valid = torch.ones(1, 3, dtype=torch.bool)
    # Cosines: X with P 0.6, X with Y 0, P with Y 0.8. Over 0.5: 0.1, 0, 0.3; mean over three pairs 0.4 / 3.
    masks = tensor([[X, P, Y]])
    close(diversity_loss(masks, valid, 0.5), 0.4 / 3)
    # Over 0.7: 0.1 / 3. Over 0.8 nothing is left.
    close(diversity_loss(masks, valid, 0.7), 0.1 / 3)
    close(diversity_loss(masks, valid, 0.8), 0.0)


def test_diversity_loss_leaves_padding_and_single_events_out():
    valid = tensor([[True, True, True], [True, True, False], [True, False, False]])
    masks = tensor([[X, P, Y], [Y, P, P], [X, X, X]])
    # Video 1 as above: 0.4 / 3. Video 2: one pair, 0.8 - 0.5 = 0.3. Video 3: no pair, and no part of the mean.
    close(diversity_loss(masks, valid, 0.5), (0.4 / 3 + 0.3) / 2)
    close(diversity_loss(masks, valid, 0.5, num_items=4), (0.4 / 3 + 0.3) / 4)


# --- regression to segments ---------------------------------------------------------------------------------------


def test_segment_loss_is_l1_plus_generalised_iou():
    centers, widths = tensor([[0.3, 0.2, 0.5]]), tensor([[0.4, 0.2, 0.5]])
    targets, target_widths = tensor([[0.4, 0.7, 0.5]]), tensor([[0.4, 0.4, 0.5]])
    # Event 1: [0.1, 0.5] against [0.2, 0.6]: L1 0.1; IoU 0.3 / 0.5; the hull is the union. 0.1 + 1 - 0.6 = 0.5.
    # Event 2: [0.1, 0.3] against [0.5, 0.9]: L1 0.5 + 0.2; IoU 0; hull 0.8, union 0.6, so 0.7 + 1 + 0.25 = 1.95.
    # Event 3: equal: 0.
    valid = torch.ones(1, 3, dtype=torch.bool)
    close(segment_loss(centers, widths, targets, target_widths, valid), (0.5 + 1.95 + 0) / 3)
    # Event 2 alone left out:
    close(segment_loss(centers, widths, targets, target_widths, tensor([[True, False, True]])), 0.25)
    close(segment_loss(centers, widths, targets, target_widths, valid, num_items=5), 0.49)


# --- what the means are over --------------------------------------------------------------------------------------


def test_count_items():
    batch = {
        "num_events": tensor([2, 1]),
        "full_labels": tensor([[5, 6, 7, -100], [5, 6, -100, -100]]),  # 2 and 1 targets after the first token
        "event_labels": tensor([[[5, 6], [5, 6]], [[5, -100], [-100, -100]]]),  # 1, 1; 0, padding
        "complement_labels": tensor([[[5, 6, 7], [5, 6, 7]], [[-100] * 3] * 2]),  # 2, 2; none
        "video_features": torch.zeros(2, 3, 4),
    }
    counts = {name: int(count) for name, count in count_items(batch).items()}
    assert counts == {
        "full_tokens": 3,
        "positive_tokens": 2,
        "negative_tokens": 4,
        "events": 3,
        "multi_event_videos": 1,
    }
    assert {name: int(count) for name, count in count_items({"full_labels": batch["full_labels"]}).items()} == {
        "full_tokens": 3
    }


# --- neither values nor gradients are ever NaN --------------------------------------------------------------------


@pytest.mark.parametrize(
    "features",
    [torch.zeros(3, 3, 2), torch.full((3, 3, 2), 1e-30), torch.full((3, 3, 2), 1e15)],
    ids=["zero", "minute", "huge"],
)
def test_mask_losses_and_their_gradients_are_finite(features):
    """Videos with three, two and one captions, on features where a norm or a cosine could break."""
    valid = tensor([[True, True, True], [True, True, False], [True, False, False]])
    features = features.clone().requires_grad_()
    captions = torch.ones(3, 3, 2)
    hinges = similarity_hinges(features, captions, valid, 0.1, features[:, 1:], captions[:, 1:])
    total = (
        similarity_loss(hinges, valid)
        + augmentation_loss(features[:, 1:], captions[:, 1:], valid)
        + diversity_loss(features, valid, 0.1)
    )
    total.backward()
    assert total.isfinite()
    assert features.grad.isfinite().all()


def test_segment_loss_of_segments_without_width_has_finite_gradients():
    centers = torch.full((1, 2), 0.5).requires_grad_()
    widths = torch.zeros(1, 2).requires_grad_()
    loss = segment_loss(
        centers, widths, torch.full((1, 2), 0.5), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    )
    loss.backward()
    assert loss.isfinite()
    assert centers.grad.isfinite().all() and widths.grad.isfinite().all()
