"""Stretches of a video file as files of their own, copied without encoding where its key frames allow; and copies that
every browser plays."""

import heapq
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from .data import written_whole
from .video_reading import VideoError, VideoReader, open_video

# A copy begins with a key frame: with one at most this many seconds early, nothing is encoded anew.
MAX_LEAD = 1.0
# Endings whose containers a clip may have, and FFmpeg's names of them; Matroska holds what comes from others.
_CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


def clip_suffix(video: str | Path) -> str:
    """The ending of the clips of a video."""
    return suffix if (suffix := Path(video).suffix.lower()) in _CONTAINERS else ".mkv"


def cut_clip(video: str | Path, start: float, end: float, target: str | Path) -> str:
    """Write `start` to `end` seconds of a video file to `target` (of [`clip_suffix`]), whole or not at all.

    Streams are copied where a key frame lies at most `MAX_LEAD` seconds before the start: the clip begins with it. Else
    the picture is encoded anew from the start on (H.264, in WebM VP9; upright), and sound is copied.

    Returns:
        What was done, as a sentence without its subject: "copied from 3.20 s, 0.40 s early, at the key frame".

    Raises:
        ValueError: no stretch inside of the video. VideoError: a video that cannot be read, or be put into `target`.
    """
    import av

    # It opens containers that hold a video themselves and no others, so the file may be opened once more.
    with open_video(video) as reader, open(video, "rb") as file:
        if not 0 <= start < min(end, reader.duration):
            raise ValueError(
                f"{video}: expected a stretch within {reader.duration:.2f} s, found {start:g} to {end:g} s."
            )
        try:
            with av.open(file, metadata_errors="replace") as source, written_whole(target) as temporary:
                key = _key_frame(source, start)
                copies = start - key <= MAX_LEAD
                with av.open(str(temporary), "w", format=_CONTAINERS[Path(target).suffix]) as clip:
                    outputs = {one.index: clip.add_stream_from_template(one) for one in _streams(source, copies)}
                    if not copies:
                        for packet in _picture(reader, clip, start, min(end, reader.duration)):
                            clip.mux(packet)
                    _copy(source, outputs, key if copies else start, end)
        except (av.FFmpegError, StopIteration) as error:
            raise VideoError(f"{video}: no clip of it could be written: {error}") from error
    if not copies:
        return f"encoded anew from {start:.2f} s: the key frame before lies {start - key:.2f} s earlier"
    return f"copied from {key:.2f} s" + (
        f", {start - key:.2f} s early, at the key frame" if start - key > 0.005 else ""
    )


def _seek(source, start: float):
    """Go to the key frame at or before `start`. Returns the picture's stream, and time zero of the container."""
    stream = source.streams.best("video")
    begin = Fraction(source.start_time or 0, 1_000_000)
    source.seek(int((begin + Fraction(start)) / stream.time_base), stream=stream)
    return stream, begin


def _key_frame(source, start: float) -> float:
    """Seconds of the key frame at or before `start`, or of the first one."""
    stream, begin = _seek(source, start)
    packet = next(packet for packet in source.demux(stream) if packet.is_keyframe and packet.pts is not None)
    return float(packet.pts * stream.time_base - begin)


def _streams(source, with_picture: bool) -> list:
    """What is copied: the sound, and the picture."""
    sound = [stream for stream in source.streams.audio if stream.codec_context]
    return [source.streams.best("video"), *sound] if with_picture else sound


def _copy(source, outputs: dict, start: float, end: float) -> None:
    """The packets from `start` to `end` into the streams of `outputs`, which are by the index of their source."""
    if not outputs:
        return
    _, begin = _seek(source, start)
    left = set(outputs)
    for packet in source.demux([source.streams[index] for index in outputs]):
        index, base = packet.stream.index, packet.time_base
        if packet.dts is None or packet.pts is None or index not in left:
            continue
        if packet.dts * base >= begin + Fraction(end):
            left.discard(index)
            if not left:
                break
        elif packet.pts * base >= begin + Fraction(start) - base:
            offset = round((begin + Fraction(start)) / base)
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = outputs[index]
            outputs[index].container.mux(packet)


def plays_everywhere(video: str | Path) -> bool:
    """Whether a video file is what every browser plays: MP4 with H.264 of 8 bits, and AAC, MP3 or no sound.

    Raises:
        VideoError: a video that cannot be read.
    """
    import av

    with open_video(video), open(video, "rb") as file, av.open(file, metadata_errors="replace") as source:
        picture, sound = source.streams.best("video").codec_context, source.streams.audio
        return (
            Path(video).suffix.lower() in (".mp4", ".m4v")
            and (picture.name, picture.pix_fmt) in (("h264", "yuv420p"), ("h264", "yuvj420p"))
            and all(
                stream.codec_context and stream.codec_context.name in ("aac", "mp3float", "mp3") for stream in sound
            )
        )


def write_playable(video: str | Path, target: str | Path) -> None:
    """Encode a video file as one that every browser plays, whole or not at all: MP4, H.264 at its mean rate, upright, and
    AAC of its first sound, where that can be decoded.

    Raises:
        VideoError: a video that cannot be read or encoded.
    """
    import av

    with open_video(video) as reader, open(video, "rb") as file:
        try:
            with av.open(file, metadata_errors="replace") as source, written_whole(target) as temporary:
                options = {"movflags": "faststart"}
                with av.open(str(temporary), "w", format="mp4", options=options) as copy:
                    packets = [_picture(reader, copy, 0.0, reader.duration), _sound(source, copy)]
                    for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
                        copy.mux(packet)
        except av.FFmpegError as error:
            raise VideoError(f"{video}: no copy of it could be encoded: {error}") from error


def _picture(reader: VideoReader, clip, start: float, end: float) -> Iterator:
    """Packets of the picture from `start` to `end`, encoded anew at the video's mean rate, for a new stream of `clip`."""
    import av

    rate = Fraction(reader.fps).limit_denominator(1001)
    times = start + np.arange(max(1, round((end - start) * float(rate)))) / float(rate)
    made = clip.add_stream("libvpx-vp9" if clip.format.name == "webm" else "libx264", rate=rate)
    made.pix_fmt = "yuv420p"
    for number, image in enumerate(reader.frames_at(times)):
        height, width = (side // 2 * 2 for side in image.shape[:2])  # the codecs want even sides
        if not number:
            made.width, made.height = width, height
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        yield from made.encode(frame)
    yield from made.encode(None)


def _sound(source, clip) -> Iterator:
    """Packets of the first sound as AAC for a new stream of `clip`; what cannot be decoded is silent."""
    import av

    stream = next((one for one in source.streams.audio if one.codec_context), None)
    if stream is None:
        return
    made = clip.add_stream("aac", rate=48000)
    made.layout = "stereo"
    resampler = av.AudioResampler("fltp", "stereo", 48000)
    begin = Fraction(source.start_time or 0, 1_000_000)
    for packet in source.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        for frame in frames:
            if frame.pts is not None:
                frame.pts -= round(begin / frame.time_base)
            for part in resampler.resample(frame):
                yield from made.encode(part)
    yield from made.encode(None)
