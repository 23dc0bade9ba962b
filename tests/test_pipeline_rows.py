"""The pipeline on rows of stored features, where there is no video to read."""

import json

import datasets
import numpy as np
import pytest
import torch
from tiny import make_clip, make_model, make_processor
from transformers import pipeline

TASK = "dense-video-captioning"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    clip = make_clip(tmp_path_factory.mktemp("clip"))
    clip.vision_config.include_text_tower = True
    return clip


@pytest.fixture(scope="module")
def pipe(clip):
    """Its masks differ from video to video and from event to event."""
    processor = make_processor()
    model = make_model(processor, vision_config=clip.vision_config)
    model.model.vision_tower.load_state_dict(clip.model.visual.state_dict())
    model.model.text_tower.load_state_dict(clip.model.text.state_dict())
    torch.manual_seed(3)
    with torch.no_grad():
        model.model.mask_generator.center_head.weight.normal_()
        model.model.mask_generator.width_head.weight.normal_()
    model.generation_config.update(num_beams=2, max_new_tokens=5, full_max_new_tokens=10)
    return pipeline(TASK, model=model, processor=processor)


def row(length: int = 8, seed: int = 0, **fields) -> dict:
    features = np.random.default_rng(seed).normal(size=(length, 24)).astype(np.float16)
    return {"video_id": "one", "video_features": features, "duration": 20.0, "captions": ["A.", "B."], **fields}


def test_a_row_gives_the_events_of_the_model(pipe):
    events = pipe(row(), num_events=3)
    features = torch.from_numpy(row()["video_features"]).float()[None]
    outputs = pipe.model.generate(
        video_features=features, num_events=torch.tensor([3]), tokenizer=pipe.processor.tokenizer
    )
    assert events == pipe.processor.post_process_dense_captioning(outputs, [20.0])[0]
    assert [set(event) for event in events] == [{"start", "end", "text", "score"}] * 3


def test_lists_batches_generators_and_data_sets_of_rows(pipe):
    rows = [row(seed=seed, duration=10.0 + seed) for seed in range(5)]
    alone = [pipe(one) for one in rows]
    for several in (pipe(rows), pipe(rows, batch_size=2), list(pipe(one for one in rows))):
        for events, expected in zip(several, alone, strict=True):
            assert [event["text"] for event in events] == [event["text"] for event in expected]
            assert [event["start"] for event in events] == pytest.approx(
                [event["start"] for event in expected], abs=1e-4
            )
    data = datasets.Dataset.from_list([{**one, "video_features": one["video_features"].tolist()} for one in rows])
    assert [len(events) for events in pipe(list(data))] == [len(events) for events in alone]


@pytest.mark.parametrize("length", [3, 8, 30])
def test_features_of_any_length_are_resampled(pipe, length):
    from sail_hf.video_processing_sail import resample_features

    features = row(length)["video_features"].astype(np.float32)
    assert pipe(row(length, video_features=features)) == pipe(row(video_features=resample_features(features, 8)))


def test_captions_are_aligned_with_stored_features(pipe, clip):
    captions = ["A man lifts a bar.", "He puts it down.", "People clap."]
    for length in (5, 8, 30):
        found = pipe(row(length), captions=captions)
        features = torch.from_numpy(row(length)["video_features"]).float()
        expected = clip.align_features(features, captions, 20.0)
        assert [event["text"] for event in found] == captions
        for event, other in zip(found, expected, strict=True):
            assert (event["start"], event["end"]) == pytest.approx((other["start"], other["end"]))
    several = pipe([row(30), row(5, seed=1)], captions=[captions, captions[:2]], batch_size=2)
    assert [len(events) for events in several] == [3, 2]


def test_generated_captions_are_aligned_with_stored_features(pipe):
    events = pipe(row(), localization="alignment", num_events=2)
    assert len(events) == 2 and all(0 <= event["start"] <= event["end"] <= 20 for event in events)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"chunk_length_s": 5}, "no video to read: leave out chunk_length_s"),
        ({}, {"fps": 5}, "no video to read: leave out fps"),
        ({}, {"captions": ["A."], "frames_per_second": 4}, "no video to read: leave out frames_per_second"),
        ({"duration": None}, {}, "needs the video's `duration` in seconds, found None"),
        ({"duration": float("nan")}, {}, "`duration` in seconds, found nan"),
        ({"video_features": np.ones((4, 23))}, {}, r"shape \(L, 24\), found \(4, 23\)"),
        ({"video_features": np.ones((0, 24))}, {}, r"shape \(L, 24\), found \(0, 24\)"),
        ({"video_features": np.full((4, 24), np.nan)}, {}, "must be finite"),
    ],
)
def test_what_does_not_go_with_a_row_is_a_sentence(pipe, fields, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(row(**fields), **options)


def test_real_videos_and_their_features_a_second_give_about_the_same(clip, shared):
    """The pipeline on the files, and on features of one frame a second by the same CLIP, as others store them."""
    processor = make_processor(32)
    model = make_model(processor, vision_config=clip.vision_config, num_frames=32)
    model.model.vision_tower.load_state_dict(clip.model.visual.state_dict())
    model.model.text_tower.load_state_dict(clip.model.text.state_dict())
    torch.manual_seed(3)
    with torch.no_grad():  # masks that hang on the frames
        for weights in model.model.mask_generator.parameters():
            if weights.ndim > 1:
                weights.normal_(std=0.5)
    model.generation_config.update(num_beams=1, max_new_tokens=5, full_max_new_tokens=10)
    pipe = pipeline(TASK, model=model, processor=processor)
    captions = json.loads((shared / "annotations" / "activitynet" / "train.json").read_text(encoding="utf-8"))
    seen, read = [], []
    for video in sorted((shared / "videos" / "activitynet").glob("*.mp4")):
        features, duration = clip.encode_video(video, frames_per_second=1)
        row = {"video_features": features, "duration": duration}
        events = [pipe(video, num_events=3) for video in (str(video), row)]
        for spans, of_route in zip((seen, read), events, strict=True):
            spans.append([[event["start"] / duration, event["end"] / duration] for event in of_route])
        sentences = captions.get(video.stem, {}).get("sentences", ["A man runs.", "He falls."])
        aligned = pipe(str(video), captions=sentences, frames_per_second=1)
        assert pipe(row, captions=sentences) == aligned
    seen, read = np.array(seen), np.array(read)
    differences, others = np.abs(seen - read), np.abs(seen[:, None] - seen[None])
    print(
        f"\nshares of a video: {differences.mean():.4f}, at most {differences.max():.4f}; other videos {others.mean():.4f}"
    )
    # The videos of 14 and 18 seconds have fewer features than frames.
    assert len(seen) == 4 and 0 < differences.mean() < 0.02 and differences.mean() < others.mean() / 2
