"""Features from videos and captions: their values, damaged and missing videos, and being stopped at any time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import extract_features
import feature_sources
import numpy as np
import pytest
import torch
from build_dataset import build_dataset
from datasets import load_dataset
from numbered_video import render
from tiny import make_clip
from work_folder import weights_digest

from sail_hf.clip_sail import SailClip
from sail_hf.video_processing_sail import SailVideoProcessor

CAPTIONS = {
    "v_first": ["A man stands.", "He sits down.", "He sleeps."],
    "v_second": ["A dog runs."],
    "v_third": ["Water boils.", "It cools."],
}
TRANSITIONS = {"v_first": ["He looks around.", "He yawns."], "v_second": [], "v_third": ["Steam rises."]}
NUM_FRAMES = 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    return folder


@pytest.fixture
def videos(tmp_path) -> Path:
    """A file named by its id, one without `v_`, and one in a sub-folder in another format."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    render(folder / "v_first.mp4", num_frames=40)
    render(folder / "second.mkv", num_frames=50)
    render(folder / "more" / "v_third.avi", num_frames=60, codec="mpeg4")
    return folder


def annotate(path: Path, captions: dict = CAPTIONS, transitions: dict | None = TRANSITIONS) -> Path:
    """An annotation file in ActivityNet's form."""
    content = {}
    for video_id, sentences in captions.items():
        stamps = [[i, i + 0.5] for i in range(len(sentences))]
        content[video_id] = {"duration": 4.5, "timestamps": stamps, "sentences": sentences}
        if transitions is not None:
            content[video_id]["transitions"] = transitions[video_id]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def extract(annotations, videos, clip, output, *options) -> None:
    annotations = [annotations] if isinstance(annotations, Path) else annotations
    arguments = ["--annotations", *annotations, "--videos", videos, "--clip", clip, "--output", output]
    extract_features.main([str(x) for x in [*arguments, "--num_frames", NUM_FRAMES, *options]])


def finished(output: Path) -> list[Path]:
    """Files of the videos that are finished, in order."""
    return sorted(output.with_name(f"{output.name}.work").glob("*.done"))


def rows_of(output, split="train") -> dict[str, dict]:
    data = load_dataset(str(output), split=split, cache_dir=str(output) + ".cache").with_format("numpy")
    return {row["video_id"]: row for row in data}


def test_features_are_clips(tmp_path, videos, clip):
    extract(annotate(tmp_path / "train.json"), videos, clip, tmp_path / "data")
    rows = rows_of(tmp_path / "data")
    assert list(rows) == list(CAPTIONS)
    loaded = make_clip(tmp_path / "same_clip")
    processor = SailVideoProcessor.from_vision_config(loaded.vision_config, NUM_FRAMES)
    for (video_id, row), file in zip(rows.items(), ["v_first.mp4", "second.mkv", "more/v_third.avi"], strict=True):
        captions, transitions = CAPTIONS[video_id], TRANSITIONS[video_id]
        assert list(row["captions"]) == captions
        assert (row["duration"], row["timestamps"].tolist()) == (4.5, [[i, i + 0.5] for i in range(len(captions))])
        frames = loaded.encode_images(processor(str(videos / file))["pixel_values_videos"][0])
        assert row["video_features"].shape == (NUM_FRAMES, 24)
        assert np.allclose(row["video_features"], frames, atol=2e-3)
        assert np.allclose(row["caption_features"], loaded.encode_texts(captions), atol=2e-3)
        assert np.asarray(row["transition_features"]).size == 24 * (len(captions) - 1)
        if transitions:
            assert np.allclose(row["transition_features"], loaded.encode_texts(transitions), atol=2e-3)
    # Not normalised: CLIP's own lengths.
    assert not np.allclose(np.linalg.norm(rows["v_first"]["video_features"], axis=1), 1, atol=0.1)
    assert json.loads((tmp_path / "data" / "skipped.json").read_text()) == {"train": []}


def test_stored_as_half_precision_of_fixed_width(tmp_path, videos, clip):
    extract(annotate(tmp_path / "train.json"), videos, clip, tmp_path / "data")
    columns = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache")).features
    assert (columns["video_features"].shape, columns["video_features"].dtype) == ((NUM_FRAMES, 24), "float16")
    assert (columns["caption_features"].shape, columns["caption_features"].dtype) == ((None, 24), "float16")
    assert columns["transition_features"].feature.feature.dtype == "float16"


def test_without_transitions_there_is_no_column_for_them(tmp_path, videos, clip):
    extract(annotate(tmp_path / "train.json", transitions=None), videos, clip, tmp_path / "data")
    row = rows_of(tmp_path / "data")["v_first"]
    assert row["caption_features"].shape == (3, 24)
    assert "transition_features" not in row


def test_data_set_folder_gives_all_its_splits_and_columns(tmp_path, videos, clip):
    train = annotate(tmp_path / "train.json", {"v_first": CAPTIONS["v_first"]})
    other = annotate(tmp_path / "val.json", {name: CAPTIONS[name] for name in ("v_second", "v_third")}, None)
    source = tmp_path / "captions"
    source.mkdir()
    for split, data in build_dataset({"train": [train], "validation": [other]}).items():
        if split == "train":
            data = data.map(lambda row: {"llm": "a model", "note": "of one's own"})
        data.to_parquet(source / f"{split}-00000-of-00001.parquet")
    extract(source, videos, clip, tmp_path / "data")
    row = rows_of(tmp_path / "data")["v_first"]
    assert (row["llm"], row["note"], len(row["transition_features"])) == ("a model", "of one's own", 2)
    rows = rows_of(tmp_path / "data", "validation")
    assert list(rows) == ["v_second", "v_third"]
    assert rows["v_third"]["caption_features"].shape == (2, 24)
    # What only another split has is null, not NaN.
    assert rows["v_third"]["transition_features"] is None and rows["v_third"]["llm"] is None


def test_reference_files_and_splits_side_by_side(tmp_path, videos, clip, capsys):
    output = tmp_path / "data"
    extract(annotate(tmp_path / "train.json", {"v_first": CAPTIONS["v_first"]}), videos, clip, output)
    first = annotate(tmp_path / "val_1.json", {"v_second": ["A dog runs."]}, None)
    second = annotate(tmp_path / "val_2.json", {"v_second": ["A cat."], "v_lost": ["Nothing."]}, None)
    extract([first, second], videos, clip, output, "--split", "validation")
    rows = rows_of(output, "validation")
    assert list(rows) == ["v_second"] and list(rows["v_second"]["captions"]) == ["A dog runs."]
    assert list(rows_of(output)) == ["v_first"]
    assert json.loads((output / "skipped.json").read_text()) == {
        "train": [],
        "validation": [{"video_id": "v_lost", "reason": "no such video file"}],
    }
    out = capsys.readouterr().out
    assert "skipped v_lost: no such video file" in out
    assert "second.mkv lasts 1.7 s, its captions are for 4.5 s" in out


def test_captions_without_times_take_the_videos_duration(tmp_path, videos, clip):
    (tmp_path / "mine.csv").write_text("video,caption\nsecond,A dog runs.\nsecond,It sleeps.\n")
    extract(tmp_path / "mine.csv", videos, clip, tmp_path / "data")
    row = rows_of(tmp_path / "data")["second"]
    assert row["duration"] == pytest.approx(50 / 30, abs=0.01)
    assert row["timestamps"] is None and list(row["captions"]) == ["A dog runs.", "It sleeps."]


def test_damaged_videos_are_listed_and_skipped(tmp_path, videos, clip, capsys):
    data = (videos / "v_first.mp4").read_bytes()
    (videos / "v_first.mp4").write_bytes(data[: len(data) // 2])
    (videos / "second.mkv").write_bytes(b"")
    extract(annotate(tmp_path / "train.json"), videos, clip, tmp_path / "data")
    assert list(rows_of(tmp_path / "data")) == ["v_third"]
    skipped = json.loads((tmp_path / "data" / "skipped.json").read_text())["train"]
    assert [item["video_id"] for item in skipped] == ["v_first", "v_second"]
    assert "v_first.mp4" in skipped[0]["reason"] and "empty (0 bytes)" in skipped[1]["reason"]
    out = capsys.readouterr().out
    assert "1 of 3 videos" in out and f"skipped v_second: {videos / 'second.mkv'}: the file is empty" in out


def test_nothing_to_extract_is_an_error(tmp_path, clip):
    (tmp_path / "videos").mkdir()
    with pytest.raises(SystemExit, match="not one video could be used"):
        extract(annotate(tmp_path / "train.json"), tmp_path / "videos", clip, tmp_path / "data")
    assert len(json.loads((tmp_path / "data" / "skipped.json").read_text())["train"]) == 3
    assert not list((tmp_path / "data").glob("*.parquet"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"annotations": "missing.json"}, "missing.json"),
        ({"videos": "nowhere"}, "no --videos nowhere"),
        ({"clip": "no-such-clip"}, "no-such-clip"),
        ({"num_frames": 0}, "--num_frames of at least 1, found 0"),
        ({"output": "train.json"}, "choose another"),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, videos, clip, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    annotate(tmp_path / "train.json")
    arguments = {"annotations": "train.json", "videos": videos, "clip": clip, "output": "data", **changed}
    with pytest.raises(SystemExit) as caught:
        extract_features.main([str(x) for name, value in arguments.items() for x in (f"--{name}", value)])
    assert str(caught.value).startswith("error: ") and message in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_second_run_computes_nothing_again_but_what_has_changed(tmp_path, videos, clip, monkeypatch):
    extracted = []
    extract_row = feature_sources.Extractor.extract
    monkeypatch.setattr(
        feature_sources.Extractor,
        "extract",
        lambda self, row, *rest: (extracted.append(row["video_id"]), extract_row(self, row, *rest))[1],
    )
    annotations = annotate(tmp_path / "train.json")
    extract(annotations, videos, clip, tmp_path / "data")
    assert extracted == list(CAPTIONS)
    extracted.clear()
    extract(annotations, videos, clip, tmp_path / "data")
    assert extracted == []
    assert len(finished(tmp_path / "data")) == 3
    # Another caption, another file, other weights, another number of frames: each is done again.
    annotate(tmp_path / "train.json", {**CAPTIONS, "v_third": ["Water boils.", "It cools down."]})
    extract(annotations, videos, clip, tmp_path / "data")
    assert extracted == ["v_third"]
    assert list(rows_of(tmp_path / "data")["v_third"]["captions"]) == ["Water boils.", "It cools down."]
    extracted.clear()
    render(videos / "v_first.mp4", num_frames=20)
    extract(annotations, videos, clip, tmp_path / "data")
    assert extracted == ["v_first"]
    extracted.clear()
    extract(annotations, videos, clip, tmp_path / "data", "--num_frames", 5)
    assert extracted == list(CAPTIONS)


def test_digest_tells_weights_apart():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_digest(first) != weights_digest(second)
    second.load_state_dict(first.state_dict())
    assert weights_digest(first) == weights_digest(second)


def test_ahead_keeps_the_order_and_a_short_lead():
    started = []

    def work(item):
        started.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    for i, (item, result) in enumerate(feature_sources.ahead(work, range(12), 2)):
        assert (item, result) == (i, i * i)
        assert len(started) <= i + 4
    assert i == 11


def test_killed_and_started_again_gives_the_same_data_set(tmp_path, clip):
    folder = tmp_path / "videos"
    folder.mkdir()
    captions = {f"video{i}": [f"Caption {i}.", "The end."] for i in range(12)}
    for i, video_id in enumerate(captions):
        render(folder / f"{video_id}.mp4", num_frames=30 + i)
    annotations = annotate(tmp_path / "train.json", captions, None)
    extract(annotations, folder, clip, tmp_path / "whole")

    # Slow enough to be killed between two videos; the killed process leaves a half-written file behind, too.
    script = (
        "import sys, time, extract_features as e; from feature_sources import Extractor; extract = Extractor.extract;"
        "Extractor.extract = lambda *a: (extract(*a), time.sleep(0.3))[0]; e.main(sys.argv[1:])"
    )
    arguments = ["--annotations", annotations, "--videos", folder, "--clip", clip, "--output", tmp_path / "killed"]
    training = Path(extract_features.__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments), "--num_frames", str(NUM_FRAMES)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(training), str(training.parent)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(finished(tmp_path / "killed")) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {file: file.stat().st_mtime_ns for file in finished(tmp_path / "killed")}
    assert 3 <= len(written) < 12
    assert not list((tmp_path / "killed").glob("*.parquet"))
    (tmp_path / "killed.work" / f"{'0' * 40}.done.part").write_bytes(b"half of a file")

    extract(annotations, folder, clip, tmp_path / "killed")
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in written.items())
    names = [path.name for path in (tmp_path / "killed").iterdir()]
    assert sorted(names) == ["skipped.json", "train-00000-of-00001.parquet"]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_real_videos(tmp_path, shared, clip):
    captions = json.loads((shared / "annotations" / "activitynet" / "train.json").read_text(encoding="utf-8"))
    names = ["v_TpB_zMG3XBA", "v_rBMQFpHspmo", "v_ZNVhz7ctTq0"]
    (tmp_path / "train.json").write_text(json.dumps({name: captions[name] for name in names}))
    extract(tmp_path / "train.json", shared / "videos" / "activitynet", clip, tmp_path / "data")
    rows = rows_of(tmp_path / "data")
    assert list(rows) == names
    for name in names:
        assert list(rows[name]["captions"]) == captions[name]["sentences"]
        assert rows[name]["caption_features"].shape == (len(captions[name]["sentences"]), 24)
        differences = np.diff(rows[name]["video_features"].astype(float), axis=0)
        assert np.abs(differences).max(axis=1).min() > 0  # no picture stands still


def test_values_that_are_not_finite_are_listed(tmp_path, videos, clip, monkeypatch):
    encode = SailClip.encode_images
    seen = []

    def encode_images(self, pixels):
        seen.append(len(pixels))
        return encode(self, pixels) * (float("nan") if len(seen) == 2 else 1)

    monkeypatch.setattr(SailClip, "encode_images", encode_images)
    extract(annotate(tmp_path / "train.json"), videos, clip, tmp_path / "data")
    assert list(rows_of(tmp_path / "data")) == ["v_first", "v_third"]
    (skipped,) = json.loads((tmp_path / "data" / "skipped.json").read_text())["train"]
    assert skipped["video_id"] == "v_second" and "video_features are not all finite" in skipped["reason"]


def test_a_dry_run_says_what_would_be_done(tmp_path, videos, capsys):
    (videos / "second.mkv").write_bytes(b"no video")
    annotations = annotate(tmp_path / "train.json", {**CAPTIONS, "v_lost": ["Gone."]}, None)
    extract(annotations, videos, "ViT-L-14", tmp_path / "data", "--dry_run")
    printed = capsys.readouterr().out
    assert "train: 2 of 4 videos would be used; 7 captions in all" in printed
    assert "skipped v_lost: no such video file" in printed and "skipped v_second: " in printed
    assert not list(tmp_path.glob("data*"))


def test_one_video_in_two_splits_or_under_two_ids_is_refused(tmp_path, videos, clip):
    twice = annotate(tmp_path / "twice.json", {"v_first": ["A."], "first": ["B."]}, None)
    with pytest.raises(SystemExit, match="'v_first' and 'first' are the same video"):
        extract(twice, videos, clip, tmp_path / "data")
    source = tmp_path / "captions"
    source.mkdir()
    data = build_dataset({"train": [annotate(tmp_path / "train.json", {"v_first": ["A."]}, None)]})["train"]
    for split in ("train", "validation"):
        data.to_parquet(source / f"{split}-00000-of-00001.parquet")
    with pytest.raises(SystemExit, match="'v_first' is in the split train and in validation"):
        extract(source, videos, clip, tmp_path / "data")


def test_a_video_shared_by_a_copy_is_not_extracted_again(tmp_path, videos, clip, monkeypatch):
    annotations = annotate(tmp_path / "train.json")
    extract(annotations, videos, clip, tmp_path / "data")
    os.utime(videos / "v_first.mp4", (1, 1))
    monkeypatch.setattr(feature_sources.Extractor, "extract", None)
    extract(annotations, videos, clip, tmp_path / "data")
