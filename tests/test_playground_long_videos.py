"""training/playground/long_videos.py: annotations and events of joined videos, and what becomes of events at cuts."""

import numpy as np
import pytest
from long_videos import at_cuts, joined, moved, render, ways
from world import FPS, sample_script

from sail_hf.video_reading import open_video

SHORT = [
    {"duration": 10.0, "timestamps": [[1, 4], [5, 9]], "sentences": ["a", "b"]},
    {"duration": 6.0, "timestamps": [[2, 3]], "sentences": ["c"]},
]


def event(start, end, text="a"):
    return {"start": start, "end": end, "text": text}


def test_a_joined_annotation():
    assert joined(SHORT) == {
        "duration": 16.0,
        "timestamps": [[1, 4], [5, 9], [12, 13]],
        "sentences": ["a", "b", "c"],
        "starts": [0.0, 10.0],
    }


def test_ways_to_caption_long_videos():
    """The pipeline is asked for chunks and for all at once; one by one, the short ones' events lie where they belong."""
    asked = []

    def pipe(files, **options):
        asked.append((files, options))
        return []

    references = {"x": joined(SHORT), "y": joined(SHORT[:1])}
    short = [[event(1, 4)], [event(2, 3, "c")], [event(5, 9, "b")]]
    found = ways(pipe, ["x.mp4", "y.mp4"], short, references, {"localization": "masks"})
    assert list(found["one by one"]()) == [[event(1, 4), event(12, 13, "c")], [event(5, 9, "b")]]
    found["chunks"](), found["at once"]()
    files = ["x.mp4", "y.mp4"]
    assert asked == [(files, {"localization": "masks"}), (files, {"localization": "masks", "chunk_length_s": 0})]
    assert moved([], []) == []


def test_true_events_at_cuts():
    """100 s in chunks of 60 s that overlap by a sixth on either side: from 0 and 40 s, the cut is at 50 s."""
    reference = {"duration": 100.0, "timestamps": [[45, 55], [10, 20], [50, 60], [70, 80]]}
    # The first is in two, of which one is found; of the others one is found twice, one is missed, one lies beside.
    events = [event(45, 54), event(50, 52), event(10, 20), event(11, 20), event(76, 90)]
    assert at_cuts({"x": events}, {"x": reference}, 60) == {
        "divided": {"count": 1, "found": 1.0, "twice": 1.0},
        "whole": {"count": 3, "found": pytest.approx(1 / 3), "twice": pytest.approx(1 / 3)},
    }
    assert at_cuts({"x": []}, {"x": reference}, 200) == {"whole": {"count": 4, "found": 0.0, "twice": 0.0}}


def test_a_rendered_long_video(tmp_path):
    path = render(tmp_path / "long.mp4", 0, range(2))
    frames = sum(sample_script(0, "test", index).num_frames for index in range(2))
    with open_video(str(path)) as reader:
        np.testing.assert_allclose(reader.duration, frames / FPS, atol=1e-3)
    before = path.stat().st_mtime_ns
    assert render(path, 0, range(2)).stat().st_mtime_ns == before
