"""training/align_dataset.py in a world of plain colours: times, what is skipped, and being stopped at any time."""

import json
import shutil
from pathlib import Path

import align_dataset
import datasets
import numpy as np
import pytest
from colours import BLUE, GREEN, RED, make_colour_clip, write_video

from sail_hf.clip_sail import SailClip

CAPTIONS = [RED, GREEN, BLUE]
SPANS = [(0, 1.5), (1.5, 4.5), (4.5, 6)]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`clip` and `videos`: two good ones and a damaged one."""
    home = tmp_path_factory.mktemp("home")
    make_colour_clip(home / "clip")
    (home / "videos").mkdir()
    write_video(home / "videos" / "one.mp4", ("red", 1.5), ("green", 3.0), ("blue", 1.5))
    write_video(home / "videos" / "two.mkv", ("red", 2), ("green", 1), ("blue", 1))
    (home / "videos" / "damaged.mp4").write_bytes(b"this is no video")
    return home


@pytest.fixture
def captioned(tmp_path) -> Path:
    """A data set folder of two splits; one video is missing, one damaged, one row has no captions."""
    rows = {
        "train": [("one", CAPTIONS, [[0.0, 0.1]]), ("damaged", [RED], None), ("absent", [RED, BLUE], None)],
        "test": [("v_two", CAPTIONS, None), ("v_one", [], None)],
    }
    for split, of_split in rows.items():
        table = datasets.Dataset.from_list(
            [{"video_id": i, "captions": c, "timestamps": t, "note": f"note {i}"} for i, c, t in of_split],
            features=datasets.Features(
                {
                    "video_id": datasets.Value("string"),
                    "captions": datasets.List(datasets.Value("string")),
                    "timestamps": datasets.List(datasets.List(datasets.Value("float64"))),
                    "note": datasets.Value("string"),
                }
            ),
        )
        (tmp_path / "captions").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "captions" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "captions"


def align(captioned: Path, videos: Path, clip: Path, output: Path, *more: str) -> None:
    arguments = ["--dataset", captioned, "--videos", videos, "--clip", clip, "--output", output, *more]
    align_dataset.main([str(argument) for argument in arguments])


def test_a_data_set_gets_timestamps(home, captioned, capsys, tmp_path):
    out = tmp_path / "out"
    align(captioned, home / "videos", home / "clip", out, "--frames_per_second", "10")
    data = datasets.load_dataset(str(out))
    train, test = data["train"].to_list(), data["test"].to_list()
    assert [row["video_id"] for row in train] == ["one", "damaged", "absent"]
    assert [row["note"] for row in train] == ["note one", "note damaged", "note absent"]
    assert np.abs(np.array(train[0]["timestamps"]) - SPANS).max() <= 0.11
    assert len(train[0]["gains"]) == 3 and min(train[0]["gains"]) > 0
    np.testing.assert_allclose(test[0]["timestamps"], [[0, 2], [2, 3], [3, 4]], atol=0.11)
    assert [row["timestamps"] for row in (*train[1:], test[1])] == [None] * 3
    printed = capsys.readouterr().out
    assert "captions of 2 of 5 videos" in printed and "skipped absent (train): no such video file" in printed
    skipped = json.loads((out / "skipped.json").read_text())
    assert [item["video_id"] for item in skipped["train"]] == ["damaged", "absent"]
    assert "damaged.mp4" in skipped["train"][0]["reason"] and "captions" in skipped["test"][0]["reason"]
    # Nothing else is left, and nothing is overwritten.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions", "out"]
    with pytest.raises(SystemExit, match="out exists: choose another --output"):
        align(captioned, home / "videos", home / "clip", out)


def test_a_stopped_run_goes_on(home, captioned, monkeypatch, tmp_path):
    """Stopped while the second split is aligned, the same command aligns only what is missing."""
    shutil.copytree(home / "videos", tmp_path / "videos")
    aligned, stop = [], True
    original = SailClip.align

    def spied(clip, video, captions, **options):
        if video.stem == "two" and stop:
            raise KeyboardInterrupt
        aligned.append(video.stem)
        return original(clip, video, captions, **options)

    monkeypatch.setattr(SailClip, "align", spied)
    arguments = (captioned, tmp_path / "videos", home / "clip", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        align(*arguments)
    assert aligned == ["one", "damaged"] and not (tmp_path / "out").exists()
    (tmp_path / "out.work" / f"{'0' * 40}.done.part").write_bytes(b"half of a file")
    aligned.clear()
    stop = False
    align(*arguments)
    # The second row of "one" has no captions.
    assert aligned == ["damaged", "two", "one"]
    assert datasets.load_dataset(str(tmp_path / "out"))["train"][0]["timestamps"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "nowhere"}, "nowhere"),
        ({"videos": "nowhere"}, "nowhere is no folder of videos"),
        ({"clip": "nowhere"}, "nowhere"),
        ({"model": "x"}, "either --clip or --model"),
        ({"videos": "empty"}, "not one video could be aligned"),
        ({"dataset": "uncaptioned"}, "split train: no column captions"),
    ],
)
def test_what_cannot_be_aligned_is_one_line(home, captioned, tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "uncaptioned"):
        Path(folder).mkdir()
    datasets.Dataset.from_dict({"video_id": ["one"]}).to_parquet("uncaptioned/train-00000-of-00001.parquet")
    fields = {"dataset": captioned, "videos": home / "videos", "clip": home / "clip", "output": "out", **change}
    with pytest.raises(SystemExit, match=f"(?s)error: .*{words}"):
        align_dataset.main([str(word) for name, value in fields.items() for word in (f"--{name}", value)])
    assert not Path("out").exists()
