"""Reading videos of every kind by presentation time."""

import gc
import io
import random
import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from numbered_video import BITS, numbered_frame, read_number, render
from PIL import Image, ImageDraw, ImageFont

from sail_hf.video_reading import VideoError, open_video, uniform_times


def numbers_at(video, times, **kwargs) -> list[int]:
    with open_video(video, **kwargs) as reader:
        return [read_number(frame) for frame in reader.frames_at(times)]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """60 frames at 30 per second, a keyframe every 12, with B-frames."""
    return render(tmp_path_factory.mktemp("videos") / "numbered.mp4")


# Which frame is shown


UNEVEN = np.cumsum(np.random.default_rng(0).integers(1, 9, 60)).tolist()
UNEVEN = [time - UNEVEN[0] for time in UNEVEN]
RECIPES = {
    "b-frames.mp4": {},
    "b-frames.mkv": {},
    "b-frames.ts": {},  # time zero is not 0 in the file
    "b-frames.flv": {},
    "one-keyframe.mp4": {"gop": 1000},
    "all-keyframes.mp4": {"gop": 1, "b_frames": 0},
    "open-gop.mp4": {"options": {"x264-params": "open-gop=1"}},
    "open-gop-h265.mkv": {"codec": "libx265", "options": {"x265-params": "open-gop=1:log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp8-hidden-frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "uneven.mp4": {"pts": UNEVEN},
    "uneven.mkv": {"pts": UNEVEN},
    "uneven.ts": {"pts": UNEVEN},
}


@pytest.mark.parametrize("name", RECIPES)
def test_shows_the_frame_with_the_largest_presentation_time_up_to_t(tmp_path, name):
    path = render(tmp_path / name, **RECIPES[name])
    starts = np.array(RECIPES[name].get("pts", range(60))) / 30
    generator = random.Random(name)
    ascending = sorted(generator.uniform(-0.1, starts[-1] + 0.1) for _ in range(25))
    times = ascending + [generator.uniform(0, starts[-1]) for _ in range(10)]
    # Containers round to milliseconds (Matroska, FLV): stay clear of the instant of a change.
    times = [time for time in times if np.abs(starts - time).min() > 0.002]
    expected = [max(0, int(np.sum(starts <= time)) - 1) for time in times]
    assert len(times) > 25
    assert numbers_at(path, times) == expected


def test_the_instant_of_a_change_shows_the_new_frame(video):
    assert numbers_at(video, [number / 30 for number in range(60)]) == list(range(60))
    assert numbers_at(video, [3 * 0.1 - 1e-4, 3 * 0.1, 0.3]) == [8, 9, 9]


def test_duration_and_rate_are_measured_not_read_from_the_header(tmp_path, video):
    with open_video(video) as reader:
        assert reader.duration == pytest.approx(2.0)
        assert reader.fps == pytest.approx(30.0)
    with open_video(render(tmp_path / "uneven.mp4", pts=UNEVEN)) as reader:
        # The last frame lasts as long as the container says, here one tick or more.
        assert UNEVEN[-1] / 30 < reader.duration <= UNEVEN[-1] / 30 + 8 / 30
        assert reader.fps == pytest.approx(60 / reader.duration)


def test_live_recording_without_duration_or_cues(tmp_path):
    path = render(tmp_path / "live.webm", codec="libvpx", container_options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
    with open_video(path) as reader:
        assert reader.duration == pytest.approx(2.0, abs=0.04)
    assert numbers_at(path, [1.95, 0.05, 1.05]) == [58, 1, 31]


def test_frames_before_an_edit_list_are_not_shown(tmp_path):
    pts = list(range(-20, 40))
    path = render(tmp_path / "edited.mp4", pts=pts, container_options={"avoid_negative_ts": "0", "use_editlist": "1"})
    with av.open(str(path)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    assert numbers_at(path, [0.0, 0.01, 1.0]) == [20, 20, 50]
    with open_video(path) as reader:
        assert (reader.duration, reader.fps) == (pytest.approx(40 / 30), pytest.approx(30))


def test_time_zero_is_the_start_of_the_container_not_of_the_video_stream(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16 * BITS, 32, "yuv420p"
        for index in range(40):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, index * 1024
            container.mux(sound.encode(samples))
        for number in range(10):  # the picture starts after a second of sound
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number + 10, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(sound.encode())
        container.mux(stream.encode())
    with open_video(path) as reader:
        assert reader.duration == pytest.approx(2.0, abs=0.1)
        assert [read_number(frame) for frame in reader.frames_at([0.0, 1.65])] == [0, 6]


@pytest.mark.parametrize(
    ("gop", "most"),
    [
        (10, 40),  # four keyframes, and what the decoder holds back
        (1000, 225),  # one keyframe: each frame once
    ],
)
def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch, gop, most):
    path = render(tmp_path / "long.mp4", num_frames=240, gop=gop, options={"x264-params": "scenecut=0"})
    with open_video(path) as reader:
        num_decoded = 0
        decode_from = reader._decode_from

        def counting(key):
            nonlocal num_decoded
            for frame in decode_from(key):
                num_decoded += 1
                yield frame

        monkeypatch.setattr(reader, "_decode_from", counting)
        numbers = [read_number(frame) for frame in reader.frames_at([1.0, 3.0, 5.0, 7.0, 7.0, 7.1])]
        assert numbers == [30, 90, 150, 210, 210, 213]
        assert num_decoded < most


def test_decoded_frames_are_freed_at_once(video):
    gc.collect()
    gc.disable()
    try:
        with open_video(video) as reader:
            for _ in reader.frames_at(uniform_times(60, 0, 2)):
                pass
            assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) < 10
    finally:
        gc.enable()


def test_turned_and_mirrored_as_the_metadata_say(tmp_path):
    upright = numbered_frame(0b00000111)
    for degrees, expected in [(90, np.rot90(upright)), (180, upright[::-1, ::-1]), (-90, np.rot90(upright, -1))]:
        with open_video(render(tmp_path / "r.mp4", num_frames=8, rotation=(degrees,))) as reader:
            frame = next(reader.frames_at([7 / 30]))
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 5
    with open_video(render(tmp_path / "m.mp4", num_frames=8, rotation=(0, True))) as reader:
        frame = next(reader.frames_at([7 / 30]))
    assert np.abs(frame.astype(int) - upright[:, ::-1]).mean() < 5


def test_uniform_times_include_both_ends():
    assert uniform_times(5, 2.0, 4.0).tolist() == [2.0, 2.5, 3.0, 3.5, 4.0]
    assert uniform_times(1, 2.0, 4.0).tolist() == [2.0]


# Kinds of input


class OneWay(io.RawIOBase):
    """A stream that can only be read on, such as a pipe."""

    def __init__(self, data: bytes):
        self._stream = io.BytesIO(data)

    def read(self, size=-1):
        return self._stream.read(size)

    def seekable(self):
        return False


class FakeTorchcodecDecoder:
    """The part of torchcodec's `VideoDecoder` that is used, with its own refusal of times outside of the stream."""

    def __init__(self, frames: torch.Tensor, fps: float, begin: float = 0.0):
        self._frames, self._fps = frames, fps
        self.metadata = SimpleNamespace(
            begin_stream_seconds=begin,
            end_stream_seconds=begin + len(frames) / fps,
            duration_seconds=len(frames) / fps,
            average_fps=fps,
            num_frames=len(frames),
        )

    def get_frames_played_at(self, seconds):
        metadata = self.metadata
        for second in seconds:
            if not metadata.begin_stream_seconds <= second < metadata.end_stream_seconds:
                raise IndexError(f"Invalid pts in seconds: {second}")
        indices = [int((second - metadata.begin_stream_seconds) * self._fps) for second in seconds]
        return SimpleNamespace(data=self._frames[indices])


TIMES = [0.0, 0.51, 1.0, 1.99, 2.0, 5.0]
SHOWN = [0, 15, 30, 59, 59, 59]


def test_every_kind_of_file_gives_the_same_frames(video, monkeypatch):
    monkeypatch.chdir(video.parent)
    shutil.copy(video, "-dash.mp4")
    data = video.read_bytes()
    for kind in [
        video,
        str(video),
        "-dash.mp4",
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        OneWay(data),
    ]:
        assert numbers_at(kind, TIMES) == SHOWN
    assert numbers_at({"path": str(video), "bytes": None}, TIMES) == SHOWN
    assert numbers_at({"path": None, "bytes": data}, TIMES) == SHOWN
    with open(video, "rb") as file:
        file.seek(100)
        assert numbers_at(file, TIMES) == SHOWN
        assert not file.closed


def test_frames_in_memory_are_shown_at_their_rate():
    frames = np.stack([numbered_frame(number) for number in range(60)])
    channels_first = frames.transpose(0, 3, 1, 2)
    for kind in [
        frames,
        channels_first,
        torch.from_numpy(frames),
        torch.from_numpy(channels_first),
        [Image.fromarray(frame) for frame in frames],
    ]:
        assert numbers_at(kind, TIMES, fps=30) == SHOWN
    with open_video(frames, fps=Fraction(30000, 1001)) as reader:
        assert reader.duration == pytest.approx(60 * 1001 / 30000)


@pytest.mark.parametrize("begin", [0.0, 1.4])
def test_torchcodec_decoder(begin):
    frames = torch.stack([torch.from_numpy(numbered_frame(number)) for number in range(60)])
    for layout in (frames, frames.permute(0, 3, 1, 2)):
        assert numbers_at(FakeTorchcodecDecoder(layout, 30, begin), TIMES) == SHOWN
    with open_video(FakeTorchcodecDecoder(frames, 30, begin)) as reader:
        assert (reader.duration, reader.fps) == (pytest.approx(2.0), 30)


# Errors


def audio_only(path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def audio_with_cover(path) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 200, np.uint8), format="rgb24")
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def written(path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def unknown_codec(path, video) -> Path:
    return written(path, video.read_bytes().replace(b"avc1", b"zzzz"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, _: folder / "missing.mp4", "missing.mp4: no such video file"),
        (lambda folder, _: folder, "expected a video file, found a folder"),
        (lambda folder, _: written(folder / "none.mp4", b""), "none.mp4: the file is empty"),
        (lambda folder, _: written(folder / "text.mp4", b"a text\n" * 99), "text.mp4: no video that FFmpeg can read"),
        (
            lambda folder, _: written(folder / "notes.txt", b"a text\n" * 99),
            "notes.txt: no video that FFmpeg can read",
        ),
        (lambda folder, _: audio_only(folder / "sound.m4a"), r"sound.m4a: no video stream .*found audio \(aac\)"),
        (lambda folder, _: audio_with_cover(folder / "song.mov"), "song.mov: no video stream"),
        (lambda folder, video: unknown_codec(folder / "odd.mp4", video), "odd.mp4: no video stream.*unknown codec"),
        (lambda folder, video: written(folder / "no-index.mp4", video.read_bytes()[:900]), "no-index.mp4: "),
        (lambda *_: b"", "empty"),
        (lambda *_: io.BytesIO(), "empty"),
        (lambda *_: OneWay(b""), "empty"),
        (lambda *_: io.StringIO("text"), "binary file object"),
        (lambda *_: 3, "found an object of type int"),
        (lambda *_: None, "found an object of type NoneType"),
        (lambda *_: [], "found an object of type list"),
        (lambda *_: {"array": 1}, "found an object of type NoneType"),
    ],
)
def test_what_is_no_video_gives_one_error_that_names_it(tmp_path, video, capfd, make, message):
    with pytest.raises(VideoError, match=message) as caught:
        open_video(make(tmp_path, video))
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)
    assert capfd.readouterr() == ("", "")  # nothing from FFmpeg itself


FRAMES = np.zeros((4, 8, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "fps", "message"),
    [
        (FRAMES, None, r"fps= .*ndarray \(4, 8, 6, 3\), found fps=None"),
        (FRAMES, 0, "fps=0"),
        (FRAMES, "30", "fps='30'"),
        (FRAMES[0], 1, r"\(T, H, W, 3\) or \(T, 3, H, W\), found \(8, 6, 3\)"),
        (FRAMES[:0], 1, r"found \(0, 8, 6, 3\)"),
        (FRAMES[..., :2], 1, r"found \(4, 8, 6, 2\)"),
        (FRAMES / 255, 1, "uint8 with values 0 to 255, found float64"),
        (torch.from_numpy(FRAMES).float(), 1, "found torch.float32"),
        ([Image.new("RGB", (4, 4))], None, "the list of 1 images"),
    ],
)
def test_wrong_arrays(array, fps, message):
    with pytest.raises(VideoError, match=message):
        open_video(array, fps=fps)


def test_fps_of_a_file_is_refused(video):
    with pytest.raises(VideoError, match="fps=5 .*numbered.mp4' carries its own"):
        open_video(video, fps=5)


def test_times_must_be_numbers(video):
    with pytest.raises(VideoError, match="numbered.mp4: expected times in seconds, found nan"):
        numbers_at(video, [float("nan")])


# Damage


def damaged(path: Path, source: Path, begin: float, end: float) -> Path:
    """A copy with the packets shown from `begin` to `end` seconds overwritten by zeros."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for packet in container.demux(video=0):
            if packet.size and begin <= packet.pts * packet.time_base < end:
                data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    return written(path, bytes(data))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """Six seconds, with a keyframe for each."""
    return render(tmp_path_factory.mktemp("videos") / "long.mp4", num_frames=180, gop=30, b_frames=0)


def test_a_small_hole_is_bridged_by_the_frame_before(tmp_path, long_video):
    path = damaged(tmp_path / "hole.mp4", long_video, 2.5, 2.9)
    numbers = numbers_at(path, [1.0, 2.0, 2.45, 4.0])
    assert numbers == [30, 60, 73, 120]
    (inside,) = numbers_at(path, [2.7])
    assert 60 <= inside <= 74


def test_a_large_hole_is_an_error_only_for_who_asks_for_it(tmp_path, long_video, capfd):
    path = damaged(tmp_path / "hole.mp4", long_video, 2.0, 5.0)
    assert numbers_at(path, [0.0, 1.5, 5.5]) == [0, 45, 165]
    with pytest.raises(VideoError, match=r"hole.mp4: damaged; neither the frame at 3.50 s .*180 frames over 6.00 s"):
        numbers_at(path, [1.0, 3.5])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_cut_off_file_gives_what_it_has(tmp_path, name):
    whole = render(
        tmp_path / f"whole-{name}", 180, gop=30, options={"crf": "1"}, container_options={"movflags": "faststart"}
    )
    data = whole.read_bytes()
    path = written(tmp_path / name, data[: len(data) // 2])
    with open_video(path) as reader:
        assert reader.duration == pytest.approx(6.0, abs=0.1)  # what was meant, so that "all of it" is an error
    assert numbers_at(path, [0.0, 1.0, 1.5]) == [0, 30, 45]
    with pytest.raises(VideoError, match=rf"{name}: a frame at 4.00 s .* ends after .* of the 6.0\d s .*cut off"):
        numbers_at(path, uniform_times(4, 0, 6))


def test_no_frame_at_all(tmp_path, video):
    with (
        open_video(damaged(tmp_path / "zeros.mp4", video, 0, 9)) as reader,
        pytest.raises(VideoError, match="damaged"),
    ):
        list(reader.frames_at([0.0]))


# The real odd files


@pytest.mark.parametrize(
    ("name", "duration", "num_frames", "shape"),
    [
        ("-video-with-dash-.mp4", 5.0, 5, (1, 1)),
        ("flipping_a_pancake.mkv", 10.333, 310, (240, 426)),
        ("h265_10bits.mp4", 1.0, 30, (200, 200)),
        ("no_duration.webm", 4.938, 74, (720, 1280)),
        ("rotated_180_variable_rate.mp4", 2.380, 25, (720, 1280)),
        ("rotated_90.mov", 0.1, 3, (568, 320)),
        ("two_video_streams.mp4", 13.013, 390, (270, 480)),
    ],
)
def test_odd_files_give_the_frames_of_a_full_decode(shared, name, duration, num_frames, shape):
    path = shared / "videos" / "odd" / name
    with av.open(f"file:{path}") as container:
        stream = container.streams.best("video")
        frames = {frame.pts: frame for frame in container.decode(stream)}
        starts = np.array([float(pts * stream.time_base) for pts in frames])
        generator = random.Random(0)
        times = sorted(generator.uniform(0, duration) for _ in range(5))
        decoded = [list(frames.values())[max(0, int(np.sum(starts <= time)) - 1)] for time in times]
        quarter_turns = {0: 0, -90: 3, 90: 1, -180: 2}[decoded[0].rotation]
        expected = [np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns) for frame in decoded]
    assert len(frames) == num_frames
    with open_video(path) as reader:
        assert reader.duration == pytest.approx(duration, abs=1e-3)
        assert reader.fps == pytest.approx(num_frames / duration, rel=1e-3)
        for frame, other in zip(reader.frames_at(times), expected, strict=True):
            assert frame.shape == (*shape, 3) and frame.dtype == np.uint8
            assert np.array_equal(frame, other)


def glyph(mask: np.ndarray) -> np.ndarray:
    """A digit cut to its bounding box, at a fixed size, with mean 0 and variance 1."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8) * 255
    pixels = np.asarray(Image.fromarray(box).resize((20, 30)), dtype=float)
    return (pixels - pixels.mean()) / pixels.std()


def read_clock(frame: np.ndarray, digits: list[np.ndarray]) -> float:
    """Seconds of the burnt-in `HH:MM:SS;FF` at 29.97 frames per second, each digit by its likest template."""
    text = frame[885:995, 965:1545].min(axis=2) > 128
    edges = np.flatnonzero(np.diff(np.concatenate([[0], text.any(axis=0).astype(int), [0]])))
    spans = [(first, last) for first, last in edges.reshape(-1, 2) if last - first > 22]  # colons are narrower
    values = [int(np.argmax([(glyph(text[:, a:b]) * digit).mean() for digit in digits])) for a, b in spans]
    assert len(values) == 8
    hours, minutes, seconds, frames = (10 * a + b for a, b in zip(values[::2], values[1::2], strict=True))
    return hours * 3600 + minutes * 60 + seconds + frames * 1001 / 30000


def test_burnt_in_time_is_the_time_asked_for(shared):
    digits = []
    for digit in "0123456789":
        canvas = Image.new("L", (200, 200))
        ImageDraw.Draw(canvas).text((50, 20), digit, font=ImageFont.load_default(size=100), fill=255)
        digits.append(glyph(np.asarray(canvas) > 128))
    times = [*uniform_times(32, 0, 10.04), 7.3, 2.25]
    with open_video(shared / "videos" / "odd" / "timecode_29.97fps.mp4") as reader:
        assert reader.duration == pytest.approx(10.04)
        burnt_in = [read_clock(frame, digits) for frame in reader.frames_at(times)]
    # The file shows 29.97 pictures per second of the source at 25 per second: the nearest, so 0.02 s off at most.
    shown = [min(np.floor(time * 25 + 1e-4), 250) / 25 for time in times]
    assert np.abs(np.array(burnt_in) - shown).max() < 0.02


def test_file_with_a_damaged_frame(shared):
    with open_video(shared / "videos" / "odd" / "corrupted.mp4") as reader:
        frames = list(reader.frames_at(uniform_times(32, 0, reader.duration)))
    assert reader.duration == pytest.approx(5.0)
    assert all(frame.shape == (720, 1280, 3) and frame.std() > 50 for frame in frames)  # bright bars, never grey


def test_empty_file(shared):
    with pytest.raises(VideoError, match="empty.webm: the file is empty"):
        open_video(shared / "videos" / "odd" / "empty.webm")
