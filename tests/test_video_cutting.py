"""Copies of videos that every browser plays."""

import os

import av
import numpy as np
import pytest
from colours import COLOURS, write_odd_video, write_video

from sail_hf.video_cutting import plays_everywhere, write_playable
from sail_hf.video_reading import VideoError, open_video


def loudness(path):
    """Second and volume of each piece of sound."""
    with av.open(str(path)) as container:
        return [
            (float(frame.pts * frame.time_base), float(np.abs(frame.to_ndarray()).mean()))
            for frame in container.decode(audio=0)
        ]


def test_a_copy_has_the_same_picture_and_sound(tmp_path):
    source = write_odd_video(tmp_path / "a.mkv")
    assert not plays_everywhere(source)
    write_playable(source, tmp_path / "a.mp4")
    assert plays_everywhere(tmp_path / "a.mp4")
    with open_video(tmp_path / "a.mp4") as reader:
        assert reader.duration == pytest.approx(4, abs=0.1)
        for image, colour in zip(
            reader.frames_at([0, 1.85, 2.05, 3.9]), ("red", "red", "green", "green"), strict=True
        ):
            np.testing.assert_allclose(image.mean((0, 1)), COLOURS[colour], atol=25)
    heard = loudness(tmp_path / "a.mp4")
    loud = [time for time, volume in heard if volume > 0.1]
    assert (loud[0], loud[-1]) == (pytest.approx(1, abs=0.06), pytest.approx(3, abs=0.06))
    # Picture and sound lie side by side in the file, and what a browser needs first comes first.
    with av.open(str(tmp_path / "a.mp4")) as container:
        order = [packet.stream.type for packet in container.demux() if packet.size]
    assert "audio" in order[: len(order) // 4] and "video" in order[-len(order) // 4 :]
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_copy_without_sound_and_of_no_video(tmp_path):
    write_playable(write_odd_video(tmp_path / "a.mkv", sound=None), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    (tmp_path / "b.mkv").write_bytes(b"no video")
    with pytest.raises(VideoError):
        write_playable(tmp_path / "b.mkv", tmp_path / "b.mp4")
    assert not os.path.exists(tmp_path / "b.mp4")


def test_what_plays_everywhere(tmp_path, shared):
    assert plays_everywhere(write_video(tmp_path / "a.mp4", ("red", 1)))
    os.rename(tmp_path / "a.mp4", tmp_path / "a.mkv")
    assert not plays_everywhere(tmp_path / "a.mkv")
    assert not plays_everywhere(shared / "videos" / "odd" / "h265_10bits.mp4")
