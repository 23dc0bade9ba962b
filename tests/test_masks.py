"""Masks over a video's frames, and the generator whose frames drive its progress from event to event."""

import math

import pytest
import torch
from tiny import make_model, make_processor
from torch import tensor

from sail_hf import SailConfig, SailForDenseVideoCaptioning
from sail_hf.loss_sail import segment_loss
from sail_hf.masks_sail import SailFixedMaskGenerator, SailProgressMaskGenerator, event_masks

# --- masks of given events ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask_type, expected",
    [
        # t = 0, 1/4, 1/2, 3/4, 1; centre 1/2; width 1/2 over tau 2 gives 1/4, so the offsets are -2, -1, 0, 1, 2.
        ("gaussian", [math.exp(-2), math.exp(-0.5), 1, math.exp(-0.5), math.exp(-2)]),
        ("cauchy", [1 / 5, 1 / 2, 1, 1 / 2, 1 / 5]),
        # 1 from 1/4 to 3/4
        ("hard", [0, 1, 1, 1, 0]),
    ],
)
def test_masks_by_hand(mask_type, expected):
    masks = event_masks(tensor([[0.5]]), tensor([[0.5]]), torch.ones(1, 5), mask_type, 2.0)
    torch.testing.assert_close(masks, tensor([[expected]], dtype=masks.dtype))


@pytest.mark.parametrize("mask_type, at_the_ends", [("gaussian", math.exp(-2)), ("cauchy", 1 / 5), ("hard", 0.0)])
def test_the_time_of_a_mask_runs_over_the_real_frames(mask_type, at_the_ends):
    # Three real frames: t = 0, 1/2, 1; two of padding.
    masks = event_masks(tensor([[0.5]]), tensor([[0.5]]), tensor([[1, 1, 1, 0, 0]]), mask_type, 2.0)
    torch.testing.assert_close(masks, tensor([[[at_the_ends, 1.0, at_the_ends, 0.0, 0.0]]]))


def test_masks_of_several_events_and_another_temperature():
    # tau 1: the width itself is the standard deviation. Centres 0 and 1: offsets 0, 1/2, 1 and back, over 1/2 and 1.
    masks = event_masks(tensor([[0.0, 1.0]]), tensor([[0.5, 1.0]]), torch.ones(1, 3), "gaussian", 1.0)
    e = math.exp
    torch.testing.assert_close(masks, tensor([[[1.0, e(-0.5), e(-2)], [e(-0.5), e(-0.125), 1.0]]]))


@pytest.mark.parametrize("mask_type", ["gaussian", "cauchy", "hard"])
@pytest.mark.parametrize("frames", [1, 4])
def test_masks_and_their_gradients_are_finite_at_the_extremes(mask_type, frames):
    centers = tensor([[0.0, 0.0, 1.0, 1 / 3]]).requires_grad_()
    widths = tensor([[0.0, 1.0, 1e-12, 0.0]]).requires_grad_()
    masks = event_masks(centers, widths, torch.ones(1, frames), mask_type, 2.0)
    assert ((masks >= 0) & (masks <= 1)).all()
    if mask_type != "hard":  # which has no gradient at all
        masks.sum().backward()
        assert centers.grad.isfinite().all() and widths.grad.isfinite().all()


def events(*counts):
    """Which rows are events, for videos with so many."""
    return torch.arange(max(counts)) < tensor(counts)[:, None]


def test_fixed_segments_are_equal_and_fill_the_video():
    centers, widths = SailFixedMaskGenerator(SailConfig())(torch.zeros(3, 8, 24), torch.ones(3, 8), events(2, 1, 4))
    assert centers.tolist() == [[0.25, 0.75, 0, 0], [0.5, 0, 0, 0], [0.125, 0.375, 0.625, 0.875]]
    assert widths.tolist() == [[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]


# --- the progress generator ---------------------------------------------------------------------------------------


def make_generator() -> SailProgressMaskGenerator:
    torch.manual_seed(0)
    return SailProgressMaskGenerator(SailConfig(feature_size=24, mask_decoder_ffn_dim=32))


class FixedRates(torch.nn.Module):
    """In the place of the generator's head: frames that move on, and frames that do not."""

    def __init__(self, moving):
        super().__init__()
        self.logits = torch.where(tensor(moving) > 0, 20.0, -20.0)[:, None]

    def forward(self, hidden):
        return self.logits


def test_progress_puts_events_where_frames_move_on():
    generator = make_generator()
    moving = [[0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]
    generator.head = FixedRates(moving)
    frame_mask = tensor([[1] * 12, [1] * 6 + [0] * 6])
    centers, widths = generator(torch.zeros(2, 12, 24), frame_mask, events(2, 1))
    # Frames 2-4 and 7-9 of 12; frames 1-3 of 6. The frames between move a little, too: 2 % of a frame each.
    torch.testing.assert_close(centers, tensor([[3 / 11, 8 / 11], [2 / 5, 0]]), rtol=0, atol=0.01)
    torch.testing.assert_close(widths, tensor([[3 / 11, 3 / 11], [3 / 5, 0]]), rtol=0, atol=0.02)


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_progress_of_frames_that_are_all_alike_is_even(frames):
    generator = make_generator()
    torch.nn.init.zeros_(generator.head.weight)
    centers, widths = generator(torch.randn(1, frames, 24), torch.ones(1, frames, dtype=torch.long), events(4))
    assert (widths > 0).all() and (centers.diff() > 0).all()
    torch.testing.assert_close(centers + centers.flip(1), torch.ones(1, 4))
    torch.testing.assert_close(widths, widths.flip(1))
    assert widths.sum().item() == pytest.approx(1, abs=0.15)


def test_progress_learns_to_look():
    """Events of random places, shown by their frames: on unseen videos, centres far closer than any content-free guess."""

    def videos(number):
        starts, lengths = torch.randint(0, 4, (number, 2)), torch.randint(2, 5, (number, 2))
        begin = torch.stack([starts[:, 0], starts[:, 0] + lengths[:, 0] + 1 + starts[:, 1]], 1)
        frame = torch.arange(16)
        inside = (frame >= begin[..., None]) & (frame < (begin + lengths)[..., None])
        shown = torch.where(inside.any(1)[..., None], event, scene) + 0.3 * torch.randn(number, 16, 24)
        return shown, (begin + (lengths - 1) / 2) / 15, lengths / 15

    torch.manual_seed(0)
    event, scene = torch.randn(2, 24)
    generator = make_generator()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    everywhere = torch.ones(32, 16, dtype=torch.long)
    for _ in range(150):
        shown, centers, widths = videos(32)
        found = generator(shown, everywhere, events(*[2] * 32))
        optimizer.zero_grad()
        segment_loss(*found, centers, widths, centers > -1).backward()
        optimizer.step()
    shown, centers, _ = videos(32)
    error = (generator(shown, everywhere, events(*[2] * 32))[0] - centers).abs().mean()
    content_free = (centers - centers.mean(0)).abs().mean()
    assert error < 0.4 * content_free


def test_initial_weights_are_those_that_layers_ask_for(tmp_path):
    """Whatever the configuration's range, in a new model and where a loaded one gets a new mask generator."""
    make_model(make_processor(), mask_generator="fixed", initializer_range=0.5).save_pretrained(tmp_path)
    fields = {"mask_generator": "progress", "initializer_range": 0.5}
    for model in (
        make_model(make_processor(), **fields),
        SailForDenseVideoCaptioning.from_pretrained(tmp_path, **fields),
    ):
        weight = model.model.mask_generator.layers[0].weight
        bound = weight[0].numel() ** -0.5
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    attention = make_model(make_processor(), initializer_range=0.5).model.mask_generator.layers[0].cross_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        bound = (6 / (4 * 24)) ** 0.5
        assert projection.weight.abs().max() <= bound
        assert projection.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_frames_of_the_encoder_and_of_event_queries_have_initial_positions_of_their_own():
    model = make_model(make_processor(), position_initializer_range=0.1, mask_position_initializer_range=3.0).model
    assert model.video_encoder.position_embeddings.std().item() == pytest.approx(0.1, rel=0.3)
    assert model.mask_generator.position_embeddings.std().item() == pytest.approx(3.0, rel=0.3)
