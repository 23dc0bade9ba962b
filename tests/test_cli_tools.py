"""`sail align` on timed captions, `sail find`, `sail score` and `sail doctor`, in a world of plain colours."""

import json
import re
from pathlib import Path

import av
import datasets
import numpy as np
import pytest
from colours import BLUE, GREEN, RED, frames, make_colour_clip, write_video
from hypothesis import given
from hypothesis import strategies as st

from sail_hf.cli import main
from sail_hf.clip_sail import load_clip
from sail_hf.finding import best_stretches
from sail_hf.video_cutting import clip_suffix, cut_clip
from sail_hf.video_reading import VideoError, open_video

SCENES = (("red", 1.5), ("green", 3.0), ("blue", 1.5))
# One second late, but for the first start and the last end.
SRT = (
    f"1\n00:00:00,000 --> 00:00:02,500\n{RED}\n\n2\n00:00:02,500 --> 00:00:05,500\n{GREEN}\n\n"
    f"3\n00:00:05,500 --> 00:00:06,000\n{BLUE}\n"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("tools")
    make_colour_clip(home / "clip")
    (home / "videos").mkdir()
    write_video(home / "videos" / "one.mp4", *SCENES)
    write_video(home / "videos" / "two.mp4", ("red", 2), ("blue", 2))
    (home / "captions").mkdir()
    (home / "captions" / "one.srt").write_text(SRT)
    (home / "captions" / "two.txt").write_text(f"{RED}\n{BLUE}\n")
    return home


@pytest.fixture
def here(home, monkeypatch) -> Path:
    monkeypatch.chdir(home)
    return home


ALIGN = ["--clip", "clip", "--frames-per-second", "10"]
FIND = ["--clip", "clip", "--frames-per-second", "5"]

# --- sail align ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["srt", "vtt", "json", "txt"])
def test_times_of_captions_are_ignored(here, capsys, tmp_path, form):
    contents = {
        "srt": SRT,
        "vtt": "WEBVTT\n\n" + SRT.replace(",", "."),
        "json": json.dumps([{"start": 0, "end": 1, "text": text} for text in (RED, GREEN, BLUE)]),
        "txt": f"From 0:00 to 0:02, {RED}\nFrom 0:02 to 0:05, {GREEN}\nFrom 0:05 to 0:06, {BLUE}\n",
    }
    (tmp_path / f"c.{form}").write_text(contents[form])
    assert main(["align", "videos/one.mp4", "--captions", str(tmp_path / f"c.{form}"), *ALIGN]) == 0
    output = capsys.readouterr()
    events = json.loads(output.out)
    assert [event["text"] for event in events] == [RED, GREEN, BLUE]
    np.testing.assert_allclose([(e["start"], e["end"]) for e in events], [(0, 1.5), (1.5, 4.5), (4.5, 6)], atol=0.11)
    assert "times of the captions are ignored" in output.err


def test_times_are_compared(here, capsys, tmp_path):
    assert main(["align", "videos/one.mp4", "--captions", "captions/one.srt", *ALIGN, "--compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "videos/one.mp4" and lines[3].endswith(GREEN)
    mean, most = map(
        float, re.search(r"off by ([\d.]+) s on average, ([\d.]+) s at most \(3 captions\)", lines[-1]).groups()
    )
    assert mean == pytest.approx(4 / 6, abs=0.1) and most == pytest.approx(1, abs=0.11)
    # With a place for the events, they are written as well.
    command = ["align", "videos/one.mp4", "--captions", "captions/one.srt", *ALIGN, "--compare", "--format", "srt"]
    assert main([*command, "--output", str(tmp_path / "better.srt")]) == 0
    assert (tmp_path / "better.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:01")
    assert main(["align", "videos/two.mp4", "--captions", "captions/two.txt", *ALIGN, "--compare"]) == 1
    assert "--compare needs captions with times" in capsys.readouterr().err


def test_a_page_that_holds_its_video(here, capsys, tmp_path):
    command = ["align", "videos/one.mp4", "--captions", "captions/one.srt", *ALIGN, "--embed", "--transcode"]
    assert main([*command, "--output", str(tmp_path / "one.html")]) == 0
    assert '<video src="data:video/mp4;base64,' in (tmp_path / "one.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["one.html"], "it plays everywhere as it is"
    assert main([*command, "--format", "srt"]) == 1
    assert "--embed and --transcode are for pages: give --format html" in capsys.readouterr().err


def test_captions_of_a_folder_of_videos(here, capsys, tmp_path):
    (tmp_path / "c.csv").write_text(f"video,caption\none.mp4,{RED}\ntwo.mp4,{RED}\none.mp4,{GREEN}\ntwo.mp4,{BLUE}\n")
    by_source = []
    for source in ("captions", str(tmp_path / "c.csv")):
        assert main(["align", "videos", "--captions", source, *ALIGN]) == 0
        by_source.append(json.loads(capsys.readouterr().out))
    assert [len(events) for events in by_source[0].values()] == [3, 2]
    assert by_source[0]["videos/two.mp4"] == by_source[1]["videos/two.mp4"]
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "two.txt").write_text(f"{RED}\n{BLUE}\n")
    assert main(["align", "videos", "--captions", str(tmp_path / "some"), *ALIGN]) == 0
    assert "1 of 2 videos have no captions, e.g. videos/one.mp4" in capsys.readouterr().err
    (tmp_path / "some" / "two.txt").rename(tmp_path / "some" / "three.txt")
    assert main(["align", "videos", "--captions", str(tmp_path / "some"), *ALIGN]) == 1
    assert "holds captions of none of the 2 videos" in capsys.readouterr().err


# --- sail find ----------------------------------------------------------------------------------------------------


def test_find_in_python(home):
    clip = load_clip(str(home / "clip"))
    green, blue = clip.find(frames(*SCENES), [GREEN, BLUE], top_k=2, frames_per_second=10, fps=10)
    assert green[0]["text"] == GREEN and set(green[0]) == {"start", "end", "text", "similarity"}
    np.testing.assert_allclose([green[0]["start"], green[0]["end"]], [1.5, 4.5], atol=0.15)
    np.testing.assert_allclose([blue[0]["start"], blue[0]["end"]], [4.5, 6], atol=0.15)
    with pytest.raises(ValueError, match="top_k"):
        clip.find(frames(*SCENES), [GREEN], top_k=0, fps=10)
    with pytest.raises(ValueError, match="none that is empty"):
        clip.find(frames(*SCENES), [" "], fps=10)


def test_find_over_a_folder(here, capsys):
    assert main(["find", "videos", GREEN, "--also", BLUE, *FIND, "--top-k", "2"]) == 0
    first, best, *rest = capsys.readouterr().out.splitlines()
    assert first == GREEN and best.split()[-1] == "videos/one.mp4"
    assert BLUE in rest
    assert main(["find", "videos", GREEN, *FIND, "--format", "json"]) == 0
    events = json.loads(capsys.readouterr().out)
    assert events["videos/one.mp4"][0]["start"] == pytest.approx(1.5, abs=0.2)
    assert "similarity" in events["videos/one.mp4"][0]


def test_what_clip_saw_is_kept_and_used_again(here, capsys, tmp_path, monkeypatch):
    command = ["find", "videos", GREEN, *FIND, "--features", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr("sail_hf.clip_sail.SailClip.encode_video", None)
        assert main(command) == 0
    assert capsys.readouterr().out == printed
    # Another rate needs others; what is damaged is made again.
    assert main([*command, "--frames-per-second", "3"]) == 0
    assert len(list(tmp_path.iterdir())) == 4
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    capsys.readouterr()
    assert main(command) == 0 and capsys.readouterr().out == printed


def test_find_over_the_stored_features_of_a_data_set(here, capsys, tmp_path, monkeypatch):
    clip, rows = load_clip("clip"), []
    for name in ("one", "two"):
        features, duration = clip.encode_video(f"videos/{name}.mp4", 5)
        rows.append({"video_id": name, "duration": duration, "video_features": features.numpy()})
    file = tmp_path / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list(rows).to_parquet(file)
    monkeypatch.setattr("sail_hf.clip_sail.SailClip.encode_video", None)
    assert main(["find", str(tmp_path), GREEN, *FIND, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["one"][0]["start"] == pytest.approx(1.5, abs=0.2)
    assert found["one"][0]["end"] == pytest.approx(4.5, abs=0.2)
    for options, message in [
        (["--clips", "found"], "no video to cut"),
        (["--output", "page.html"], "no video to cut or to show"),
        (["--features", "kept"], "only stored features: leave it out"),
    ]:
        assert main(["find", str(file), GREEN, *FIND, *options]) == 1
        assert message in capsys.readouterr().err
    datasets.Dataset.from_list([{**row, "video_features": np.ones((3, 5))} for row in rows]).to_parquet(file)
    assert main(["find", str(file), GREEN, *FIND]) == 1
    assert "one has stored features of size 5" in capsys.readouterr().err
    datasets.Dataset.from_list(rows).remove_columns("duration").to_parquet(file)
    assert main(["find", str(file), GREEN, *FIND]) == 1
    assert "lacks duration: training/extract_features.py" in capsys.readouterr().err
    datasets.Dataset.from_list(rows * 2).to_parquet(file)
    assert main(["find", str(file), GREEN, *FIND]) == 1
    assert "two rows have the id one" in capsys.readouterr().err
    datasets.Dataset.from_list(rows).to_parquet(file)
    datasets.Dataset.from_list(rows[:1]).to_parquet(tmp_path / "other.parquet")
    assert main(["find", str(file), str(tmp_path / "other.parquet"), GREEN, *FIND]) == 1
    assert "one is in" in capsys.readouterr().err
    assert main(["find", str(tmp_path / "none.parquet"), GREEN, *FIND]) == 1
    assert "no such file" in capsys.readouterr().err


def test_stretches_are_cut_out(here, capsys, tmp_path):
    assert main(["find", "videos", RED, *FIND, "--top-k", "2", "--clips", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and all(re.fullmatch(r"(one|two)_1_[12]\.mp4", name) for name in names)
    assert said.count("copied from 0.00 s") == 2
    assert main(["find", "https://localhost/a.mp4", RED, *FIND, "--clips", str(tmp_path)]) == 1
    assert "download it first" in capsys.readouterr().err


def test_what_cannot_be_found_in_is_named(here, capsys, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert main(["find", str(tmp_path / "bad.mp4"), "videos/one.mp4", RED, *FIND]) == 1
    output = capsys.readouterr()
    assert "1 of 2 videos failed" in output.err and "videos/one.mp4" in output.out
    assert main(["find", "videos/one.mp4", " ", *FIND]) == 1
    assert "A sentence to find is empty" in capsys.readouterr().err


def test_best_stretches_by_hand():
    """Above 0.5: 1-3 over a dip in the first video, and one frame of the second, which is the best on average."""
    videos = [np.array([0.0, 0.8, 0.4, 0.9, 0.0, 0.0]), np.array([0.0, 1.0, 0.0, 0.0, 0.0])]
    first, second = best_stretches(videos, 2)
    assert first == (1, 1, 1, 1.0)
    assert second[:3] == (0, 1, 3) and second.similarity == pytest.approx(0.7)
    assert best_stretches(videos, 1) == [first]


values = st.lists(st.integers(0, 20).map(lambda x: x / 20), min_size=1, max_size=12).map(np.array)


@given(st.lists(values, min_size=1, max_size=4), st.integers(1, 4))
def test_stretches_are_disjoint_and_sorted_and_the_shortcut_changes_nothing(videos, top_k):
    found = best_stretches(videos, top_k)
    assert len(found) <= top_k and [s.similarity for s in found] == sorted((s.similarity for s in found), reverse=True)
    for stretch in found:
        inside = videos[stretch.video][stretch.first : stretch.last + 1]
        assert stretch.similarity == pytest.approx(inside.mean())
        others = [s for s in found if s.video == stretch.video and s is not stretch]
        assert all(s.last < stretch.first or s.first > stretch.last for s in others)
    # The videos that are not looked at have nothing better.
    assert [s.similarity for s in best_stretches(videos, 1000)[:top_k]] == [s.similarity for s in found]


# --- Cutting ------------------------------------------------------------------------------------------------------


def colours_of(path, times):
    with open_video(path) as reader:
        return reader.duration, ["rgb"[int(image.mean((0, 1)).argmax())] for image in reader.frames_at(times)]


def test_a_clip_is_copied_from_a_near_key_frame_and_else_encoded_anew(home, tmp_path):
    """The encoder makes one key frame, the first."""
    video = home / "videos" / "one.mp4"
    assert cut_clip(video, 0.3, 2.0, tmp_path / "a.mp4") == "copied from 0.00 s, 0.30 s early, at the key frame"
    duration, seen = colours_of(tmp_path / "a.mp4", [0, 1.9])
    # Frames that others are made from may come after the end.
    assert duration == pytest.approx(2.0, abs=0.3) and seen == ["r", "g"]
    said = cut_clip(video, 4.0, 5.0, tmp_path / "b.mp4")
    assert said == "encoded anew from 4.00 s: the key frame before lies 4.00 s earlier"
    duration, seen = colours_of(tmp_path / "b.mp4", [0, 0.9])
    assert duration == pytest.approx(1.0, abs=0.01) and seen == ["g", "b"]


def test_a_copy_holds_the_packets_of_its_source(home, tmp_path):
    cut_clip(home / "videos" / "one.mp4", 0, 100, tmp_path / "a.mp4")

    def packets(path):
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    assert packets(tmp_path / "a.mp4") == packets(home / "videos" / "one.mp4")


def test_what_cannot_be_cut_leaves_nothing(home, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for video, span, error in (
        (home / "videos" / "one.mp4", (7, 9), ValueError),
        (home / "videos" / "one.mp4", (3, 3), ValueError),
        (tmp_path / "bad.mp4", (0, 1), VideoError),
    ):
        with pytest.raises(error):
            cut_clip(video, *span, tmp_path / "out" / "a.mp4")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_real_videos_keep_their_sound(shared, tmp_path):
    video = shared / "videos" / "odd" / "flipping_a_pancake.mkv"
    cut_clip(video, 5.3, 9.1, tmp_path / f"a{clip_suffix(video)}")
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        ends = {
            s.type: max(float((p.pts + (p.duration or 0)) * p.time_base) for p in container.demux(s) if p.pts)
            for s in container.streams.video
        }
    assert ends["video"] == pytest.approx(4.1, abs=0.2)


# --- sail score and sail doctor -----------------------------------------------------------------------------------


def test_places_are_checked_before_work(here, capsys):
    for command in (
        ["find", "videos", RED, *FIND, "--clips", "captions/one.srt/clips"],
        ["find", "videos", RED, *FIND, "--features", "captions/one.srt"],
        ["score", "captions", "captions/two.txt", "--output", "captions/one.srt/scores.json"],
    ):
        assert main(command) == 1 and "Nothing can be written in" in capsys.readouterr().err


def test_score(here, capsys, tmp_path):
    reference = {
        "one": {"duration": 6.0, "timestamps": [[0, 1.5], [1.5, 4.5], [4.5, 6]], "sentences": [RED, GREEN, BLUE]}
    }
    (tmp_path / "val.json").write_text(json.dumps(reference))
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "one.srt").write_text(SRT)
    command = ["score", str(tmp_path / "system"), str(tmp_path / "val.json"), "--metrics", "localization,controls"]
    assert main([*command, "--output", str(tmp_path / "scores.json")]) == 0
    assert "equal spans 1/N, own counts" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["recall@0.3"] == 1 and scores["recall@0.5"] == 1 / 3 and scores["repeats"] == 0
    assert main([*command, "--metrics", "bert"]) == 1
    assert "metrics: expected a list of any of" in capsys.readouterr().err


def test_doctor(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("torch ", "transformers ", "cpu: ", "h264", "caption scores", "models: "):
        assert word in said
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    main(["doctor"])
    assert "pictures of events: MISSING matplotlib: pip install 'sail-hf[visualization]'" in capsys.readouterr().out
