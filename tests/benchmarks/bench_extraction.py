"""Speed from video files to stored features against CLIP's forward pass alone, in one run.

    python tests/benchmarks/bench_extraction.py [--clips ViT-B-32 ViT-L-14] [--videos 8 2] [--frames 32]

The CLIPs have random weights of an open_clip model's shape, the videos are made up (360p H.264, 2 minutes). Extraction is the
recipe's own, `training/extract_features.py`, captions included, with its reading ahead; the forward pass takes as many frames
that lie in memory, in batches of as many as it gives CLIP at a time. Both use all cores; wall seconds, the share is of videos a
second. A run loads CLIP once, and writes one file at its end: the rate after loading is that of many videos. What bounds it is
said from each part alone, in CPU seconds: on a CPU all parts want the same cores, so reading ahead hides none of them.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "training"), str(ROOT / "training" / "playground"), str(Path(__file__).parent)]

from bench_reading import write_video  # noqa: E402
from extract_features import ExtractArguments, check_names, make_extractor, write_split  # noqa: E402
from results import Seconds, Table, timed  # noqa: E402
from stand_ins import write_clip  # noqa: E402
from work_folder import WorkFolder  # noqa: E402

from sail_hf.data import write_json  # noqa: E402

CAPTIONS = ["A bar rises.", "It falls."]


def measure(folder: Path, clip: str, videos: int, frames: int) -> dict[str, Seconds]:
    """Seconds of an extraction in its parts, and of what is done for a video, each alone."""
    write_clip(clip, folder / "clip")
    (folder / "videos").mkdir()
    write_video(video := folder / "videos" / "video_0.mp4", 640, 360, 2)
    for number in range(1, videos):
        (folder / "videos" / f"video_{number}.mp4").hardlink_to(video)
    row = {"duration": 120.0, "timestamps": [[0, 60], [60, 120]], "sentences": CAPTIONS}
    write_json(folder / "captions.json", {f"video_{number}": row for number in range(videos)})
    args = ExtractArguments(
        annotations=[str(folder / "captions.json")],
        videos=str(folder / "videos"),
        clip=str(folder / "clip"),
        output=str(folder / "features"),
        num_frames=frames,
    )
    made = {}
    found = {"loading": timed(lambda: made.update(rows=check_names(args)["train"], work=WorkFolder(args.output)))}
    loading = timed(lambda: made.update(extractor=make_extractor(args, made["work"])))
    found["loading"] = Seconds(*map(sum, zip(found["loading"], loading, strict=True)))
    extractor, source = made["extractor"], made["extractor"].source
    pixels = torch.randn(frames, 3, 224, 224)
    clip_alone = extractor.clip.encode_images
    clip_alone(pixels[:2])  # warm
    found["forward"] = timed(lambda: [clip_alone(pixels) for _ in range(videos)])
    for name, work in {
        "reading and decoding": lambda: source.read(video),
        "captions through CLIP": lambda: extractor.clip.encode_texts(CAPTIONS),
    }.items():
        work()  # warm
        found[name] = timed(work)
    made["work"].path.mkdir(parents=True)
    found["steady"] = timed(lambda: made.update(done=extractor.extract_split(made["rows"], args.num_workers, "train")))
    done, skipped = made["done"]
    if skipped:
        raise SystemExit(f"videos were skipped: {skipped}")
    found["writing"] = timed(lambda: write_split(done, made["work"], folder / "train-00000-of-00001.parquet"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--videos", type=int, nargs="+", default=[8, 2], help="for each CLIP")
    parser.add_argument("--frames", type=int, default=32)
    args = parser.parse_args()
    print(f"{args.frames} frames a video, {torch.get_num_threads()} threads\n")
    table = Table(
        "CLIP", "videos", "loading, s", "forward alone, videos/s", "after loading: videos/s, share", "in all"
    )
    bounds = []
    for clip, videos in zip(args.clips, args.videos, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), clip, videos, args.frames)
        forward, steady = found["forward"].wall, found["steady"].wall
        whole = found["loading"].wall + steady + found["writing"].wall
        shares = [f"{videos / seconds:.3g}, {100 * forward / seconds:.0f} %" for seconds in (steady, whole)]
        table.row(clip, videos, f"{found['loading'].wall:.1f}", f"{videos / forward:.3g}", *shares)
        parts = {
            "frames through CLIP": found["forward"].cpu / videos,
            **{name: found[name].cpu for name in ("reading and decoding", "captions through CLIP")},
        }
        listed = ", ".join(f"{name} {cpu:.2f}" for name, cpu in parts.items())
        bound = 100 * parts["frames through CLIP"] / sum(parts.values())
        bounds.append(
            f"{clip}, CPU seconds a video, each part alone: {listed}. So a share of {bound:.0f} % is the most."
        )
    print("\n" + "\n\n".join(bounds))


if __name__ == "__main__":
    main()
