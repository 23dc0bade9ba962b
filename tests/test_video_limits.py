"""Videos that ask for too much, or for other files: each is refused by a sentence that names the limit."""

import dataclasses
import io
import itertools
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_video import read_number, render
from PIL import Image

from sail_hf import SailVideoProcessor, VideoError, VideoLimits
from sail_hf.video_reading import open_video


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return render(tmp_path_factory.mktemp("videos") / "private.mp4")


def gif(width: int, height: int) -> bytes:
    """43 bytes that state any size."""
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff"
    image = b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\2\2D\1\0;"
    return screen + b"!\xf9\4\0\0\0\0\0" + image


def first_frame(video, **options) -> np.ndarray:
    with open_video(video, **options) as reader:
        return next(reader.frames_at([0.0]))


# Containers


PLAYLISTS = {
    "a.ffconcat": "ffconcat version 1.0\nfile private.mp4\n",
    "itself.ffconcat": "ffconcat version 1.0\nfile itself.ffconcat\n",
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{folder}/private.mp4\n#EXT-X-ENDLIST\n",
    "a.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>private.mp4</BaseURL></MPD>',
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    "a.srt": "1\n00:00:00,000 --> 00:00:02,000\nwords\n",
    "a.txt": "words that FFmpeg would draw\n" * 40,
    "a.nfo": "words that FFmpeg would draw\n" * 40,
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_what_refers_to_other_files_is_no_video(tmp_path, monkeypatch, video, name, kind):
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, "private.mp4")
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(folder=tmp_path))
    with open(path, "rb") as file, pytest.raises(VideoError, match="no video that FFmpeg can read.*mov, mp4"):
        open_video({"path": path, "bytes": path.read_bytes(), "file": file}[kind])


def test_patterns_and_devices_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        Image.new("RGB", (16, 16)).save(f"p{index}.png")
    for name in ("p%d.png", "p*.png", "testsrc", "lavfi:testsrc", "concat:a|b", "file:p0.png", "ftp://host/a.mp4"):
        with pytest.raises(VideoError, match="no such video file"):
            open_video(name)
    with pytest.raises(VideoError, match="no video that FFmpeg can read"):
        open_video("p0.png")
    render(tmp_path / "p%d.mp4")
    assert read_number(first_frame("p%d.mp4")) == 0


@pytest.mark.parametrize("name", ["a.gif", "a.mkv", "a.avi", "a.ts", "a.ogv", "a.wmv", "a.flv", "a.mpg"])
def test_videos_of_other_containers_are_read(tmp_path, name):
    codec = {"a.ogv": "libvpx", "a.wmv": "wmv2", "a.mpg": "mpeg2video", "a.avi": "mpeg4", "a.gif": "gif"}
    if name == "a.gif":
        frames = [Image.new("RGB", (32, 16), (0, 0, 9 * index)) for index in range(20)]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50)
    else:
        render(tmp_path / name, codec=codec.get(name, "libx264"), b_frames=0)
    for kind in (tmp_path / name, (tmp_path / name).read_bytes()):
        with open_video(kind) as reader:
            assert reader.duration == pytest.approx(1.0 if name == "a.gif" else 2.0, abs=0.1)
            assert len(list(reader.frames_at([0.0, 0.5]))) == 2


# Sizes


def test_tiny_files_of_huge_frames_are_refused_before_memory_is_asked_for():
    code = """if True:
        import resource, sys
        from test_video_limits import gif
        from sail_hf import SailVideoProcessor, VideoError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for size in [(65535, 1), (1, 65535), (16000, 16000), (65535, 65535)]:
            try:
                SailVideoProcessor()(gif(*size))
            except VideoError as error:
                print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    *errors, kilobytes = done.stdout.splitlines()
    assert ["side ratio 65,535.0 is above the limit of 100.0" in error for error in errors] == [
        True,
        True,
        False,
        False,
    ]
    assert ["67,108,864 pixels" in error and "SAIL_MAX_PIXELS" in error for error in errors[2:]] == [True, True]
    assert int(kilobytes) < 100_000


def test_a_frame_of_8k_passes():
    assert first_frame(gif(7680, 4320)).shape == (4320, 7680, 3)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"pixels": 127 * 32}, r"private.mp4 \(128 x 32\): pixels 4,096 is above the limit of 4,064.*SAIL_MAX_PIXELS"),
        ({"side_ratio": 3.9}, r"private.mp4 \(128 x 32\): side ratio 4.0 is above the limit of 3.9"),
        ({"duration": 1.9}, r"private.mp4: duration 2.0 is above the limit of 1.9.*VideoLimits\(duration=...\)"),
        ({"frames": 59}, r"private.mp4: frames 60 is above the limit of 59.*SAIL_MAX_FRAMES"),
        ({"work_seconds": 1e-9}, r"private.mp4: work seconds .* is above the limit"),
    ],
)
def test_every_limit_of_a_file_can_be_set_by_argument_and_environment(video, monkeypatch, limits, words):
    with pytest.raises(VideoError, match=words):
        first_frame(video, limits=VideoLimits(**limits))
    ((name, value),) = limits.items()
    monkeypatch.setenv(f"SAIL_MAX_{name.upper()}", str(value))
    with pytest.raises(VideoError, match=words):
        first_frame(video)
    assert first_frame(video, limits=VideoLimits()).shape == (32, 128, 3), "an argument goes before the environment"


def test_what_is_within_the_limits_passes(video):
    limits = VideoLimits(pixels=128 * 32, side_ratio=4, duration=2.001, frames=60)
    assert first_frame(video, limits=limits).shape == (32, 128, 3)


def test_the_work_of_one_frame_is_limited_and_counted_anew_for_the_next(tmp_path, monkeypatch):
    path = render(tmp_path / "one-keyframe.mp4", gop=1000)
    with open_video(path, limits=VideoLimits(work_seconds=30)) as reader:
        ticks = itertools.count()
        monkeypatch.setattr("sail_hf.video_reading.monotonic", lambda: next(ticks))  # a packet, a second
        assert [read_number(frame) for frame in reader.frames_at([0.5, 1.0, 1.5, 1.9])] == [15, 30, 45, 57]
        with pytest.raises(VideoError, match="work seconds 31 is above the limit of 30"):
            list(reader.frames_at([0.0, 1.9]))


def test_a_header_of_centuries_is_refused(tmp_path):
    data = bytearray(render(tmp_path / "a.mkv").read_bytes())
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", 1e12)  # milliseconds
    with pytest.raises(VideoError, match="duration 1,000,000,000.0 is above the limit of 86,400.0"):
        open_video(bytes(data))


def test_limits_hold_for_frames_in_memory():
    array = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(VideoError, match="duration 2,000,000,000.0 is above"):
        open_video(array, fps=1e-9)
    for wide in (np.zeros((2, 1, 400, 3), np.uint8), torch.zeros(2, 400, 1, 3, dtype=torch.uint8)):
        with pytest.raises(VideoError, match="side ratio 400.0 is above"):
            first_frame(wide, fps=1)
    with pytest.raises(VideoError, match="pixels 16 is above the limit of 15"):
        first_frame([Image.new("RGB", (4, 4))], fps=1, limits=VideoLimits(pixels=15))


def test_frames_that_a_model_sees_at_once_are_limited(monkeypatch):
    processor, array = SailVideoProcessor(size=8, crop_size=8), np.zeros((2, 4, 4, 3), np.uint8)
    assert len(processor(array, fps=1, num_frames=10, limits=VideoLimits(held_bytes=7680))["pixel_values_videos"]) == 1
    with pytest.raises(VideoError, match="10 frames of 8 x 8: held bytes 7,680 is above the limit of 7,679"):
        processor(array, fps=1, num_frames=10, limits=VideoLimits(held_bytes=7679))
    with pytest.raises(VideoError, match="num_frames: frames 1,000,000,000,000 is above"):
        processor(array, fps=1, num_frames=10**12)


def test_running_out_of_memory_is_a_sentence(video, monkeypatch):
    class Full(io.BytesIO):
        def read(self, size=-1):
            raise MemoryError

    with pytest.raises(VideoError, match="type Full: not enough memory to open it"):
        open_video(Full(video.read_bytes()))
    with open_video(video) as reader:

        def full(time):
            raise MemoryError

        monkeypatch.setattr(reader, "_frame_at", full)
        with pytest.raises(VideoError, match=r"private.mp4: not enough memory for its frame at 1.00 s"):
            next(reader.frames_at([1.0]))


def test_limits_of_the_environment(monkeypatch):
    assert VideoLimits.from_environment() == VideoLimits()
    for field in dataclasses.fields(VideoLimits):
        if field.name != "allow_private_addresses":
            monkeypatch.setenv(f"SAIL_MAX_{field.name.upper()}", "7")
    monkeypatch.setenv("SAIL_ALLOW_PRIVATE_ADDRESSES", "0")
    assert dataclasses.astuple(VideoLimits.from_environment()) == (7,) * 8 + (False,)
    monkeypatch.setenv("SAIL_MAX_FRAMES", "many")
    with pytest.raises(
        ValueError, match="Expected a number in the environment variable SAIL_MAX_FRAMES, found 'many'"
    ):
        VideoLimits.from_environment()


# Names and threads


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300 + ".mp4", "x{300}.mp4: no such video file .File name too long"),
        ("a\0b.mp4", "no such video file"),
        ("\udcff.mp4", r"\\udcff.mp4: no such video file"),
        ("\ud800.mp4", r"\\ud800.mp4: no such video file"),
    ],
)
def test_impossible_names_are_errors_that_can_be_printed(name, words):
    with pytest.raises(VideoError, match=words) as caught:
        open_video(name)
    str(caught.value).encode("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of other systems are text")
def test_a_name_that_is_no_text_is_read(tmp_path, video):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    shutil.copy(video, path)
    assert read_number(first_frame(Path(os.fsdecode(path)))) == 0
    with open(path, "rb") as file:
        assert read_number(first_frame(file)) == 0
    with open(path, "wb") as file:
        file.write(b"damage" * 100)
    with pytest.raises(VideoError, match=r"\\udcff\\udcfe.mp4: no video") as caught:
        open_video(Path(os.fsdecode(path)))
    str(caught.value).encode("utf-8")


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux lists them")
def test_closed_readers_leave_no_threads_and_no_files(video):
    first_frame(video)  # what libraries start once
    threads, files = num_threads(), len(os.listdir("/proc/self/fd"))
    readers, most = [], 0
    for _ in range(5):
        with open_video(video) as reader:
            list(reader.frames_at([0.0, 1.0]))
            most = max(most, num_threads())
        readers.append(reader)
    assert num_threads() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    with pytest.raises(VideoError):
        open_video(b"damage" * 100)
    assert (num_threads(), len(os.listdir("/proc/self/fd"))) == (threads, files)
    assert os.cpu_count() == 1 or most > threads, "nothing was there to be left"
