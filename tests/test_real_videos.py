"""Real ActivityNet videos with their real captions, all the way: features, training, and captions from the mp4 files.

The CLIP has random weights, so the features tell the three videos apart without meaning anything: the test is that the
parts fit together on real files and that a small model can learn them by heart.
"""

import json

import extract_features
import pytest
import train
from demo import write_decoder
from tiny import make_clip
from transformers import pipeline

from sail_hf.processing_sail import format_sentence

TRAIN = ["v_TpB_zMG3XBA", "v_rBMQFpHspmo", "v_ZNVhz7ctTq0"]


@pytest.fixture(scope="module")
def annotations(shared):
    """Captions of the three training videos, without the time stamps."""
    everything = json.loads((shared / "annotations" / "activitynet" / "train.json").read_text(encoding="utf-8"))
    return {
        video: {"duration": everything[video]["duration"], "sentences": everything[video]["sentences"]}
        for video in TRAIN
    }


@pytest.fixture(scope="module")
def checkpoint(shared, annotations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    (folder / "captions.json").write_text(json.dumps(annotations), encoding="utf-8")
    make_clip(folder / "clip")
    videos = str(shared / "videos" / "activitynet")
    extract_features.main(
        ["--annotations", str(folder / "captions.json"), "--videos", videos, "--clip", str(folder / "clip")]
        + ["--output", str(folder / "dataset"), "--num_frames", "16"]
    )
    write_decoder(folder / "decoder", [text for row in annotations.values() for text in row["sentences"]])
    config = {
        "encoder_layers": 1,
        "encoder_ffn_dim": 128,
        "attention_head_dim": 32,
        "mask_decoder_ffn_dim": 64,
        "dropout": 0.0,
        "initializer_range": 0.08,
        "position_initializer_range": 0.08,
        "augmentation_loss_weight": 0.0,  # there are no transition captions here
    }
    train.main(
        ["--clip", str(folder / "clip"), "--decoder", str(folder / "decoder"), "--decoder_from_scratch", "True"]
        + ["--dataset", str(folder / "dataset"), "--output_dir", str(folder / "model"), "--method", "sail-align"]
        # Two of the sentences start with "The lady": with the full stop and the space before, a repeated 4-gram.
        + ["--generation_config", '{"full_max_new_tokens": 256, "no_repeat_ngram_size": 0}']
        + ["--num_frames", "16", "--model_config", json.dumps(config), "--captioning_epochs", "60"]
        + ["--localization_epochs", "160", "--learning_rate", "2e-3", "--save_strategy", "no", "--report_to", "none"]
        + ["--disable_tqdm", "True", "--use_cpu", "True"]
    )
    return folder / "model"


def test_overfitted_model_gives_back_its_captions_from_the_files(checkpoint, annotations, shared):
    pipe = pipeline("dense-video-captioning", model=str(checkpoint))
    for video, row in annotations.items():
        events = pipe(str(shared / "videos" / "activitynet" / f"{video}.mp4"))
        assert len(events) == len(row["sentences"])
        assert sorted(event["text"] for event in events) == sorted(format_sentence(s) for s in row["sentences"])
        assert all(0 <= event["start"] <= event["end"] <= row["duration"] + 1 for event in events)


def test_unseen_real_video_gives_events_within_it(checkpoint, shared):
    validation = json.loads((shared / "annotations" / "activitynet" / "val_1.json").read_text(encoding="utf-8"))
    events = pipeline("dense-video-captioning", model=str(checkpoint))(
        str(shared / "videos" / "activitynet" / "v_GGSY1Qvo990.mp4")
    )
    assert events
    assert all(0 <= e["start"] <= e["end"] <= validation["v_GGSY1Qvo990"]["duration"] + 1 for e in events)
