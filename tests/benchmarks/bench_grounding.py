"""What evidence for each word costs: CPU seconds of a training step, of captioning and of CLIP, and bytes of features, as ratios.

    python tests/benchmarks/bench_grounding.py [--repeats 3]

Random weights of DistilGPT2's shape and a random CLIP of ViT-B-16's vision tower; ActivityNet's numbers of frames (32) and patches
(196 of 16 pixels), 4 events a video. With and without the head, in turns, in one process; the least of the repeats counts.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
FRAMES, PATCHES, SIZE, EVENTS, LENGTH, VIDEOS = 32, 196, 512, 4, 24, 2


def made(grounding: bool):
    import torch

    from sail_hf import SailConfig, SailForDenseVideoCaptioning

    torch.manual_seed(0)
    config = SailConfig(feature_size=SIZE, num_frames=FRAMES, grounding=grounding)
    return SailForDenseVideoCaptioning(config)


def batch_of(grounding: bool):
    import torch

    torch.manual_seed(0)
    ids = torch.randint(0, 50000, (VIDEOS, EVENTS, LENGTH))
    batch = {
        "video_features": torch.randn(VIDEOS, FRAMES, SIZE),
        "num_events": torch.full((VIDEOS,), EVENTS),
        "full_labels": torch.randint(0, 50000, (VIDEOS, EVENTS * LENGTH)),
        "event_labels": ids,
        "complement_labels": torch.randint(0, 50000, (VIDEOS, EVENTS, (EVENTS - 1) * LENGTH)),
        "caption_features": torch.randn(VIDEOS, EVENTS, SIZE),
    }
    if grounding:
        batch["region_features"] = torch.randn(VIDEOS, FRAMES, PATCHES, SIZE).half()
        targets = torch.zeros(VIDEOS * EVENTS, LENGTH, FRAMES, PATCHES)
        targets[:, 6:10, :, :40] = 0.8
        batch["grounding_targets"] = targets
    return batch


def training_step(grounding: bool) -> Callable[[], None]:
    model, batch = made(grounding).train(), batch_of(grounding)

    def step() -> None:
        model.zero_grad()
        model(**batch).loss.backward()

    return step


def captioning(grounding: bool) -> Callable[[], None]:
    import torch

    model, batch = made(grounding).eval(), batch_of(grounding)
    given = {name: batch[name] for name in ("video_features", "region_features") if name in batch}
    lengths = {"min_new_tokens": LENGTH, "max_new_tokens": LENGTH}
    return lambda: model.generate(**given, num_events=torch.full((VIDEOS,), EVENTS), **lengths)


def encoding(grounding: bool) -> Callable[[], None]:
    import open_clip
    import torch

    from sail_hf.clip_towers import encode_with_patches

    torch.manual_seed(0)
    tower, frames = (
        open_clip.create_model("ViT-B-16", force_custom_text=True).visual.eval(),
        torch.randn(FRAMES, 3, 224, 224),
    )
    return torch.no_grad()(lambda: encode_with_patches(tower, frames) if grounding else tower(frames))


def least_seconds(functions: list[Callable[[], None]], repeats: int) -> list[float]:
    """CPU seconds of each function, in turns."""
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):  # the first warms up
        for function, seconds in zip(functions, found, strict=True):
            began = time.process_time()
            function()
            seconds.append(time.process_time() - began)
    return [min(seconds[1:]) for seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("| a video | without | with the head | ratio |\n|---|---:|---:|---:|", flush=True)
    ways = {
        "a training step": (training_step, VIDEOS),
        "captioning, beam 4": (captioning, VIDEOS),
        "CLIP": (encoding, 1),
    }
    for name, (make, videos) in ways.items():
        without, with_head = (x / videos for x in least_seconds([make(False), make(True)], args.repeats))
        print(f"| {name}, CPU s | {without:.2f} | {with_head:.2f} | {with_head / without:.2f} |", flush=True)
    frames, regions = 2 * FRAMES * SIZE, 2 * FRAMES * PATCHES * SIZE
    print(
        f"| stored features, MB | {frames / 1e6:.3f} | {(frames + regions) / 1e6:.3f} | {1 + regions / frames:.0f} |"
    )


if __name__ == "__main__":
    main()
