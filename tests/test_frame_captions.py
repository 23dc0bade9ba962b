"""The playground's frame captions: an oracle whose errors come at the rates that it states."""

import json
from collections import Counter

import frame_captions as module
import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, List, Value, load_dataset
from frame_captions import FrameCaptionArguments, add_oracle, frame_captions
from tiny import make_clip
from world import ACTIONS, FPS, Event, actor_in, sample_script

from sail_hf.video_reading import open_video, uniform_times


def shown_in(script, num_frames):
    """What each frame that extract_features.py takes was drawn by: an event, a happening or `None`."""
    numbers = np.arange(script.num_frames, dtype=np.int32)[:, None, None, None]
    video = np.concatenate([numbers % 256, numbers // 256, 0 * numbers], -1).astype(np.uint8)
    with open_video(video, fps=FPS) as reader:
        frames = [
            int(f[0, 0, 0]) + 256 * int(f[0, 0, 1])
            for f in reader.frames_at(uniform_times(num_frames, 0, reader.duration))
        ]
    parts = [*script.events, *script.happenings]
    return [next((part for part in parts if part.start <= frame < part.end), None) for frame in frames]


def action_in(sentence):
    return next((action for action, phrases in ACTIONS.items() if any(phrase in sentence for phrase in phrases)), None)


def test_without_errors_every_frame_is_told_as_it_was_drawn():
    for index in range(40):
        script = sample_script(0, "train", index)
        said = frame_captions(script, 48, 0.0, np.random.default_rng(index))
        for part, sentence in zip(shown_in(script, 48), said, strict=True):
            event = isinstance(part, Event)
            assert (actor_in(sentence), action_in(sentence)) == ((part.actor, part.action) if event else (None, None))


def test_errors_come_at_the_stated_rates():
    counts, stale, turns, events = Counter(), 0, 0, 0
    for index in range(200):
        script = sample_script(0, "train", index)
        said, shown = frame_captions(script, 48, 0.1, np.random.default_rng(index)), shown_in(script, 48)
        for i in range(1, 48):
            part, sentence = shown[i], said[i]
            if part is not shown[i - 1]:  # no sentence comes twice by chance
                turns, stale = turns + 1, stale + (sentence == said[i - 1])
            if isinstance(part, Event) and sentence != said[i - 1]:
                events += 1
                wrong = (actor_in(sentence) not in (None, part.actor), action_in(sentence) not in (None, part.action))
                counts[wrong if actor_in(sentence) else "generic"] += 1
    assert stale / turns == pytest.approx(0.1, abs=0.025)
    # Of the frames that are not stale.
    for kind in ((True, False), (False, True), "generic"):
        assert counts[kind] / events == pytest.approx(0.1 / 0.9, abs=0.02), kind
    assert counts[True, True] == 0


@pytest.fixture
def world(tmp_path):
    """A data set of four videos of the world 5 as extract_features.py makes it, with random frames, and its CLIP."""
    clip, rows = make_clip(tmp_path / "clip"), []
    (tmp_path / "playground").mkdir()
    (tmp_path / "playground" / "playground.json").write_text(json.dumps({"world_version": 2, "seed": 5}))
    for index in range(4):
        captions = [event.sentence for event in sample_script(5, "train", index).events]
        features = {"video_features": np.random.default_rng(index).normal(size=(6, 24)).astype(np.float16)}
        features["caption_features"] = clip.encode_texts(captions).half().numpy()
        rows.append({"video_id": f"train_{index:04}", "captions": captions, **features})
    kinds = {"video_id": Value("string"), "captions": List(Value("string"))}
    kinds |= {"video_features": Array2D((6, 24), "float16"), "caption_features": Array2D((None, 24), "float16")}
    (tmp_path / "dataset").mkdir()
    path = tmp_path / "dataset" / "train-00000-of-00001.parquet"
    Dataset.from_list(rows, features=Features(kinds)).to_parquet(path)
    return tmp_path


def arguments(world, **changes):
    folders = {name: str(world / name) for name in ("playground", "dataset", "clip")}
    return FrameCaptionArguments(**{**folders, **changes})


def test_one_command_adds_the_columns_and_the_same_one_the_same(world):
    path = world / "dataset" / "train-00000-of-00001.parquet"
    add_oracle(arguments(world))
    first = path.read_bytes()
    add_oracle(arguments(world))
    assert path.read_bytes() == first
    data = load_dataset(str(world / "dataset"), split="train", cache_dir=str(world / "cache")).with_format("numpy")
    for row in data:
        assert len(row["frame_captions"]) == 6 and row["frame_caption_features"].shape == (6, 24)
        assert "oracle with noise" in row["frame_captioner"] and "stale 10%" in row["frame_captioner"]
    add_oracle(arguments(world, seed=1))
    assert path.read_bytes() != first


def test_a_data_set_of_another_world_is_refused(world):
    (world / "playground" / "playground.json").write_text(json.dumps({"world_version": 2, "seed": 6}))
    before = (world / "dataset" / "train-00000-of-00001.parquet").read_bytes()
    with pytest.raises(ValueError, match="of another world than .*train_0000 differs"):
        add_oracle(arguments(world))
    assert (world / "dataset" / "train-00000-of-00001.parquet").read_bytes() == before
    with pytest.raises(ValueError, match=r"--error_rate must lie in \[0, 0.25\], found 0.3"):
        arguments(world, error_rate=0.3)


def test_the_errors_are_those_that_the_docstring_states():
    assert all(f"\n    {error}" in module.__doc__ for error in module.ERRORS)
