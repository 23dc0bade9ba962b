"""SBS's attraction: its gate on numbers worked out by hand, its loss beside Eq. 3, what it trains."""

import math

import pytest
import torch
from tiny import make_model
from torch import tensor

from sail_hf import SailConfig, SailDataCollator, loss_sail
from sail_hf.loss_sail import LossInputs, attraction_loss, change_gates, frame_changes, frames_at, sail_losses
from sail_hf.masks_sail import event_masks

X, Y, P = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]


def close(found, expected):
    torch.testing.assert_close(found, tensor(expected), rtol=1e-5, atol=1e-6)


def gates_of(changes, beta=2.0):
    """Gate and place of one gap that holds all of `changes`, the changes between the frames of one video."""
    frames = torch.ones(1, len(changes) + 1, dtype=torch.long)
    both = torch.ones(1, 2, dtype=torch.bool)
    gates, places = change_gates(tensor([changes]), tensor([[0.0, 1.0]]), both, frames, beta)
    return gates.item(), places.item()


# --- the gate -----------------------------------------------------------------------------------------------------


def test_changes_are_one_minus_the_cosine_and_exactly_zero_between_equal_captions():
    # cos(X, 3 X) = 1, cos(X, P) = 0.6, cos(P, Y) = 0.8, cos(Y, -Y) = -1.
    close(frame_changes(tensor([[X, [3.0, 0.0], P, Y, [0.0, -1.0]]])), [[0.0, 0.4, 0.2, 2.0]])
    same = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0)).expand(1, 9, 64)
    assert (frame_changes(same) == 0).all()


def test_the_frame_of_a_time_is_that_of_its_own_video():
    # 5 real frames: floor(x 4); 3 real frames: floor(x 2).
    frame_mask = tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    times = tensor([[0.0, 0.24, 0.26, 0.99, 1.0]] * 2)
    assert frames_at(times, frame_mask).tolist() == [[0, 0, 1, 3, 4], [0, 0, 0, 1, 2]]


def test_the_gate_by_hand():
    # 7 frames, one change of 1 among n = 6: mean 1/6, sd = sqrt(1/6 * 5/6) = 0.372678; 1 - 0.166667 - 0.745356 = 0.087977.
    gate, place = gates_of([0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert gate == pytest.approx(1 / (1 + math.exp(-0.087977)), abs=1e-5)
    assert place == pytest.approx(4.5 / 6)  # midway between frames 4 and 5 of 0 to 6
    # 6 frames are the least that open, at exactly 0.5: 1 - 0.2 - 2 * 0.4 = 0. Of 5, 1 - 0.25 - 2 * 0.433 < 0.
    assert gates_of([0.0, 1.0, 0.0, 0.0, 0.0]) == (pytest.approx(0.5, abs=1e-5), pytest.approx(1.5 / 5))
    assert gates_of([0.0, 1.0, 0.0, 0.0])[0] == 0


@pytest.mark.parametrize("num_changes", range(1, 31))
@pytest.mark.parametrize("of_them", [1, 2, 3])
def test_equal_changes_open_the_gate_where_they_are_a_fifth_or_less(num_changes, of_them):
    """k equal changes among n stand out by sqrt((n - k) / k) standard deviations: at least 2 where n >= 5 k."""
    changes = [0.7] * min(of_them, num_changes) + [0.0] * (num_changes - of_them)
    gate, _ = gates_of(changes)
    assert (gate > 0) == (num_changes >= 5 * of_them)
    assert gate == 0 or gate >= 0.499999


def test_gaps_of_fewer_than_six_frames_never_open():
    generator = torch.Generator().manual_seed(0)
    for num_changes in (1, 2, 3, 4):
        for scale in (1e-3, 1.0):
            changes = (scale * torch.rand(200, num_changes, generator=generator) ** 8).tolist()
            assert all(gates_of(of_gap)[0] == 0 for of_gap in changes)


def test_gaps_of_fewer_than_four_frames_and_of_equal_changes_are_none_even_with_a_gate_that_is_always_open():
    assert gates_of([0.0, 1.0], beta=-10.0)[0] == 0
    assert gates_of([0.0, 1.0, 0.0], beta=-10.0)[0] > 0.99
    assert gates_of([0.3] * 9, beta=-10.0)[0] == 0 and gates_of([0.0] * 9, beta=-10.0)[0] == 0


def test_a_gap_reaches_from_centre_to_centre_and_padding_is_none():
    changes = torch.zeros(2, 15)
    changes[:, 3], changes[:, 12] = 0.5, 1.0
    # Video 1, 16 frames: centres at frames 0, 7 and 15; its gaps hold a change of 0.5 at 3 and one of 1 at 12.
    # Video 2, 8 frames: centres at frames 0 and 7; what lies behind is padding.
    frame_mask = tensor([[1] * 16, [1] * 8 + [0] * 8])
    centers = tensor([[0.0, 0.5, 1.0], [0.0, 1.0, 0.0]])
    valid = tensor([[True, True, True], [True, True, False]])
    gates, places = change_gates(changes, centers, valid, frame_mask, 2.0)
    # One change of size a among n has a (1 - 1/n - 2 sqrt((n - 1) / n^2)): n = 7 a = 0.5; n = 8 a = 1; n = 7 a = 0.5.
    excess = [0.5 * (1 - 1 / 7 - 2 * math.sqrt(6) / 7), 1 - 1 / 8 - 2 * math.sqrt(7) / 8]
    sigmoids = [1 / (1 + math.exp(-x)) for x in excess]
    close(gates, [sigmoids, [sigmoids[0], 0.0]])
    close(places[0], [3.5 / 15, 12.5 / 15])
    close(places[1, :1], [3.5 / 7])


# --- the loss -----------------------------------------------------------------------------------------------------


def test_attraction_loss_is_a_mean_over_the_gaps_that_take_part_then_over_videos_with_a_gap():
    valid = tensor([[True, True, True], [True, True, True], [True, True, False], [True, False, False]])
    gates = tensor([[0.6, 0.5], [0.5, 0.75], [0.0, 0.0], [0.0, 0.0]])
    cosines = tensor([[0.8, 0.1], [0.5, 0.2], [0.9, 0.9], [0.9, 0.9]])
    # Video 1: 0.6 * 0.2 (its other gap is below 0.2). Video 2: (0.5 * 0.5 + 0.75 * 0.8) / 2. Video 3: its gate is closed, 0.
    close(attraction_loss(cosines, gates, 0.2, valid), (0.12 + 0.425 + 0) / 3)
    close(attraction_loss(cosines, gates, 0.2, valid, num_items=10), 0.0545)
    # Without the threshold video 1 has (0.12 + 0.5 * 0.9) / 2.
    close(attraction_loss(cosines, gates, -1.0, valid), (0.285 + 0.425 + 0) / 3)


@pytest.fixture
def inputs():
    """Two videos of 16 and 12 frames, with 3 and 2 events, whose frame captions change once in a gap."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 16, 24, generator=generator) + 1
    features[1, 12:] = 0
    captions = torch.randn(2, 1, 24, generator=generator).repeat(1, 16, 1)
    captions[0, 4:] = torch.randn(24, generator=generator)
    captions[0, 11:], captions[1, 5:] = torch.randn(2, 24, generator=generator)
    frame_mask = tensor([[1] * 16, [1] * 12 + [0] * 4])
    centers = tensor([[0.03, 0.5, 0.97], [0.1, 0.9, 0.0]]).requires_grad_()
    widths = tensor([[0.3, 0.3, 0.3], [0.3, 0.3, 0.0]]).requires_grad_()

    def make_masks(centers, widths, frame_mask):
        return event_masks(centers, widths, frame_mask, "gaussian", 2.0) * (widths > 0)[:, :, None]

    def make(**fields):
        config = SailConfig.for_method("sbs", **{"attraction_theta": -1.0, "similarity_loss_weight": 0.0, **fields})
        nothing = dict.fromkeys(("encoded", "encode", "caption_logits"))
        return LossInputs(
            config=config,
            features=features,
            frame_mask=frame_mask,
            make_masks=make_masks,
            counts=[3, 2],
            centers=centers,
            widths=widths,
            masks=make_masks(centers, widths, frame_mask),
            frame_caption_features=captions,
            **nothing,
        )

    return make


def test_without_gate_and_choice_it_is_eq_3_with_the_caption_of_the_frame_midway(inputs, monkeypatch):
    def open_gates(changes, centers, event_valid, frame_mask, beta):
        return event_valid[:, 1:].float(), torch.full_like(centers[:, 1:], 0.123)

    monkeypatch.setattr(loss_sail, "change_gates", open_gates)
    found = inputs(attraction_alpha=0, attraction_widths=[0.6], augmentation_loss_weight=0.25)
    # The middles .265, .735 of 16 frames and .5 of 12: frames 3, 11 and 5.
    captions = found.frame_caption_features
    found.transition_features = torch.stack([captions[0, [3, 11]], captions[1, [5, 9]]])
    losses = sail_losses(found)
    assert losses["attraction"] > 0.1
    torch.testing.assert_close(losses["attraction"], losses["augmentation"])
    torch.testing.assert_close(losses["total"], 0.65 * losses["attraction"])


def test_the_mask_lies_between_middle_and_change_and_has_the_width_that_fits_best(inputs):
    found = inputs(attraction_alpha=0.25)
    gates, cosines = found.attraction
    # Changes between frames 3 and 4, 10 and 11, of 0 to 15; 4 and 5 of 0 to 11. Middles .265, .735 and .5.
    places = tensor([[3.5 / 15, 10.5 / 15], [4.5 / 11, 0.0]])
    middles = tensor([[0.265, 0.735], [0.5, 0.0]])
    centers = 0.75 * middles + 0.25 * places
    assert frames_at(centers, found.frame_mask)[:, 0].tolist() == [3, 5]
    for b, n, frame in ((0, 0, 3), (0, 1, 10), (1, 0, 5)):
        of_width = []
        for width in (0.2, 0.4, 0.6):
            mask = event_masks(
                centers[b : b + 1, n : n + 1], tensor([[width]]), found.frame_mask[b : b + 1], "gaussian", 2.0
            )
            mean = (mask[0, 0][:, None] * found.features[b]).sum(0)
            of_width.append(torch.cosine_similarity(mean, found.frame_caption_features[b, frame], dim=0).item())
        assert cosines[b, n].item() == pytest.approx(max(of_width), abs=1e-5)
        assert gates[b, n] > 0
    shares = found.shares()
    assert shares["open_gates"] == 1 and shares["attracted_gaps"] == 1
    # No cosine is above 1, and three gaps out of three stay open.
    shares = inputs(attraction_theta=1.1).shares()
    assert shares["open_gates"] == 1 and shares["attracted_gaps"] == 0


def test_the_gradient_reaches_centres_alone_and_a_step_along_it_lowers_the_loss(inputs):
    found = inputs(attraction_theta=-1.0)
    loss = sail_losses(found)["total"]
    loss.backward()
    centers, widths = found.centers, found.widths
    assert (centers.grad[0] != 0).all() and (centers.grad[1, :2] != 0).all() and centers.grad[1, 2] == 0
    assert widths.grad is None or (widths.grad == 0).all()
    with torch.no_grad():
        centers -= 1e-3 * centers.grad / centers.grad.norm()
    assert sail_losses(inputs())["total"] < loss


@pytest.mark.parametrize("features", [torch.zeros(1, 8, 24), torch.full((1, 8, 24), 1e-30), torch.ones(1, 1, 24)])
def test_neither_value_nor_gradient_is_ever_nan(processor, features):
    model = make_model(processor, method="sbs").train()
    labels = {"caption_features": torch.ones(1, 3, 24), "frame_caption_features": features}
    output = model(video_features=features, num_events=tensor([3]), **labels)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- through the model --------------------------------------------------------------------------------------------


@pytest.fixture
def rows():
    """Two videos of 16 frames, each frame with a caption."""
    generator = torch.Generator().manual_seed(0)
    names = {"video_features": (16, 24), "frame_caption_features": (16, 24), "caption_features": (2, 24)}
    captions = ["A man lifts a bar.", "He puts it down."]
    return [
        {"captions": captions, **{name: torch.randn(size, generator=generator) for name, size in names.items()}}
        for _ in range(2)
    ]


def test_the_method_trains_its_mask_generator_by_the_captions_of_frames(processor, rows):
    rows[1] = {name: value[:9] if "frame" in name or "video" in name else value for name, value in rows[1].items()}
    # The generator whose events lie apart from the start.
    fields = {"mask_generator": "progress", "attraction_beta": -10.0, "attraction_theta": -1.0}
    model = make_model(processor, method="sbs", num_frames=16, **fields)
    output = model(**SailDataCollator(processor)(rows))
    o = output
    expected = o.loss_full + o.loss_positive + o.loss_negative + o.loss_similarity + 0.4 * o.loss_attraction
    torch.testing.assert_close(o.loss, expected)
    assert o.open_gates > 0 and o.attracted_gaps == o.open_gates
    o.loss_attraction.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached and all(name.startswith("model.mask_generator.") for name in reached)


def test_captions_of_frames_of_another_number_are_refused(processor, rows):
    batch = SailDataCollator(processor)(rows)
    model = make_model(processor, method="sbs", num_frames=16)
    with pytest.raises(ValueError, match=r"frame_caption_features.*\(2, 16, 24\)"):
        model(**{**batch, "frame_caption_features": batch["frame_caption_features"][:, :15]})
    labels = {name: batch[name] for name in ("video_features", "frame_caption_features")}
    with pytest.raises(ValueError, match="`num_events` is needed beside frame_caption_features"):
        model(**labels)
