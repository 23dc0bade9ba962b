"""Memory and time of a long video: of captioning, as it grows from 3 minutes to 3 hours.

    python tests/benchmarks/bench_long_videos.py [--seconds 180 10800]

A tiny random model (8 frames, chunks of a minute) captions H.264 videos of noise, 64 x 36 at 2 frames a second, each way in a
process of its own: event by event as `pipe.stream` gives them, with and without alignment to 2 frames a second, and as the
pipeline's list. Printed are the highest resident size of the process, and how many seconds pass until the first events come
and until the last ones.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
FPS = 2
ALIGNED = {"localization": "alignment", "frames_per_second": 2}


def write_video(path: Path, seconds: int) -> None:
    import av
    import numpy as np

    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        for _ in range(seconds * FPS):
            image = noise.integers(0, 256, (36, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def save_model(folder: Path) -> None:
    from tiny import make_clip, make_model, make_processor

    clip, processor = make_clip(folder / "clip"), make_processor()
    clip.vision_config.include_text_tower = True
    model = make_model(processor, vision_config=clip.vision_config)
    model.generation_config.update(num_beams=1, max_new_tokens=5, full_max_new_tokens=10)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


WAYS = {
    "stream": lambda pipe, video: pipe.stream(video),
    "stream, aligned": lambda pipe, video: pipe.stream(video, **ALIGNED),
    "list": lambda pipe, video: iter([pipe(video)]),
}


def measured(way: str, model: Path, video: Path) -> None:
    from transformers import pipeline

    import sail_hf  # noqa: F401  (registers the task)

    pipe = pipeline("dense-video-captioning", model=str(model))
    began, first, count = time.monotonic(), None, 0
    for events in WAYS[way](pipe, str(video)):
        count += len(events)
        first = first or (time.monotonic() - began if events else None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{video.stem:>7} s  {way:<16} {peak:>6.0f} MB {count:>7} {first or 0:>9.1f} s {time.monotonic() - began:>8.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[180, 3 * 3600])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measured(args.measure[0], *map(Path, args.measure[1:]))
    print(f"{'length':>9}  {'way':<16} {'peak':>9} {'events':>7} {'first':>11} {'all':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder, "model"))
        for seconds in args.seconds:
            write_video(video := Path(folder, f"{seconds}.mp4"), seconds)
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", way, str(Path(folder, "model")), str(video)]
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
