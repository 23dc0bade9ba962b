"""Videos of every kind, read frame by frame by presentation time."""

import http.client
import io
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

# A frame that cannot be decoded may be replaced by one at most this far from it, in seconds.
MAX_GAP = 1.0
# Times are compared to the microsecond, so that 3 * 0.1 s shows the frame of 0.3 s.
_EPSILON = 1e-6
_DOWNLOAD_TIMEOUT = 60
# Position of a reader that decodes from the beginning of the file instead of from a keyframe.
_BEGINNING = -1


class VideoError(ValueError):
    """A video that cannot be read, or does not cover what was asked; the message names it and says what was found."""


class VideoReader(ABC):
    """Frames of one video by time; made by [`open_video`], used as a context manager.

    Attributes:
        name (`str`): file name, URL or kind of the video, for messages.
        duration (`float`): seconds from time zero to the end of the last frame. For a file that is cut off, what its
            header states.
        fps (`float`): mean number of frames per second.
    """

    name: str
    duration: float
    fps: float

    def frames_at(self, times: Iterable[float]) -> Iterator[np.ndarray]:
        """Yield the frame shown at each time, one by one: the one with the largest presentation time <= t.

        Times before the first frame give the first, times past the end the last one.

        Args:
            times: seconds; ascending times are fastest.

        Returns:
            `uint8` RGB arrays `(H, W, 3)`, upright (rotation metadata applied).

        Raises:
            VideoError: a frame cannot be decoded, nor any other frame within `MAX_GAP` (1 second) of it.
        """
        for time in times:
            if not np.isfinite(time):
                raise VideoError(f"{self.name}: expected times in seconds, found {time}")
            yield self._frame_at(float(time))

    @abstractmethod
    def _frame_at(self, time: float) -> np.ndarray: ...

    def close(self) -> None:  # noqa: B027 (most readers hold nothing to release)
        """Release the file."""

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_video(video: Any, fps: float | None = None) -> VideoReader:
    """Open a video of any kind.

    Args:
        video: a path, an http(s) URL (downloaded to a temporary file), `bytes`, a binary file object, a dictionary
            with `"path"` or `"bytes"` (what `datasets.Video(decode=False)` yields), a `uint8` array or tensor
            `(T, H, W, 3)` or `(T, 3, H, W)`, a list of PIL images, or a torchcodec `VideoDecoder`.
        fps: frames per second of an array, a tensor or a list of images, where it is required. Everything else carries
            its own presentation times.

    Raises:
        VideoError: no readable video, a wrong shape or type, or `fps` missing or out of place.
    """
    if isinstance(video, dict):
        video = video.get("bytes") or video.get("path")
    if is_image_list(video):
        return _FrameSequenceReader(video, fps, f"the list of {len(video)} images")
    if isinstance(video, (np.ndarray, torch.Tensor)):
        return _FrameSequenceReader(_channels_last(video), fps, f"the {type(video).__name__} {tuple(video.shape)}")
    if fps is not None:
        raise VideoError(
            f"fps={fps} belongs to arrays and lists of images; {_describe(video)} carries its own presentation times"
        )
    if hasattr(video, "get_frames_played_at"):
        return _DecoderReader(video)
    if isinstance(video, (bytes, bytearray, memoryview)):
        if not len(video):
            raise VideoError("The video is empty (0 bytes)")
        return _FileReader(io.BytesIO(video), f"the video of {len(video)} bytes")
    if isinstance(video, str) and video.lower().startswith(("http://", "https://")):
        return _open_url(video)
    if isinstance(video, (str, os.PathLike)):
        return _open_path(Path(video))
    if hasattr(video, "read"):
        return _open_file_object(video)
    raise VideoError(
        "Expected a path, URL, bytes, binary file object, uint8 array or tensor, list of PIL images or torchcodec "
        f"decoder, found {_describe(video)}"
    )


def uniform_times(num_frames: int, start: float, end: float) -> np.ndarray:
    """`num_frames` times from `start` to `end`, both included, in seconds: the grid of Eq. 1's masks.

    Returns: `float64` array `(num_frames,)`; a single frame is the one at `start`.
    """
    return np.linspace(start, end, num_frames)


class _FrameSequenceReader(VideoReader):
    """Frames in memory at a fixed rate: frame i is shown from i / fps to (i + 1) / fps."""

    def __init__(self, frames: Sequence, fps: float | None, name: str):
        if not isinstance(fps, Real) or not np.isfinite(float(fps)) or fps <= 0:
            raise VideoError(f"Expected fps= (frames per second, above 0) with {name}, found fps={fps!r}")
        self.name = name
        self.fps = float(fps)
        self.duration = len(frames) / self.fps
        self._frames = frames

    def _frame_at(self, time: float) -> np.ndarray:
        index = int(np.clip((time + _EPSILON) * self.fps, 0, len(self._frames) - 1))
        frame = self._frames[index]
        if isinstance(frame, Image.Image):
            return np.asarray(frame.convert("RGB"))
        return frame.cpu().numpy() if isinstance(frame, torch.Tensor) else frame


class _DecoderReader(VideoReader):
    """A torchcodec `VideoDecoder`, or an object with its `metadata` and `get_frames_played_at`."""

    def __init__(self, decoder):
        metadata = decoder.metadata
        self.name = f"the {type(decoder).__name__}"
        self._decoder = decoder
        self._begin = float(metadata.begin_stream_seconds or 0.0)
        end = metadata.end_stream_seconds
        if end is None:
            raise VideoError(f"{self.name}: its metadata state no end; open the decoder with seek_mode='exact'")
        self.duration = float(end) - self._begin
        self.fps = float(metadata.average_fps or 0.0)

    def _frame_at(self, time: float) -> np.ndarray:
        # torchcodec refuses the end of the last frame, and times outside of the stream.
        seconds = self._begin + float(np.clip(time + _EPSILON, 0, self.duration - _EPSILON))
        try:
            frame = self._decoder.get_frames_played_at([seconds]).data[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise VideoError(f"{self.name}: no frame could be decoded at {time:.3f} s: {error}") from error
        return _channels_last(frame[None])[0].cpu().numpy()


class _FileReader(VideoReader):
    """A file through PyAV. One pass over the packets finds the true times, then frames are decoded from keyframes on.

    Headers are not trusted for times: Matroska and WebM often state neither duration nor frame count, and many files
    have a variable frame rate. Time zero is the start of the container.
    """

    def __init__(self, source: str | BinaryIO, name: str, owned: BinaryIO | None = None):
        self.name = name
        self._source = source
        self._owned = owned  # a file that is closed with the reader
        self._container = None
        self._decoded: Iterator = iter(())  # frames as the decoder gives them
        self._current = None  # latest frame at or before the last target, ...
        self._ahead = None  # ... and the one after it, if it had to be decoded
        self._position = _BEGINNING  # of the last packet given to the decoder, in file order
        self._array: tuple[int, np.ndarray] | None = None  # the last frame as RGB, with its time
        try:
            self._open()
            self._stream_index = self._pick_stream()
            self._scan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._decoded, self._current, self._ahead = iter(()), None, None
        if self._container is not None:
            self._container.close()
        if self._owned is not None:
            self._owned.close()

    def _open(self) -> None:
        import av

        if self._container is not None:
            self._container.close()
        if not isinstance(self._source, str):
            self._source.seek(0)
        try:
            # A playlist inside of a video must not open network addresses.
            options = {"protocol_whitelist": "file"}
            self._container = av.open(self._source, container_options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self.name}: no video that FFmpeg can read ({_reason(error)}). Is it a video, and complete?"
            ) from None

    @property
    def _stream(self):
        return self._container.streams[self._stream_index]

    def _pick_stream(self) -> int:
        """FFmpeg's choice among the video streams; cover pictures, and text that FFmpeg would draw, are none."""
        from av.stream import Disposition

        streams = self._container.streams
        codecs = {stream.index: stream.codec_context.name if stream.codec_context else None for stream in streams}
        videos = [stream for stream in streams.video if codecs[stream.index]]
        videos = [stream for stream in videos if not stream.disposition & Disposition.attached_pic]
        if self._container.format.name == "tty" or not videos:
            found = [f"{stream.type} ({codecs[stream.index] or 'unknown codec'})" for stream in streams]
            raise VideoError(
                f"{self.name}: no video stream that can be decoded; found {', '.join(found) or 'no stream at all'}"
            )
        best = streams.best("video")
        return (best if best in videos else max(videos, key=lambda stream: stream.width * stream.height)).index

    def _scan(self) -> None:
        """Read all packets, without decoding, for the times of the frames and the keyframes to start from."""
        container, stream = self._container, self._stream
        tick = stream.time_base
        shown, keys, durations = [], [], {}
        self._order = {}  # place in the file of the packet with a presentation time, ...
        self._seek_times = []  # ... and the time to seek to for the packet at a place
        end_of_data, num_untimed = 0.0, 0
        for packet in self._read_packets(*container.streams):
            time = _timestamp(packet)
            if not packet.size:
                continue
            if time is None:
                num_untimed += 1
                continue
            end_of_data = max(end_of_data, float((time + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            position = len(self._seek_times)
            self._order[time] = position
            # Demuxers seek by decoding or by presentation time: the smaller serves both.
            self._seek_times.append(time if packet.dts is None else min(time, packet.dts))
            if packet.is_keyframe:
                keys.append((time, position))
            if not packet.is_discard:  # edit lists: decoded, but not shown
                shown.append(time)
                durations[time] = packet.duration
        if not shown:
            found = f"{num_untimed} packets without presentation times" if num_untimed else "no frames"
            raise VideoError(f"{self.name}: its video stream ({stream.codec_context.name}) holds {found}")
        keys.sort()
        self._key_times = [time for time, _ in keys]
        self._key_positions = [position for _, position in keys]
        self._shown = np.unique(np.array(shown, dtype=np.int64))
        start = 0.0 if container.start_time is None else container.start_time / 1e6
        self._times = (self._shown - round(start / tick)) * tick.numerator / tick.denominator
        step = float(np.median(np.diff(self._times))) if len(shown) > 1 else 1 / float(stream.average_rate or 25)
        last = float((durations[int(self._shown[-1])] or 0) * tick) or step
        self._end = self.duration = float(self._times[-1]) + last
        self.fps = len(self._shown) / self.duration
        # A header that promises clearly more than the file holds: the file is cut off.
        stated = 0.0 if container.duration is None else container.duration / 1e6
        if stated - max(end_of_data - start, self._end) > max(MAX_GAP, 0.05 * stated):
            self.duration = stated

    def _read_packets(self, *streams) -> Iterator:
        """Packets up to the end of the file or to damage that stops the demuxer."""
        import av

        try:
            yield from self._container.demux(*streams)
        except av.FFmpegError:
            return

    def _frame_at(self, time: float) -> np.ndarray:
        if min(time, self.duration) > self._end + MAX_GAP:
            raise VideoError(
                f"{self.name}: a frame at {time:.2f} s was asked for, but the file ends after {self._end:.2f} s "
                f"({len(self._shown)} frames) of the {self.duration:.2f} s that its header states. Is it cut off?"
            )
        index = np.searchsorted(self._times, time + _EPSILON, side="right") - 1
        frame = self._decode(int(self._shown[max(index, 0)]))
        if self._array is None:
            # Once per file: a PyAV frame whose side data were asked for is freed by the garbage collector only.
            self._matrix = _display_matrix(frame)
        if self._array is None or self._array[0] != _timestamp(frame):
            self._array = _timestamp(frame), _upright(frame.to_ndarray(format="rgb24"), self._matrix)
        return self._array[1]

    def _decode(self, target: int):
        """The frame of presentation time `target` (in ticks), or what damage has left within `MAX_GAP` of it."""
        gap = int(MAX_GAP / self._stream.time_base)
        reached = None if self._current is None else _timestamp(self._current)
        nearest = self._keyframe_before(target)
        # Some keyframes give whole pictures only later (intra refresh, damage): then start at an earlier one, and
        # where that leaves nothing to show, at the beginning.
        found = []
        for key in dict.fromkeys([nearest, self._keyframe_before(max(target - gap, int(self._shown[0]))), _BEGINNING]):
            if key == _BEGINNING and found:
                break
            decode_on = key == nearest and reached is not None and reached <= target and key <= self._position
            if not decode_on:
                self._start_at(key)
            self._advance(target)
            if self._current is not None and _timestamp(self._current) == target:
                return self._current
            near = [frame for frame in (self._current, self._ahead) if frame is not None]
            found += [frame for frame in near if abs(_timestamp(frame) - target) <= gap]
        if not found:
            asked = self._times[np.searchsorted(self._shown, target)]
            raise VideoError(
                f"{self.name}: damaged; neither the frame at {asked:.2f} s nor any within {MAX_GAP:g} s of it can be "
                f"decoded ({len(self._shown)} frames over {self._end:.2f} s are listed)"
            )
        before = [frame for frame in found if _timestamp(frame) <= target]
        return max(before, key=_timestamp) if before else min(found, key=_timestamp)

    def _keyframe_before(self, time: int) -> int:
        """Position of the last keyframe shown at or before `time` (frames after it never need older ones)."""
        index = bisect_right(self._key_times, time) - 1
        return self._key_positions[index] if index >= 0 else _BEGINNING

    def _start_at(self, key: int) -> None:
        import av

        self._current, self._ahead, self._position = None, None, _BEGINNING
        if key == _BEGINNING:
            self._open()
        else:
            try:
                self._container.seek(self._seek_times[key], stream=self._stream)
            except av.FFmpegError:
                self._decoded = iter(())
                return
        self._decoded = self._decode_from(key)

    def _decode_from(self, key: int) -> Iterator:
        """Frames from the keyframe at position `key` on; none if the seek has landed behind it."""
        import av

        started = key == _BEGINNING
        for packet in self._read_packets(self._stream):
            time = _timestamp(packet)
            if not packet.size and time is not None:
                continue  # an empty sample repeats the last frame; to the decoder it would mean the end
            position = self._order.get(time)
            if not started:
                if position is None or position < key:
                    continue
                if position > key:
                    return
                started = True
            self._position = self._position if position is None else position
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            yield from (frame for frame in frames if _timestamp(frame) is not None and not frame.is_corrupt)

    def _advance(self, target: int) -> None:
        """Decode until the current frame is the one shown at `target`."""
        while self._current is None or _timestamp(self._current) < target:
            self._ahead = self._ahead or next(self._decoded, None)
            if self._ahead is None or _timestamp(self._ahead) > target:
                return
            self._current, self._ahead = self._ahead, None


def _open_path(path: Path) -> VideoReader:
    if path.is_dir():
        raise VideoError(f"{path}: expected a video file, found a folder")
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: no such video file ({_reason(error)})") from None
    if not size:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    # With the protocol spelt out, no name is taken for an option, a URL or a pattern.
    return _FileReader(f"file:{path}", str(path))


def _open_file_object(file: BinaryIO) -> VideoReader:
    name = str(getattr(file, "name", None) or f"the {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise VideoError(f"{name}: expected a binary file object (open it with 'rb'), found one in text mode")
    if hasattr(file, "seekable") and file.seekable():
        if not file.seek(0, io.SEEK_END):
            raise VideoError(f"{name}: the file is empty (0 bytes)")
        return _FileReader(file, name)
    return _copy_to_temporary_file(file, name)


def _open_url(url: str) -> VideoReader:
    parts = urllib.parse.urlsplit(url)
    # Queries and user names of links hold tokens: they do not belong in messages.
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "sail_hf"})
        with urllib.request.urlopen(request, timeout=_DOWNLOAD_TIMEOUT) as response:
            return _copy_to_temporary_file(response, name)
    except urllib.error.HTTPError as error:
        raise VideoError(f"{name}: the download failed (HTTP {error.code} {error.reason})") from None
    except OSError as error:  # URLError and timeouts are OSErrors
        raise VideoError(f"{name}: the download failed ({_reason(error)})") from None
    except (http.client.HTTPException, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        # The text of these errors repeats the URL.
        raise VideoError(f"{name}: the download failed ({type(error).__name__})") from None


def _copy_to_temporary_file(stream: BinaryIO, name: str) -> VideoReader:
    """A reader of a stream that cannot seek; the copy vanishes with the reader."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the reader)
    shutil.copyfileobj(stream, file)
    if not file.tell():
        file.close()
        raise VideoError(f"{name}: empty (0 bytes)")
    return _FileReader(file, name, owned=file)


def _display_matrix(frame) -> np.ndarray | None:
    """Display matrix (9 integers) of a PyAV frame."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(matrix, dtype=np.int32).astype(np.int64)


def _upright(array: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """An image `(H, W, 3)` turned and mirrored as its display matrix says, to the nearest right angle."""
    if matrix is None:
        return array
    # A pixel (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = matrix[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        array, a, d = array.transpose(1, 0, 2), c, b
    return array[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _channels_last(video: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """`(T, H, W, 3)` of a checked `uint8` video in either layout."""
    shape = tuple(video.shape)
    if len(shape) != 4 or 0 in shape or 3 not in (shape[3], shape[1]):
        raise VideoError(f"Expected a video array of shape (T, H, W, 3) or (T, 3, H, W), found {shape}")
    if video.dtype not in (np.uint8, torch.uint8):
        raise VideoError(
            f"Expected a video array of dtype uint8 with values 0 to 255, found {video.dtype} of shape {shape}"
        )
    if shape[3] == 3:
        return video
    return video.permute(0, 2, 3, 1) if isinstance(video, torch.Tensor) else video.transpose(0, 2, 3, 1)


def is_image_list(video: Any) -> bool:
    return isinstance(video, (list, tuple)) and bool(video) and all(isinstance(x, Image.Image) for x in video)


def _timestamp(packet_or_frame) -> int | None:
    """Presentation time in ticks; old AVI files have decoding times only."""
    return packet_or_frame.dts if packet_or_frame.pts is None else packet_or_frame.pts


def _describe(video: Any) -> str:
    return f"{str(video)!r}" if isinstance(video, (str, os.PathLike)) else f"an object of type {type(video).__name__}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(getattr(error, "reason", None) or error)
