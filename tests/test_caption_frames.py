"""training/caption_frames.py against a scripted server that looks at the pictures it gets."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import extract_features
import numpy as np
import pytest
import train
from answer_log import read_log
from caption_frames import GenerateArguments, MergeArguments, generate, main, merge
from chat_server import chat_server
from datasets import load_dataset
from numbered_video import read_number, render
from PIL import Image
from tiny import make_clip, make_config

from sail_hf.clip_sail import load_clip
from sail_hf.video_reading import open_video, uniform_times

SCRIPT = Path(__file__).parents[1] / "training" / "caption_frames.py"
NUM_FRAMES = 5
VIDEOS = {"v_first": 40, "v_second": 63, "v_third": 90}


def number_in(body: dict) -> int:
    """The number of the frame that a request shows."""
    uri = body["messages"][0]["content"][0]["image_url"]["url"]
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return read_number(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))


def see(body: dict) -> tuple[str, str]:
    return f"A picture of number {number_in(body)}.", "stop"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Videos, a CLIP, and a data set with features of a training and a validation split."""
    folder = tmp_path_factory.mktemp("home")
    make_clip(folder / "clip")
    (folder / "videos").mkdir()
    for split, names in (("train", VIDEOS), ("validation", {"v_other": 30})):
        content = {}
        for name, count in names.items():
            render(folder / "videos" / f"{name}.mp4", num_frames=count)
            content[name] = {"timestamps": [[0, 0.5], [0.5, 1]], "sentences": ["A man stands.", "He sits down."]}
            content[name]["duration"] = count / 30
        (folder / f"{split}.json").write_text(json.dumps(content))
        arguments = ["--annotations", folder / f"{split}.json", "--videos", folder / "videos", "--split", split]
        arguments += ["--clip", folder / "clip", "--output", folder / "data", "--num_frames", NUM_FRAMES]
        extract_features.main([str(word) for word in arguments])
    return folder


@pytest.fixture
def dataset(home, tmp_path) -> Path:
    shutil.copytree(home / "data", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def ask(home, dataset, tmp_path):
    """Runs `generate`; the log's name may be another one."""

    def call(server, log="log.jsonl", **changes):
        fields = {"dataset": str(dataset), "videos": str(home / "videos"), "llm": "seer", "base_url": server.url}
        generate(GenerateArguments(**{**fields, "output": str(tmp_path / log), "concurrency": 2, **changes}))
        return str(tmp_path / log)

    return call


def merged(home, dataset, logs):
    merge(MergeArguments(dataset=str(dataset), logs=logs, clip=str(home / "clip")))
    return load_dataset(str(dataset), cache_dir=f"{dataset}.cache").with_format("numpy")


def expected_numbers(home) -> dict[str, list[int]]:
    """The number in each frame that extract_features.py takes."""
    numbers = {}
    for name in VIDEOS:
        with open_video(home / "videos" / f"{name}.mp4") as reader:
            frames = reader.frames_at(uniform_times(NUM_FRAMES, 0, reader.duration))
            numbers[name] = [read_number(frame) for frame in frames]
    return numbers


# --- what is asked, and what becomes of it


def test_every_frame_of_the_features_is_captioned_by_its_own_picture(home, dataset, ask, capsys):
    before = load_dataset(str(dataset), split="train", cache_dir=f"{dataset}.before").with_format("numpy")
    with chat_server(see) as server:
        logs = [ask(server, f"{i}.jsonl", shard=f"{i}/2", llm_revision="v1") for i in (1, 2)]
    data = merged(home, dataset, logs)
    assert "15 captions of frames" in capsys.readouterr().out
    assert data["train"].features["frame_caption_features"].feature.feature.dtype == "float16"
    numbers, clip = expected_numbers(home), load_clip(str(home / "clip"))
    assert len({number for of_video in numbers.values() for number in of_video}) > 10
    for row, old in zip(data["train"], before, strict=True):
        captions = [f"A picture of number {number}." for number in numbers[row["video_id"]]]
        assert list(row["frame_captions"]) == captions
        provenance = (row["frame_captioner"], row["frame_captioner_revision"], row["frame_prompt"])
        assert provenance == ("seer", "v1", "Describe this image briefly in one sentence.")
        assert np.allclose(row["frame_caption_features"], clip.encode_texts(captions), atol=2e-3)
        for name in ("video_features", "caption_features"):
            assert np.array_equal(row[name], old[name])
        assert (row["captions"] == old["captions"]).all() and row["timestamps"].tolist() == old["timestamps"].tolist()


def test_the_server_gets_a_picture_a_question_and_the_published_settings(ask):
    with chat_server(see) as server:
        ask(server, prompt="What is happening in this image?")
    assert len(server.bodies) == 15
    for body in server.bodies:
        (message,) = body["messages"]
        assert message["role"] == "user" and len(message["content"]) == 2
        assert message["content"][1] == {"type": "text", "text": "What is happening in this image?"}
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("seer", 30, 0.0)
        assert "top_k" not in body


def test_a_merged_data_set_trains_sbs_and_its_other_splits_have_none(home, dataset, ask, processor):
    with chat_server(see) as server:
        data = merged(home, dataset, [ask(server)])
    assert data["validation"][0]["frame_caption_features"] is None
    config = make_config(processor, method="sbs", num_frames=NUM_FRAMES)
    for split in ("train", "validation"):
        rows = train.load_split(str(dataset), split, train.COLUMNS)
        train.check_losses(config, rows.column_names)
        train.check_features(rows, config, split)
    warped = train.TimeWarped(train.load_split(str(dataset), "train", train.COLUMNS), strength=0.7)
    assert warped[0]["frame_caption_features"].shape == warped[0]["video_features"].shape == (NUM_FRAMES, 24)


# --- answers that are missing or broken, and runs that are stopped


def test_a_run_that_was_killed_goes_on_and_its_log_is_that_of_an_uninterrupted_one(home, dataset, ask, tmp_path):
    def records(log):
        settings, found, length = read_log(log)
        assert length == os.path.getsize(log)
        return settings, sorted(found, key=lambda record: (record["video_id"], record["frame"]))

    with chat_server(see) as server:
        whole = records(ask(server, "whole.jsonl"))
    log = tmp_path / "killed.jsonl"
    with chat_server(see, delay=0.2) as server:
        words = ["--dataset", dataset, "--videos", home / "videos", "--llm", "seer", "--base_url", server.url]
        words += ["--output", log, "--concurrency", "1"]
        child = subprocess.Popen([sys.executable, SCRIPT, "generate", *map(str, words)], stderr=subprocess.DEVNULL)
        while not log.exists() or log.read_bytes().count(b"\n") < 4:
            assert child.poll() is None
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    done = read_log(log)[1]
    assert 3 <= len(done) < 15
    with chat_server(see) as server:
        ask(server, "killed.jsonl")
        assert len(server.bodies) == 15 - len(done)
    assert records(log) == whole


def test_broken_answers_are_repaired_or_asked_again_or_refused(home, dataset, ask):
    numbers = expected_numbers(home)["v_second"]
    broken = {
        numbers[1]: ("", "stop"),
        numbers[2]: ("A picture. It shows the", "length"),
        numbers[3]: ("A man who goes to the", "length"),
        numbers[4]: ("**Caption:** A dog.", "stop"),
    }
    with (
        chat_server(lambda body: broken.get(number_in(body), see(body))) as server,
        pytest.raises(
            RuntimeError, match=r"1 frames got no usable answer in 1 attempts: v_second frame 1\. All others"
        ),
    ):
        ask(server)
    log = f"{dataset.parent}/log.jsonl"
    found = {record["frame"]: record for record in read_log(log)[1] if record["video_id"] == "v_second"}
    assert [found[i]["text"] for i in range(1, 5)] == [None, "A picture.", "A man who goes to", "A dog."]
    assert [found[i]["edits"] for i in range(1, 5)] == [[], ["cut"], ["broken"], ["markup", "label"]]
    with pytest.raises(ValueError, match="1 of 15 frames have no answer in the logs: v_second frame 1"):
        merged(home, dataset, [log])
    with chat_server(see) as server:
        ask(server, max_attempts=2)
        assert [number_in(body) for body in server.bodies] == [numbers[1]]
    assert merged(home, dataset, [log])["train"].num_rows == 3


def test_a_video_that_cannot_be_read_is_said_and_the_others_are_captioned(home, dataset, ask, tmp_path, capsys):
    shutil.copytree(home / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "v_second.mp4").write_bytes(b"no video")
    with (
        chat_server(see) as server,
        pytest.raises(RuntimeError, match="5 frames got no usable answer.*v_second frame 0, v_second frame 1"),
    ):
        ask(server, videos=str(tmp_path / "videos"))
    assert len(server.bodies) == 10
    assert re.search("skipped v_second frame 0 and on: .*v_second.mp4", capsys.readouterr().out)
    (tmp_path / "videos" / "v_second.mp4").unlink()
    with (
        chat_server(see) as server,
        pytest.raises(FileNotFoundError, match="1 of 3 videos of .* are not in .*v_second"),
    ):
        ask(server, videos=str(tmp_path / "videos"))


def test_merge_refuses_what_does_not_go_together_and_leaves_the_data_set(home, dataset, ask, tmp_path):
    with chat_server(see) as server:
        log = ask(server)
    before = (dataset / "train-00000-of-00001.parquet").read_bytes()
    head, *lines = Path(log).read_text().splitlines(keepends=True)
    twice, fewer = tmp_path / "twice.jsonl", tmp_path / "fewer.jsonl"
    twice.write_text("".join([head, *lines, lines[1]]))
    fewer.write_text(head.replace('"num_frames": 5', '"num_frames": 4') + "".join(lines))
    for other, message in ((twice, "v_first frame [0-9] is answered in .* twice"), (fewer, "has 5 frames a video")):
        with pytest.raises(ValueError, match=message):
            merged(home, dataset, [str(other)])
    make_clip(tmp_path / "small", embed_dim=16)
    with pytest.raises(ValueError, match="is not the one that .* was made with.*'A man stands.'"):
        merge(MergeArguments(dataset=str(dataset), logs=[log], clip=str(tmp_path / "small")))
    with pytest.raises(FileNotFoundError, match="there is no .*test-00000"):
        merge(MergeArguments(dataset=str(dataset), logs=[log], clip=str(home / "clip"), split="test"))
    assert (dataset / "train-00000-of-00001.parquet").read_bytes() == before


def test_command_line(home, dataset, capsys):
    words = ["--dataset", dataset, "--videos", home / "videos", "--llm", "seer", "--base_url", "http://127.0.0.1:9/v1"]
    main(["generate", *map(str, words), "--dry_run", "true", "--shard", "2/2"])
    assert "3 videos of 5 frames, 5 frames in shard 2/2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give the log to write by --output"):
        main(["generate", *map(str, words)])
    with pytest.raises(ValueError, match="expected a command, generate or merge"):
        main(["mrege"])
