"""Where words are seen, out of the pipeline: times, boxes of the frame, crops, stored features, and models without the head."""

import io
import json
import logging

import numpy as np
import pytest
import torch
from numbered_video import render
from tiny import make_clip, make_model, make_processor
from torch import tensor
from transformers import pipeline

from sail_hf.cli import main
from sail_hf.export import format_json, format_srt
from sail_hf.grounding_sail import seen_words
from sail_hf.video_reading import open_video
from sail_hf.visualization import plot_words

TASK = "dense-video-captioning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with a head that matters, and whose sentences are made of a few words."""
    folder = tmp_path_factory.mktemp("grounded")
    clip, processor = make_clip(folder / "clip"), make_processor()
    model = make_model(processor, grounding=True, vision_config=clip.vision_config)
    torch.manual_seed(0)
    with torch.no_grad():
        model.grounding_head.out_proj.weight.normal_(std=0.5)
        model.grounding_head.q_proj.weight.normal_(std=3)
        model.model.mask_generator.center_head.weight.normal_()
        model.model.mask_generator.width_head.weight.normal_()
    words = {token for text in ("A man lifts a bar", " clap") for token in processor.tokenizer(text)["input_ids"]}
    words -= set(processor.tokenizer("A")["input_ids"])
    others = [token for token in range(len(processor.tokenizer)) if token not in words]
    model.generation_config.update(num_beams=2, max_new_tokens=6, suppress_tokens=others)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline(TASK, model=str(folder / "model"))


def wide_video(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (16, 36, 64, 3), dtype=np.uint8)


# --- a word -------------------------------------------------------------------------------------------------------


def test_a_word_by_hand():
    """Two content words; of one the frames with at least half of the best one's attention, around it and not beyond a gap."""
    heat = torch.zeros(3, 6, 4)
    mass = tensor([0.2, 0.0, 0.15, 0.3, 0.25, 0.1])
    heat[0, :, 1] = mass  # the upper right of 2 x 2 patches
    heat[1, :, 1] = mass
    heat[1, 3] = tensor([0.1, 0.1, 0.0, 0.1])  # L-shaped: its box is the best rectangle, which holds two thirds
    heat[2, 0, 2] = 1.0
    times = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    man, bar = seen_words("A man, the bar.", heat, [[], [0, 1], [2], [2]], times, (0.2, 0.0, 0.8, 1.0))
    assert (man["text"], man["start"], man["end"]) == ("man", 3.0, 9.0)
    assert [box["time"] for box in man["boxes"]] == [4.0, 6.0, 8.0]
    # The right half of what CLIP saw is 0.5 to 0.8 of the frame; the mean heat of the best frame is 0.05, 0.2, 0, 0.05.
    torch.testing.assert_close(tensor([box["box"] for box in man["boxes"]]), tensor([[0.5, 0.0, 0.8, 0.5]] * 3))
    assert [box["score"] for box in man["boxes"]] == pytest.approx([0.15, 0.2, 0.25])
    assert man["score"] == pytest.approx(0.6)
    assert man["heat"]["time"] == 6.0 and man["heat"]["box"] == pytest.approx([0.2, 0.0, 0.8, 1.0])
    assert man["heat"]["values"] == [pytest.approx([0.25, 1.0], abs=1e-3), pytest.approx([0.0, 0.25], abs=1e-3)]
    # At the start of the video a word begins with it; its frame reaches half-way to the next.
    assert (bar["text"], bar["start"], bar["end"]) == ("bar", 0.0, 1.0)


# --- the pipeline -------------------------------------------------------------------------------------------------


def test_events_have_their_words(pipe, caplog):
    video = wide_video()
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        events = pipe(video, fps=4, grounding=True, num_events=3)
    assert "CLIP saw 22% to 78% of the frames' width" in caplog.text
    plain = pipe(video, fps=4, num_events=3)
    assert [{key: x for key, x in event.items() if key != "words"} for event in events] == plain
    assert any(event["words"] for event in events)
    for event in events:
        spoken = iter(event["text"].split())
        for word in event["words"]:
            assert any(word["text"] in other for other in spoken)  # in the sentence's order
            assert 0 <= word["start"] < word["end"] <= 4 + 1e-6
            assert word["score"] == pytest.approx(sum(box["score"] for box in word["boxes"])) and word["score"] <= 1
            for box in word["boxes"]:
                assert word["start"] <= box["time"] <= word["end"]
                x0, y0, x1, y1 = box["box"]
                assert 7 / 32 - 1e-6 <= x0 < x1 <= 25 / 32 + 1e-6 and 0 <= y0 < y1 <= 1
    assert format_srt(events) == format_srt(plain)  # subtitles are as they were
    assert json.loads(format_json(events))[0]["words"] == events[0]["words"]


def test_a_call_can_leave_out_what_the_pipeline_was_made_for(folder):
    pipe = pipeline(TASK, model=str(folder / "model"), grounding=True)
    assert all("words" in event for event in pipe(wide_video(), fps=4, num_events=2))
    assert not any("words" in event for event in pipe(wide_video(), fps=4, num_events=2, grounding=False))


def test_a_model_without_a_vision_tower_says_so(folder):
    model = make_model(make_processor(), grounding=True).model
    with pytest.raises(ValueError, match="has no CLIP vision tower"):
        model.get_region_features(torch.zeros(1, 2, 3, 32, 32))


def test_words_are_those_of_the_models_own_attention(pipe):
    """Of one event, from the model's own parts: pixels, generation, attention."""
    video = wide_video(1)
    inputs = pipe.processor(videos=video, fps=4)
    features, regions = pipe.model.model.get_region_features(inputs["pixel_values_videos"])
    given = {"video_features": features, "region_features": regions}
    outputs = pipe.model.generate(**given, num_events=tensor([1]), tokenizer=pipe.processor.tokenizer)
    (event,) = pipe(video, fps=4, grounding=True, num_events=1)
    labels = tensor(pipe.processor.caption_labels([event["text"]])["event_labels"])[None]
    frames = torch.ones(features.shape[:2], dtype=torch.long)
    (attention,) = pipe.model.ground_events(features, frames, outputs.event_masks, tensor([1]), labels, regions)
    places = pipe.processor.word_positions(event["text"])
    times = np.linspace(0, inputs["durations"][0], 8).tolist()
    crop = pipe.processor.video_processor.seen_bounds(36, 64)
    expected = seen_words(event["text"], attention, places, times, crop)
    assert [word["text"] for word in event["words"]] == [word["text"] for word in expected] != []
    for found, own in zip(event["words"], expected, strict=True):
        assert found["boxes"][0]["box"] == own["boxes"][0]["box"]
        assert (found["start"], found["score"]) == pytest.approx((own["start"], own["score"]), rel=1e-3)


def test_batches_and_chunks(pipe):
    videos = [wide_video(2), wide_video(3)[:, :, :48]]
    alone = [pipe(video, fps=4, grounding=True, num_events=2) for video in videos]
    together = pipe(videos, fps=4, grounding=True, num_events=2, batch_size=2)
    for one, other in zip(alone, together, strict=True):
        assert [event["text"] for event in one] == [event["text"] for event in other]
        boxes = [[word["boxes"][0]["box"] for event in events for word in event["words"]] for events in (one, other)]
        assert boxes[0] == boxes[1] != []
    # Seconds of the video, not of a chunk, whose frames lie within 2 s.
    events = pipe(wide_video(4), fps=4, grounding=True, chunk_length_s=2, num_events=4)
    words = [word for event in events for word in event["words"]]
    assert any(word["start"] < 1 for word in words) and any(word["start"] > 2 for word in words)
    assert all(word["end"] - word["start"] <= 2 for word in words)


def test_stored_features_bring_their_patches(pipe, caplog):
    pixels = pipe.processor(videos=wide_video(), fps=4)["pixel_values_videos"]
    features, regions = pipe.model.model.get_region_features(pixels)
    row = {"video_features": features[0], "region_features": regions[0].numpy(), "duration": 4.0}
    with pytest.raises(ValueError, match="needs `region_bounds`"):
        pipe(row, grounding=True)
    row["region_bounds"] = pipe.processor.video_processor.seen_bounds(36, 64)
    found = pipe(row, grounding=True, num_events=2)
    expected = pipe(wide_video(), fps=4, grounding=True, num_events=2)
    assert [e["text"] for e in found] == [e["text"] for e in expected]
    boxes = [[box["box"] for e in events for w in e["words"] for box in w["boxes"]] for events in (found, expected)]
    assert boxes[0] == boxes[1] != []
    blind = {"video_features": features[0], "duration": 4.0}
    with pytest.raises(ValueError, match="a row needs `region_features` beside its"):
        pipe(blind, grounding=True)


def test_captions_with_times_from_elsewhere_are_not_grounded(pipe):
    with pytest.raises(ValueError, match="leave out grounding"):
        pipe(wide_video(), captions=["A man."], fps=4, grounding=True)


def test_a_model_without_the_head_says_what_to_do(tmp_path):
    clip, processor = make_clip(tmp_path / "clip"), make_processor()
    make_model(processor, vision_config=clip.vision_config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="no grounding head. Train one with"):
        pipeline(TASK, model=str(tmp_path / "model"))(wide_video(), fps=4, grounding=True)


def test_a_grounded_model_that_is_given_no_patches_says_so(pipe, caplog):
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        pipe.model.generate(torch.zeros(1, 8, 24), num_events=tensor([1]))
    assert "no `region_features` were given: its sentences do without patches" in caplog.text


def test_a_real_video(pipe, shared):
    """Random weights: the shape of what comes out, not its sense."""
    video = sorted((shared / "videos" / "activitynet").glob("*.mp4"))[0]
    events = pipe(str(video), grounding=True, num_events=2)
    with open_video(str(video)) as reader:
        duration = reader.duration
        height, width = next(reader.frames_at([0.0])).shape[:2]
    x0, y0, x1, y1 = pipe.processor.video_processor.seen_bounds(height, width)
    words = [word for event in events for word in event["words"]]
    assert words and all(0 <= word["start"] < word["end"] <= duration + 1e-6 for word in words)
    for box in (box["box"] for word in words for box in word["boxes"]):
        assert x0 - 1e-6 <= box[0] < box[2] <= x1 + 1e-6 and y0 - 1e-6 <= box[1] < box[3] <= y1 + 1e-6
    plot_words(str(video), next(event for event in events if event["words"])).savefig(io.BytesIO())


def test_the_command(folder, tmp_path, capsys):
    video = render(tmp_path / "a.mp4", num_frames=60)
    words = ["caption", str(video), "--model", str(folder / "model"), "--num-events", "2", "--grounding", "--quiet"]
    assert main([*words, "--format", "json,html", "--output", str(tmp_path / "out")]) == 0
    events = json.loads((tmp_path / "out" / "a.json").read_text())
    assert all("words" in event for event in events) and any(event["words"] for event in events)
    assert '"heat"' in (tmp_path / "out" / "a.html").read_text()
