"""Speed of reading 32 frames of a 10-minute H.264 video against what else reads videos, in one run.

    python tests/benchmarks/bench_reading.py [--minutes 10] [--repeats 3]

The videos are made up: a picture that drifts, 25 frames a second, a key frame every 10 s, at 360p and 1080p. They are read
by turns by `sail_hf`, by `transformers.video_utils.load_video` (PyAV, which decodes all frames) and by torchcodec, where it is
installed with FFmpeg's libraries. CPU and wall seconds are the least of the turns; the ratios are of CPU seconds. A profile
of `sail_hf` says how much of it is FFmpeg's decoding.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from results import calls
from transformers.video_utils import load_video

from sail_hf.video_reading import open_video, uniform_times

FRAMES, RATE, PIECE_SECONDS = 32, 25, 20
SIZES = {"360p": (640, 360), "1080p": (1920, 1080)}


def write_video(path: Path, width: int, height: int, minutes: float) -> None:
    """A piece of 20 s is encoded once, and its packets repeated."""
    small = np.random.default_rng(0).integers(0, 256, (height // 8 + 100, width // 8 + 100, 3), dtype=np.uint8)
    picture = small.repeat(8, 0).repeat(8, 1)
    piece, tick = path.with_suffix(".piece.mp4"), Fraction(1, RATE)
    with av.open(str(piece), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(10 * RATE), "preset": "superfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(PIECE_SECONDS * RATE):
            x, y = number % 700, (number * 2) % 700
            shown = np.ascontiguousarray(picture[y : y + height, x : x + width])
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts, frame.time_base = number, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path), "w") as output:
        copy = None
        for turn in range(round(minutes * 60 / PIECE_SECONDS)):
            with av.open(str(piece)) as container:
                source = container.streams.video[0]
                copy = copy or output.add_stream_from_template(source)
                for packet in container.demux(source):
                    if packet.dts is not None:
                        shift = int(turn * PIECE_SECONDS / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        output.mux(packet)
    piece.unlink()


def by_sail(path: str) -> int:
    with open_video(path) as reader:
        return sum(1 for _ in reader.frames_at(uniform_times(FRAMES, 0.0, reader.duration)))


def by_transformers(path: str) -> int:
    return len(load_video(path, num_frames=FRAMES, backend="pyav")[0])


def by_torchcodec(path: str) -> int:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, seek_mode="approximate")
    places = np.linspace(0, decoder.metadata.num_frames - 1, FRAMES).astype(int).tolist()
    return len(decoder.get_frames_at(places).data)


READERS: dict[str, Callable[[str], int]] = {
    "sail_hf": by_sail,
    "transformers (PyAV)": by_transformers,
    "torchcodec": by_torchcodec,
}


def measure(path: str, repeats: int, skipped: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Least CPU and wall seconds by reader; why one is not there goes into `skipped`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(repeats):
        for name, read in READERS.items():
            if turn and name not in found:
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            try:
                number = read(path)
            except (ImportError, RuntimeError) as error:
                skipped[name] = str(error).splitlines()[0]
                continue
            if number != FRAMES:
                raise ValueError(f"{name} gave {number} frames of {FRAMES}")
            found.setdefault(name, []).append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: (min(of[0] for of in times), min(of[1] for of in times)) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("| video | reader | CPU s | wall s | times the CPU of sail_hf |\n|---|---|---:|---:|---:|")
    profiles, skipped = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            path = Path(folder, f"{name}.mp4")
            write_video(path, *size, args.minutes)
            times = measure(str(path), args.repeats, skipped)
            for reader, (cpu, wall) in times.items():
                print(f"| {name} | {reader} | {cpu:.2f} | {wall:.2f} | {cpu / times['sail_hf'][0]:.2f} |")
            profiles.append(
                f"{name}, sail_hf, shares of the time by cProfile: {calls(lambda path=path: by_sail(str(path)))}."
            )
    notes = [f"{reader} skipped: {reason}" for reader, reason in skipped.items()]
    print("\n" + "\n\n".join([*profiles, *notes]))


if __name__ == "__main__":
    main()
