"""What people pass to the model by mistake: each is a sentence that says what was expected and what was found."""

import re

import pytest
import torch
from torch import tensor


@pytest.mark.parametrize(
    "change, words",
    [
        ({"video_features": torch.zeros(3, 8, 25)}, [r"24", r"\(3, 8, 25\)"]),
        ({"video_features": torch.zeros(8, 24)}, [r"24", r"\(8, 24\)"]),
        (
            {"video_features": torch.zeros(3, 9, 24), "video_attention_mask": torch.ones(3, 9)},
            [r"at most 8", r"\(3, 9, 24\)"],
        ),
        ({"video_features": torch.zeros(3, 0, 24), "video_attention_mask": torch.ones(3, 0)}, [r"\(3, 0, 24\)"]),
        ({"video_features": None}, ["pixel_values_videos", "video_features"]),
        ({"pixel_values_videos": torch.zeros(3, 8, 3, 32, 32)}, ["pixel_values_videos", "video_features"]),
        ({"video_attention_mask": torch.ones(3, 7)}, ["video_attention_mask", r"\(3, 8\)", r"\(3, 7\)"]),
        ({"video_attention_mask": tensor([[0, 1, 1, 1, 1, 1, 1, 1]] * 3)}, ["video_attention_mask", "come first"]),
        ({"video_attention_mask": tensor([[1, 1, 1, 1, 0, 0, 1, 1]] * 3)}, ["video_attention_mask", "come first"]),
        ({"video_attention_mask": torch.zeros(3, 8)}, ["video_attention_mask", "come first"]),
        ({"num_events": tensor([3, 2])}, ["num_events", r"\(3\)", r"\(2,\)"]),
        ({"num_events": tensor([3, 2, 0])}, ["num_events", "positive"]),
        ({"num_events": tensor([3, 2, 5])}, ["num_events", "at most 3 as in event_labels", r"\[3, 2, 5\]"]),
        ({"num_events": None}, ["num_events", "event_labels, complement_labels, caption_features"]),
        ({"event_labels": torch.ones(6, 4, dtype=torch.long)}, ["event_labels", r"\(6, 4\)"]),
        ({"complement_labels": torch.ones(3, 2, 4, dtype=torch.long)}, ["complement_labels", r"\(3, 3, any\)"]),
        ({"full_labels": torch.ones(2, 4, dtype=torch.long)}, ["full_labels", "3", "2"]),
        ({"caption_features": torch.zeros(3, 2, 24)}, ["caption_features", r"\(3, 3, 24\)", r"\(3, 2, 24\)"]),
        ({"caption_features": torch.zeros(3, 3, 16)}, ["caption_features", r"\(3, 3, 24\)", r"\(3, 3, 16\)"]),
        ({"transition_features": torch.zeros(3, 3, 24)}, ["transition_features", r"\(3, 2, 24\)", r"\(3, 3, 24\)"]),
    ],
)
def test_wrong_inputs_are_named(model, batch, change, words):
    with pytest.raises(ValueError) as error:
        model(**{**batch, **change})
    for word in words:
        assert re.search(word, str(error.value)), (word, str(error.value))


def test_more_events_than_queries_are_named(model, batch):
    with pytest.raises(ValueError, match="4 event queries.*num_queries.*5 events"):
        model(batch["video_features"], num_events=tensor([3, 2, 5]))


def test_unknown_arguments_are_named(model, batch):
    with pytest.raises(TypeError, match="output_attention.*output_attentions"):
        model(**batch, output_attention=True)


def test_frames_need_a_clip_inside(model):
    with pytest.raises(ValueError, match="no CLIP vision tower"):
        model.generate(pixel_values_videos=torch.zeros(1, 4, 3, 32, 32))
