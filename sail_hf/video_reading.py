"""Videos of every kind, read frame by frame by presentation time."""

import errno
import gc
import io
import math
import os
import stat
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from time import monotonic
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from .video_download import copy_to_temporary_file, download
from .video_limits import VideoError, VideoLimits

# A frame that cannot be decoded may be replaced by one at most this far from it, in seconds.
MAX_GAP = 1.0
# Seconds of reading before a bar says how far it is.
_BAR_AFTER = 2.0
# Times are compared to the microsecond, so that 3 * 0.1 s shows the frame of 0.3 s.
_EPSILON = 1e-6
# Position of a reader that decodes from the beginning of the file instead of from a keyframe.
_BEGINNING = -1
# Containers that hold a video themselves, by FFmpeg's names. Others are playlists and descriptions, which open further
# files and addresses, patterns of file names, devices, and text that FFmpeg would draw.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,flv,mpeg,mpegvideo,mpegts,asf,ogg,gif,apng,mjpeg,yuv4mpegpipe,ivf,obu,nut,mxf,dv,rm,wtv"
)
# Readers may come into a forked process, such as a DataLoader's worker. A decoder that is garbage there would wait, at its
# end, for threads that were not forked with it, and for ever: what a process inherits is not collected.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)


class VideoReader(ABC):
    """Frames of one video by time; made by [`open_video`], used as a context manager.

    Attributes:
        name (`str`): file name, URL or kind of the video, for messages.
        duration (`float`): seconds from time zero to the end of the last frame. For a file that is cut off, what its
            header states.
        fps (`float`): mean number of frames per second.
        limits ([`VideoLimits`]): what it may ask for.
    """

    name: str
    duration: float
    fps: float

    def __init__(self, name: str, limits: VideoLimits):
        self.name, self.limits = name, limits

    def frames_at(self, times: Iterable[float]) -> Iterator[np.ndarray]:
        """Yield the frame shown at each time, one by one: the one with the largest presentation time <= t.

        Times before the first frame give the first, times past the end the last one.

        Args:
            times: seconds; ascending times are fastest.

        Returns:
            `uint8` RGB arrays `(H, W, 3)`, upright (rotation metadata applied).

        Raises:
            VideoError: a frame cannot be decoded, nor any other frame within `MAX_GAP` (1 second) of it; or it exceeds
                a limit.
        """
        for time in times:
            if not np.isfinite(time):
                raise VideoError(f"{self.name}: expected times in seconds, found {time}")
            try:
                frame = self._frame_at(float(time))
            except MemoryError:
                raise VideoError(f"{self.name}: not enough memory for its frame at {time:.2f} s") from None
            self.limits.check_size(frame.shape[1], frame.shape[0], self.name)
            yield frame

    @abstractmethod
    def _frame_at(self, time: float) -> np.ndarray: ...

    def close(self) -> None:  # noqa: B027 (most readers hold nothing to release)
        """Release the file."""

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_video(video: Any, fps: float | None = None, limits: VideoLimits | None = None) -> VideoReader:
    """Open a video of any kind.

    Args:
        video: a path, an http(s) URL (downloaded to a temporary file), `bytes`, a binary file object, a dictionary
            with `"path"` or `"bytes"` (what `datasets.Video(decode=False)` yields), a `uint8` array or tensor
            `(T, H, W, 3)` or `(T, 3, H, W)`, a list of PIL images, or a torchcodec `VideoDecoder`.
        fps: frames per second of an array, a tensor or a list of images, where it is required. Everything else carries
            its own presentation times.
        limits: what the video may ask for. Defaults to [`VideoLimits.from_environment`].

    Raises:
        VideoError: no readable video, a wrong shape or type, a limit exceeded, or `fps` missing or out of place.
    """
    limits = VideoLimits.from_environment() if limits is None else limits
    try:
        reader = _reader(video, fps, limits)
    except MemoryError:
        raise VideoError(f"{_describe(video)}: not enough memory to open it") from None
    try:
        limits.check("duration", reader.duration, reader.name)
    except VideoError:
        reader.close()
        raise
    return reader


def _reader(video: Any, fps: float | None, limits: VideoLimits) -> VideoReader:
    if isinstance(video, dict):
        video = video.get("bytes") or video.get("path")
    if is_image_list(video):
        return _FrameSequenceReader(video, fps, f"the list of {len(video)} images", limits)
    if isinstance(video, (np.ndarray, torch.Tensor)):
        name = f"the {type(video).__name__} {tuple(video.shape)}"
        return _FrameSequenceReader(_channels_last(video), fps, name, limits)
    if fps is not None:
        raise VideoError(
            f"fps={fps} belongs to arrays and lists of images; {_describe(video)} carries its own presentation times"
        )
    if hasattr(video, "get_frames_played_at"):
        return _DecoderReader(video, limits)
    if isinstance(video, (bytes, bytearray, memoryview)):
        if not len(video):
            raise VideoError("The video is empty (0 bytes)")
        return _FileReader(io.BytesIO(video), f"the video of {len(video)} bytes", limits)
    if isinstance(video, str) and video.lower().startswith(("http://", "https://")):
        file, name = download(video, limits)
        return _FileReader(file, name, limits, owned=True)
    if isinstance(video, (str, os.PathLike)):
        return _open_path(os.fspath(video), limits)
    if hasattr(video, "read"):
        return _open_file_object(video, limits)
    raise VideoError(
        "Expected a path, URL, bytes, binary file object, uint8 array or tensor, list of PIL images or torchcodec "
        f"decoder, found {_describe(video)}"
    )


def progress_over(parts: Sequence, name: str, unit: str) -> Iterable:
    """`parts` of the video of that name, with a bar on the standard error once they take longer than two seconds.

    There is none where transformers' bars are off (`transformers.utils.logging.disable_progress_bar`).
    """
    from transformers.utils import logging

    return logging.tqdm(parts, desc=name, unit=unit, delay=_BAR_AFTER, leave=False)


def uniform_times(num_frames: int, start: float, end: float) -> np.ndarray:
    """`num_frames` times from `start` to `end`, both included, in seconds: the grid of Eq. 1's masks.

    Returns: `float64` array `(num_frames,)`; a single frame is the one at `start`.
    """
    return np.linspace(start, end, num_frames)


class _FrameSequenceReader(VideoReader):
    """Frames in memory at a fixed rate: frame i is shown from i / fps to (i + 1) / fps."""

    def __init__(self, frames: Sequence, fps: float | None, name: str, limits: VideoLimits):
        super().__init__(name, limits)
        if not isinstance(fps, Real) or not np.isfinite(float(fps)) or fps <= 0:
            raise VideoError(f"Expected fps= (frames per second, above 0) with {name}, found fps={fps!r}")
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

    def __init__(self, decoder, limits: VideoLimits):
        super().__init__(f"the {type(decoder).__name__}", limits)
        metadata = decoder.metadata
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


class _Source:
    """A file as FFmpeg gets it.

    The content alone, so that no name is taken for an option, a URL, a pattern or a format; and for a place that cannot
    be, an error's number: PyAV raises the exceptions of files later, and elsewhere.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


class _FileReader(VideoReader):
    """A file through PyAV. One pass over the packets finds the true times, then frames are decoded from keyframes on.

    Headers are not trusted for times: Matroska and WebM often state neither duration nor frame count, and many files
    have a variable frame rate. Time zero is the start of the container.
    """

    def __init__(self, file: BinaryIO, name: str, limits: VideoLimits, owned: bool = False):
        super().__init__(name, limits)
        self._file = file
        self._owned = owned  # closed with the reader
        self._container = None
        self._decoded: Iterator = iter(())  # frames as the decoder gives them
        self._current = None  # latest frame at or before the last target, ...
        self._ahead = None  # ... and the one after it, if it had to be decoded
        self._position = _BEGINNING  # of the last packet given to the decoder, in file order
        self._all_from = -math.inf  # ticks from which every frame is decoded; before, those alone that others need
        self._array: tuple[int, np.ndarray] | None = None  # the last frame as RGB, with its time
        self._converter = None  # from the codec's pixels to RGB
        try:
            self._begin_work()
            self._open()
            self._stream_index = self._pick_stream()
            self._scan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._decoded, self._current, self._ahead, self._converter = iter(()), None, None, None
        if self._container is not None:
            self._container.close()
        if self._owned:
            self._file.close()

    def _begin_work(self) -> None:
        self._work_began = monotonic()

    def _open(self) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        if self._container is not None:
            self._container.close()
        self._converter = VideoReformatter()
        self._file.seek(0)
        # Decoders refuse larger frames before they allocate them, whatever the header says.
        decoder_options = {"max_pixels": str(self.limits.pixels)}
        try:
            self._container = av.open(
                _Source(self._file),
                # What no container of the list should do, opening something else, is not possible either.
                container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": ""},
                options=decoder_options,
                metadata_errors="replace",
                timeout=self.limits.work_seconds,
            )
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self.name}: no video that FFmpeg can read ({_reason(error)}). Is it a video, and complete? Containers "
                f"that are opened: {_CONTAINERS.replace(',', ', ')}"
            ) from None
        for stream in self._container.streams.video:
            if stream.codec_context:
                stream.codec_context.options = decoder_options

    @property
    def _stream(self):
        return self._container.streams[self._stream_index]

    def _pick_stream(self) -> int:
        """FFmpeg's choice among the video streams; cover pictures are none."""
        from av.stream import Disposition

        streams = self._container.streams
        codecs = {stream.index: stream.codec_context.name if stream.codec_context else None for stream in streams}
        videos = [stream for stream in streams.video if codecs[stream.index]]
        videos = [stream for stream in videos if not stream.disposition & Disposition.attached_pic]
        if not videos:
            found = [f"{stream.type} ({codecs[stream.index] or 'unknown codec'})" for stream in streams]
            raise VideoError(
                f"{self.name}: no video stream that can be decoded; found {', '.join(found) or 'no stream at all'}"
            )
        best = streams.best("video")
        best = best if best in videos else max(videos, key=lambda stream: stream.width * stream.height)
        self.limits.check_size(best.width, best.height, self.name)
        return best.index

    def _scan(self) -> None:
        """Read all packets, without decoding, for the times of the frames and the keyframes to start from."""
        container, stream = self._container, self._stream
        # Of the packets with a presentation time, in file order: that, the time to seek to, how long they are shown.
        times, seek_times, lengths = array("q"), array("q"), array("q")
        keys, discarded = bytearray(), bytearray()
        ends: dict[int, int] = {}  # of each stream
        num_untimed = 0
        for packet in self._read_packets(*container.streams):
            pts = _timestamp(packet)
            if not packet.size:
                continue
            if pts is None:
                num_untimed += 1
                continue
            length = packet.duration or 0
            ends[packet.stream_index] = max(ends.get(packet.stream_index, 0), pts + length)
            if packet.stream_index != stream.index:
                continue
            times.append(pts)
            # Demuxers seek by decoding or by presentation time: the smaller serves both.
            seek_times.append(pts if packet.dts is None else min(pts, packet.dts))
            lengths.append(length)
            keys.append(packet.is_keyframe)
            discarded.append(packet.is_discard)  # edit lists: decoded, but not shown
            self.limits.check("frames", len(times), self.name)
        self._seek_times = seek_times
        places = np.array(times, dtype=np.int64)
        self._by_time = np.argsort(places, kind="stable")  # places in the file, ...
        self._sorted_times = places[self._by_time]  # ... and the times to find them by
        keys, discarded = np.array(keys, dtype=bool)[self._by_time], np.array(discarded, dtype=bool)[self._by_time]
        self._key_times, self._key_positions = self._sorted_times[keys], self._by_time[keys]
        self._shown = np.unique(self._sorted_times[~discarded])
        if not len(self._shown):
            found = f"{num_untimed} packets without presentation times" if num_untimed else "no frames"
            raise VideoError(f"{self.name}: its video stream ({stream.codec_context.name}) holds {found}")
        tick = float(stream.time_base)
        start = 0.0 if container.start_time is None else container.start_time / 1e6
        self._times = self._shown * tick - start
        step = float(np.median(np.diff(self._times))) if len(self._times) > 1 else 1 / float(stream.average_rate or 25)
        last = float(lengths[self._place(int(self._shown[-1]))] * tick) or step
        self._end = self.duration = float(self._times[-1]) + last
        if not self._end > 0:
            raise VideoError(f"{self.name}: its frames end at {self._end} s, before its start")
        self.fps = len(self._shown) / self.duration
        # A header that promises clearly more than the file holds: the file is cut off.
        stated = 0.0 if container.duration is None else container.duration / 1e6
        found = max(float(end * container.streams[index].time_base) for index, end in ends.items()) - start
        if stated - max(found, self._end) > max(MAX_GAP, 0.05 * stated):
            self.duration = stated

    def _place(self, pts: int) -> int | None:
        """Place in the file of the packet shown at a time."""
        index = np.searchsorted(self._sorted_times, pts, side="right") - 1
        return int(self._by_time[index]) if index >= 0 and self._sorted_times[index] == pts else None

    def _read_packets(self, *streams) -> Iterator:
        """Packets up to the end of the file or to damage that stops the demuxer."""
        import av

        try:
            for packet in self._container.demux(*streams):
                yield packet
                self.limits.check("work_seconds", monotonic() - self._work_began, self.name)
        except (av.FFmpegError, OSError):
            return
        except IndexError:  # of PyAV at the end of a file, where it finds streams that were not there when it opened
            return

    def _frame_at(self, time: float) -> np.ndarray:
        if min(time, self.duration) > self._end + MAX_GAP:
            raise VideoError(
                f"{self.name}: a frame at {time:.2f} s was asked for, but the file ends after {self._end:.2f} s "
                f"({len(self._shown)} frames) of the {self.duration:.2f} s that its header states. Is it cut off?"
            )
        self._begin_work()
        index = np.searchsorted(self._times, time + _EPSILON, side="right") - 1
        frame = self._decode(int(self._shown[max(index, 0)]))
        if self._array is None:
            self._matrix = _display_matrix(frame)
        if self._array is None or self._array[0] != _timestamp(frame):
            rgb = self._converter.reformat(frame, format="rgb24").to_ndarray()
            self._array = _timestamp(frame), _upright(rgb, self._matrix)
        return self._array[1]

    def _decode(self, target: int):
        """The frame of presentation time `target` (in ticks), or what damage has left within `MAX_GAP` of it."""
        gap = int(MAX_GAP / self._stream.time_base)
        reached = None if self._current is None else _timestamp(self._current)
        nearest = self._keyframe_before(target)
        # Some keyframes give whole pictures only later (intra refresh, damage): then start at an earlier one, and
        # where that leaves nothing to show, at the beginning.
        found = []
        keys = dict.fromkeys([nearest, self._keyframe_before(max(target - gap, int(self._shown[0]))), _BEGINNING])
        # Frames that no other needs are passed over on the way; only what damage has left needs every one.
        for key, all_from in [(nearest, target), *((key, -math.inf) for key in keys)]:
            if key == _BEGINNING and found:
                break
            decode_on = all_from == target and reached is not None and reached <= target and key <= self._position
            if not decode_on:
                self._start_at(key)
            self._all_from = all_from
            self._advance(target)
            if self._current is not None and _timestamp(self._current) == target:
                return self._current
            near = [frame for frame in (self._current, self._ahead) if frame is not None]
            found += [frame for frame in near if abs(_timestamp(frame) - target) <= gap]
        if not found:
            asked = self._times[np.searchsorted(self._shown, target)]
            larger = (
                f"; frames of more than {self.limits.pixels:,} pixels are not (SAIL_MAX_PIXELS in the environment)"
            )
            raise VideoError(
                f"{self.name}: damaged; neither the frame at {asked:.2f} s nor any within {MAX_GAP:g} s of it can be "
                f"decoded ({len(self._shown)} frames over {self._end:.2f} s are listed)"
                # FFmpeg takes a size that is too large for none.
                f"{'' if self._stream.width else larger}"
            )
        before = [frame for frame in found if _timestamp(frame) <= target]
        return max(before, key=_timestamp) if before else min(found, key=_timestamp)

    def _keyframe_before(self, time: int) -> int:
        """Position of the last keyframe shown at or before `time` (frames after it never need older ones)."""
        index = np.searchsorted(self._key_times, time, side="right") - 1
        return int(self._key_positions[index]) if index >= 0 else _BEGINNING

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
            pts = _timestamp(packet)
            if not packet.size and pts is not None:
                continue  # an empty sample repeats the last frame; to the decoder it would mean the end
            position = None if pts is None else self._place(pts)
            if not started:
                if position is None or position < key:
                    continue
                if position > key:
                    return
                started = True
            self._position = self._position if position is None else position
            if self._stream.codec_context.name == "h264":  # whose packets say exactly which frames no other needs
                idle = pts is not None and pts < self._all_from
                self._stream.codec_context.skip_frame = "NONREF" if idle else "DEFAULT"
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


def _open_path(path: str | bytes, limits: VideoLimits) -> VideoReader:
    name = _printable(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoError(f"{name}: no such video file ({_reason(error)})") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{name}: expected a video file, found a folder")
    if not status.st_size:
        raise VideoError(f"{name}: the file is empty (0 bytes)")
    try:
        file = open(path, "rb")  # noqa: SIM115 (lives as long as its reader)
    except OSError as error:
        raise VideoError(f"{name}: the file cannot be opened ({_reason(error)})") from None
    return _FileReader(file, name, limits, owned=True)


def _open_file_object(file: BinaryIO, limits: VideoLimits) -> VideoReader:
    name = _printable(getattr(file, "name", None) or f"the {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise VideoError(f"{name}: expected a binary file object (open it with 'rb'), found one in text mode")
    if hasattr(file, "seekable") and file.seekable():
        if not file.seek(0, io.SEEK_END):
            raise VideoError(f"{name}: the file is empty (0 bytes)")
        return _FileReader(file, name, limits)
    return _FileReader(copy_to_temporary_file(file, name, limits), name, limits, owned=True)


def _display_matrix(frame) -> np.ndarray | None:
    """Display matrix (9 integers) of a PyAV frame."""
    from av.sidedata.sidedata import SideDataContainer

    # Not `frame.side_data`: that makes a circle, which only the garbage collector frees.
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
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


def _printable(name: Any) -> str:
    """A file's name, with escapes for what is no text in it."""
    name = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return name.encode("utf-8", "backslashreplace").decode()


def _describe(video: Any) -> str:
    return f"{str(video)!r}" if isinstance(video, (str, os.PathLike)) else f"an object of type {type(video).__name__}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(getattr(error, "reason", None) or error)
