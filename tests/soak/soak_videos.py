"""Opens thousands of damaged videos and counts what happens: `python tests/soak/soak_videos.py --count 5000`.

Every variant is made from a seed and its number: bits flipped, extreme numbers written into headers, parts cut out,
doubled, zeroed or exchanged between files. It is opened as bytes, as a file object or as a path, by a process of its
own with a limit on its memory and an alarm for each file. What may happen is frames or a `VideoError`; a crash, a hang
or any other exception is a defect, printed with the number by which `--only NUMBER` makes it again.
"""

import argparse
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent
SHARED = TESTS.parents[1] / "shared" / "videos"
# More than a process has before the first video is opened, in bytes.
MEMORY = 3 * 2**30
SECONDS_PER_FILE = int(os.environ.get("SOAK_SECONDS_PER_FILE", "30"))
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1000, 100_000_000]


def make_sources(folder: Path) -> list[Path]:
    """Small videos of many containers and codecs, and the real ones beside the checkout, where there are any."""
    sys.path.insert(0, str(TESTS))
    from numbered_video import render

    recipes = {
        "h264.mp4": {},
        "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
        "h264.mkv": {},
        "h264.ts": {},
        "h264.flv": {},
        "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
        "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
        "vp8.webm": {"codec": "libvpx"},
        "vp8.ogv": {"codec": "libvpx"},
        "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
        "mpeg2.mpg": {"codec": "mpeg2video"},
        "wmv.wmv": {"codec": "wmv2", "b_frames": 0},
        "ffv1.mkv": {"codec": "ffv1", "b_frames": 0},
        "mpeg2.mxf": {"codec": "mpeg2video", "fps": 25},
    }
    made = [render(folder / name, num_frames=30, **recipe) for name, recipe in recipes.items()]
    return made + sorted(file for file in SHARED.rglob("*") if file.is_file() and file.stat().st_size)


def variant(sources: list[bytes], seed: int, number: int) -> bytes:
    """The damaged video of a number."""
    draw = random.Random(f"{seed} {number}")
    source = draw.choice(sources)
    data = bytearray(source)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        size = len(data)
        begin = draw.randrange(size)
        length = draw.randrange(1, max(2, size // draw.choice([2, 10, 100])))
        kind = draw.choice(
            ["bits", "header bits", "numbers", "numbers", "cut", "end", "zeros", "double", "head", "splice"]
        )
        # Headers lie at the beginning or at the end.
        header = draw.choice([range(min(size, 4096)), range(max(0, size - 4096), size)])
        if kind in ("bits", "header bits"):
            places = range(size) if kind == "bits" else header
            for place in draw.choices(places, k=draw.choice([1, 10, 100, max(1, size // 1000)])):
                data[place] ^= 1 << draw.randrange(8)
        elif kind == "numbers":
            for place in draw.choices(header, k=draw.choice([1, 3, 10])):
                width = draw.choice([1, 2, 4, 8])
                order = draw.choice(["big", "little"])
                data[place : place + width] = (draw.choice(EXTREMES) % 256**width).to_bytes(width, order)
        elif kind == "cut":
            del data[begin : begin + length]
        elif kind == "end":
            del data[begin:]
        elif kind == "zeros":
            data[begin : begin + length] = bytes(length)
        elif kind == "double":
            data[begin:begin] = data[begin : begin + length]
        else:  # the head of one, the rest of another
            other = draw.choice(sources)
            place = draw.randrange(min(size, 4096)) if kind == "head" else begin
            data[place:] = other[draw.randrange(len(other)) if kind == "splice" else place :]
        if not data:
            break
    if data == source:
        data[0] ^= 1
    return bytes(data)


def work(folder: Path, seed: int, numbers: range) -> None:
    """Open variants, with a line before and a line after each; run by [`soak`] in a process of its own."""
    sources = [file.read_bytes() for file in make_sources(folder)]
    from sail_hf.video_reading import VideoError, VideoLimits, open_video, uniform_times

    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    limits = VideoLimits(work_seconds=SECONDS_PER_FILE / 4)
    path = folder / "variant"
    for number in numbers:
        print(json.dumps({"number": number}), flush=True)
        data = variant(sources, seed, number)
        path.write_bytes(data)
        begin = time.monotonic()
        signal.alarm(SECONDS_PER_FILE)
        try:
            with open(path, "rb") as file:
                kind = [data, io.BytesIO(data), file, path][number % 4]
                with open_video(kind, limits=limits) as reader:
                    num_frames = len(list(reader.frames_at(uniform_times(5, 0, reader.duration))))
            result = {"kind": "frames", "what": num_frames}
        except VideoError as error:
            result = {"kind": "refused", "what": str(error).encode("utf-8").decode()}
        except Exception as error:
            result = {"kind": "defect", "what": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        # Of this program alone: what getrusage says includes the process that started it.
        (held,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        peak = int(held.split()[1]) * 1024
        print(json.dumps({**result, "seconds": time.monotonic() - begin, "peak": peak}), flush=True)


def soak(numbers: range, seed: int = 0) -> dict:
    """Open the variants of these numbers.

    Returns: how many gave `frames` and were `refused`, `defects` (number and what happened), the longest time of a file in
        seconds, and the peak memory of a process in bytes.
    """
    counts, defects, longest, peak = Counter(), [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        while numbers:
            command = [sys.executable, __file__, "--work", folder, "--seed", str(seed), "--first", str(numbers.start)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE), *sys.path])}
            with subprocess.Popen(
                [*command, "--count", str(len(numbers))], stdout=subprocess.PIPE, text=True, env=environment
            ) as process:
                number = None
                for line in map(json.loads, process.stdout):
                    if "number" in line:
                        number = line["number"]
                        continue
                    longest, peak = max(longest, line["seconds"]), max(peak, line["peak"])
                    counts[line["kind"]] += 1
                    if line["kind"] == "defect":
                        defects.append((number, line["what"]))
                    numbers = range(number + 1, numbers.stop)
            if process.returncode:
                if number is None:
                    raise RuntimeError(f"The process that opens videos has ended with {process.returncode}.")
                hung = process.returncode == -signal.SIGALRM
                defects.append((number, "hang" if hung else f"crash: {process.returncode}"))
                numbers = range(number + 1, numbers.stop)
    return {
        "frames": counts["frames"],
        "refused": counts["refused"],
        "defects": defects,
        "longest_seconds": longest,
        "peak_bytes": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one variant, again")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.count) if args.only is None else range(args.only, args.only + 1)
    if args.work:
        return work(args.work, args.seed, numbers)
    begin = time.monotonic()
    found = soak(numbers, args.seed)
    print(
        f"{len(numbers)} damaged videos in {time.monotonic() - begin:.0f} s: {found['frames']} gave frames, "
        f"{found['refused']} were refused, {len(found['defects'])} defects. Longest: "
        f"{found['longest_seconds']:.1f} s. Peak memory of a process: {found['peak_bytes'] / 2**20:.0f} MiB."
    )
    for number, what in found["defects"]:
        print(f"--only {number}: {what}")
    sys.exit(bool(found["defects"]))


if __name__ == "__main__":
    main()
