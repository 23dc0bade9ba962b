"""A bank of captions in training, in the pipeline and in the shell."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import train
from colours import BLUE, COLOURS, GREEN, RED, SENTENCES, frames, make_colour_clip, make_colour_model, write_video
from datasets import Dataset
from tiny import CAPTIONS, make_processor, make_rows, make_tokenizer
from training_place import make_place, write_split
from transformers import pipeline

from sail_hf import SailForDenseVideoCaptioning
from sail_hf.cli import main
from sail_hf.context_sail import SailContext

# --- Training -----------------------------------------------------------------------------------------------------

CONTEXT = ["--model_config", '{"context_size": 3, "context_k": 4, "encoder_layers": 1, "encoder_ffn_dim": 32}']
CONTEXT += ["--method", "sail-sim"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, parts) -> Path:
    return make_place(tmp_path_factory.mktemp("context"), parts)


@pytest.fixture(scope="module")
def run(place) -> tuple[Path, list[int]]:
    """A whole run, and how many sentences each video of each training batch could not recall."""
    excluded = []
    retrieve = SailContext.retrieve

    def counting(self, clusters, exclude=None):
        excluded.append(exclude.sum(1).tolist())
        return retrieve(self, clusters, exclude)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SailContext, "retrieve", counting)
        train.main([str(place / "tiny.yaml"), "--output_dir", str(place / "run"), *CONTEXT])
    return place / "run", excluded


def test_the_bank_holds_the_training_captions_and_no_video_recalls_its_own(run):
    folder, excluded = run
    context = SailForDenseVideoCaptioning.from_pretrained(folder).model.context
    assert context.sentences == [text for _ in range(4) for video in CAPTIONS for text in video]
    assert context.features.norm(dim=1).float().sub(1).abs().max() < 1e-2
    # Two epochs of twelve videos, which have 3, 2 and 1 captions.
    assert sorted(count for batch in excluded for count in batch) == [1] * 8 + [2] * 8 + [3] * 8
    assert context.out.weight.abs().sum() > 0


def test_a_run_with_a_bank_goes_on(place, run, tmp_path):
    shutil.copytree(run[0] / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    trainer = train.main([str(place / "tiny.yaml"), "--output_dir", str(tmp_path / "run"), *CONTEXT])
    assert trainer.state.global_step == 4
    expected = SailForDenseVideoCaptioning.from_pretrained(run[0]).state_dict()
    found = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "run").state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)


def test_a_trained_model_gets_a_bank(place, tmp_path, monkeypatch):
    words = [str(place / "tiny.yaml"), "--method", "sail-sim", "--output_dir"]
    train.main([*words, str(tmp_path / "plain"), "--max_steps", "2"])
    made = []
    monkeypatch.setattr(train, "train", lambda trainer, resume: made.append(trainer))
    data = ["--dataset", str(place / "data"), "--use_cpu", "true", "--per_device_train_batch_size", "4"]
    name = ["--model_name_or_path", str(tmp_path / "plain"), "--output_dir", str(tmp_path / "on")]
    train.main([*name, *data, "--model_config", '{"context_size": 3}'])
    model = made[0].model.eval()
    plain = SailForDenseVideoCaptioning.from_pretrained(tmp_path / "plain")
    frames_of_one = make_rows(3)[0]["video_features"][None]
    count = torch.tensor([2])
    one, two = (m.model(frames_of_one, num_events=count) for m in (plain, model))
    assert torch.equal(one.last_hidden_state, two.last_hidden_state)
    assert torch.equal(one.event_masks, two.event_masks) and two.context is not None
    with pytest.raises(SystemExit, match="would be lost or lacking"):
        made[0].save_model()
        train.main([*name[:1], str(tmp_path / "on"), *name[2:], *data, "--model_config", '{"context_size": 0}'])


def test_a_bank_of_other_captions_needs_no_videos(place, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(train, "train", lambda trainer, resume: made.append(trainer))
    write_split(tmp_path / "text", "train", make_rows(30), leave_out=("video_features", "timestamps"))
    words = [str(place / "tiny.yaml"), "--output_dir", str(tmp_path / "run"), *CONTEXT]
    train.main([*words, "--context_captions", str(tmp_path / "text")])
    assert made[0].model.model.context.sentences == [text for video in CAPTIONS for text in video]


@pytest.mark.parametrize(
    ("column", "arguments", "words"),
    [
        ("video_id", CONTEXT, "needs the column video_id"),
        ("caption_features", [*CONTEXT, "--method", "fixed"], "lacks caption_features, which a bank"),
        (None, ["--method", "fixed", "--context_captions", "data"], "fills a bank, which the model lacks"),
    ],
)
def test_what_a_bank_needs_is_missed_before_training(place, tmp_path, column, arguments, words):
    write_split(tmp_path / "data", "train", make_rows(), leave_out=(column,) if column else ())
    with pytest.raises(SystemExit, match=words):
        train.main(
            [str(place / "tiny.yaml"), "--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path), *arguments]
        )


def test_a_bank_of_another_size_is_refused(place, tmp_path):
    row = {"video_id": "a", "captions": ["One."], "caption_features": [[1.0, 2.0]], "video_features": [[0.0] * 24]}
    (tmp_path / "text").mkdir()
    Dataset.from_list([row]).to_parquet(tmp_path / "text" / "train-00000-of-00001.parquet")
    words = [str(place / "tiny.yaml"), "--output_dir", str(tmp_path / "run"), *CONTEXT]
    with pytest.raises(SystemExit, match=r"shape \(sentences, 24\) .* found features \(1, 2\)"):
        train.main([*words, "--context_captions", str(tmp_path / "text")])


# --- Captioning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explaining(tmp_path_factory) -> Path:
    """A model of plain colours whose bank knows them, and `video.mp4`."""
    folder = tmp_path_factory.mktemp("explaining")
    clip = make_colour_clip(folder / "clip")
    processor = make_processor()
    processor.tokenizer = make_tokenizer(list(SENTENCES.values()))
    make_colour_model(clip, processor, [RED, GREEN, BLUE]).save_pretrained(folder / "plain")
    model = SailForDenseVideoCaptioning.from_pretrained(folder / "plain", context_size=3, context_k=2)
    model.model.context.fill(clip.encode_texts(list(SENTENCES.values())), list(COLOURS), list(SENTENCES.values()))
    for name in ("plain", "model"):
        processor.save_pretrained(folder / name)
    model.save_pretrained(folder / "model")
    write_video(folder / "video.mp4", ("red", 2), ("green", 3), ("blue", 2))
    return folder


def test_events_tell_what_they_leaned_on(explaining):
    pipe = pipeline("dense-video-captioning", model=str(explaining / "model"))
    video = frames(("red", 2), ("green", 3), ("blue", 2))
    events = pipe(video, fps=10, localization="alignment", explain=1)
    assert [event["text"] for event in events] == [RED, GREEN, BLUE]
    assert [event["context"][0]["text"] for event in events] == [RED, GREEN, BLUE]
    assert all(0 < event["context"][0]["cosine"] <= 1 for event in events)
    plain = pipe(video, fps=10, localization="alignment")
    assert plain == [{name: value for name, value in event.items() if name != "context"} for event in events]


def test_a_real_video(explaining, shared):
    """Of a CLIP that knows four colours: the shape of what comes out, not its sense."""
    pipe = pipeline("dense-video-captioning", model=str(explaining / "model"))
    video = sorted((shared / "videos" / "activitynet").glob("*.mp4"))[0]
    events = pipe(str(video), num_events=3, explain=2)
    assert len(events) == 3
    for event in events:
        assert {item["text"] for item in event["context"]} <= set(SENTENCES.values())
        assert 1 <= len(event["context"]) <= 2 and all(-1 <= item["cosine"] <= 1 for item in event["context"])


@pytest.mark.parametrize(("model", "number"), [("plain", 3), ("model", 0)])
def test_explaining_needs_a_bank(explaining, model, number):
    pipe = pipeline("dense-video-captioning", model=str(explaining / model))
    with pytest.raises(ValueError, match="a positive number of sentences, needs a model with a bank"):
        pipe(frames(("red", 2)), fps=10, explain=number)


def test_the_command_says_what_explaining_needs(explaining, capsys):
    assert main(["caption", str(explaining / "video.mp4"), "--model", str(explaining / "plain"), "--explain"]) == 1
    assert "needs a model with a bank of captions" in capsys.readouterr().err


def test_the_command_explains(explaining, capsys):
    words = ["caption", str(explaining / "video.mp4"), "--model", str(explaining / "model"), "--format", "json"]
    assert main([*words, "--localization", "alignment", "--explain", "--quiet"]) == 0
    output = capsys.readouterr()
    events = json.loads(output.out)
    assert [event["context"][0]["text"] for event in events] == [RED, GREEN, BLUE]
    lines = output.err.splitlines()
    for event in events:
        place = lines.index(f"{explaining / 'video.mp4'}: {event['text']}")
        cosine, text = lines[place + 1].split(maxsplit=1)
        assert (float(cosine), text) == (pytest.approx(event["context"][0]["cosine"], abs=0.006), event["text"])
