"""training/playground/why_queries.py on a tiny model: what gradients say, and what a teacher teaches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make_model, make_processor, make_rows
from why_queries import TEACHERS, described, gradients, teach

from sail_hf.loss_sail import LOSSES


def test_slopes_that_point_to_the_truth_less_the_means_of_their_places():
    # The first of two: opposite slopes 2 and 4, errors 1 and 3, both one off their means; the second has no say.
    rows = [((2, 0), -2.0, 1.0), ((2, 0), -4.0, 3.0), ((2, 1), 5.0, 0.0)]
    found = described(rows)
    assert found["rms"] == pytest.approx(np.sqrt((4 + 16 + 25) / 3)) and found["r"] == pytest.approx(1)
    assert described([(key, -slope, error) for key, slope, error in rows])["r"] == pytest.approx(-1)


@pytest.fixture
def videos():
    """The tiny rows, six videos with true spans of equal lengths."""
    rows = [row for seed in range(2) for row in make_rows(seed)]
    counts = torch.tensor([len(row["captions"]) for row in rows])
    index, valid = torch.arange(3), torch.arange(3) < counts[:, None]
    pad = torch.nn.utils.rnn.pad_sequence
    return SimpleNamespace(
        rows=rows,
        counts=counts,
        features=torch.stack([row["video_features"] for row in rows]),
        captions=pad([row["caption_features"] for row in rows], True),
        transitions=pad([row["transition_features"] for row in rows], True),
        centers=(index + 0.5) / counts[:, None] * valid,
        widths=valid / counts[:, None],
    )


def test_gradients_of_losses_and_of_the_truth(videos):
    processor = make_processor()
    model = make_model(processor, **{loss.weight: 1.0 for loss in LOSSES})
    found = gradients(model, processor, videos, len(videos.rows))
    # The whole-video caption does not see the masks.
    assert set(found) == {loss.name for loss in LOSSES if loss.part is None} - {"full"} | {"true spans"}
    assert all(np.isfinite(list(values.values())).all() for values in found.values())
    assert found["true spans"]["centre rms"] > 0


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teacher_changes_the_generator_alone(teacher, videos, monkeypatch):
    weights = {loss.weight: 0.0 for loss in LOSSES} | (TEACHERS[teacher] or {})
    model = make_model(make_processor(), **weights)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr("ablate.look_at_masks", lambda model, scored: {"centers": locate(model, videos)})
    args = SimpleNamespace(looks=[1, 60], batch_size=6)
    torch.manual_seed(0)
    first, last = teach(model, teacher, 1e-2, videos, None, args, seed=0)
    assert (first["updates"], last["updates"]) == (1, 60)
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed and all(name.startswith("model.mask_generator.") for name in changed)
    if teacher == "true spans":
        errors = [(look["centers"] - videos.centers).abs().mean() for look in (first, last)]
        assert errors[1] < errors[0] / 2


@torch.no_grad()
def locate(model, videos) -> torch.Tensor:
    frame_mask = torch.ones(videos.features.shape[:2], dtype=torch.long)
    return model.model.localize(videos.features, frame_mask, videos.counts)[0]
