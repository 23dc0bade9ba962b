"""Speed from video files to stored features against CLIP's forward pass alone, in one run.

    python tests/benchmarks/bench_extraction.py [--clip ViT-B-32] [--videos 8] [--frames 32]

The CLIP has random weights of an open_clip model's shape, the videos are made up (360p H.264, 2 minutes). Extraction is the
recipe's own, `training/extract_features.py`, captions included, with its reading ahead; the forward pass takes as many frames
that lie in memory, in batches of as many as it gives CLIP at a time. Both use all cores; wall seconds, the ratio is of videos a second.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "training"), str(ROOT / "training" / "playground"), str(Path(__file__).parent)]

import extract_features  # noqa: E402
from bench_reading import write_video  # noqa: E402
from stand_ins import write_clip  # noqa: E402
from work_folder import own_device  # noqa: E402

from sail_hf.clip_sail import load_clip  # noqa: E402
from sail_hf.data import write_json  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="ViT-B-32")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clip(args.clip, folder / "clip")
        (folder / "videos").mkdir()
        write_video(folder / "videos" / "video_0.mp4", 640, 360, 2)
        for number in range(1, args.videos):
            (folder / "videos" / f"video_{number}.mp4").hardlink_to(folder / "videos" / "video_0.mp4")
        row = {"duration": 120.0, "timestamps": [[0, 60], [60, 120]], "sentences": ["A bar rises.", "It falls."]}
        write_json(folder / "captions.json", {f"video_{number}": row for number in range(args.videos)})
        clip = load_clip(str(folder / "clip")).to(own_device())
        frames = torch.randn(args.frames, 3, 224, 224)
        clip.encode_images(frames)  # warm
        start = time.perf_counter()
        for _ in range(args.videos):
            clip.encode_images(frames)
        alone = time.perf_counter() - start
        start = time.perf_counter()
        extract_features.extract_features(
            extract_features.ExtractArguments(
                annotations=[str(folder / "captions.json")],
                videos=str(folder / "videos"),
                clip=str(folder / "clip"),
                output=str(folder / "features"),
                num_frames=args.frames,
            )
        )
        whole = time.perf_counter() - start
    print(f"\n{args.clip} with random weights, {args.videos} videos of {args.frames} frames, {clip.device}\n")
    print("| what | wall s | videos a second | share |\n|---|---:|---:|---:|")
    for title, seconds in (("forward pass alone", alone), ("files to stored features", whole)):
        print(f"| {title} | {seconds:.1f} | {args.videos / seconds:.2f} | {100 * alone / seconds:.0f} % |")


if __name__ == "__main__":
    main()
